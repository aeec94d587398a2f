"""Attention: queries, keys and values, norms of heads, rope, and the projection back."""

from __future__ import annotations

from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.weights import Block
from gguf_moe.checkpoint import Tensor
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
    post_norm = builder.arch.attn_post_norm
    builder.project(il, x, block, "attn_output", builder.l_out, builder.ffn_inp, post_norm)


def plain_attention(builder: Builder, il: int, block: Block, normed: Buffer) -> Buffer:
    """attn_norm -> kqv_out, what all heads have found: q/k/v, norms of heads, rope, attention."""
    hp = builder.hparams.of_layer(il)
    names = ("attn_q.weight", "attn_k.weight", "attn_v.weight")
    x = builder.activations(f"attn_norm-{il}", normed, (block[n].qtype for n in names if n in block.tensors))
    q, gate = queries(builder, il, x, block, hp)
    k, v = keys_and_values(builder, il, x, block, hp) if hp.kv_layer(il) == il else (None, None)
    positions(builder, il, "Qcur", q, block.get("attn_q_norm.weight"), hp.n_head)
    if hp.attn_temperature and not hp.has_rope[il]:
        builder.temperature(f"Qcur_attn_temp_scaled-{il}", q)
    if k:
        positions(builder, il, "Kcur", k, block.get("attn_k_norm.weight"), hp.n_head_kv)
    kqv_out = builder.buffer("kqv_out", hp.n_embd_out)
    attend(builder, il, block, q, k, v, kqv_out)
    if gate:
        builder.graph.add(
            f"attn_gated-{il}", Op.SIGMOID_MUL, Rows.TOKENS, inputs={"gate": gate}, outputs={"x": kqv_out}
        )
    return kqv_out


def projected(
    builder: Builder, il: int, x: Activations, block: Block, name: str, out_name: str, width: int
) -> Buffer:
    """One of queries, keys and values."""
    out = builder.buffer(out_name, width)
    builder.matmul(f"{out_name}-{il}", x, block[f"{name}.weight"], out, bias=block.get(f"{name}.bias"))
    return out


def queries(
    builder: Builder, il: int, x: Activations, block: Block, hp: HParams
) -> tuple[Buffer, Buffer | None]:
    """attn_norm -> queries, and the gates of the heads' outputs if the architecture has some."""
    if not builder.arch.gated_attention:
        return projected(builder, il, x, block, "attn_q", "Qcur", hp.n_embd_q), None
    both = projected(builder, il, x, block, "attn_q", "Qcur_full", hp.n_embd_q_gate)
    q, gate = builder.buffer("Qcur", hp.n_embd_q), builder.buffer("attn_gate", hp.n_embd_q)
    n = hp.n_embd_head_k
    for name, out, first in (("Qcur", q, 0), ("gate", gate, n)):
        builder.parts(f"{name}_reshaped-{il}", both, out, n_head=hp.n_head, n=n, first=first, stride=2 * n)
    return q, gate


def keys_and_values(
    builder: Builder, il: int, x: Activations, block: Block, hp: HParams
) -> tuple[Buffer, Buffer]:
    """Keys, not normed yet, and values; these are the keys where the file has no matrix for values."""
    k = projected(builder, il, x, block, "attn_k", "Kcur", hp.n_embd_k_gqa)
    if "attn_v.weight" in block.tensors:
        v = projected(builder, il, x, block, "attn_v", "Vcur", hp.n_embd_v_gqa)
    else:
        v = k
    if builder.arch.norms_values:
        out = builder.buffer("Vcur", hp.n_embd_v_gqa)
        builder.norm(f"Vcur_normed-{il}", v, out, None, n_head=hp.n_head_kv)
        v = out
    return k, v


def positions(builder: Builder, il: int, name: str, x: Buffer, norm: Tensor | None, n_head: int) -> None:
    """Rope of queries or keys, and before or after it their norm where there is one; in place."""
    hp = builder.hparams
    if norm and not builder.arch.norms_after_rope:
        builder.norm(f"{name}_normed-{il}", x, x, norm)
    if hp.has_rope[il]:
        builder.rope(f"{name}_rope-{il}", x, n_head, "rope_swa" if hp.is_swa[il] else "rope")
        if hp.use_kq_norm:
            builder.norm(f"{name}_normed-{il}", x, x, None, n_head=n_head)
    if norm and builder.arch.norms_after_rope:
        builder.norm(f"{name}_normed-{il}", x, x, norm)
