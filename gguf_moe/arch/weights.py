"""The tensors of a model, looked up and checked against the architecture's table of shapes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter

from gguf_moe.arch.base import SHARED_EXPERT, Arch, Shape, optional
from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.scales import check_scale, is_scalable, names_with_scales, scales_of_matrices
from gguf_moe.checkpoint import Checkpoint, ExpertTensors, Tensor, expert_tensors
from gguf_moe.checkpoint.foreign import shown
from gguf_moe.errors import GGUFError, UnsupportedModelError
from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.quants import GGMLType

_BLOCK = re.compile(r"blk\.(\d{1,4})\.")
_BY_ROLE = re.compile(
    r"attn_qkv\.(weight|bias|scale|input_scale)|ffn_gate_inp\.weight|ffn_gate_up_exps\.weight"
    r"|ffn_(gate|up|down)_exps\.(weight|scale|input_scale)|ffn_(gate|up|down)\.\d+\.weight"
)
"""Tensors of a block that are in no table, because they have several forms."""


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture of experts of one block."""

    ffn_gate_inp: Tensor
    """The router, [n_embd, n_expert]."""
    ffn_gate_exps: ExpertTensors
    ffn_up_exps: ExpertTensors
    ffn_down_exps: ExpertTensors

    def bytes_per_token(self, n_expert_used: int) -> int:
        """Bytes of weights that one token reads: the router and the experts it chooses.

        Where experts differ in size, it is the mean over all choices.
        """
        sizes = sum(sum(role.nbytes) for role in (self.ffn_gate_exps, self.ffn_up_exps, self.ffn_down_exps))
        return self.ffn_gate_inp.nbytes + sizes * n_expert_used // len(self.ffn_gate_exps.nbytes)


@dataclass(frozen=True, slots=True)
class Block:
    """One layer's tensors, by name without "blk.N."; `experts` is None where the feed-forward is dense."""

    tensors: Mapping[str, Tensor]
    experts: Experts | None

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        return self.tensors.get(name)

    @property
    def has_shared_expert(self) -> bool:
        """Whether there is an expert that every token goes through."""
        return "ffn_down_shexp.weight" in self.tensors

    def ffn_input_qtypes(self) -> set[GGMLType]:
        """The types of all matrices that the normed input of the feed-forward meets."""
        names = (f"ffn_{role}{kind}.weight" for role in ("gate", "up") for kind in ("", "_shexp"))
        qtypes = {self.tensors[name].qtype for name in names if name in self.tensors}
        if self.experts:
            qtypes |= {self.experts.ffn_gate_inp.qtype}
            qtypes |= {*self.experts.ffn_gate_exps.qtypes, *self.experts.ffn_up_exps.qtypes}
        return qtypes

    def bytes_per_token(self, n_expert_used: int) -> int:
        """Bytes of weights that one token reads here; of the experts only those that it chooses."""
        by_expert = [t for name, t in self.tensors.items() if name.endswith("_exps.bias")]
        size = sum(t.nbytes for t in self.tensors.values()) - sum(t.nbytes for t in by_expert)
        if self.experts is None:
            return size
        chosen = sum(t.nbytes // t.shape[-1] * n_expert_used for t in by_expert)
        return size + chosen + self.experts.bytes_per_token(n_expert_used)


@dataclass(frozen=True, slots=True)
class Weights:
    """All tensors that the decoder uses."""

    tensors: Mapping[str, Tensor]
    blk: tuple[Block, ...]
    scales: Mapping[str, float]
    """What a matrix's products are multiplied by, by the matrix's name in the file (NVFP4)."""

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        return self.tensors.get(name)

    @property
    def output(self) -> Tensor:
        """The matrix that makes logits; the token embeddings where the file has none of its own (tied)."""
        return self.get("output.weight") or self["token_embd.weight"]

    def bytes_per_token(self, n_expert_used: int) -> int:
        """Bytes of weights that decoding one token reads: of the experts those that are chosen, of the token
        embeddings one row, or all where they are the output matrix too."""
        embeddings = self["token_embd.weight"]
        outer = sum(t.nbytes for name, t in self.tensors.items() if name != "token_embd.weight")
        outer += embeddings.nbytes // (1 if self.output is embeddings else embeddings.n_rows)
        return outer + sum(block.bytes_per_token(n_expert_used) for block in self.blk)


def load_weights(checkpoint: Checkpoint, arch: Arch, hparams: HParams) -> Weights:
    """Find every tensor of the architecture; nothing is read or copied.

    Raises GGUFError for a missing tensor or a wrong shape, UnsupportedModelError for a type without kernels
    and for a tensor that the architecture does not have: a model computed without it would be another one.
    """
    finder = _Finder(checkpoint, arch, hparams)
    weights = Weights(
        tensors=finder.find("", arch.tensors),
        blk=tuple(finder.block(il) for il in range(hparams.n_layer)),
        scales=scales_of_matrices(checkpoint),
    )
    finder.check_all_are_known()
    require_kernels(checkpoint, finder.qtypes)
    return weights


def require_kernels(checkpoint: Checkpoint, qtypes: Iterable[GGMLType]) -> None:
    """Raise UnsupportedModelError, naming them all, if some of the types of these tensors have no kernels."""
    missing = Counter(qtype.name for qtype in qtypes if qtype not in ACTIVATION_FORMAT)
    if missing:
        listed = ", ".join(f"{name} ({n} tensors)" for name, n in sorted(missing.items()))
        supported = ", ".join(sorted(qtype.name for qtype in ACTIVATION_FORMAT))
        raise UnsupportedModelError(
            f"{checkpoint.path}: there are no kernels here for the types {listed} (supported: {supported}); "
            "requantize the file, for example to Q4_K_M, with llama.cpp's llama-quantize."
        )


class _Finder:
    """Looks tensors up and checks their shapes and types."""

    def __init__(self, checkpoint: Checkpoint, arch: Arch, hparams: HParams):
        self.checkpoint = checkpoint
        self.arch = arch
        self.hparams = hparams
        self.qtypes: list[GGMLType] = []
        """The types of the tensors that were found."""

    @cached_property
    def n_ff_shexp(self) -> int:
        """The width of the shared expert: that of the first one. Files disagree about what the key means."""
        names = (f"blk.{il}.ffn_down_shexp.weight" for il in range(self.hparams.n_layer))
        found = [self.checkpoint.tensors[name] for name in names if name in self.checkpoint.tensors]
        return found[0].shape[0] if found else 0

    def block(self, il: int) -> Block:
        prefix, arch, hp = f"blk.{il}.", self.arch, self.hparams
        tensors = self.recurrent(prefix) if hp.is_recr[il] else self.attention(il)
        router = f"{prefix}ffn_gate_inp.weight"
        if arch.dense_tensors and not (hp.n_expert and router in self.checkpoint.tensors):
            if hp.n_expert and f"{prefix}ffn_gate.weight" not in self.checkpoint.tensors:
                self.checkpoint.tensor(router)
            if not hp.n_ff:
                self.checkpoint.metadata.arch.integer("feed_forward_length", minimum=1)
            return Block(tensors | self.find(prefix, arch.dense_tensors), None)
        experts = Experts(
            ffn_gate_inp=self.checked(self.checkpoint.tensor(router, (hp.n_embd, hp.n_expert))),
            ffn_gate_exps=self.experts(il, "gate", hp.n_embd, hp.n_ff_exp),
            ffn_up_exps=self.experts(il, "up", hp.n_embd, hp.n_ff_exp),
            ffn_down_exps=self.experts(il, "down", hp.n_ff_exp, hp.n_embd),
        )
        shapes = dict(arch.moe_tensors)
        if any(prefix + name in self.checkpoint.tensors for name in SHARED_EXPERT):
            shapes |= {name: shape for name, shape in SHARED_EXPERT.items() if name in shapes}
        shapes |= {f"ffn_{role}_exps.scale": optional("n_expert") for role in ("gate", "up", "down")}
        return Block(tensors | self.find(prefix, shapes), experts)

    def experts(self, il: int, role: str, n_in: int, n_out: int) -> ExpertTensors:
        found = expert_tensors(self.checkpoint, il, role, self.hparams.n_expert, n_in, n_out)
        self.qtypes += set(found.qtypes)
        return found

    def attention(self, il: int) -> dict[str, Tensor]:
        """The tensors of a block but its feed-forward; those of a fused attn_qkv by their three names."""
        hp, prefix, shapes = self.hparams.of_layer(il), f"blk.{il}.", dict(self.arch.block_tensors)
        for field, (where_it_is, where_not) in self.arch.block_forms.items():
            shapes |= where_it_is if self.size(field, hp) else where_not
        if hp.kv_layer(il) != il:
            shapes = {n: shape for n, shape in shapes.items() if not n.startswith(("attn_k", "attn_v"))}
        fused = self.fused_qkv(prefix, shapes, hp) if "attn_k.weight" in shapes else {}
        apart = {name: shape for name, shape in shapes.items() if name not in fused}
        return fused | self.find(prefix, apart, hp)

    def fused_qkv(self, prefix: str, shapes: Mapping[str, Shape], hparams: HParams) -> dict[str, Tensor]:
        """The three parts of attn_qkv's matrix and bias, as far as the block has them."""
        widths = {role: self.size(shapes[f"attn_{role}.weight"].dimensions[1], hparams) for role in "qkv"}
        found: dict[str, Tensor] = {}
        for kind, inputs in (("weight", (hparams.n_embd,)), ("bias", ())):
            name = f"{prefix}attn_qkv.{kind}"
            if name in self.checkpoint.tensors:
                whole = self.checked(self.checkpoint.tensor(name, (*inputs, sum(widths.values()))))
                parts = _cut_rows(whole, list(widths.values()))
                found |= {f"attn_{role}.{kind}": part for role, part in zip(widths, parts, strict=True)}
        return found

    def recurrent(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of a recurrent block but its feed-forward; the input's matrix whole or in two."""
        shapes = dict(self.arch.recurrent_tensors)
        if "ssm_in.weight" in shapes and f"{prefix}ssm_in.weight" in self.checkpoint.tensors:
            del shapes["attn_qkv.weight"], shapes["attn_gate.weight"]
        return self.find(prefix, shapes)

    def find(
        self, prefix: str, shapes: Mapping[str, Shape], hparams: HParams | None = None
    ) -> dict[str, Tensor]:
        """The tensors of a table that are required or there, by name without the prefix; also their scales.

        `hparams` are those of the layer, if it is one.
        """
        found = {}
        for name, shape in shapes.items():
            if shape.required or prefix + name in self.checkpoint.tensors:
                sizes = tuple(self.size(d, hparams or self.hparams) for d in shape.dimensions)
                found[name] = self.checked(self.checkpoint.tensor(prefix + name, sizes))
                if is_scalable(name, shape):
                    check_scale(self.checkpoint, prefix + name)
        return found

    def size(self, dimension: str, hparams: HParams) -> int:
        """The size that a name in a table of shapes stands for."""
        if dimension.isdecimal():
            return int(dimension)
        return self.n_ff_shexp if dimension == "n_ff_shexp" else attrgetter(dimension)(hparams)

    def checked(self, tensor: Tensor) -> Tensor:
        self.qtypes.append(tensor.qtype)
        is_vector = len(tensor.shape) == 1 or tensor.name.endswith((".bias", ".ssm_conv1d.weight"))
        if is_vector and tensor.qtype != GGMLType.F32:
            raise GGUFError(
                f"{self.checkpoint.path}: {tensor.name} is stored as {tensor.qtype.name}, but vectors and "
                "convolutions must be F32; convert the file again."
            )
        return tensor

    def check_all_are_known(self) -> None:
        """Raise UnsupportedModelError for a tensor that is in none of the tables."""
        arch = self.arch
        tables = [arch.block_tensors, arch.recurrent_tensors, arch.moe_tensors, arch.dense_tensors]
        tables += [form for forms in arch.block_forms.values() for form in forms]
        outer, in_blocks = names_with_scales(arch.tensors), set().union(*map(names_with_scales, tables))
        for name in self.checkpoint.tensors:
            block = _BLOCK.match(name)
            if block is None:
                known = name in outer
            else:
                inner = name[block.end() :]
                is_nextn = int(block[1]) >= self.hparams.n_layer
                known = is_nextn or inner in in_blocks or bool(_BY_ROLE.fullmatch(inner))
            if not known:
                raise UnsupportedModelError(
                    f"{self.checkpoint.path}: the tensor {shown(name)} is not known for the architecture "
                    f"{arch.name!r}, and without it the results would be wrong; use another file of "
                    "the model."
                )


def _cut_rows(tensor: Tensor, counts: list[int]) -> list[Tensor]:
    """Parts of a tensor along its last dimension, where they lie."""
    parts, size, first = [], tensor.nbytes // tensor.shape[-1], 0
    for count in counts:
        data = tensor.data[first * size : (first + count) * size]
        shape, offset = (*tensor.shape[:-1], count), tensor.offset + first * size
        parts.append(replace(tensor, shape=shape, data=data, offset=offset))
        first += count
    return parts
