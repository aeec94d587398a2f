"""The feed-forward of a block: dense, or a mixture of experts with or without an expert for every token."""

from __future__ import annotations

from gguf_moe.arch.weights import Block
from gguf_moe.graph.builder import Activations, Builder
from gguf_moe.graph.experts import mixture
from gguf_moe.graph.task import Buffer, Op, Rows


def feed_forward(builder: Builder, il: int, block: Block) -> None:
    """ffn_inp -> l_out: norm, then the dense feed-forward or the mixture of experts, residual."""
    normed = builder.block_norm(f"ffn_norm-{il}", builder.ffn_inp, block, builder.arch.ffn_norm)
    x = builder.activations(f"ffn_norm-{il}", normed, block.ffn_input_qtypes())
    if block.experts:
        shared = shared_expert(builder, il, normed, x, block) if block.has_shared_expert else None
        mixture(builder, il, x, block, block.experts, shared)
    else:
        hidden = gated(builder, il, x, block, "")
        builder.project(il, hidden, block, "ffn_down", builder.ffn_inp, builder.l_out)


def gated(builder: Builder, il: int, x: Activations, block: Block, kind: str) -> Activations:
    """ffn_norm -> the hidden units of a dense feed-forward (kind "") or a shared expert ("_shexp")."""
    names = (f"ffn_gate{kind}", f"ffn_up{kind}")
    gate, up = (builder.buffer(name, block[f"{name}.weight"].shape[1]) for name in names)
    for name, out in zip(names, (gate, up), strict=True):
        builder.matmul(f"{name}-{il}", x, block[f"{name}.weight"], out, bias=block.get(f"{name}.bias"))
    builder.swiglu(f"ffn_swiglu{kind}-{il}", gate, up, Rows.TOKENS)
    return builder.activations(f"ffn_swiglu{kind}-{il}", gate, (block[f"ffn_down{kind}.weight"].qtype,))


def shared_expert(builder: Builder, il: int, normed: Buffer, x: Activations, block: Block) -> Buffer:
    """ffn_norm -> the output of the expert for every token, times its gate if it has one."""
    hidden = gated(builder, il, x, block, "_shexp")
    out = builder.buffer("ffn_shexp", builder.hparams.n_embd)
    builder.matmul(f"ffn_shexp-{il}", hidden, block["ffn_down_shexp.weight"], out)
    if gate := block.get("ffn_gate_inp_shexp.weight"):
        builder.graph.add(
            f"ffn_shexp_out-{il}",
            Op.SHEXP_GATE,
            Rows.TOKENS,
            inputs={"x": normed},
            outputs={"out": out},
            weights={"weight": gate},
        )
    return out
