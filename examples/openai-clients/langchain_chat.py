"""LangChain with a model behind `gguf-moe serve`: python langchain_chat.py [BASE_URL]"""

import sys

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

base_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080/v1"
model = ChatOpenAI(base_url=base_url, api_key="none", model="any", max_tokens=40, temperature=0)
prompt = ChatPromptTemplate.from_messages([("system", "You are brief."), ("user", "Tell me about {what}.")])

for part in (prompt | model).stream({"what": "rivers"}):
    print(part.content, end="", flush=True)
print()
