"""Perplexity by llama.cpp's method (tools/perplexity)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gguf_moe.errors import NumericError, OptionError
from gguf_moe.model import Model


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`error` is the standard error of `value`."""

    value: float
    error: float
    n_scored: int
    n_chunks: int


def perplexity(
    model: Model, text: str, n_ctx: int = 512, progress: Callable[[int, int, float], None] | None = None
) -> Perplexity:
    """The perplexity of a text in chunks of n_ctx tokens that do not overlap.

    A chunk's first token is replaced by BOS if the file adds one, and only its second half is scored.
    progress(chunks done, chunks in total, perplexity so far). Raises OptionError if the text is too short,
    NumericError if a probability is not a number.
    """
    tokens = model.tokenize(text)
    n_chunks = len(tokens) // n_ctx
    if n_ctx < 4 or n_ctx > model.n_ctx:
        raise OptionError(f"the chunk length is {n_ctx}, but must be from 4 to the context of {model.n_ctx}.")
    if len(tokens) < 2 * n_ctx:
        raise OptionError(
            f"the text has {len(tokens)} tokens, but at least {2 * n_ctx} are needed for chunks of {n_ctx}; "
            "use a longer text or a smaller --ctx."
        )
    losses: list[np.ndarray] = []
    for i in range(n_chunks):
        chunk = tokens[i * n_ctx : (i + 1) * n_ctx]
        inputs = list(chunk)
        if model.tokenizer.add_bos and model.tokenizer.bos_id is not None:
            inputs[0] = model.tokenizer.bos_id
        half = n_ctx // 2
        logits = model.logits(inputs)[half : n_ctx - 1]
        losses.append(_losses(logits, np.array(chunk[half + 1 :])))
        if np.isnan(losses[-1]).any():
            raise NumericError
        if progress:
            progress(i + 1, n_chunks, math.exp(float(np.concatenate(losses).mean())))
    scored = np.concatenate(losses)
    value = math.exp(float(scored.mean()))
    return Perplexity(value, value * float(scored.std()) / math.sqrt(len(scored) - 1), len(scored), n_chunks)


def _losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-log of each target's probability, float64 [n]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(targets)), targets]
