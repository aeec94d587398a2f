"""Rows cut into parts, so that threads share one token's work on a wide row."""

from __future__ import annotations

from numba import njit

PART = 2048
"""Elements of a row in one chunk: whole blocks of each activation format."""


@njit
def part_of(chunk, n):
    """The row of n elements that a chunk belongs to, and its elements' first and stop there."""
    n_parts = (n + PART - 1) // PART
    row = chunk // n_parts
    first = (chunk - row * n_parts) * PART
    return row, first, min(n, first + PART)
