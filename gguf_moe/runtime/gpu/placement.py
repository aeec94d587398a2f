"""Whether and how a model goes into a GPU's memory: its context, and room for experts of each layer."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from gguf_moe.arch.base import Arch
from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.weights import Weights
from gguf_moe.checkpoint import Checkpoint
from gguf_moe.errors import DeviceError, OutOfMemoryError, UnsupportedModelError
from gguf_moe.experts.budget import default_context, free_budget, parse_vram, slots_per_layer
from gguf_moe.experts.cache import find_policy
from gguf_moe.graph.decoder import build_graph
from gguf_moe.graph.task import Kind
from gguf_moe.runtime.gpu.device import CudaDevice, Device
from gguf_moe.runtime.gpu.ops import check_ops
from gguf_moe.runtime.gpu.runner import GpuRunner
from gguf_moe.runtime.placement import cache_bytes
from gguf_moe_kernels.cuda.source import QTYPES

logger = logging.getLogger(__name__)

MOST_CUDA_BYTES = 1 << 30
"""What is taken before anything is allocated counts as CUDA's own memory, up to this: others may be there."""
PROMPT_SHARE = 0.1
"""Of the budget. Experts leave so much for a long prompt's activations and for those that pass through."""
LATER_BYTES = 32 << 20
"""For CUDA: graphs, kernels that are loaded when they are needed, what it rounds up."""
SMALLER = 0.95
"""If the memory for experts cannot be had, this share of it is tried next."""


class GpuBudget:
    """How many bytes of a device's memory this model may take, CUDA's own included.

    vram: as parse_vram reads it, or None for all that is free but a reserve. Raises OptionError.
    """

    def __init__(self, device: Device, vram: str | None):
        self._device = device
        self._free, total = device.memory()
        self._cuda = min(total - self._free, MOST_CUDA_BYTES)
        self.nbytes = parse_vram(vram, total) if vram is not None else free_budget(self._free) + self._cuda

    @property
    def prompt_bytes(self) -> int:
        """What long prompts may take."""
        return int(self.nbytes * PROMPT_SHARE)

    @property
    def left(self) -> int:
        """What is not taken yet, and CUDA will not take later; negative if it is overdrawn."""
        free, _ = self._device.memory()
        return self.nbytes - self._cuda - (self._free - free) - LATER_BYTES

    def n_ctx(self, hparams: HParams, kind: Kind, n_ctx: int | None) -> int:
        """The context to use: as asked, or a small share of the budget."""
        return n_ctx or default_context(self.nbytes, cache_bytes(hparams, 1, kind), hparams.n_ctx_train)


def check_options(vram: str | None, policy: str) -> None:
    """Raise OptionError for values that no GPU takes, also where there is none."""
    find_policy(policy)
    if vram is not None:
        parse_vram(vram, sys.maxsize)


def open_device(
    name: str,
    arch: Arch,
    hparams: HParams,
    weights: Weights,
    kv_kind: Kind,
    cache: Path | None,
    vram: str | None = None,
) -> Device | None:
    """The GPU of this name ("cuda:N", "cuda"); for "auto" the first one, or None if it cannot run the model.

    kv_kind: the type of the KV cache. `cache` is where compiled kernels are kept. vram: memory that was asked
    for; then it is a warning that "auto" finds no GPU. Raises DeviceError or UnsupportedModelError for a GPU
    that was asked for by its name.
    """
    if name == "cpu":
        return None
    try:
        _check_types(weights)
        check_ops(build_graph(arch, hparams, weights, n_tokens=1, n_ctx=1, kv_kind=kv_kind))
        return CudaDevice(int(name.partition(":")[2] or 0), cache)
    except (DeviceError, UnsupportedModelError) as e:
        if name != "auto":
            raise
        reason = str(e).removesuffix(".").removesuffix("; use --device cpu")
        logger.log(logging.WARNING if vram else logging.INFO, "the model runs on the CPU alone: %s", reason)
        return None


def register_file(device: Device, checkpoint: Checkpoint) -> bool:
    """Let the device read the file where it lies in main memory; whether the system allowed all of it."""
    all_registered = True
    for path, buffer in zip(checkpoint.paths, checkpoint.buffers, strict=True):
        if not device.register(buffer.__array_interface__["data"][0], buffer.nbytes):
            logger.warning(
                "%s cannot be locked in memory, so the GPU gets experts more slowly; see ulimit -l", path
            )
            all_registered = False
    return all_registered


def allocate_slots(runner: GpuRunner, budget: GpuBudget) -> None:
    """Give what is left of the budget to the KV cache's first block and to experts.

    Raises OutOfMemoryError if the whole context would not fit even without experts.
    """
    caches, slots = runner.caches, runner.slots
    caches.leave()
    left = budget.left
    whole, first = caches.nbytes(caches.n_ctx), caches.nbytes(caches.n_positions)
    if left < whole:
        needed = budget.nbytes - left + whole
        raise OutOfMemoryError(
            f"the model without its experts, and its context, need {needed / 1e9:.2f} GB of GPU memory, but "
            f"{budget.nbytes / 1e9:.2f} GB may be used; give more (--vram), use a smaller context (--ctx), "
            "or --device cpu."
        )
    while True:
        n_slots = slots_per_layer(left - first, slots.memory.sizes, slots.n_expert)
        used = sum(n * size for n, size in zip(n_slots, slots.memory.sizes, strict=True))
        kv_bytes = min(whole, left - used)
        try:
            runner.allocate_slots(n_slots, left - used - kv_bytes, kv_bytes if used else whole)
            return
        except OutOfMemoryError:
            if not any(n_slots):
                raise
            left = int(left * SMALLER)


def _check_types(weights: Weights) -> None:
    """Raise UnsupportedModelError if a matrix has a type without CUDA kernels."""
    qtypes = {tensor.qtype for tensor in weights.tensors.values()}
    for block in weights.blk:
        qtypes |= {tensor.qtype for tensor in block.tensors.values()}
        if block.experts:
            roles = (block.experts.ffn_gate_exps, block.experts.ffn_up_exps, block.experts.ffn_down_exps)
            qtypes |= {qtype for role in roles for qtype in role.qtypes}
    if missing := sorted(qtype.name for qtype in qtypes if qtype.name.lower() not in QTYPES):
        raise UnsupportedModelError(
            f"there are no CUDA kernels for weights of the type {missing[0]} yet; use --device cpu."
        )
