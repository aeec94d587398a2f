"""Runs of llama.cpp, through llama-cpp-python in an environment of its own.

`ask` starts this file as a worker under the peer's interpreter; request, answer and logits pass through a
directory. So nothing of gguf_moe is imported here, and llama_cpp only in the worker.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measures import negative_log_likelihood

N_CTX = 512
MAX_TOKENS = 64


@dataclass(frozen=True)
class Job:
    """What one run of one model has to do."""

    model: str
    kv_type: str  # "f16", "f32" or "q8_0"
    n_batch: int
    threads: int
    sequences: list[list[int]]  # token ids, each for a fresh context
    n_kept: int  # the logits of this many sequences are stored
    score: bool  # whether the second half of each sequence is scored, for the perplexity
    prompts: list[list[int]]  # token ids to continue greedily
    n_ctx: int = N_CTX


@dataclass(frozen=True)
class Run:
    """What came out of a job."""

    logits: list[Path]  # .npy files of float32 [n, n_vocab], one per stored sequence
    nll: float  # negative log-likelihood, summed over the scored tokens
    greedy: list[list[int]]  # up to MAX_TOKENS per prompt


def carry_out(
    job: Job, out: Path, logits: Callable[[list[int]], np.ndarray], greedy: Callable[[list[int]], list[int]]
) -> Run:
    """Do the job with one side's two functions; both sides come through here."""
    paths: list[Path] = []
    nll = 0.0
    for i, ids in enumerate(job.sequences):
        values = logits(ids)
        if i < job.n_kept:
            paths.append(out / f"{i}.npy")
            np.save(paths[-1], values)
        if job.score:
            nll += negative_log_likelihood(values, ids)
    return Run(paths, nll, [greedy(ids) for ids in job.prompts])


def ask_vocabulary(python: str, model: Path, texts: list[str], directory: Path) -> dict[str, Any]:
    """What `vocabulary` below returns."""
    return _ask(python, {"model": str(model), "texts": texts}, directory)


def ask_run(python: str, job: Job, directory: Path) -> Run:
    answer = _ask(python, {"job": asdict(job)}, directory)
    return Run([Path(path) for path in answer["logits"]], answer["nll"], answer["greedy"])


def _ask(python: str, request: dict[str, Any], directory: Path) -> dict[str, Any]:
    directory.mkdir()
    (directory / "request.json").write_text(json.dumps(request))
    worker = subprocess.run([python, __file__, str(directory)], stderr=subprocess.PIPE, text=True)
    if worker.returncode:
        raise SystemExit(
            f"llama.cpp's side ended with status {worker.returncode}; {python} (--peer-python) must have "
            f"numpy and llama-cpp-python, and llama.cpp must read the file:\n{worker.stderr[-2000:]}"
        )
    return json.loads((directory / "answer.json").read_text())


def vocabulary(model: str, texts: list[str]) -> dict[str, Any]:
    """Token ids of the texts, with BOS where the vocabulary asks for it, and that BOS or None."""
    import llama_cpp

    llama = llama_cpp.Llama(model, vocab_only=True, verbose=False)
    adds_bos = llama_cpp.llama_vocab_get_add_bos(llama_cpp.llama_model_get_vocab(llama.model))
    return {
        "ids": [llama.tokenize(text.encode(), add_bos=True, special=False) for text in texts],
        "bos": llama.token_bos() if adds_bos else None,
        "n_vocab": llama.n_vocab(),
        "version": f"llama-cpp-python {llama_cpp.__version__}",
    }


def run(job: Job, out: Path) -> Run:
    import llama_cpp

    kv_type = getattr(llama_cpp, f"GGML_TYPE_{job.kv_type.upper()}")
    llama = llama_cpp.Llama(
        job.model,
        n_ctx=job.n_ctx,
        n_batch=job.n_batch,
        n_ubatch=job.n_batch,
        n_threads=job.threads,
        n_threads_batch=job.threads,
        type_k=kv_type,
        type_v=kv_type,
        # Flash attention rounds: F32 parity needs the plain form, which knows no quantized values.
        flash_attn=job.kv_type == "q8_0",
        logits_all=True,
        verbose=False,
    )
    vocab = llama_cpp.llama_model_get_vocab(llama.model)

    def logits(ids: list[int]) -> np.ndarray:
        llama.reset()
        llama.eval(ids)
        return llama.scores[: len(ids)]

    def greedy(ids: list[int]) -> list[int]:
        tokens: list[int] = []
        token = int(logits(ids)[-1].argmax())
        while len(tokens) < MAX_TOKENS and not llama_cpp.llama_vocab_is_eog(vocab, token):
            tokens.append(token)
            llama.eval([token])
            token = int(llama.scores[llama.n_tokens - 1].argmax())
        return tokens

    return carry_out(job, out, logits, greedy)


def main() -> None:
    directory = Path(sys.argv[1])
    request = json.loads((directory / "request.json").read_text())
    answer = asdict(run(Job(**request["job"]), directory)) if "job" in request else vocabulary(**request)
    (directory / "answer.json").write_text(json.dumps(answer, default=str))


if __name__ == "__main__":
    main()
