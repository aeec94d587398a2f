"""Texts that come in pieces: what at a piece's end may go on as a marker."""

from __future__ import annotations


def overlap(text: str, marker: str) -> int:
    """Length of the longest end of text that is a beginning of the marker, but not all of it."""
    longest = min(len(text), len(marker) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(marker[:n])), 0)
