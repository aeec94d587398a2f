"""From an architecture's data and a file's weights to the graph of a step. This is the model, top to bottom.

One graph serves every step of up to `n_tokens` tokens, be it a chunk of the prompt or one new token.
"""

from __future__ import annotations

from gguf_moe.arch.base import Arch
from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.weights import Weights
from gguf_moe.graph.attention import attention
from gguf_moe.graph.builder import Builder
from gguf_moe.graph.delta_net import delta_net
from gguf_moe.graph.feed_forward import feed_forward
from gguf_moe.graph.task import Buffer, Graph, Kind, Op, Rows


def build_graph(
    arch: Arch,
    hparams: HParams,
    weights: Weights,
    *,
    n_tokens: int,
    n_ctx: int,
    kv_kind: Kind,
    injects_routing: bool = False,
    n_seq_max: int = 1,
    n_outputs: int | None = None,
) -> Graph:
    """The graph of one step of up to n_tokens tokens, with n_ctx positions for each of n_seq_max sequences.
    Logits are wanted of up to n_outputs of them, or of all.

    Its inputs are the buffers inp_tokens and out_ids, and those that arch.positions makes; with
    injects_routing also injected_topk, the experts of each token in each layer, i32
    [n_tokens, n_layer * n_expert_used]; with n_seq_max over 1 inp_cells, i32 [n_tokens, 2]: the first cell of
    a token's sequence in the KV cache, and its position. Its result is result_output, f32
    [n_outputs, n_vocab].
    """
    builder = Builder(
        arch,
        hparams,
        n_tokens=n_tokens,
        n_ctx=n_ctx,
        kv_kind=kv_kind,
        injects_routing=injects_routing,
        n_seq_max=n_seq_max,
        scales=weights.scales,
    )
    embed(builder, weights)
    for il, block in enumerate(weights.blk):
        mixer = delta_net if hparams.is_recr[il] else attention
        mixer(builder, il, block)
        feed_forward(builder, il, block)
    result(builder, weights, n_outputs or n_tokens)
    return builder.graph


def embed(builder: Builder, weights: Weights) -> None:
    """Token ids -> l_out."""
    builder.graph.add(
        "inp_embd",
        Op.GET_ROWS,
        Rows.TOKENS,
        inputs={"tokens": builder.buffer("inp_tokens", 1, Kind.I32)},
        outputs={"out": builder.l_out},
        weights={"weight": weights["token_embd.weight"]},
    )
    if builder.hparams.f_embedding_scale != 1.0:
        builder.scale("inp_scaled", builder.l_out, builder.l_out, builder.hparams.f_embedding_scale)


def result(builder: Builder, weights: Weights, n_outputs: int) -> None:
    """The wanted rows of l_out -> logits."""
    hp = builder.hparams
    last, normed, logits = (
        Buffer(name, Kind.F32, n_outputs, cols)
        for name, cols in (
            ("result_embd", hp.n_embd),
            ("result_norm", hp.n_embd),
            ("result_output", hp.n_vocab),
        )
    )
    builder.graph.add(
        "result_embd",
        Op.GET_ROWS,
        Rows.OUTPUTS,
        inputs={"tokens": builder.buffer("out_ids", 1, Kind.I32), "weight": builder.l_out},
        outputs={"out": last},
    )
    weight, bias = weights["output_norm.weight"], weights.get("output_norm.bias")
    builder.norm("result_norm", last, normed, weight, bias=bias, rows=Rows.OUTPUTS)
    x = builder.activations("result_norm", normed, (weights.output.qtype,), Rows.OUTPUTS)
    bias = weights.get("output.bias")
    builder.matmul("result_output", x, weights.output, logits, bias=bias, rows=Rows.OUTPUTS)
    if hp.f_logit_scale != 1.0:
        builder.scale("result_scaled", logits, logits, 1.0 / hp.f_logit_scale, rows=Rows.OUTPUTS)
    if hp.f_final_logit_softcapping:
        options = {"cap": hp.f_final_logit_softcapping}
        builder.graph.add(
            "result_capped", Op.SOFTCAP, Rows.OUTPUTS, inputs={}, outputs={"x": logits}, options=options
        )
