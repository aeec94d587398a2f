"""Fewer launches for the same work: neighbours that one kernel can do together, with the same bits.

A launch costs a microsecond or two whatever it does, and most of those for one token do very little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gguf_moe.runtime.gpu.ops import Launch
from gguf_moe_kernels import structs
from gguf_moe_kernels.cuda.attention_launch import HEADS_OF_ONE
from gguf_moe_kernels.cuda.launch import EXPERTS_AT_ONCE, MOST_CHOICES, MOST_CHOSEN, SHORT
from gguf_moe_kernels.cuda.source import QTYPES

MOST = 8
"""No rule looks at more launches."""


@dataclass(frozen=True, slots=True)
class Fused:
    """One kernel for the next `count` launches."""

    count: int
    kernel: str
    arguments: np.ndarray


def fuse(launches: Sequence[Launch], n_tokens: int) -> list[Launch]:
    """What computes the same with fewer launches, in the same order, for steps of up to n_tokens tokens."""
    rules = (*_RULES, *_RULES_FOR_ONE) if n_tokens == 1 else _RULES
    fewer: list[Launch] = []
    number: dict[int, int] = {}
    i = 0
    while i < len(launches):
        one = Fused(1, launches[i].kernel, launches[i].arguments)
        coming = launches[i : i + MOST]
        found = [fused for rule in rules if (fused := rule(coming))]
        best = max(found, key=lambda fused: fused.count, default=one)
        members = range(i, i + best.count)
        waits = {n for member in members for n in launches[member].after if n not in members}
        after = tuple(sorted({number[n] for n in waits}))
        number.update(dict.fromkeys(members, len(fewer)))
        fewer.append(Launch(best.kernel, best.arguments, launches[i].rows, after))
        i += best.count
    return fewer


def _norm_quantize(launches: Sequence[Launch]) -> Fused | None:
    """A norm of whole rows, then its result in one or more int8 formats."""
    norm = launches[0]
    if norm.kernel != "elementwise.rms_norm" or norm.arguments["n_head"] != 1:
        return None
    arguments = _struct_of(structs.NORM_QUANTIZE, norm)
    count = 1
    for launch in launches[1:]:
        _, _, kind = launch.kernel.partition("activation.quantize_")
        if kind not in (arguments.dtype.names or ()) or launch.arguments["x"] != norm.arguments["out"]:
            break
        arguments[kind] = launch.arguments["out"]
        arguments[f"{kind}_stride"] = launch.arguments["out_stride"]
        count += 1
    return Fused(count, "fused.norm_quantize", arguments) if count > 1 else None


def _rope_store(launches: Sequence[Launch]) -> Fused | None:
    """Queries, then keys: norms of the heads, if there are some, and rope; then k and v into the cache."""
    heads, count = [], 0
    for _ in range(2):
        if (head := _normed_rope(launches[count:])) is None:
            return None
        heads.append(head)
        count += sum(launch is not None for launch in head)
    stores = launches[count : count + 2]
    kernels = {launch.kernel for launch in stores}
    if len(stores) < 2 or len(kernels) > 1 or not stores[0].kernel.startswith("elementwise.kv_store_"):
        return None
    (_, q_rope), (_, k_rope) = heads
    q, k, store_k, store_v = (launch.arguments for launch in (q_rope, k_rope, *stores))
    if store_k["x"] != k["x"] or q["n_embd_head"] > SHORT:
        return None
    shared = ("cos", "sin", "n_rot", "pair_stride", "n_embd_head", "rows")
    if any(q[name] != k[name] for name in shared) or store_k["n"] != k["n_head"] * k["n_embd_head"]:
        return None
    arguments = _struct_of(structs.ROPE_STORE, q_rope)
    arguments["q"], arguments["k"], arguments["v"] = q["x"], k["x"], store_v["x"]
    arguments["n_head_kv"], arguments["n_v"] = k["n_head"], store_v["n"]
    arguments["cache_k"], arguments["cache_v"] = store_k["cache"], store_v["cache"]
    arguments["n_past"] = store_k["n_past"]
    norms = {
        name: head[0].arguments for name, head in zip(("q_norm", "k_norm"), heads, strict=True) if head[0]
    }
    if len({a["eps"].item() for a in norms.values()}) > 1:
        return None
    for name, norm in norms.items():
        arguments[name], arguments["eps"] = norm["weight"], norm["eps"]
    kernel = stores[0].kernel.replace("elementwise.kv_store", "fused.rope_store")
    return Fused(count + 2, kernel, arguments)


def _normed_rope(launches: Sequence[Launch]) -> tuple[Launch | None, Launch] | None:
    """The norm of the heads, if there is one, and rope, in place; at the beginning of the launches."""
    norm = launches[0] if launches and launches[0].kernel == "elementwise.rms_norm" else None
    behind = launches[norm is not None :]
    if not behind or behind[0].kernel != "elementwise.rope":
        return None
    rope = behind[0].arguments
    if norm:
        a = norm.arguments
        is_simple = a["weight"] and not a["bias"] and a["n"] == rope["n_embd_head"]
        if not is_simple or not a["x"] == a["out"] == rope["x"]:
            return None
    return norm, behind[0]


def _matmul_3(launches: Sequence[Launch]) -> Fused | None:
    """Matmuls of one type next to each other, of which none needs what another gives."""
    kernel = launches[0].kernel
    _, _, qtype = kernel.partition("matmul.matmul_")
    if qtype not in QTYPES:
        return None
    arguments = np.zeros((), structs.MATMUL_3)
    outputs: set[int] = set()
    count = 0
    for launch, part in zip(launches, structs.MATMUL_3.names or (), strict=False):
        a = launch.arguments
        if launch.kernel != kernel or launch.rows is not launches[0].rows:
            break
        if outputs & {a["x"].item(), a["residual"].item(), a["out"].item()}:
            break
        arguments[part] = a
        outputs.add(a["out"].item())
        count += 1
    return Fused(count, f"matmul.matmul_3_{qtype}", arguments) if count > 1 else None


def _matmul_id_swiglu(launches: Sequence[Launch]) -> Fused | None:
    """The experts' gate and up, of one type, and their product."""
    _, _, qtype = launches[0].kernel.partition("matmul.matmul_id_")
    kernels = [launch.kernel for launch in launches[:3]]
    if qtype not in QTYPES or kernels != [*[launches[0].kernel] * 2, "elementwise.swiglu"]:
        return None
    gate, up, swiglu = (launch.arguments for launch in launches[:3])
    same = set(structs.MATMUL_ID.names or ()) - {"weights", "row_sizes", "tiles", "out"}
    if any(gate[name] != up[name] for name in same):
        return None
    if swiglu["gate"] != gate["out"] or swiglu["up"] != up["out"]:
        return None
    arguments = np.zeros((), structs.MATMUL_ID_SWIGLU)
    arguments["gate"], arguments["up"] = gate, up
    return Fused(3, f"matmul.matmul_id_swiglu_{qtype}", arguments)


def _join_norm_quantize(launches: Sequence[Launch]) -> Fused | None:
    """The sum of the experts, and what the next block begins with."""
    join = launches[0]
    if join.kernel != "mailbox.moe_join" or join.arguments["k"] > MOST_CHOICES or len(launches) == 1:
        return None
    norm = _norm_quantize(launches[1:])
    if norm is None or norm.arguments["x"] != join.arguments["out"]:
        return None
    arguments = np.zeros((), structs.JOIN_NORM_QUANTIZE)
    arguments["join"], arguments["norm"] = join.arguments, norm.arguments
    return Fused(1 + norm.count, "fused.join_norm_quantize", arguments)


def _attention(launches: Sequence[Launch]) -> Fused | None:
    """Attention for one token with more blocks, and its result in int8 if a block has whole ones of 256."""
    file, _, kind = launches[0].kernel.partition("attention_")
    a = launches[0].arguments
    if file != "attention.":
        return None
    quantize = launches[1] if len(launches) > 1 else None
    group = a["n_head"] // a["n_head_kv"]
    if (
        quantize is None
        or quantize.kernel != "activation.quantize_q8_k"
        or quantize.arguments["x"] != a["out"]
        or group % HEADS_OF_ONE
        or HEADS_OF_ONE * a["n_embd_head_v"] % 256
    ):
        return Fused(1, f"attention_one.attention_{kind}", a)
    arguments = np.zeros((), structs.ATTENTION_QUANTIZE)
    arguments["attention"], arguments["quantize"] = a, quantize.arguments
    return Fused(2, f"attention_one.attention_q8_k_{kind}", arguments)


def _choose_and_post(launches: Sequence[Launch]) -> Fused | None:
    """The router's choice, the experts' places, and the post to the CPU."""
    if [launch.kernel for launch in launches[:3]] != [
        "moe.moe_topk",
        "moe.expert_rows",
        "mailbox.mailbox_post",
    ]:
        return None
    arguments = np.zeros((), structs.CHOOSE_AND_POST)
    for launch, part in zip(launches, structs.CHOOSE_AND_POST.names or (), strict=False):
        arguments[part] = launch.arguments
    if len({arguments[part]["rows"].item() for part in arguments.dtype.names or ()}) > 1:
        return None
    topk = arguments["topk"]
    room = [n for n in EXPERTS_AT_ONCE if n >= topk["n_expert"]]
    is_small = room and topk["k"] <= MOST_CHOSEN and not topk["group_scores"]
    return Fused(3, f"choose.choose_and_post{f'_{room[0]}' if is_small else ''}", arguments)


Rule = Callable[[Sequence[Launch]], Fused | None]
_RULES: tuple[Rule, ...] = (_norm_quantize, _rope_store, _matmul_3, _matmul_id_swiglu, _join_norm_quantize)
_RULES_FOR_ONE: tuple[Rule, ...] = (_attention, _choose_and_post)


def _struct_of(struct: np.dtype, launch: Launch) -> np.ndarray:
    """A new struct that has of the launch's arguments those that it knows."""
    arguments = np.zeros((), struct)
    for name in launch.arguments.dtype.names or ():
        if name in (struct.names or ()):
            arguments[name] = launch.arguments[name]
    return arguments
