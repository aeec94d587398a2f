"""The size of the launches of matrix products."""

from __future__ import annotations

from typing import Any

from gguf_moe_kernels.cuda.launch_rules import Launch, Rules, blocks

RULES = Rules()

WARPS, TOKENS, ROWS_OF_EACH = 4, 4, 2
"""The numbers of matmul.cu: warps of a block, rows of activations at a time, a warp's rows of each of two
weights."""


@RULES.of("matmul.matmul_*")
def _matmul(a: Any, rows: int) -> Launch:
    return Launch((blocks(a.n_out, WARPS * a.warp_rows), blocks(rows, TOKENS)), (32 * WARPS,))


@RULES.of("matmul.matmul_heads_*")
def _matmul_heads(a: Any, rows: int) -> Launch:
    one = _matmul(a, rows)
    return Launch((one.grid[0] * a.n_head, one.grid[1]), one.block)


@RULES.of("matmul.matmul_3_*")
def _matmul_3(a: Any, rows: int) -> Launch:
    parts = [_matmul(part, rows) for part in (a.first, a.second, a.third) if part.n_out]
    return Launch((sum(part.grid[0] for part in parts), parts[0].grid[1]), parts[0].block)


@RULES.of("matmul.matmul_id_*")
def _matmul_id(a: Any, rows: int) -> Launch:
    """rows: places, of which each token has as many as it has experts."""
    return Launch((blocks(a.n_out, WARPS * a.warp_rows_by_expert), rows), (32 * WARPS,))


@RULES.of("matmul.matmul_id_swiglu_*")
def _matmul_id_swiglu(a: Any, rows: int) -> Launch:
    return Launch((blocks(a.gate.n_out, WARPS * ROWS_OF_EACH), rows), (32 * WARPS,))


TILE_TOKENS, TILE_ROWS, TILE_SHARED = 64, 128, 64 << 10
"""The numbers of tile.cuh: rows of activations and of the weight that a block takes, its shared memory."""


@RULES.of("many_tokens.matmul_*")
def _many_tokens(a: Any, rows: int) -> Launch:
    grid = (blocks(rows, TILE_TOKENS), blocks(a.n_out, TILE_ROWS))
    return Launch(grid, (256,), TILE_SHARED)


@RULES.of("many_tokens.matmul_id_*")
def _many_tokens_id(a: Any, rows: int) -> Launch:
    """rows: places; there may be more tiles than this grid has, and a block then takes several."""
    return _many_tokens(a, rows)
