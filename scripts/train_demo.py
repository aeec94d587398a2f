#!/usr/bin/env python3
"""Make the bundled demo model again, from the text to the quantized file.

  train_demo.py sample DIR SMOLLM2     SmolLM2-135M-Instruct writes into outlines (GPU)
  train_demo.py collect DIR            the good texts, each once: train.txt and held-out.txt
  train_demo.py vocabulary DIR         a byte-level BPE vocabulary of at most 4096 tokens
  train_demo.py train DIR              the mixture of experts (GPU)
  train_demo.py export DIR             demo.F32.gguf and demo.gguf (Q4_K_M, by llama.cpp)
  train_demo.py plot DIR               demo-training.png

DIR holds all results; a stage needs those of the stages before it. `sample` and `train` stop after --seconds
and go on there when they are called again. SMOLLM2 is the file that `make_model.py smollm2` writes.
Packages: the project, gguf and numpy always; torch to sample; torch and tokenizers to train; tokenizers for
the vocabulary; torch and llama-cpp-python to export; matplotlib to plot.
"""

from __future__ import annotations

import argparse
from pathlib import Path

SEED = 1


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("stage", choices=["sample", "collect", "vocabulary", "train", "export", "plot"])
    p.add_argument("dir", type=Path, metavar="DIR")
    p.add_argument("smollm2", type=Path, nargs="?", metavar="SMOLLM2")
    p.add_argument("--device", default="cuda", help="cuda (the default) or cpu")
    p.add_argument("--seconds", type=float, default=240, help="of sampling, or at most of training (240)")
    p.add_argument("--batch", type=int, default=4096, help="texts sampled at once (4096)")
    p.add_argument("--tokens", type=float, default=270e6, help="to train on, with repetitions (270e6)")
    args = p.parse_args()
    if args.stage == "sample" and args.smollm2 is None:
        raise SystemExit("sample needs SMOLLM2, the file of the model that writes the text")
    run(args)


def run(args: argparse.Namespace) -> None:
    """One stage. Its packages are only imported here."""
    folder: Path = args.dir
    train_text, held_out = folder / "train.txt", folder / "held-out.txt"
    vocabulary = folder / "vocabulary.json"
    if args.stage in ("sample", "collect"):
        from demo import text

        if args.stage == "sample":
            text.sample(args.smollm2, folder / "text", args.device, args.seconds, args.batch, SEED)
        else:
            text.collect(folder / "text", train_text, held_out, SEED)
    elif args.stage == "vocabulary":
        from demo.vocabulary import make_vocabulary

        make_vocabulary(train_text, vocabulary)
    elif args.stage == "train":
        from demo.train import train

        train(train_text, held_out, vocabulary, folder, args.device, args.tokens, args.seconds, SEED)
    elif args.stage == "export":
        from demo.export import export

        export(folder / "model.pt", vocabulary, folder / "demo.F32.gguf", folder / "demo.gguf")
    else:
        from demo.plot import plot

        plot(folder / "demo-training.csv", folder / "routing.json", folder / "demo-training.png")


if __name__ == "__main__":
    main()
