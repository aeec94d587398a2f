"""Attention: queries, keys and values, norms of heads, rope, and the projection back."""

from __future__ import annotations

from gguf_moe.arch.weights import Block
from gguf_moe.graph.builder import Activations, Builder
from gguf_moe.graph.kv_cache import attend
from gguf_moe.graph.latent_attention import latent_attention
from gguf_moe.graph.task import Buffer, Op, Rows


def attention(builder: Builder, il: int, block: Block) -> None:
    """l_out -> ffn_inp: norm, attention over the KV cache, projection, residual."""
    normed = builder.block_norm(f"attn_norm-{il}", builder.l_out, block, "attn_norm")
    heads = latent_attention if builder.hparams.n_lora_kv else plain_attention
    kqv_out = heads(builder, il, block, normed)
    x = builder.activations(f"kqv_out-{il}", kqv_out, (block["attn_output.weight"].qtype,))
    builder.project(il, x, block, "attn_output", builder.l_out, builder.ffn_inp)


def plain_attention(builder: Builder, il: int, block: Block, normed: Buffer) -> Buffer:
    """attn_norm -> kqv_out, what all heads have found: q/k/v, norms of heads, rope, attention."""
    hp = builder.hparams
    names = ("attn_q", "attn_k", "attn_v")
    x = builder.activations(f"attn_norm-{il}", normed, (block[f"{name}.weight"].qtype for name in names))
    q, k, v = (
        builder.buffer(n, w)
        for n, w in (("Qcur", hp.n_embd_q), ("Kcur", hp.n_embd_k_gqa), ("Vcur", hp.n_embd_v_gqa))
    )
    gate = queries(builder, il, x, block, q)
    for name, out in zip(names[1:], (k, v), strict=True):
        builder.matmul(f"{out.name}-{il}", x, block[f"{name}.weight"], out, bias=block.get(f"{name}.bias"))
    positions(builder, il, block, q, k)
    kqv_out = builder.buffer("kqv_out", hp.n_embd_out)
    attend(builder, il, block, q, k, v, kqv_out)
    if gate:
        builder.graph.add(
            f"attn_gated-{il}", Op.SIGMOID_MUL, Rows.TOKENS, inputs={"gate": gate}, outputs={"x": kqv_out}
        )
    return kqv_out


def queries(builder: Builder, il: int, x: Activations, block: Block, q: Buffer) -> Buffer | None:
    """attn_norm -> q; the gates of the heads' outputs, as wide as q, if the architecture has some."""
    hp, weight, bias = builder.hparams, block["attn_q.weight"], block.get("attn_q.bias")
    if not builder.arch.gated_attention:
        builder.matmul(f"Qcur-{il}", x, weight, q, bias=bias)
        return None
    both, gate = builder.buffer("Qcur_full", hp.n_embd_q_gate), builder.buffer("attn_gate", hp.n_embd_q)
    builder.matmul(f"Qcur_full-{il}", x, weight, both, bias=bias)
    n = hp.n_embd_head_k
    for name, out, first in (("Qcur", q, 0), ("gate", gate, n)):
        builder.parts(f"{name}_reshaped-{il}", both, out, n_head=hp.n_head, n=n, first=first, stride=2 * n)
    return gate


def positions(builder: Builder, il: int, block: Block, q: Buffer, k: Buffer) -> None:
    """Rope, and before or after it the norms of queries and keys where there are some; in place."""
    hp = builder.hparams
    table = "rope_swa" if hp.is_swa[il] else "rope"

    def norms() -> None:
        for x, name in ((q, "attn_q_norm.weight"), (k, "attn_k_norm.weight")):
            if weight := block.get(name):
                builder.norm(f"{x.name}_normed-{il}", x, x, weight)

    if not builder.arch.norms_after_rope:
        norms()
    builder.rope(f"Qcur_rope-{il}", q, hp.n_head, table)
    builder.rope(f"Kcur_rope-{il}", k, hp.n_head_kv, table)
    if builder.arch.norms_after_rope:
        norms()
