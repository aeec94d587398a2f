"""From bytes of GPU memory to slots and context."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gguf_moe.errors import OptionError

_UNITS = {"": 10**9, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_AMOUNT = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?)(I?B)?", re.IGNORECASE | re.ASCII)
RESERVE = 512 << 20
"""Bytes of the free memory that are left to others when no budget is given."""
SLOT_ALIGNMENT = 256
KV_SHARE = 0.15
KV_TOKENS = 8192
"""The default context takes no more than this share of the budget, and is no longer than this."""


def parse_vram(text: str, total: int) -> int:
    """Bytes of a budget: "12G" (12 * 10^9), "8000M", "12GiB" (12 * 2^30), or "0.5" for half of the total.

    Raises OptionError for anything else, and for more than the GPU's total.
    """
    match = _AMOUNT.fullmatch(text.strip())
    amount = 0
    if match:
        number, unit, binary = float(match[1]), match[2].upper(), (match[3] or "").upper()
        if not unit and not binary and number <= 1:
            amount = int(number * total)
        elif unit:
            size = _UNITS[unit]
            if binary == "IB":
                size = 1024 ** (" KMGT".index(unit))
            amount = int(number * size)
    if amount <= 0:
        raise OptionError(f"the GPU memory is {text!r}, but must be as 12G, 8000M, 12GiB or a share as 0.5.")
    if amount > total:
        raise OptionError(
            f"the GPU memory is {text}, but this GPU has {total / 1e9:.1f}G; give less, or leave it out."
        )
    return amount


def free_budget(free: int, reserve: int = RESERVE) -> int:
    """The budget when none is given: what is free, less a reserve."""
    return max(0, free - reserve)


def aligned(nbytes: int) -> int:
    """The bytes from one aligned address to the next behind so many."""
    return -(-nbytes // SLOT_ALIGNMENT) * SLOT_ALIGNMENT


def slot_size(nbytes: Sequence[int]) -> int:
    """Bytes of a slot for an expert of these parts (gate, up, down), each at an aligned address."""
    return sum(map(aligned, nbytes))


def slots_per_layer(budget: int, slot_sizes: Sequence[int], n_expert: int) -> list[int]:
    """The same share of the experts for every layer, as far as the budget goes.

    slot_sizes: bytes of a slot of each layer, 0 for a layer without experts. What is left over gives one more
    slot to as many layers as it lasts for, the first ones first.
    """
    one_each = sum(slot_sizes)
    if not one_each or budget <= 0:
        return [0] * len(slot_sizes)
    n = min(n_expert, budget // one_each)
    slots = [n if size else 0 for size in slot_sizes]
    left = budget - n * one_each
    if n < n_expert:
        for il, size in enumerate(slot_sizes):
            if size and size <= left:
                slots[il] += 1
                left -= size
    return slots


def default_context(budget: int, kv_bytes_per_token: int, n_ctx_train: int) -> int:
    """Positions that the KV cache may grow to when no context is asked for: a multiple of 256."""
    fits = int(budget * KV_SHARE) // max(1, kv_bytes_per_token)
    return min(n_ctx_train, KV_TOKENS, max(256, fits // 256 * 256))
