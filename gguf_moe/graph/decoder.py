"""From an architecture's data and a file's weights to the graph of a step. This is the model, top to bottom.

One graph serves every step of up to `n_tokens` tokens, be it a chunk of the prompt or one new token.
"""

from __future__ import annotations

from gguf_moe.arch.base import Arch
from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.weights import Block, Experts, Weights
from gguf_moe.checkpoint import Tensor
from gguf_moe.graph.builder import Activations, Builder
from gguf_moe.graph.task import Buffer, Graph, Kind, Op, Rows


def build_graph(
    arch: Arch, hparams: HParams, weights: Weights, *, n_tokens: int, n_ctx: int, kv_kind: Kind
) -> Graph:
    """The graph of one step of up to n_tokens tokens, with a context of n_ctx. Its inputs are the buffers
    inp_tokens and out_ids, and the angles NAME_cos and NAME_sin of each of arch.rope.rope_tables; its result
    is result_output, f32 [n_outputs, n_vocab]."""
    decoder = Decoder(arch, hparams, weights, n_tokens, n_ctx, kv_kind)
    decoder.embed()
    for il, block in enumerate(weights.blk):
        decoder.attention(il, block)
        decoder.feed_forward(il, block)
    decoder.result()
    return decoder.graph


class Decoder(Builder):
    """Adds the tasks of each part of the model to `graph`."""

    def __init__(
        self, arch: Arch, hparams: HParams, weights: Weights, n_tokens: int, n_ctx: int, kv_kind: Kind
    ):
        super().__init__(arch, hparams, n_tokens)
        self.weights = weights
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
        if self.hparams.f_embedding_scale != 1.0:
            self.scale("inp_scaled", self.l_out, self.l_out, self.hparams.f_embedding_scale)

    def attention(self, il: int, block: Block) -> None:
        """l_out -> ffn_inp: norm, q/k/v, norms of heads, rope, KV cache, attention, projection, residual."""
        hp = self.hparams
        normed = self.block_norm(f"attn_norm-{il}", self.l_out, block, "attn_norm")
        names = ("attn_q", "attn_k", "attn_v")
        x = self.activations(f"attn_norm-{il}", normed, (block[f"{name}.weight"].qtype for name in names))
        q, k, v = (
            self.buffer(n, w)
            for n, w in (("Qcur", hp.n_embd_q), ("Kcur", hp.n_embd_k_gqa), ("Vcur", hp.n_embd_v_gqa))
        )
        for name, out in zip(names, (q, k, v), strict=True):
            self.matmul(f"{out.name}-{il}", x, block[f"{name}.weight"], out, bias=block.get(f"{name}.bias"))
        self.positions(il, block, q, k)
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
            weights={"sinks": sinks} if (sinks := block.get("attn_sinks.weight")) else {},
            options={
                "n_head": hp.n_head,
                "n_head_kv": hp.n_head_kv,
                "n_swa": hp.n_swa if hp.is_swa[il] else 0,
                "scale": hp.f_attention_scale,
            },
        )
        x = self.activations(f"kqv_out-{il}", kqv_out, (block["attn_output.weight"].qtype,))
        self.project(il, x, block, "attn_output", self.l_out, self.ffn_inp)

    def positions(self, il: int, block: Block, q: Buffer, k: Buffer) -> None:
        """Rope, and before or after it the norms of queries and keys where there are some; in place."""
        hp = self.hparams
        table = "rope_swa" if hp.is_swa[il] else "rope"

        def norms() -> None:
            for x, name in ((q, "attn_q_norm.weight"), (k, "attn_k_norm.weight")):
                if weight := block.get(name):
                    self.norm(f"{x.name}_normed-{il}", x, x, weight)

        if not self.arch.norms_after_rope:
            norms()
        self.rope(f"Qcur_rope-{il}", q, hp.n_head, table)
        self.rope(f"Kcur_rope-{il}", k, hp.n_head_kv, table)
        if self.arch.norms_after_rope:
            norms()

    def feed_forward(self, il: int, block: Block) -> None:
        """ffn_inp -> l_out: norm, then the dense feed-forward or the mixture of experts, residual."""
        normed = self.block_norm(f"ffn_norm-{il}", self.ffn_inp, block, self.arch.ffn_norm)
        x = self.activations(f"ffn_norm-{il}", normed, block.ffn_input_qtypes())
        if block.experts:
            shared = self.shared_expert(il, normed, x, block) if block.has_shared_expert else None
            self.mixture(il, x, block, block.experts, shared)
        else:
            hidden = self.gated(il, x, block, "")
            self.project(il, hidden, block, "ffn_down", self.ffn_inp, self.l_out)

    def project(
        self, il: int, x: Activations, block: Block, name: str, residual: Buffer, out: Buffer
    ) -> None:
        """The last matrix of a branch: out = f_residual_scale * (weight . x (+ bias)) + residual."""
        weight, bias = block[f"{name}.weight"], block.get(f"{name}.bias")
        if self.hparams.f_residual_scale == 1.0:
            self.matmul(f"{out.name}-{il}", x, weight, out, bias=bias, residual=residual)
            return
        branch = self.buffer(name, out.cols)
        self.matmul(f"{name}-{il}", x, weight, branch, bias=bias)
        self.scale(f"{out.name}-{il}", branch, out, self.hparams.f_residual_scale, residual=residual)

    def gated(self, il: int, x: Activations, block: Block, kind: str) -> Activations:
        """ffn_norm -> the hidden units of a dense feed-forward (kind "") or a shared expert ("_shexp")."""
        names = (f"ffn_gate{kind}", f"ffn_up{kind}")
        gate, up = (self.buffer(name, block[f"{name}.weight"].shape[1]) for name in names)
        for name, out in zip(names, (gate, up), strict=True):
            self.matmul(f"{name}-{il}", x, block[f"{name}.weight"], out, bias=block.get(f"{name}.bias"))
        self.swiglu(f"ffn_swiglu{kind}-{il}", gate, up, Rows.TOKENS)
        return self.activations(f"ffn_swiglu{kind}-{il}", gate, (block[f"ffn_down{kind}.weight"].qtype,))

    def mixture(self, il: int, x: Activations, block: Block, experts: Experts, shared: Buffer | None) -> None:
        """ffn_norm -> l_out through the experts that the router chooses; adds the shared one's output.

        A *place* is one of a token's chosen experts; places are sorted by expert, so that each expert's
        weights are read once for all its tokens.
        """
        hp = self.hparams
        n_places = self.n_tokens * hp.n_expert_used
        topk, chosen = self.router(il, x, block, experts.ffn_gate_inp)
        places = {
            "used": Buffer("expert_used", Kind.I32, 1, hp.n_expert),
            "n_used": Buffer("expert_n_used", Kind.I64, 1, 1),
            "first": Buffer("expert_first", Kind.I32, 1, hp.n_expert + 1),
            "counts": Buffer("expert_counts", Kind.I32, 1, hp.n_expert),
            "token": Buffer("place_token", Kind.I32, n_places, 1),
            "place": self.buffer("token_place", hp.n_expert_used, Kind.I32),
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
        for out, role in ((gate, experts.ffn_gate_exps), (up, experts.ffn_up_exps)):
            self.matmul_id(f"{out.name}-{il}", x, role, out, places, gather=True)
        self.expert_bias(il, block, "ffn_gate_exps", gate, topk, places)
        self.expert_bias(il, block, "ffn_up_exps", up, topk, places)
        self.swiglu(f"ffn_moe_swiglu-{il}", gate, up, Rows.PLACES)
        hidden = self.activations(f"ffn_moe_swiglu-{il}", gate, experts.ffn_down_exps.qtypes, Rows.PLACES)
        self.matmul_id(f"ffn_moe_down-{il}", hidden, experts.ffn_down_exps, down, places, gather=False)
        self.expert_bias(il, block, "ffn_down_exps", down, topk, places)
        inputs = {"x": down, "place": places["place"], "weights": chosen}
        if shared:
            inputs["shared"] = shared
        self.sum_experts(il, inputs)

    def router(self, il: int, x: Activations, block: Block, weight: Tensor) -> tuple[Buffer, Buffer]:
        """ffn_norm -> the ids of each token's experts and their weights, both [n_expert_used]."""
        hp = self.hparams
        logits = self.buffer("ffn_moe_logits", hp.n_expert)
        self.matmul(f"ffn_moe_logits-{il}", x, weight, logits, bias=block.get("ffn_gate_inp.bias"))
        topk = self.buffer("ffn_moe_topk", hp.n_expert_used, Kind.I32)
        chosen = self.buffer("ffn_moe_weights", hp.n_expert_used)
        outputs = {"logits": logits, "ids": topk, "weights": chosen}
        bias = block.get("exp_probs_b.bias")
        if bias or hp.n_expert_groups > 1:
            outputs["selection"] = self.buffer("ffn_moe_probs_biased", hp.n_expert)
        if hp.n_expert_groups > 1:
            outputs["group_scores"] = self.buffer("ffn_moe_group_scores", hp.n_expert_groups)
        self.graph.add(
            f"ffn_moe_topk-{il}",
            Op.MOE_TOPK,
            Rows.TOKENS,
            inputs={},
            outputs=outputs,
            weights={"bias": bias} if bias else {},
            options={
                "gating": hp.expert_gating_func,
                "normalize": int(hp.expert_weights_norm),
                "weights_scale": hp.expert_weights_scale,
                "n_group": hp.n_expert_groups,
                "n_group_used": hp.n_group_used,
            },
        )
        return topk, chosen

    def expert_bias(
        self, il: int, block: Block, name: str, x: Buffer, topk: Buffer, places: dict[str, Buffer]
    ) -> None:
        """Add to what each expert gave its own bias, if the file has one."""
        if bias := block.get(f"{name}.bias"):
            self.graph.add(
                f"{x.name}_biased-{il}",
                Op.ADD_ID,
                Rows.TOKENS,
                inputs={"ids": topk, "place": places["place"]},
                outputs={"x": x},
                weights={"bias": bias},
            )

    def shared_expert(self, il: int, normed: Buffer, x: Activations, block: Block) -> Buffer:
        """ffn_norm -> the output of the expert for every token, times its gate if it has one."""
        hidden = self.gated(il, x, block, "_shexp")
        out = self.buffer("ffn_shexp", self.hparams.n_embd)
        self.matmul(f"ffn_shexp-{il}", hidden, block["ffn_down_shexp.weight"], out)
        if gate := block.get("ffn_gate_inp_shexp.weight"):
            self.graph.add(
                f"ffn_shexp_out-{il}",
                Op.SHEXP_GATE,
                Rows.TOKENS,
                inputs={"x": normed},
                outputs={"out": out},
                weights={"weight": gate},
            )
        return out

    def sum_experts(self, il: int, inputs: dict[str, Buffer]) -> None:
        """The experts' outputs -> l_out, as `project` does with a dense feed-forward."""
        if self.hparams.f_residual_scale == 1.0:
            inputs, outputs = inputs | {"residual": self.ffn_inp}, {"out": self.l_out}
            self.graph.add(f"l_out-{il}", Op.MOE_SUM, Rows.TOKENS, inputs=inputs, outputs=outputs)
            return
        out = self.buffer("ffn_out", self.hparams.n_embd)
        self.graph.add(f"ffn_out-{il}", Op.MOE_SUM, Rows.TOKENS, inputs=inputs, outputs={"out": out})
        self.scale(f"l_out-{il}", out, self.l_out, self.hparams.f_residual_scale, residual=self.ffn_inp)

    def block_norm(self, name: str, x: Buffer, block: Block, weight: str) -> Buffer:
        """The norm of a block that is called `weight` in the file; its output has the task's name."""
        out = self.buffer(name.rpartition("-")[0], x.cols)
        self.norm(name, x, out, block[f"{weight}.weight"], bias=block.get(f"{weight}.bias"))
        return out

    def result(self) -> None:
        """The wanted rows of l_out -> logits."""
        hp, weights = self.hparams, self.weights
        last, normed = self.buffer("result_embd", hp.n_embd), self.buffer("result_norm", hp.n_embd)
        self.graph.add(
            "result_embd",
            Op.GET_ROWS,
            Rows.OUTPUTS,
            inputs={"tokens": self.buffer("out_ids", 1, Kind.I32), "weight": self.l_out},
            outputs={"out": last},
        )
        weight, bias = weights["output_norm.weight"], weights.get("output_norm.bias")
        self.norm("result_norm", last, normed, weight, bias=bias, rows=Rows.OUTPUTS)
        x = self.activations("result_norm", normed, (weights.output.qtype,), Rows.OUTPUTS)
        logits = self.buffer("result_output", hp.n_vocab)
        bias = weights.get("output.bias")
        self.matmul("result_output", x, weights.output, logits, bias=bias, rows=Rows.OUTPUTS)
        if hp.f_logit_scale != 1.0:
            self.scale("result_scaled", logits, logits, 1.0 / hp.f_logit_scale, rows=Rows.OUTPUTS)
