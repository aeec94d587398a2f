"""Bytes: what a model's parts take, and which of them go to a GPU of some size."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.weights import Experts, Weights
from gguf_moe.checkpoint import ExpertTensors
from gguf_moe.experts.budget import slot_size, slots_per_layer
from gguf_moe.graph.task import Kind
from gguf_moe.runtime import placement
from gguf_moe.runtime.gpu.kv import BLOCK
from gguf_moe.runtime.gpu.placement import LATER_BYTES

CUDA_BYTES = 500_000_000 + LATER_BYTES
"""What CUDA takes for itself, about."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a model's parts."""

    always_used: int
    """Weights that every token goes through, the embeddings with them."""
    experts: int
    kv_cache: int
    """Of the whole context."""
    first_kv_cache: int
    """What a GPU's cache begins with; it grows in blocks, at the expense of experts."""
    per_token: int
    """Weights that one generated token reads."""
    experts_per_token: int
    """The experts among them."""

    @property
    def total(self) -> int:
        return self.always_used + self.experts + self.kv_cache


@dataclass(frozen=True, slots=True)
class GpuShare:
    """What goes to a GPU. Negative room: it is too small even without experts."""

    budget: int
    always_used: int
    kv_cache: int
    """Of the whole context."""
    cuda: int
    """What CUDA takes for itself, about."""
    slots: int
    """Experts that have room."""
    expert_bytes: int
    """What these take."""
    n_experts: int
    """Experts of all layers."""

    @property
    def room(self) -> int:
        """Bytes left for experts when the KV cache is full."""
        return self.budget - self.always_used - self.kv_cache - self.cuda

    @property
    def share(self) -> float:
        """The share of the experts that have room."""
        return self.slots / self.n_experts if self.n_experts else 1.0


def sizes_of(hparams: HParams, weights: Weights, n_ctx: int, kind: Kind) -> Sizes:
    """The sizes with a context of n_ctx positions."""
    experts = sum(sum(role.nbytes) for layer in _layers(weights) for role in _roles(layer))
    everything = sum(tensor.nbytes for tensor in weights.tensors.values())
    for block in weights.blk:
        everything += sum(tensor.nbytes for tensor in block.tensors.values())
        everything += block.experts.ffn_gate_inp.nbytes if block.experts else 0
    used = sum(
        layer.bytes_per_token(hparams.n_expert_used) - layer.ffn_gate_inp.nbytes for layer in _layers(weights)
    )
    return Sizes(
        always_used=everything,
        experts=experts,
        kv_cache=placement.cache_bytes(hparams, n_ctx, kind) + placement.state_bytes(hparams),
        first_kv_cache=placement.cache_bytes(hparams, min(n_ctx, BLOCK), kind)
        + placement.state_bytes(hparams),
        per_token=weights.bytes_per_token(hparams.n_expert_used),
        experts_per_token=used,
    )


def gpu_share(weights: Weights, sizes: Sizes, budget: int) -> GpuShare:
    """What `budget` bytes of GPU memory hold."""
    # Rows of the embeddings are looked up in main memory, unless they make the logits too.
    embeddings = weights["token_embd.weight"]
    elsewhere = 0 if weights.output is embeddings else embeddings.nbytes
    layers = _layers(weights)
    slot_sizes = [slot_size([max(role.nbytes) for role in _roles(layer)]) for layer in layers]
    n_expert = len(layers[0].ffn_gate_exps.nbytes) if layers else 0
    always_used = sizes.always_used - elsewhere
    left = budget - always_used - sizes.first_kv_cache - CUDA_BYTES
    slots = slots_per_layer(left, slot_sizes, n_expert)
    return GpuShare(
        budget=budget,
        always_used=always_used,
        kv_cache=sizes.kv_cache,
        cuda=CUDA_BYTES,
        slots=sum(slots),
        expert_bytes=sum(n * size for n, size in zip(slots, slot_sizes, strict=True)),
        n_experts=n_expert * len(layers),
    )


def _layers(weights: Weights) -> list[Experts]:
    return [block.experts for block in weights.blk if block.experts]


def _roles(layer: Experts) -> tuple[ExpertTensors, ...]:
    return layer.ffn_gate_exps, layer.ffn_up_exps, layer.ffn_down_exps
