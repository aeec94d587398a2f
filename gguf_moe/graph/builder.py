"""The parts that every decoder is made of: norms, matrices, rope, and the activations between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gguf_moe.arch.base import Arch, RopeStyle
from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.weights import Block
from gguf_moe.checkpoint import ExpertTensors, Tensor
from gguf_moe.graph.task import Buffer, Graph, Kind, Op, Rows
from gguf_moe_kernels.activations import ACTIVATION_FORMAT, ActivationFormat
from gguf_moe_kernels.quants import GGMLType

Activations = dict[ActivationFormat, Buffer]
"""The same activations in each format that the coming weights need."""


class Builder:
    """Adds tasks to `graph`, each with the buffers it needs. Buffers have room for n_tokens.

    `l_out` is the residual stream between the blocks, `ffn_inp` that between attention and feed-forward.
    With injects_routing the experts are not chosen by the router, but an input. With n_seq_max over 1 the KV
    cache has n_ctx cells for each of so many sequences, and where a token lies is an input. `scales` are
    those of Weights.
    """

    def __init__(
        self,
        arch: Arch,
        hparams: HParams,
        *,
        n_tokens: int,
        n_ctx: int,
        kv_kind: Kind,
        injects_routing: bool = False,
        n_seq_max: int = 1,
        scales: Mapping[str, float],
    ):
        self.graph = Graph()
        self._cols: dict[str, int] = {}
        self.arch = arch
        self.hparams = hparams
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx
        self.kv_kind = kv_kind
        self.injects_routing = injects_routing
        self.scales = scales
        self.n_seq_max = n_seq_max
        self.n_cells = n_ctx * n_seq_max
        self.cells: dict[str, Buffer] = (
            {"cells": self.buffer("inp_cells", 2, Kind.I32)} if n_seq_max > 1 else {}
        )
        """What tasks on the KV cache and on states also read."""
        self.l_out = self.buffer("l_out", hparams.n_embd)
        self.ffn_inp = self.buffer("ffn_inp", hparams.n_embd)

    def buffer(self, name: str, cols: int, kind: Kind = Kind.F32) -> Buffer:
        """A buffer with one row for each token. Layers share it if they need as many columns."""
        if self._cols.setdefault(name, cols) != cols:
            name = f"{name}_{cols}"
        return Buffer(name, kind, self.n_tokens, cols)

    def norm(
        self,
        name: str,
        x: Buffer,
        out: Buffer,
        weight: Tensor | None,
        *,
        bias: Tensor | None = None,
        n_head: int | None = None,
        rows: Rows = Rows.TOKENS,
    ) -> None:
        """RMS norm of each part of a row that is as long as the weight, or of n_head parts; out may be x."""
        if n_head is None:
            n_head = x.cols // weight.shape[0] if weight else 1
        weights = {"weight": weight, "bias": bias}
        self.graph.add(
            name,
            Op.RMS_NORM,
            rows,
            inputs={"x": x},
            outputs={"out": out},
            weights={key: tensor for key, tensor in weights.items() if tensor},
            options={"eps": self.hparams.f_norm_rms_eps, "n_head": n_head},
        )

    def scale(
        self,
        name: str,
        x: Buffer,
        out: Buffer,
        factor: float,
        *,
        residual: Buffer | None = None,
        rows: Rows = Rows.TOKENS,
    ) -> None:
        """out = factor * x (+ residual); out may be x."""
        inputs = {"x": x} if residual is None else {"x": x, "residual": residual}
        self.graph.add(name, Op.SCALE, rows, inputs=inputs, outputs={"out": out}, options={"factor": factor})

    def activations(
        self, name: str, x: Buffer, qtypes: Iterable[GGMLType], rows: Rows = Rows.TOKENS
    ) -> Activations:
        """x in each format that weights of these types meet; adds a task for each that is quantized."""
        found: Activations = {}
        for activation in dict.fromkeys(ACTIVATION_FORMAT[qtype] for qtype in qtypes):
            found[activation] = x
            if activation is not ActivationFormat.F32:
                found[activation] = out = Buffer(f"{x.name}_{activation.value}", activation, x.rows, x.cols)
                self.graph.add(
                    f"{name}_{activation.value}", Op.QUANTIZE, rows, inputs={"x": x}, outputs={"out": out}
                )
        return found

    def matmul(
        self,
        name: str,
        x: Activations,
        weight: Tensor,
        out: Buffer,
        *,
        bias: Tensor | None = None,
        residual: Buffer | None = None,
        rows: Rows = Rows.TOKENS,
    ) -> None:
        """out = weight . x, times the weight's scale if it has one (+ bias) (+ residual)."""
        inputs = {"x": x[ACTIVATION_FORMAT[weight.qtype]]}
        if (factor := self.scales.get(weight.name)) is not None:
            product = self.buffer(f"{out.name}_unscaled", out.cols) if residual else out
            self.graph.add(
                f"{name}_unscaled",
                Op.MATMUL,
                rows,
                inputs=inputs,
                outputs={"out": product},
                weights={"weight": weight},
            )
            self.scale(name, product, out, factor, residual=residual, rows=rows)
            return
        if residual:
            inputs["residual"] = residual
        weights = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        self.graph.add(name, Op.MATMUL, rows, inputs=inputs, outputs={"out": out}, weights=weights)

    def matmul_id(
        self,
        name: str,
        x: Activations,
        weight: ExpertTensors,
        out: Buffer,
        places: dict[str, Buffer],
        *,
        gather: bool,
    ) -> None:
        """One matmul by expert. With `gather` x has a row for each token, else one for each place."""
        inputs = {
            activation.value: x[activation] for activation in {ACTIVATION_FORMAT[t] for t in weight.qtypes}
        }
        inputs |= {key: places[key] for key in ("used", "n_used", "first")}
        if gather:
            inputs["x_index"] = places["token"]
        self.graph.add(
            name, Op.MATMUL_ID, Rows.PLACES, inputs=inputs, outputs={"out": out}, weights={"weight": weight}
        )

    def matmul_heads(self, name: str, x: Buffer, weight: Tensor, out: Buffer) -> None:
        """out[h] = weight[h] . x[h]: heads with matrices of their own, weight [n_in, n_out, n_head].

        Of each head of x the first n_in elements count.
        """
        n_in, _, n_head = weight.shape
        activation = ACTIVATION_FORMAT[weight.qtype]
        if activation is not ActivationFormat.F32:
            quantized = Buffer(f"{x.name}_heads_{activation.value}", activation, x.rows * n_head, n_in)
            self.graph.add(
                f"{name}_{activation.value}",
                Op.QUANTIZE_HEADS,
                Rows.TOKENS,
                inputs={"x": x},
                outputs={"out": quantized},
                options={"n_head": n_head},
            )
            x = quantized
        self.graph.add(
            name,
            Op.MATMUL_HEADS,
            Rows.TOKENS,
            inputs={"x": x},
            outputs={"out": out},
            weights={"weight": weight},
        )

    def concat(self, name: str, a: Buffer, b: Buffer, n_head: int, n_b: int) -> Buffer:
        """The heads of a, each with the last n_b elements of the same head of b behind it."""
        out = self.buffer(name.rpartition("-")[0], a.cols + n_head * n_b)
        options = {"n_head": n_head, "n_b": n_b}
        self.graph.add(
            name, Op.CONCAT, Rows.TOKENS, inputs={"a": a, "b": b}, outputs={"out": out}, options=options
        )
        return out

    def temperature(self, name: str, q: Buffer) -> None:
        """Queries times the temperature of their positions, in place."""
        factors = self.buffer("inp_attn_scale", 1)
        self.graph.add(name, Op.SCALE_ROWS, Rows.TOKENS, inputs={"factors": factors}, outputs={"x": q})

    def rope(self, name: str, x: Buffer, n_head: int, table: str, first: int = 0) -> None:
        """Rope in place, from element `first` of each head on; `table` is the name of the angles, a key of
        arch.rope.rope_tables."""
        is_swa = table == "rope_swa"
        hp = self.hparams.of_layer(self.hparams.is_swa.index(is_swa))
        tables = {key: self.buffer(f"{table}_{key}", hp.n_rot_pairs) for key in ("cos", "sin")}
        options = {
            "n_head": n_head,
            "n_rot": hp.n_rot,
            "first": first,
            "pair_stride": 1 if self.arch.rope is RopeStyle.NORM else hp.n_rot_pairs,
        }
        self.graph.add(name, Op.ROPE, Rows.TOKENS, inputs=tables, outputs={"x": x}, options=options)

    def parts(
        self,
        name: str,
        x: Buffer,
        out: Buffer,
        *,
        n_head: int,
        n: int,
        first: int,
        stride: int,
        out_first: int = 0,
    ) -> None:
        """n elements of each of n_head parts of a row, from `first` on, side by side at out_first of out."""
        options = {"n_head": n_head, "n": n, "first": first, "stride": stride, "out_first": out_first}
        self.graph.add(name, Op.PARTS, Rows.TOKENS, inputs={"x": x}, outputs={"out": out}, options=options)

    def gated_unit(self, il: int, kind: str, gate: Buffer, up: Buffer, rows: Rows) -> str:
        """gate and up -> gate, in place; the task's name without the layer, with kind "ffn" or "ffn_moe"."""
        op, name = Op(self.arch.gated_unit.value), f"{kind}_{self.arch.gated_unit.value}"
        self.graph.add(f"{name}-{il}", op, rows, inputs={"up": up}, outputs={"gate": gate})
        return f"{name}-{il}"

    def block_norm(self, name: str, x: Buffer, block: Block, weight: str) -> Buffer:
        """The norm of a block that is called `weight` in the file; its output has the task's name."""
        out = self.buffer(name.rpartition("-")[0], x.cols)
        self.norm(name, x, out, block[f"{weight}.weight"], bias=block.get(f"{weight}.bias"))
        return out

    def project(
        self,
        il: int,
        x: Activations,
        block: Block,
        name: str,
        residual: Buffer,
        out: Buffer,
        post_norm: str = "",
    ) -> None:
        """The last matrix of a branch: out = f_residual_scale * (weight . x (+ bias)) + residual.

        `post_norm` is the name of a norm of the product.
        """
        weight, bias = block[f"{name}.weight"], block.get(f"{name}.bias")
        if self.hparams.f_residual_scale == 1.0 and not post_norm:
            self.matmul(f"{out.name}-{il}", x, weight, out, bias=bias, residual=residual)
            return
        branch = self.buffer(name, out.cols)
        self.matmul(f"{name}-{il}", x, weight, branch, bias=bias)
        if post_norm:
            branch = self.block_norm(f"{name}_post_norm-{il}", branch, block, post_norm)
        self.scale(f"{out.name}-{il}", branch, out, self.hparams.f_residual_scale, residual=residual)

    def add(self, name: str, x: Buffer, addend: Buffer, out: Buffer) -> None:
        """out = x + addend."""
        self.scale(name, x, out, 1.0, residual=addend)
