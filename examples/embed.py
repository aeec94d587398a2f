"""A model inside a program: python examples/embed.py [FILE]"""

import sys

import gguf_moe
from gguf_moe.cli.common import DEMO_MODEL

with gguf_moe.load(sys.argv[1] if len(sys.argv) > 1 else DEMO_MODEL) as model:
    for piece in model.generate("Once upon a time", max_tokens=40, temperature=0.7, seed=1):
        print(piece.text, end="", flush=True)
    print()
    print(model.stats()["totals"]["generated_tokens"], "tokens")
