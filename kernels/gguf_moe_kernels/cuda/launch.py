"""The size of each kernel's launch, from its arguments and the largest number of rows it may meet."""

from __future__ import annotations

from typing import Any

import numpy as np

from gguf_moe_kernels.cuda import attention_launch, matmul_launch
from gguf_moe_kernels.cuda.launch_rules import Launch, Rules, blocks
from gguf_moe_kernels.cuda.source import split_name
from gguf_moe_kernels.cuda.warp_rows import warp_rows, warp_rows_by_expert


def launch_of(name: str, arguments: np.ndarray, rows: int) -> Launch:
    """The launch of a kernel whose argument struct is `arguments` (0-d), for at most `rows` rows.

    Only sizes are read from the struct, never addresses.
    """
    _, _, qtype = split_name(name)
    key = name.removesuffix(qtype) + "*" if qtype else name
    return _ALL_RULES[key](_Numbers(arguments, qtype), max(rows, 1))


class _Numbers:
    """The fields of a 0-d structured array as Python's numbers, and a warp's rows of a weight."""

    def __init__(self, arguments: np.ndarray, qtype: str | None):
        self._arguments = arguments
        self._qtype = qtype
        self.warp_rows = warp_rows(qtype or "")
        self.warp_rows_by_expert = warp_rows_by_expert(qtype or "")

    def __getattr__(self, field: str) -> Any:
        value = self._arguments[field]
        return _Numbers(value, self._qtype) if value.dtype.names else value.item()


RULES = Rules()

SHORT = 512
"""The number of norm.cuh: elements of a head that a warp takes by itself."""


@RULES.of("elementwise.rms_norm")
def _rms_norm(a: Any, rows: int) -> Launch:
    heads = rows * a.n_head
    return Launch((blocks(heads, 8) if a.n <= SHORT else heads,), (256,))


@RULES.of(
    "elementwise.scale",
    "elementwise.scale_rows",
    "elementwise.kv_store_f16",
    "elementwise.kv_store_f32",
    "elementwise.kv_store_q8_0",
    "elementwise.swiglu",
    "elementwise.swiglu_oai",
    "elementwise.geglu",
    "elementwise.softcap",
    "elementwise.sigmoid_mul",
    "delta_net.delta_net_gates",
    "moe.moe_sum",
    "mailbox.moe_join",
)
def _by_element(a: Any, rows: int) -> Launch:
    return Launch((rows, blocks(a.n, 256)), (256,))


@RULES.of("get_rows.get_rows_*")
def _get_rows(a: Any, rows: int) -> Launch:
    return Launch((rows, blocks(a.n, 256)), (256,))


@RULES.of("elementwise.concat")
def _concat(a: Any, rows: int) -> Launch:
    return Launch((rows, blocks(a.n_head * (a.n_a + a.n_b), 256)), (256,))


@RULES.of("elementwise.parts")
def _parts(a: Any, rows: int) -> Launch:
    return Launch((rows, blocks(a.n_head * a.n, 256)), (256,))


@RULES.of("delta_net.l2_norm")
def _l2_norm(a: Any, rows: int) -> Launch:
    return Launch((blocks(rows * a.n_head, 8),), (256,))


@RULES.of("delta_net.ssm_conv")
def _ssm_conv(a: Any, rows: int) -> Launch:
    return Launch((blocks(a.n, 256),), (256,))


WIDEST_DELTA_NET_HEAD = 256 + 31
"""The most elements of a head that delta_net.cu holds in registers: MOST_LANES of 32, and some more."""


@RULES.of("delta_net.gated_delta_net")
def _gated_delta_net(a: Any, rows: int) -> Launch:
    return Launch((blocks(a.n_head * a.n, 8),), (256,))


@RULES.of("elementwise.rope")
def _rope(a: Any, rows: int) -> Launch:
    return Launch((rows, blocks(a.n_head * a.n_rot // 2, 256)), (256,))


@RULES.of("activation.quantize_q8_0", "activation.quantize_q8_1")
def _quantize_32(a: Any, rows: int) -> Launch:
    return Launch((rows, blocks(a.n, 4 * 32)), (128,))


@RULES.of("activation.quantize_q8_k")
def _quantize_256(a: Any, rows: int) -> Launch:
    return Launch((rows, blocks(a.n, 4 * 256)), (128,))


@RULES.of("activation.quantize_heads_q8_0", "activation.quantize_heads_q8_1")
def _quantize_heads_32(a: Any, rows: int) -> Launch:
    return Launch((rows * a.n_head, blocks(a.n, 4 * 32)), (128,))


@RULES.of("activation.quantize_heads_q8_k")
def _quantize_heads_256(a: Any, rows: int) -> Launch:
    return Launch((rows * a.n_head, blocks(a.n, 4 * 256)), (128,))


@RULES.of("fused.norm_quantize")
def _norm_quantize(a: Any, rows: int) -> Launch:
    return Launch((rows,), (256,), 8 * a.n)


MOST_CHOICES = 64
"""The number of meeting.cuh: experts of a token in fused.join_norm_quantize."""


@RULES.of("fused.join_norm_quantize")
def _join_norm_quantize(a: Any, rows: int) -> Launch:
    return _norm_quantize(a.norm, rows)


@RULES.of("fused.rope_store_f16", "fused.rope_store_f32", "fused.rope_store_q8_0")
def _rope_store(a: Any, rows: int) -> Launch:
    heads = a.n_head + a.n_head_kv + blocks(a.n_v, a.n_embd_head)
    return Launch((rows, blocks(heads, 8)), (256,))


@RULES.of("moe.moe_topk")
def _moe_topk(a: Any, rows: int) -> Launch:
    return Launch((rows,), (256,), 4 * (2 * a.n_expert + a.n_group + 2 * a.k))


@RULES.of("choose.choose_and_post")
def _choose_and_post(a: Any, rows: int) -> Launch:
    return _moe_topk(a.topk, 1)


MOST_CHOSEN, EXPERTS_AT_ONCE = 32, (128, 512)
"""The numbers of choose.cu: experts that are chosen at most, and how many there may be to choose from."""


@RULES.of(*(f"choose.choose_and_post_{n}" for n in EXPERTS_AT_ONCE))
def _choose_and_post_few(a: Any, rows: int) -> Launch:
    return Launch((1,), (128,))


@RULES.of("moe.expert_rows", "mailbox.mailbox_post")
def _one_block(a: Any, rows: int) -> Launch:
    return Launch((1,), (256,))


@RULES.of("mailbox.stamp")
def _one_thread(a: Any, rows: int) -> Launch:
    return Launch((1,), (1,))


@RULES.of("link.fetch_missing")
def _fetch_missing(a: Any, rows: int) -> Launch:
    return Launch((64,), (256,))


@RULES.of("link.receive")
def _receive(a: Any, rows: int) -> Launch:
    return Launch((rows * a.k, blocks(a.x_size // 4, 256)), (256,))


@RULES.of("moe.add_id", "moe.scale_id", "moe.weigh")
def _by_choice(a: Any, rows: int) -> Launch:
    return Launch((rows * a.k, blocks(a.n, 256)), (256,))


@RULES.of("moe.shexp_gate")
def _shexp_gate(a: Any, rows: int) -> Launch:
    return Launch((rows,), (256,))


_ALL_RULES = RULES | attention_launch.RULES | matmul_launch.RULES
