"""The KV cache: keys and values go in, and attention reads them."""

from __future__ import annotations

from gguf_moe.arch.weights import Block
from gguf_moe.graph.builder import Builder
from gguf_moe.graph.task import Buffer, Op, Rows


def attend(
    builder: Builder, il: int, block: Block, q: Buffer, k: Buffer | None, v: Buffer | None, out: Buffer
) -> None:
    """Store the new keys and values, then out = attention of the queries over all of them.

    Without v, the values are the beginnings of the keys, as long as the heads of out, and not stored twice.
    Without k, both are those of an earlier layer.
    """
    hp = builder.hparams.of_layer(il)
    if k:
        cache_k = store(builder, f"cache_k_l{il}", k)
        cache_v = store(builder, f"cache_v_l{il}", v) if v else cache_k
    else:
        cache_k, cache_v = caches(builder, builder.hparams.kv_layer(il))
    builder.graph.add(
        f"{out.name}-{il}",
        Op.ATTENTION,
        Rows.TOKENS,
        inputs={"q": q, "k": cache_k, "v": cache_v, **builder.cells},
        outputs={"out": out},
        weights={"sinks": sinks} if (sinks := block.get("attn_sinks.weight")) else {},
        options={
            "n_head": hp.n_head,
            "n_head_kv": cache_k.cols // hp.n_embd_head_k,
            "n_swa": hp.n_swa if hp.is_swa[il] else 0,
            "chunked": int(builder.arch.n_attn_chunk > 0),
            "scale": hp.f_attention_scale,
        },
    )


def store(builder: Builder, name: str, x: Buffer) -> Buffer:
    """Append x to a cache, which has this name."""
    cache = Buffer(name, builder.kv_kind, builder.n_cells, x.cols)
    builder.graph.add(
        name, Op.KV_STORE, Rows.TOKENS, inputs={"x": x, **builder.cells}, outputs={"cache": cache}
    )
    return cache


def caches(builder: Builder, il: int) -> tuple[Buffer, Buffer]:
    """The keys and the values that another layer has stored."""
    hp = builder.hparams.of_layer(il)
    widths = (("k", hp.n_embd_k_gqa), ("v", hp.n_embd_v_gqa))
    k, v = (Buffer(f"cache_{name}_l{il}", builder.kv_kind, builder.n_cells, width) for name, width in widths)
    return k, v
