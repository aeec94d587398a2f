"""Tools, and a model that is told of them."""

from pathlib import Path

from gguf_moe.prompts import Prompts
from gguf_moe.text.chat_template import ChatTemplate

FIXTURE = Path(__file__).parent.parent / "fixtures" / "fixture-bpe.Q4_K_M.gguf"
TEMPLATE = """
{%- for tool in tools or [] %}<tools>{{ tool | tojson }}</tools>{% endfor %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
LEVEL = {"type": "object", "properties": {"level": {"type": "integer", "maximum": 99, "minimum": 0}}}
TOOLS = [
    {"type": "function", "function": {"name": "lamp", "parameters": {**LEVEL, "required": ["level"]}}},
    {"type": "function", "function": {"name": "bell", "parameters": {"type": "object", "properties": {}}}},
]


def with_tools(model):
    """The model, whose chat template now tells of tools."""
    template = ChatTemplate(TEMPLATE, bos_token="", eos_token="")
    model.prompts = Prompts(model.path, model.tokenizer, template)
    return model
