"""Latent attention (MLA): keys and values of all heads come from one short row, kv_cmpr, and a roped part.

Newer files have the matrix that makes the heads cut in two, attn_k_b and attn_v_b. Then the queries are taken
to where kv_cmpr is, so that it is all that the cache holds and all heads share it. Older files have the whole
matrix, attn_kv_b; then the cache holds the keys and values of each head.
"""

from __future__ import annotations

from gguf_moe.arch.weights import Block
from gguf_moe.graph.builder import Activations, Builder
from gguf_moe.graph.kv_cache import attend
from gguf_moe.graph.task import Buffer


def latent_attention(builder: Builder, il: int, block: Block, normed: Buffer) -> Buffer:
    """attn_norm -> kqv_out, what all heads have found: [n_head * n_embd_head_v_mla]."""
    hp = builder.hparams
    names = ("attn_q_a" if hp.n_lora_q else "attn_q", "attn_kv_a_mqa")
    x = builder.activations(f"attn_norm-{il}", normed, (block[f"{name}.weight"].qtype for name in names))
    q = queries(builder, il, block, x)
    kv_cmpr_pe = builder.buffer("kv_cmpr_pe", hp.n_embd_kv_a)
    builder.matmul(f"kv_cmpr_pe-{il}", x, block["attn_kv_a_mqa.weight"], kv_cmpr_pe)
    kv_cmpr = builder.buffer("kv_cmpr", hp.n_lora_kv)
    builder.parts(f"kv_cmpr-{il}", kv_cmpr_pe, kv_cmpr, n_head=1, n=hp.n_lora_kv, first=0, stride=0)
    builder.norm(f"kv_cmpr_normed-{il}", kv_cmpr, kv_cmpr, block["attn_kv_a_norm.weight"])
    builder.rope(f"q_pe-{il}", q, hp.n_head, "rope", first=hp.n_embd_head_qk_nope)
    builder.rope(f"k_pe-{il}", kv_cmpr_pe, 1, "rope", first=hp.n_lora_kv)
    out = builder.buffer("kqv_out", hp.n_embd_out)
    heads = shared_cache if hp.is_mla else cache_by_head
    heads(builder, il, block, q, kv_cmpr, kv_cmpr_pe, out)
    return out


def queries(builder: Builder, il: int, block: Block, x: Activations) -> Buffer:
    """attn_norm -> queries before rope, through a short row of their own if the file has one."""
    hp = builder.hparams
    q = builder.buffer("q", hp.n_embd_q)
    if not hp.n_lora_q:
        builder.matmul(f"q-{il}", x, block["attn_q.weight"], q)
        return q
    q_a, weight = builder.buffer("q_a", hp.n_lora_q), block["attn_q_b.weight"]
    builder.matmul(f"q_a-{il}", x, block["attn_q_a.weight"], q_a)
    builder.norm(f"q_a_normed-{il}", q_a, q_a, block["attn_q_a_norm.weight"])
    builder.matmul(f"q-{il}", builder.activations(f"q_a-{il}", q_a, (weight.qtype,)), weight, q)
    return q


def shared_cache(
    builder: Builder, il: int, block: Block, q: Buffer, kv_cmpr: Buffer, kv_cmpr_pe: Buffer, out: Buffer
) -> None:
    """All heads look at kv_cmpr; a head's matrices are applied to its query and to what it finds."""
    hp = builder.hparams
    absorbed = builder.buffer("q_nope_absorbed", hp.n_head * hp.n_lora_kv)
    builder.matmul_heads(f"q_nope_absorbed-{il}", q, block["attn_k_b.weight"], absorbed)
    q = builder.concat(f"Qcur-{il}", absorbed, q, hp.n_head, hp.n_rot)
    k = builder.concat(f"Kcur-{il}", kv_cmpr, kv_cmpr_pe, 1, hp.n_rot)
    if hp.attn_temperature:
        builder.temperature(f"Qcur_attn_temp_scaled-{il}", q)
    found = builder.buffer("kqv", hp.n_head * hp.n_lora_kv)
    attend(builder, il, block, q, k, None, found)
    builder.matmul_heads(f"kqv_out-{il}", found, block["attn_v_b.weight"], out)


def cache_by_head(
    builder: Builder, il: int, block: Block, q: Buffer, kv_cmpr: Buffer, kv_cmpr_pe: Buffer, out: Buffer
) -> None:
    """Each head has keys and values of its own, made of kv_cmpr; the roped part of the keys is the same."""
    hp, weight = builder.hparams, block["attn_kv_b.weight"]
    kv = builder.buffer("kv", hp.n_embd_kv_b)
    builder.matmul(f"kv-{il}", builder.activations(f"kv_cmpr-{il}", kv_cmpr, (weight.qtype,)), weight, kv)
    k_nope = builder.buffer("k_nope", hp.n_head * hp.n_embd_head_qk_nope)
    k_pe = builder.buffer("k_pe", hp.n_head * hp.n_rot)
    v = builder.buffer("Vcur", hp.n_embd_v_gqa)
    n_nope, n_v = hp.n_embd_head_qk_nope, hp.n_embd_head_v
    heads = {"n_head": hp.n_head, "stride": n_nope + n_v}
    builder.parts(f"k_nope-{il}", kv, k_nope, n=n_nope, first=0, **heads)
    builder.parts(f"Vcur-{il}", kv, v, n=n_v, first=n_nope, **heads)
    builder.parts(
        f"k_pe_heads-{il}", kv_cmpr_pe, k_pe, n_head=hp.n_head, n=hp.n_rot, first=hp.n_lora_kv, stride=0
    )
    k = builder.concat(f"Kcur-{il}", k_nope, k_pe, hp.n_head, hp.n_rot)
    if hp.attn_temperature:
        builder.temperature(f"Qcur_attn_temp_scaled-{il}", q)
    attend(builder, il, block, q, k, v, out)
