"""A gated delta net in the place of attention: projections, a short convolution, the recurrence, a norm.

What earlier tokens leave behind is in two buffers of each layer, of the same size for any context: for each
sequence the last inputs of the convolution, and a matrix for each head.
"""

from __future__ import annotations

from gguf_moe.arch.weights import Block
from gguf_moe.graph.builder import Activations, Builder
from gguf_moe.graph.task import Buffer, Kind, Op, Rows

PROJECTIONS = ("attn_qkv", "attn_gate", "ssm_in", "ssm_ba", "ssm_alpha", "ssm_beta")
"""Matrices that the normed input meets; a file has some of them."""


def delta_net(builder: Builder, il: int, block: Block) -> None:
    """l_out -> ffn_inp: norm, queries, keys and values, convolution, recurrence, projection, residual."""
    normed = builder.block_norm(f"attn_norm-{il}", builder.l_out, block, "attn_norm")
    weights = [weight for name in PROJECTIONS if (weight := block.get(f"{name}.weight"))]
    x = builder.activations(f"attn_norm-{il}", normed, (weight.qtype for weight in weights))
    qkv, z = qkvz(builder, il, x, block)
    decay, beta = gates(builder, il, x, block)
    qkv = convolution(builder, il, qkv, block)
    out = recurrence(builder, il, qkv, decay, beta)
    builder.norm(f"attn_out_norm-{il}", out, out, block["ssm_norm.weight"])
    builder.graph.add(f"final_output-{il}", Op.SWIGLU, Rows.TOKENS, inputs={"up": out}, outputs={"gate": z})
    x = builder.activations(f"final_output-{il}", z, (block["ssm_out.weight"].qtype,))
    builder.project(il, x, block, "ssm_out", builder.l_out, builder.ffn_inp)


def qkvz(builder: Builder, il: int, x: Activations, block: Block) -> tuple[Buffer, Buffer]:
    """attn_norm -> queries, keys and values in one buffer, and the gate of the output."""
    ssm = builder.hparams.ssm
    qkv, z = builder.buffer("linear_attn_qkv_mixed", ssm.n_qkv), builder.buffer("z", ssm.d_inner)
    mixed_weight = block.get("ssm_in.weight")
    if mixed_weight is None:
        builder.matmul(f"linear_attn_qkv_mixed-{il}", x, block["attn_qkv.weight"], qkv)
        builder.matmul(f"z-{il}", x, block["attn_gate.weight"], z)
        return qkv, z
    # Older files have for each group its query, its key, its values and their gate side by side.
    mixed = builder.buffer("linear_attn_mixed_qkvz", ssm.n_qkvz)
    builder.matmul(f"linear_attn_mixed_qkvz-{il}", x, mixed_weight, mixed)
    n_value, first, out_first = ssm.d_inner // ssm.n_group, 0, 0
    for name, n in (("q", ssm.d_state), ("k", ssm.d_state), ("v", n_value), ("z", n_value)):
        out = z if name == "z" else qkv
        place = {"n_head": ssm.n_group, "n": n, "first": first, "stride": mixed.cols // ssm.n_group}
        builder.parts(f"{name}-{il}", mixed, out, **place, out_first=0 if name == "z" else out_first)
        first, out_first = first + n, out_first + n * ssm.n_group
    return qkv, z


def gates(builder: Builder, il: int, x: Activations, block: Block) -> tuple[Buffer, Buffer]:
    """attn_norm -> the decay of each head's matrix, and how much of what is new goes in."""
    ssm = builder.hparams.ssm
    alpha, beta = builder.buffer("alpha", ssm.dt_rank), builder.buffer("beta", ssm.dt_rank)
    if weight := block.get("ssm_ba.weight"):
        mixed = builder.buffer("linear_attn_mixed_ba", ssm.n_ba)
        builder.matmul(f"linear_attn_mixed_ba-{il}", x, weight, mixed)
        n = ssm.dt_rank // ssm.n_group
        for name, out, first in (("b", beta, 0), ("a", alpha, n)):
            builder.parts(f"{name}-{il}", mixed, out, n_head=ssm.n_group, n=n, first=first, stride=2 * n)
    else:
        builder.matmul(f"alpha-{il}", x, block["ssm_alpha.weight"], alpha)
        builder.matmul(f"beta-{il}", x, block["ssm_beta.weight"], beta)
    builder.graph.add(
        f"gate-{il}",
        Op.DELTA_NET_GATES,
        Rows.TOKENS,
        inputs={},
        outputs={"alpha": alpha, "beta": beta},
        weights={"a": block["ssm_a"], "dt": block["ssm_dt.bias"]},
    )
    return alpha, beta


def convolution(builder: Builder, il: int, qkv: Buffer, block: Block) -> Buffer:
    """Each channel of queries, keys and values over the last tokens; then queries and keys have length 1."""
    ssm = builder.hparams.ssm
    out = builder.buffer("conv_output_silu", qkv.cols)
    state = Buffer(f"conv_states_l{il}", Kind.F32, builder.n_seq_max * (ssm.d_conv - 1), qkv.cols)
    builder.graph.add(
        f"conv_output_silu-{il}",
        Op.SSM_CONV,
        Rows.TOKENS,
        inputs={"x": qkv, **builder.cells},
        outputs={"out": out, "state": state},
        weights={"weight": block["ssm_conv1d.weight"]},
        options={"n_ctx": builder.n_ctx},
    )
    builder.graph.add(
        f"q_k_conv_normed-{il}",
        Op.L2_NORM,
        Rows.TOKENS,
        inputs={},
        outputs={"x": out},
        options={"n_head": 2 * ssm.n_group, "n": ssm.d_state, "eps": builder.hparams.f_norm_rms_eps},
    )
    return out


def recurrence(builder: Builder, il: int, qkv: Buffer, decay: Buffer, beta: Buffer) -> Buffer:
    """The output of each head, [dt_rank * d_state]; its matrix goes on to the next token."""
    ssm = builder.hparams.ssm
    out = builder.buffer("linear_attn", ssm.d_inner)
    state = Buffer(f"ssm_states_l{il}", Kind.F32, builder.n_seq_max * ssm.d_inner, ssm.d_state)
    builder.graph.add(
        f"linear_attn-{il}",
        Op.GATED_DELTA_NET,
        Rows.TOKENS,
        inputs={"qkv": qkv, "decay": decay, "beta": beta, **builder.cells},
        outputs={"out": out, "state": state},
        options={
            "n_ctx": builder.n_ctx,
            "n_head_k": ssm.n_group,
            "heads_per_key": ssm.dt_rank // ssm.n_group if builder.arch.neighbours_share_keys else 1,
        },
    )
    return out
