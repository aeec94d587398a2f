"""A long prompt is computed once and kept in a file: python examples/session.py [FILE]"""

import sys
import tempfile
from pathlib import Path

import gguf_moe
from gguf_moe.cli.common import DEMO_MODEL

PROMPT = "Once upon a time there was a baker who lived at the end of a long street."
path = sys.argv[1] if len(sys.argv) > 1 else DEMO_MODEL

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "baker.session"
    with gguf_moe.load(path) as model:
        list(model.generate(PROMPT, max_tokens=0))
        print(model.save_session(file), "tokens kept")
    with gguf_moe.load(path) as model:
        model.load_session(file)
        generation = model.generate(PROMPT + " One day", max_tokens=20, seed=1)
        print("".join(piece.text for piece in generation))
        print(generation.result.n_reused, "tokens were not computed again")
