"""From an architecture's data and a file's weights to the graph of a step. This is the model, top to bottom.

One graph serves every step of up to `n_tokens` tokens, be it a chunk of the prompt or one new token.
"""

from __future__ import annotations

from collections.abc import Iterable

from gguf_moe.arch.base import Arch, RopeStyle
from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.weights import Block, Experts, Weights
from gguf_moe.checkpoint import ExpertTensors, Tensor
from gguf_moe.graph.task import Buffer, Graph, Kind, Op, Rows
from gguf_moe_kernels.activations import ACTIVATION_FORMAT, ActivationFormat
from gguf_moe_kernels.quants import GGMLType

Activations = dict[ActivationFormat, Buffer]
"""The same activations in each format that the coming weights need."""


def build_graph(
    arch: Arch, hparams: HParams, weights: Weights, *, n_tokens: int, n_ctx: int, kv_kind: Kind
) -> Graph:
    """The graph of one step of up to n_tokens tokens, with a context of n_ctx. Its inputs are the buffers
    inp_tokens, out_ids, rope_cos and rope_sin; its result is result_output, f32 [n_outputs, n_vocab]."""
    decoder = Decoder(arch, hparams, weights, n_tokens, n_ctx, kv_kind)
    decoder.embed()
    for il, block in enumerate(weights.blk):
        decoder.attention(il, block)
        decoder.feed_forward(il, block)
    decoder.result()
    return decoder.graph


class Decoder:
    """Adds the tasks of each part of the model to `graph`."""

    def __init__(
        self, arch: Arch, hparams: HParams, weights: Weights, n_tokens: int, n_ctx: int, kv_kind: Kind
    ):
        self.graph = Graph()
        self.arch = arch
        self.hparams = hparams
        self.weights = weights
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx
        self.kv_kind = kv_kind
        self.l_out = self.buffer("l_out", hparams.n_embd)
        self.ffn_inp = self.buffer("ffn_inp", hparams.n_embd)

    def embed(self) -> None:
        """Token ids -> l_out."""
        self.graph.add(
            "inp_embd",
            Op.GET_ROWS,
            Rows.TOKENS,
            inputs={"tokens": self.buffer("inp_tokens", 1, Kind.I32)},
            outputs={"out": self.l_out},
            weights={"weight": self.weights["token_embd.weight"]},
        )

    def attention(self, il: int, block: Block) -> None:
        """l_out -> ffn_inp: norm, q/k/v, rope, KV cache, attention, projection, residual."""
        hp = self.hparams
        normed = self.norm(f"attn_norm-{il}", self.l_out, "attn_norm", block["attn_norm.weight"])
        names = ("attn_q", "attn_k", "attn_v")
        x = self.activations(f"attn_norm-{il}", normed, (block[f"{name}.weight"].qtype for name in names))
        q, k, v = (
            self.buffer(n, w)
            for n, w in (("Qcur", hp.n_embd_q), ("Kcur", hp.n_embd_k_gqa), ("Vcur", hp.n_embd_v_gqa))
        )
        for name, out in zip(names, (q, k, v), strict=True):
            self.matmul(f"{out.name}-{il}", x, block[f"{name}.weight"], out, bias=block.get(f"{name}.bias"))
        self.rope(f"Qcur_rope-{il}", q, hp.n_head)
        self.rope(f"Kcur_rope-{il}", k, hp.n_head_kv)
        cache_k, cache_v = (
            Buffer(f"cache_{name}_l{il}", self.kv_kind, self.n_ctx, width)
            for name, width in (("k", hp.n_embd_k_gqa), ("v", hp.n_embd_v_gqa))
        )
        for new, cache in ((k, cache_k), (v, cache_v)):
            self.graph.add(cache.name, Op.KV_STORE, Rows.TOKENS, inputs={"x": new}, outputs={"cache": cache})
        kqv_out = self.buffer("kqv_out", hp.n_embd_out)
        self.graph.add(
            f"kqv_out-{il}",
            Op.ATTENTION,
            Rows.TOKENS,
            inputs={"q": q, "k": cache_k, "v": cache_v},
            outputs={"out": kqv_out},
            options={"n_head": hp.n_head, "n_head_kv": hp.n_head_kv, "scale": hp.f_attention_scale},
        )
        weight = block["attn_output.weight"]
        x = self.activations(f"kqv_out-{il}", kqv_out, (weight.qtype,))
        bias = block.get("attn_output.bias")
        self.matmul(f"ffn_inp-{il}", x, weight, self.ffn_inp, bias=bias, residual=self.l_out)

    def feed_forward(self, il: int, block: Block) -> None:
        """ffn_inp -> l_out: norm, then the dense feed-forward or the mixture of experts, residual."""
        normed = self.norm(f"ffn_norm-{il}", self.ffn_inp, "ffn_norm", block["ffn_norm.weight"])
        if block.experts:
            self.mixture(il, normed, block.experts)
        else:
            self.dense(il, normed, block)

    def dense(self, il: int, normed: Buffer, block: Block) -> None:
        """ffn_norm -> l_out through one gated feed-forward."""
        names = ("ffn_gate", "ffn_up")
        x = self.activations(f"ffn_norm-{il}", normed, (block[f"{name}.weight"].qtype for name in names))
        gate, up = (self.buffer(name, self.hparams.n_ff) for name in names)
        for name, out in zip(names, (gate, up), strict=True):
            self.matmul(f"{name}-{il}", x, block[f"{name}.weight"], out, bias=block.get(f"{name}.bias"))
        self.swiglu(f"ffn_swiglu-{il}", gate, up, Rows.TOKENS)
        down = block["ffn_down.weight"]
        x = self.activations(f"ffn_swiglu-{il}", gate, (down.qtype,))
        self.matmul(
            f"l_out-{il}", x, down, self.l_out, bias=block.get("ffn_down.bias"), residual=self.ffn_inp
        )

    def mixture(self, il: int, normed: Buffer, experts: Experts) -> None:
        """ffn_norm -> l_out through the experts that the router chooses.

        A *place* is one of a token's chosen experts; places are sorted by expert, so that each expert's
        weights are read once for all its tokens.
        """
        hp = self.hparams
        k, n_places = hp.n_expert_used, self.n_tokens * hp.n_expert_used
        router = experts.ffn_gate_inp
        x = self.activations(f"ffn_norm-{il}", normed, (router.qtype,))
        logits = self.buffer("ffn_moe_logits", hp.n_expert)
        self.matmul(f"ffn_moe_logits-{il}", x, router, logits)
        topk, chosen = self.buffer("ffn_moe_topk", k, Kind.I32), self.buffer("ffn_moe_weights", k)
        self.graph.add(
            f"ffn_moe_topk-{il}",
            Op.MOE_TOPK,
            Rows.TOKENS,
            inputs={},
            outputs={"logits": logits, "ids": topk, "weights": chosen},
            options={
                "gating": hp.expert_gating_func,
                "normalize": int(hp.expert_weights_norm),
                "weights_scale": hp.expert_weights_scale,
            },
        )
        places = {
            "used": Buffer("expert_used", Kind.I32, 1, hp.n_expert),
            "n_used": Buffer("expert_n_used", Kind.I64, 1, 1),
            "first": Buffer("expert_first", Kind.I32, 1, hp.n_expert + 1),
            "counts": Buffer("expert_counts", Kind.I32, 1, hp.n_expert),
            "token": Buffer("place_token", Kind.I32, n_places, 1),
            "place": self.buffer("token_place", k, Kind.I32),
        }
        self.graph.add(
            f"ffn_moe_rows-{il}", Op.EXPERT_ROWS, Rows.TOKENS, inputs={"ids": topk}, outputs=places
        )
        gate, up, down = (
            Buffer(name, Kind.F32, n_places, width)
            for name, width in (
                ("ffn_moe_gate", hp.n_ff_exp),
                ("ffn_moe_up", hp.n_ff_exp),
                ("ffn_moe_down", hp.n_embd),
            )
        )
        roles = ((gate, experts.ffn_gate_exps), (up, experts.ffn_up_exps))
        x = self.activations(f"ffn_norm-{il}", normed, (t for _, role in roles for t in role.qtypes))
        for out, role in roles:
            self.matmul_id(f"{out.name}-{il}", x, role, out, places, gather=True)
        self.swiglu(f"ffn_moe_swiglu-{il}", gate, up, Rows.PLACES)
        x = self.activations(f"ffn_moe_swiglu-{il}", gate, experts.ffn_down_exps.qtypes, Rows.PLACES)
        self.matmul_id(f"ffn_moe_down-{il}", x, experts.ffn_down_exps, down, places, gather=False)
        self.graph.add(
            f"l_out-{il}",
            Op.MOE_SUM,
            Rows.TOKENS,
            inputs={"x": down, "place": places["place"], "weights": chosen, "residual": self.ffn_inp},
            outputs={"out": self.l_out},
        )

    def result(self) -> None:
        """The wanted rows of l_out -> logits."""
        last = self.buffer("result_embd", self.hparams.n_embd)
        self.graph.add(
            "result_embd",
            Op.GET_ROWS,
            Rows.OUTPUTS,
            inputs={"tokens": self.buffer("out_ids", 1, Kind.I32), "weight": self.l_out},
            outputs={"out": last},
        )
        weight = self.weights["output_norm.weight"]
        normed = self.norm("result_norm", last, "result_norm", weight, Rows.OUTPUTS)
        output = self.weights.output
        x = self.activations("result_norm", normed, (output.qtype,), Rows.OUTPUTS)
        self.matmul(
            "result_output", x, output, self.buffer("result_output", self.hparams.n_vocab), rows=Rows.OUTPUTS
        )

    def buffer(self, name: str, cols: int, kind: Kind = Kind.F32) -> Buffer:
        """A buffer with one row for each token."""
        return Buffer(name, kind, self.n_tokens, cols)

    def norm(self, name: str, x: Buffer, out_name: str, weight: Tensor, rows: Rows = Rows.TOKENS) -> Buffer:
        out = self.buffer(out_name, x.cols)
        self.graph.add(
            name,
            Op.RMS_NORM,
            rows,
            inputs={"x": x},
            outputs={"out": out},
            weights={"weight": weight},
            options={"eps": self.hparams.f_norm_rms_eps},
        )
        return out

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
        inputs = {"x": x[ACTIVATION_FORMAT[weight.qtype]]}
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

    def rope(self, name: str, x: Buffer, n_head: int) -> None:
        hp = self.hparams
        tables = {key: self.buffer(f"rope_{key}", hp.n_rot_pairs) for key in ("cos", "sin")}
        options = {
            "n_head": n_head,
            "n_rot": hp.n_rot,
            "pair_stride": 1 if self.arch.rope is RopeStyle.NORM else hp.n_rot_pairs,
        }
        self.graph.add(name, Op.ROPE, Rows.TOKENS, inputs=tables, outputs={"x": x}, options=options)

    def swiglu(self, name: str, gate: Buffer, up: Buffer, rows: Rows) -> None:
        self.graph.add(name, Op.SWIGLU, rows, inputs={"up": up}, outputs={"gate": gate})
