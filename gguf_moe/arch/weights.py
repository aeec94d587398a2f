"""The tensors of a model, looked up and checked against the architecture's table of shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gguf_moe.arch.base import Arch, Shape
from gguf_moe.arch.hparams import HParams
from gguf_moe.checkpoint import Checkpoint, ExpertTensors, Tensor, expert_tensors
from gguf_moe.errors import GGUFError, UnsupportedModelError
from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.quants import GGMLType


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture of experts of one block."""

    ffn_gate_inp: Tensor
    """The router, [n_embd, n_expert]."""
    ffn_gate_exps: ExpertTensors
    ffn_up_exps: ExpertTensors
    ffn_down_exps: ExpertTensors


@dataclass(frozen=True, slots=True)
class Block:
    """One layer's tensors, by name without "blk.N."; `experts` is None where the feed-forward is dense."""

    tensors: Mapping[str, Tensor]
    experts: Experts | None

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        return self.tensors.get(name)


@dataclass(frozen=True, slots=True)
class Weights:
    """All tensors that the decoder uses."""

    tensors: Mapping[str, Tensor]
    blk: tuple[Block, ...]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        return self.tensors.get(name)

    @property
    def output(self) -> Tensor:
        """The matrix that makes logits; the token embeddings where the file has none of its own (tied)."""
        return self.get("output.weight") or self["token_embd.weight"]


def load_weights(checkpoint: Checkpoint, arch: Arch, hparams: HParams) -> Weights:
    """Find every tensor of the architecture; nothing is read or copied.

    Raises GGUFError for a missing tensor or a wrong shape, UnsupportedModelError for a type without kernels.
    """
    weights = Weights(
        tensors=_find(checkpoint, "", arch.tensors, hparams),
        blk=tuple(_block(checkpoint, arch, hparams, il) for il in range(hparams.n_layer)),
    )
    return weights


def _block(checkpoint: Checkpoint, arch: Arch, hparams: HParams, il: int) -> Block:
    prefix = f"blk.{il}."
    tensors = _find(checkpoint, prefix, arch.block_tensors, hparams)
    if not hparams.n_expert or f"{prefix}ffn_gate_inp.weight" not in checkpoint.tensors:
        if hparams.n_expert and f"{prefix}ffn_gate.weight" not in checkpoint.tensors:
            checkpoint.tensor(f"{prefix}ffn_gate_inp.weight")
        if not hparams.n_ff:
            checkpoint.metadata.arch.integer("feed_forward_length", minimum=1)
        return Block({**tensors, **_find(checkpoint, prefix, arch.dense_tensors, hparams)}, None)
    n_expert, n_embd, n_ff = hparams.n_expert, hparams.n_embd, hparams.n_ff_exp
    experts = Experts(
        ffn_gate_inp=_checked(
            checkpoint, checkpoint.tensor(f"{prefix}ffn_gate_inp.weight", (n_embd, n_expert))
        ),
        ffn_gate_exps=expert_tensors(checkpoint, il, "gate", n_expert, n_embd, n_ff),
        ffn_up_exps=expert_tensors(checkpoint, il, "up", n_expert, n_embd, n_ff),
        ffn_down_exps=expert_tensors(checkpoint, il, "down", n_expert, n_ff, n_embd),
    )
    for role in (experts.ffn_gate_exps, experts.ffn_up_exps, experts.ffn_down_exps):
        for qtype in set(role.qtypes):
            _require_kernel(checkpoint, f"an expert of layer {il}", qtype)
    return Block(tensors, experts)


def _find(
    checkpoint: Checkpoint, prefix: str, shapes: Mapping[str, Shape], hparams: HParams
) -> dict[str, Tensor]:
    found = {}
    for name, shape in shapes.items():
        if shape.required or prefix + name in checkpoint.tensors:
            dimensions = tuple(getattr(hparams, dimension) for dimension in shape.dimensions)
            found[name] = _checked(checkpoint, checkpoint.tensor(prefix + name, dimensions))
    return found


def _checked(checkpoint: Checkpoint, tensor: Tensor) -> Tensor:
    _require_kernel(checkpoint, tensor.name, tensor.qtype)
    if len(tensor.shape) == 1 and tensor.qtype != GGMLType.F32:
        raise GGUFError(
            f"{checkpoint.path}: {tensor.name} is stored as {tensor.qtype.name}, but vectors must be F32; "
            "convert the file again."
        )
    return tensor


def _require_kernel(checkpoint: Checkpoint, what: str, qtype: GGMLType) -> None:
    if qtype not in ACTIVATION_FORMAT:
        supported = ", ".join(sorted(t.name for t in ACTIVATION_FORMAT))
        raise UnsupportedModelError(
            f"{checkpoint.path}: {what} is stored as {qtype.name}, which has no kernel here (supported: "
            f"{supported}); requantize the file, for example to Q4_K_M, with llama.cpp's llama-quantize."
        )
