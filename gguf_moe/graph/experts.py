"""The mixture of experts: the router, the experts that it chooses, and the sum of what they give."""

from __future__ import annotations

from gguf_moe.arch.weights import Block, Experts
from gguf_moe.checkpoint import Tensor
from gguf_moe.graph.builder import Activations, Builder
from gguf_moe.graph.task import Buffer, Kind, Op, Rows


def mixture(
    builder: Builder,
    il: int,
    normed: Buffer,
    x: Activations,
    block: Block,
    experts: Experts,
    shared: Buffer | None,
) -> None:
    """ffn_norm -> l_out through the experts that the router chooses; adds the shared one's output.

    x is `normed` in the formats that the matrices need.
    """
    topk, chosen = choose(builder, il, x, block, experts.ffn_gate_inp)
    to_weigh = normed if builder.arch.weight_before_ffn else None
    inputs = run_experts(builder, il, x, block, experts, topk, chosen, to_weigh)
    if shared:
        inputs["shared"] = shared
    sum_experts(builder, il, inputs)


def choose(builder: Builder, il: int, x: Activations, block: Block, weight: Tensor) -> tuple[Buffer, Buffer]:
    """The router's input -> the ids of each token's experts and their weights, both [n_expert_used]."""
    hp = builder.hparams
    logits = builder.buffer("ffn_moe_logits", hp.n_expert)
    builder.matmul(f"ffn_moe_logits-{il}", x, weight, logits, bias=block.get("ffn_gate_inp.bias"))
    # Each layer has its own, so that all choices of a step can be read after it.
    topk = builder.buffer(f"ffn_moe_topk-{il}", hp.n_expert_used, Kind.I32)
    chosen = builder.buffer("ffn_moe_weights", hp.n_expert_used)
    outputs = {"logits": logits, "ids": topk, "weights": chosen}
    bias = block.get("exp_probs_b.bias")
    if bias or hp.n_expert_groups > 1:
        outputs["selection"] = builder.buffer("ffn_moe_probs_biased", hp.n_expert)
    if hp.n_expert_groups > 1:
        outputs["group_scores"] = builder.buffer("ffn_moe_group_scores", hp.n_expert_groups)
    given = builder.buffer("injected_topk", hp.n_layer * hp.n_expert_used, Kind.I32)
    builder.graph.add(
        f"ffn_moe_topk-{il}",
        Op.MOE_TOPK,
        Rows.TOKENS,
        inputs={"given": given} if builder.injects_routing else {},
        outputs=outputs,
        weights={"bias": bias} if bias else {},
        options={
            "gating": hp.expert_gating_func,
            "normalize": int(hp.expert_weights_norm),
            "weights_scale": hp.expert_weights_scale,
            "n_group": hp.n_expert_groups,
            "n_group_used": hp.n_group_used,
            "layer": il,
        },
    )
    return topk, chosen


def run_experts(
    builder: Builder,
    il: int,
    x: Activations,
    block: Block,
    experts: Experts,
    topk: Buffer,
    chosen: Buffer,
    to_weigh: Buffer | None = None,
) -> dict[str, Buffer]:
    """The experts' input -> the inputs of MOE_SUM: what each chosen expert gives, where, and its weight.

    With to_weigh, the experts' input in float32, it is that which is multiplied by the weights, and not what
    the experts give.
    A *place* is one of a token's chosen experts; places are sorted by expert, so that each expert's
    weights are read once for all its tokens.
    """
    hp = builder.hparams
    n_places = builder.n_tokens * hp.n_expert_used
    places = {
        "used": Buffer("expert_used", Kind.I32, 1, hp.n_expert),
        "n_used": Buffer("expert_n_used", Kind.I64, 1, 1),
        "first": Buffer("expert_first", Kind.I32, 1, hp.n_expert + 1),
        "counts": Buffer("expert_counts", Kind.I32, 1, hp.n_expert),
        "token": Buffer("place_token", Kind.I32, n_places, 1),
        "place": builder.buffer("token_place", hp.n_expert_used, Kind.I32),
    }
    builder.graph.add(f"ffn_moe_rows-{il}", Op.EXPERT_ROWS, Rows.TOKENS, inputs={"ids": topk}, outputs=places)
    gate, up, down = (
        Buffer(name, Kind.F32, n_places, width)
        for name, width in (
            ("ffn_moe_gate", hp.n_ff_exp),
            ("ffn_moe_up", hp.n_ff_exp),
            ("ffn_moe_down", hp.n_embd),
        )
    )
    if to_weigh:
        x = weighted(builder, il, to_weigh, chosen, places["place"], experts)
    for out, role in ((gate, experts.ffn_gate_exps), (up, experts.ffn_up_exps)):
        builder.matmul_id(f"{out.name}-{il}", x, role, out, places, gather=not to_weigh)
    of_each_expert(builder, il, block, "ffn_gate_exps", gate, topk, places)
    of_each_expert(builder, il, block, "ffn_up_exps", up, topk, places)
    name = builder.gated_unit(il, "ffn_moe", gate, up, Rows.PLACES)
    hidden = builder.activations(name, gate, experts.ffn_down_exps.qtypes, Rows.PLACES)
    builder.matmul_id(f"ffn_moe_down-{il}", hidden, experts.ffn_down_exps, down, places, gather=False)
    of_each_expert(builder, il, block, "ffn_down_exps", down, topk, places)
    inputs = {"x": down, "place": places["place"]}
    return inputs if to_weigh else inputs | {"weights": chosen}


def weighted(
    builder: Builder, il: int, x: Buffer, weights: Buffer, place: Buffer, experts: Experts
) -> Activations:
    """The experts' input, for each place times the weight of its choice."""
    out = Buffer("ffn_moe_weighted", Kind.F32, builder.n_tokens * weights.cols, x.cols)
    inputs = {"x": x, "place": place, "weights": weights}
    builder.graph.add(f"{out.name}-{il}", Op.WEIGH, Rows.TOKENS, inputs=inputs, outputs={"out": out})
    qtypes = (*experts.ffn_gate_exps.qtypes, *experts.ffn_up_exps.qtypes)
    return builder.activations(f"{out.name}-{il}", out, qtypes, Rows.PLACES)


def of_each_expert(
    builder: Builder, il: int, block: Block, name: str, x: Buffer, topk: Buffer, places: dict[str, Buffer]
) -> None:
    """What each expert gave, times its own scale and plus its own bias, where the file has them."""
    for kind, op, done in (("scale", Op.SCALE_ID, "scaled"), ("bias", Op.ADD_ID, "biased")):
        if weight := block.get(f"{name}.{kind}"):
            builder.graph.add(
                f"{x.name}_{done}-{il}",
                op,
                Rows.TOKENS,
                inputs={"ids": topk, "place": places["place"]},
                outputs={"x": x},
                weights={kind: weight},
            )


def sum_experts(builder: Builder, il: int, inputs: dict[str, Buffer]) -> None:
    """The experts' outputs -> l_out, as `project` does with a dense feed-forward."""
    if builder.hparams.f_residual_scale == 1.0:
        inputs, outputs = inputs | {"residual": builder.ffn_inp}, {"out": builder.l_out}
        builder.graph.add(f"l_out-{il}", Op.MOE_SUM, Rows.TOKENS, inputs=inputs, outputs=outputs)
        return
    out = builder.buffer("ffn_out", builder.hparams.n_embd)
    builder.graph.add(f"ffn_out-{il}", Op.MOE_SUM, Rows.TOKENS, inputs=inputs, outputs={"out": out})
    builder.scale(
        f"l_out-{il}", out, builder.l_out, builder.hparams.f_residual_scale, residual=builder.ffn_inp
    )
