"""How fast a model will be: a few of its layers are measured, and the rest is taken to be like them.

A measurement is kept in a file, and belongs to a model's file, a number of threads and a type of KV cache.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_moe.arch.base import Arch
from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.weights import Weights
from gguf_moe.files import written_whole
from gguf_moe.graph.task import Kind
from gguf_moe.runtime.bandwidth import KERNEL, BandwidthMeter
from gguf_moe.runtime.context import Context
from gguf_moe.runtime.ready import start_on_cpu
from gguf_moe_kernels.cpu.library import KernelLibrary

logger = logging.getLogger(__name__)

SAMPLE = 1 << 30
"""Bytes of the layers that are measured, at least: too many for a cache to hold."""
N_PROMPT = 512
N_DECODE = 24
N_WARM = 64
"""Tokens that are computed first: they read what the page cache lacks, and the threads start."""
MEASURED_S = 4.0
"""Rounds go on for so long, as a machine's speed changes within a second; the medians count."""
LEAST_ROUNDS, MOST_ROUNDS = 3, 15
FILE = "measured.json"
MOST_KEPT = 200

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Speed:
    """What to expect on the CPU."""

    prompt: float
    """Tokens per second of a prompt of n_prompt."""
    decode: float
    """Tokens per second, one after the other."""
    bandwidth: float
    """Bytes per second that as many threads read from memory."""
    n_prompt: int
    n_layer: int
    """Layers that were measured."""


def measure(
    arch: Arch,
    hparams: HParams,
    weights: Weights,
    *,
    n_threads: int,
    kv_kind: Kind,
    cache_dir: Path | None,
    progress: Progress | None = None,
) -> Speed:
    """Run some layers of the model on the CPU. Raises OutOfMemoryError."""
    sample = _first_layers(weights)
    n_prompt = min(N_PROMPT, max(1, hparams.n_ctx_train - N_DECODE - 1))
    tell = progress or (lambda stage, done, total: None)
    library = KernelLibrary(cache_dir)
    with closing(library):
        n_ctx = n_prompt + N_DECODE + 1
        context = Context(arch, hparams, sample, n_ctx=n_ctx, n_batch=min(N_PROMPT, n_ctx), kv_kind=kv_kind)
        start_on_cpu(
            context, library, n_threads, lambda name, done, total: tell("compiling", done, total), [KERNEL]
        )
        with closing(context):
            rounds = _rounds(context, library, n_prompt, hparams.n_vocab, n_threads, tell)
    prompt_s, decode_s, bandwidth = (statistics.median(times) for times in zip(*rounds, strict=True))
    used = hparams.n_expert_used
    layers = _bytes_per_token(weights, used) / _bytes_per_token(sample, used)
    whole = weights.bytes_per_token(used) / sample.bytes_per_token(used)
    return Speed(
        prompt=n_prompt / (prompt_s * layers),
        decode=1 / (decode_s * whole),
        bandwidth=bandwidth,
        n_prompt=n_prompt,
        n_layer=len(sample.blk),
    )


def _rounds(
    context: Context, library: KernelLibrary, n_prompt: int, n_vocab: int, n_threads: int, tell: Progress
) -> list[tuple[float, float, float]]:
    """Each the seconds of a prompt, those of a token, and the bandwidth in bytes per second."""
    meter = BandwidthMeter(library)
    _timed(context, [_tokens(min(N_WARM, n_prompt), n_vocab)])
    rounds: list[tuple[float, float, float]] = []
    start = time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or (
        len(rounds) < MOST_ROUNDS and time.perf_counter() - start < MEASURED_S
    ):
        tell("measuring", min(len(rounds), LEAST_ROUNDS), LEAST_ROUNDS)
        prompt_s, decode_s = _prompt(context, n_prompt, n_vocab), _decode(context, n_vocab)
        rounds.append((prompt_s, decode_s, meter.measure(n_threads)))
    return rounds


def planned_speed(cache_dir: Path | None, path: Path, n_threads: int, kv_kind: Kind) -> Speed | None:
    """What was measured for this file before, or None."""
    found = _read(cache_dir).get(_key(path, n_threads, kv_kind))
    try:
        return Speed(**found) if isinstance(found, dict) else None
    except TypeError:
        return None


def keep_speed(cache_dir: Path | None, path: Path, n_threads: int, kv_kind: Kind, speed: Speed) -> None:
    """Remember a measurement; if that fails, it is made again next time."""
    if cache_dir is None:
        return
    kept = _read(cache_dir)
    kept.pop(_key(path, n_threads, kv_kind), None)
    kept = dict(list(kept.items())[1 - MOST_KEPT :]) | {_key(path, n_threads, kv_kind): asdict(speed)}
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with written_whole(cache_dir / FILE) as file:
            file.write(json.dumps(kept, indent=1).encode())
    except OSError as e:
        logger.warning(
            "cannot keep the measurement in %s (%s), so that the next plan measures again; choose another "
            "cache directory",
            cache_dir,
            e.strerror,
        )


def _bytes_per_token(weights: Weights, n_expert_used: int) -> int:
    """Of the layers alone."""
    return sum(block.bytes_per_token(n_expert_used) for block in weights.blk)


def _first_layers(weights: Weights) -> Weights:
    """The first layers, as many as have SAMPLE bytes; one with experts is among them, if there is one."""
    nbytes, has_experts = 0, not any(block.experts for block in weights.blk)
    for n, block in enumerate(weights.blk, 1):
        nbytes += sum(tensor.nbytes for tensor in block.tensors.values())
        if block.experts:
            roles = (block.experts.ffn_gate_exps, block.experts.ffn_up_exps, block.experts.ffn_down_exps)
            nbytes += sum(sum(role.nbytes) for role in roles)
            has_experts = True
        if nbytes >= SAMPLE and has_experts:
            return replace(weights, blk=weights.blk[:n])
    return weights


def _prompt(context: Context, n: int, n_vocab: int) -> float:
    """Seconds of a prompt of n tokens."""
    return _timed(context, [_tokens(n, n_vocab)])


def _decode(context: Context, n_vocab: int) -> float:
    """Seconds of one token after the other."""
    tokens = _tokens(N_DECODE, n_vocab)
    _timed(context, [[token] for token in tokens[:4]])
    return _timed(context, [[token] for token in tokens]) / N_DECODE


def _timed(context: Context, steps: Sequence[Sequence[int]]) -> float:
    context.truncate(0)
    start = time.perf_counter()
    for step in steps:
        context.extend(step, 1)
    return time.perf_counter() - start


def _tokens(n: int, n_vocab: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(0).integers(0, n_vocab, n)]


def _key(path: Path, n_threads: int, kv_kind: Kind) -> str:
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {n_threads} {kv_kind.value}"


def _read(cache_dir: Path | None) -> dict[str, Any]:
    try:
        content = json.loads((cache_dir / FILE).read_text(encoding="utf-8")) if cache_dir else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
