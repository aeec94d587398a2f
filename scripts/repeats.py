#!/usr/bin/env python3
"""How often a model says the same again: the share of four words in a row that stood in the same text before.

  repeats.py MODEL TEXT    MODEL goes on after the first six words of each of the first 50 texts of TEXT,
                           with seed 1, at temperature 0.7, for up to 200 tokens. A blank line divides texts.

Prints the share for the model's texts and for TEXT's own.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import gguf_moe

N_WORDS, N_OPENING, N_TEXTS = 4, 6, 50
MAX_TOKENS, TEMPERATURE, SEED = 200, 0.7, 1


def share_of_repeats(texts: list[str]) -> float:
    repeated = total = 0
    for text in texts:
        words = re.findall(r"[a-z']+", text.lower())
        rows = [tuple(words[i : i + N_WORDS]) for i in range(len(words) - N_WORDS + 1)]
        repeated, total = repeated + len(rows) - len(set(rows)), total + len(rows)
    return repeated / total


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, metavar="MODEL")
    p.add_argument("text", type=Path, metavar="TEXT")
    args = p.parse_args()
    texts = args.text.read_text(encoding="utf-8").strip().split("\n\n")
    written, counts = [], []
    with gguf_moe.load(args.model) as model:
        for text in texts[:N_TEXTS]:
            opening = " ".join(text.split()[:N_OPENING])
            generation = model.generate(opening, max_tokens=MAX_TOKENS, temperature=TEMPERATURE, seed=SEED)
            written.append(opening + "".join(piece.text for piece in generation))
            counts.append(len(generation.result.token_ids))
    print(f"model: {share_of_repeats(written):.2%}, {min(counts)}-{max(counts)} tokens a text")
    print(f"text:  {share_of_repeats(texts):.2%}")


if __name__ == "__main__":
    main()
