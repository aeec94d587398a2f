"""The feed-forward of a block: dense, or a mixture of experts with or without an expert for every token."""

from __future__ import annotations

import numpy as np

from gguf_moe.arch.weights import Block, Experts
from gguf_moe.graph.builder import Activations, Builder
from gguf_moe.graph.experts import choose, mixture, run_experts
from gguf_moe.graph.task import Buffer, Op, Rows


def feed_forward(builder: Builder, il: int, block: Block) -> None:
    """ffn_inp -> l_out: norms, a dense feed-forward or a mixture of experts or both, residual."""
    if block.experts and builder.arch.dense_beside_experts:
        dense_and_experts(builder, il, block, block.experts)
    else:
        dense_or_experts(builder, il, block)
    if scale := block.get("layer_output_scale.weight"):
        factor = float(scale.data.view(np.float32)[0])
        builder.scale(f"out_scaled-{il}", builder.l_out, builder.l_out, factor)


def dense_or_experts(builder: Builder, il: int, block: Block) -> None:
    """ffn_inp -> l_out in most models: one norm, then what the block has."""
    normed = builder.block_norm(f"ffn_norm-{il}", builder.ffn_inp, block, builder.arch.ffn_norm)
    x = builder.activations(f"ffn_norm-{il}", normed, block.ffn_input_qtypes())
    if block.experts:
        shared = shared_expert(builder, il, normed, x, block) if block.has_shared_expert else None
        mixture(builder, il, normed, x, block, block.experts, shared)
    else:
        hidden = gated(builder, il, x, block, "")
        post_norm = builder.arch.ffn_post_norm
        builder.project(il, hidden, block, "ffn_down", builder.ffn_inp, builder.l_out, post_norm)


def gated(builder: Builder, il: int, x: Activations, block: Block, kind: str) -> Activations:
    """ffn_norm -> the hidden units of a dense feed-forward (kind "") or a shared expert ("_shexp")."""
    names = (f"ffn_gate{kind}", f"ffn_up{kind}")
    gate, up = (builder.buffer(name, block[f"{name}.weight"].shape[1]) for name in names)
    for name, out in zip(names, (gate, up), strict=True):
        builder.matmul(f"{name}-{il}", x, block[f"{name}.weight"], out, bias=block.get(f"{name}.bias"))
    name = builder.gated_unit(il, f"ffn{kind}", gate, up, Rows.TOKENS)
    return builder.activations(name, gate, (block[f"ffn_down{kind}.weight"].qtype,))


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


def dense_and_experts(builder: Builder, il: int, block: Block, experts: Experts) -> None:
    """ffn_inp -> l_out in gemma4: both feed-forwards between norms of their own, and a norm of their sum.

    The router sees ffn_inp itself, normed by ffn_gate_inp.scale and divided by the root of n_embd.
    """
    ffn_inp, n_embd = builder.ffn_inp, builder.hparams.n_embd
    normed = builder.block_norm(f"ffn_norm_1-{il}", ffn_inp, block, "ffn_norm")
    x = builder.activations(
        f"ffn_norm_1-{il}", normed, (block[f"ffn_{role}.weight"].qtype for role in ("gate", "up"))
    )
    hidden = gated(builder, il, x, block, "")
    dense = builder.buffer("ffn_mlp", n_embd)
    builder.matmul(f"ffn_down-{il}", hidden, block["ffn_down.weight"], dense)
    builder.norm(f"ffn_mlp-{il}", dense, dense, block["post_ffw_norm_1.weight"])

    normed = builder.buffer("ffn_gate_inp_norm", n_embd)
    builder.norm(f"ffn_gate_inp_norm-{il}", ffn_inp, normed, block["ffn_gate_inp.scale"])
    builder.scale(f"ffn_gate_inp_scaled-{il}", normed, normed, n_embd**-0.5)
    x = builder.activations(f"ffn_gate_inp_scaled-{il}", normed, (experts.ffn_gate_inp.qtype,))
    topk, chosen = choose(builder, il, x, block, experts.ffn_gate_inp)

    normed = builder.block_norm(f"ffn_norm_2-{il}", ffn_inp, block, "pre_ffw_norm_2")
    qtypes = (*experts.ffn_gate_exps.qtypes, *experts.ffn_up_exps.qtypes)
    x = builder.activations(f"ffn_norm_2-{il}", normed, qtypes)
    inputs = run_experts(builder, il, x, block, experts, topk, chosen)
    out = builder.buffer("ffn_moe", n_embd)
    builder.graph.add(f"ffn_moe_out-{il}", Op.MOE_SUM, Rows.TOKENS, inputs=inputs, outputs={"out": out})
    builder.norm(f"ffn_moe-{il}", out, out, block["post_ffw_norm_2.weight"])

    builder.add(f"ffn_moe_combined-{il}", out, dense, out)
    builder.norm(f"ffn_post_norm-{il}", out, out, block[f"{builder.arch.ffn_post_norm}.weight"])
    builder.add(f"l_out-{il}", out, ffn_inp, builder.l_out)
