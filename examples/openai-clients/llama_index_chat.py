"""LlamaIndex with a model behind `gguf-moe serve`: python llama_index_chat.py [BASE_URL]"""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

base_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080/v1"
model = OpenAILike(
    api_base=base_url, api_key="none", model="any", is_chat_model=True, max_tokens=40, temperature=0
)

messages = [
    ChatMessage(role="system", content="You are brief."),
    ChatMessage(content="Tell me about rivers."),
]
for part in model.stream_chat(messages):
    print(part.delta, end="", flush=True)
print()
