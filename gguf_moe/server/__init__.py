"""A model behind OpenAI's HTTP protocol. Needs the extra `server`: starlette and uvicorn."""
