"""Chat templates for files that bring none."""

MISTRAL = """{{ bos_token }}
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = message.content + '\\n\\n' %}
    {%- elif message.role == 'user' %}
        {{- '[INST] ' + ns.system + message.content + ' [/INST]' }}
        {%- set ns.system = '' %}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}"""
"""Of Mistral's and Mixtral's first instruction models."""

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
"""For a vocabulary that has CHATML_TOKENS as control tokens."""

PLAIN = """
{%- for message in messages %}
    {{- message.content }}
    {%- if message.role != 'user' %}{{ '\\n\\n' }}{% endif %}
{%- endfor %}"""
"""For models that only continue texts: user and model write one text in turn."""
