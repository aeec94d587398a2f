#!/usr/bin/env python3
"""Cut a vocabulary down to what llama.cpp's own test texts can need, and store it with their ids.

  python scripts/cut_vocabulary.py LLAMA_CPP/models/ggml-vocab-NAME.gguf ... tests/text/data

A merge can take part in a text only if what it makes occurs in the text. So the texts have the same ids by
the whole vocabulary and by the tokens and merges that occur in them, whatever cuts the texts into words.
NAME.cut.json holds those, with the ids of the whole vocabulary; texts go to NAME.inp, their ids to NAME.out.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from gguf_moe.checkpoint import Metadata, open_checkpoint
from gguf_moe.text.bpe import byte_level_alphabet

SEPARATOR = "\n__ggml_vocab_test__\n"
BYTE = 6  # the token_type of tokens such as <0x0A>


def spellings(texts: list[str]) -> str:
    """All texts in each way that tokens are written: as they are, with U+2581 for a space, byte by byte."""
    letter = {byte: char for char, byte in byte_level_alphabet().items()}
    plain = "\0".join(f" {text} " for text in texts)
    return "\0".join((plain, plain.replace(" ", "\u2581"), "".join(letter[byte] for byte in plain.encode())))


def cut(metadata: Metadata, texts: list[str]) -> dict[str, Any]:
    """The keys of the tokenizer, with only those tokens and merges that occur in the texts."""
    values: dict[str, Any] = {}
    for key in metadata:
        if key.startswith("tokenizer.ggml."):
            value = metadata[key]
            values[key.removeprefix("tokenizer.ggml.")] = (
                value.tolist() if isinstance(value, np.ndarray) else value
            )
    tokens, types = values.pop("tokens"), values.pop("token_type")
    scores, merges = values.pop("scores", None), values.pop("merges", None)
    written, letters = spellings(texts), set(byte_level_alphabet())
    kept = [i for i, text in enumerate(tokens) if types[i] == BYTE or text in letters or text in written]
    ids = {name: value for name, value in values.items() if name.endswith("token_id")}
    kept = sorted({*kept, *(i for i in ids.values() if 0 <= i < len(tokens))})
    values |= {"n_vocab": len(tokens), "id": kept}
    values |= {"tokens": [tokens[i] for i in kept], "token_type": [types[i] for i in kept]}
    if scores is not None:
        values["scores"] = [scores[i] for i in kept]
    if merges is not None:
        made = (merge[0] + merge[1:].replace(" ", "", 1) for merge in merges)
        values["merges"] = [merge for merge, text in zip(merges, made, strict=True) if text in written]
    return values


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vocabularies", nargs="+", type=Path, metavar="VOCABULARY")
    parser.add_argument("outdir", type=Path, metavar="OUTDIR")
    args = parser.parse_args()
    for path in args.vocabularies:
        name = path.stem.removeprefix("ggml-vocab-")
        texts = Path(f"{path}.inp").read_bytes().decode().split(SEPARATOR)
        with open_checkpoint(path) as checkpoint:
            values = cut(checkpoint.metadata, texts)
        out = args.outdir / f"{name}.cut.json"
        out.write_text(json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
        for suffix in ("inp", "out"):
            shutil.copyfile(f"{path}.{suffix}", args.outdir / f"{name}.{suffix}")
        print(f"{out}: {len(values['id'])} of {values['n_vocab']} tokens, {out.stat().st_size / 1e3:.1f} kB")


if __name__ == "__main__":
    main()
