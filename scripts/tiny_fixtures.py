#!/usr/bin/env python3
"""Store what llama.cpp makes of the tiny file of each architecture (tiny_models.py), for tests without it.

  python scripts/tiny_fixtures.py --peer-python PEER OUTDIR [ARCHITECTURE ...]

The files themselves are made again by the tests. tests/fixtures/README.md describes the arrays.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp_peer import N_CTX, Job, ask_run, ask_vocabulary
from measures import difference
from tiny_models import TINY, digest, write_tiny

N_LOGITS, N_SEQUENCES, N_PROMPTS, N_PROMPT = 64, 4, 3, 12
TEXTS = Path(__file__).parents[1] / "tests" / "text" / "data" / "qwen2.inp"
SEPARATOR = "\n__ggml_vocab_test__\n"


def texts() -> list[str]:
    """llama.cpp's own test texts, without the empty one."""
    return [text for text in TEXTS.read_bytes().decode().split(SEPARATOR) if text]


def random_ids(n_vocab: int) -> np.ndarray:
    """Token ids, int64 [N_SEQUENCES, N_CTX]; none of the last four, which may be special."""
    raw = np.random.SFC64(0).random_raw(N_SEQUENCES * N_CTX) % np.uint64(n_vocab - 4)
    return raw.astype(np.int64).reshape(N_SEQUENCES, N_CTX)


def late_ids(n_vocab: int, position: int) -> list[int]:
    """Token ids up to N_LOGITS // 2 after a position."""
    raw = np.random.SFC64(1).random_raw(position + N_LOGITS // 2) % np.uint64(n_vocab - 4)
    return raw.astype(np.int64).tolist()


def fixture(arch: str, python: str, directory: Path) -> dict[str, Any]:
    """The arrays of one architecture."""
    f32 = write_tiny(arch, directory / f"{arch}.F32.gguf")
    quantized = write_tiny(arch, directory / f"{arch}.quantized.gguf", quantized=True)
    vocabulary = ask_vocabulary(python, f32, texts(), directory / f"{arch}.vocabulary")
    n_vocab = vocabulary["n_vocab"]
    sequences = random_ids(n_vocab).tolist()
    prompts = [ids[:N_PROMPT] for ids in sequences[:N_PROMPTS]]
    job = Job(
        model=str(f32),
        kv_type="f32",
        n_batch=N_CTX,
        threads=2,
        sequences=sequences,
        n_kept=N_SEQUENCES,
        score=False,
        prompts=prompts,
    )
    truth = ask_run(python, job, directory / f"{arch}.truth")
    job = replace(job, prompts=[])
    late = {}
    if position := TINY[arch].late:
        ids = late_ids(n_vocab, position)
        run = ask_run(python, replace(job, sequences=[ids], n_ctx=len(ids)), directory / f"{arch}.late")
        late["late_logits"] = np.load(run.logits[0])[-N_LOGITS:]
    job = replace(job, model=str(quantized), kv_type="f16")
    arrays: dict[str, Any] = {
        "version": vocabulary["version"],
        "digest": digest(f32),
        "quantized_digest": digest(quantized),
        "text_ids": np.concatenate([np.array(ids, np.int16) for ids in vocabulary["ids"]]),
        "text_lengths": np.array([len(ids) for ids in vocabulary["ids"]], np.int16),
        "ids": np.array(sequences, np.int16),
        "logits": np.load(truth.logits[0])[:N_LOGITS],
    }
    arrays |= {f"greedy_{i}": np.array(ids, np.int16) for i, ids in enumerate(truth.greedy)}
    arrays |= late
    for n_batch in (N_CTX, 1):
        run = ask_run(python, replace(job, n_batch=n_batch), directory / f"{arch}.{n_batch}")
        arrays[f"mean_kl_batch_{n_batch}"] = difference(truth.logits, run.logits).mean_kl
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("outdir", type=Path, metavar="OUTDIR")
    parser.add_argument("architectures", nargs="*", metavar="ARCHITECTURE", help="all if none is named")
    parser.add_argument(
        "--peer-python", default=sys.executable, metavar="PYTHON", help="has llama-cpp-python"
    )
    args = parser.parse_args()
    args.outdir.mkdir(parents=True, exist_ok=True)
    for arch in args.architectures or TINY:
        with tempfile.TemporaryDirectory(prefix="tiny-fixtures-") as directory:
            arrays = fixture(arch, args.peer_python, Path(directory))
        path = args.outdir / f"{arch}.npz"
        np.savez_compressed(path, **arrays)
        kl = ", ".join(f"{arrays[f'mean_kl_batch_{n}']:.2e}" for n in (N_CTX, 1))
        deviation = arrays["logits"].std()
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB, logits' deviation {deviation:.2f}, mean KL {kl}")


if __name__ == "__main__":
    main()
