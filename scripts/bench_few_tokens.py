#!/usr/bin/env python3
"""What a few tokens together cost, in units of what one token costs.

  bench_few_tokens.py Q4_K Q6_K Q8_0 Q4_1
  bench_few_tokens.py Q4_1 --width 576 --rows 256

One thread passes through a matrix in memory, chunk after chunk of --rows rows, by the type's tile kernel
(cpu/tile.py), as a step does when several conversations, or the tokens of a short prompt, meet an expert. In
parentheses: the chunk's tokens one after the other. The types' tests take turns; best of --repetitions.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing

import numpy as np
from bench_types import as_activations, call_tile
from gguf import GGMLQuantizationType
from numba import njit
from random_blocks import any_rows

from gguf_moe.options import default_cache_dir
from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.cpu.library import KernelLibrary
from gguf_moe_kernels.quants import GGMLType


@njit
def one_pass(tile, w, row_size, chunk_rows, n_chunks, n_in, x, x_stride, n_tokens, at_once, out):
    """All chunks with all tokens, `at_once` of them in a call; a chunk's results replace the last one's."""
    for chunk in range(n_chunks):
        for t in range(0, n_tokens, at_once):
            call_tile(
                tile,
                w + chunk * chunk_rows * row_size,
                row_size,
                chunk_rows,
                n_in,
                x + t * x_stride,
                x_stride,
                0,
                min(at_once, n_tokens - t),
                out + 4 * chunk_rows * t,
                4 * chunk_rows,
            )


class Matrix:
    """Random weights of a type, and activations for them."""

    def __init__(self, qtype: GGMLType, width: int, chunk_rows: int, nbytes: int, most_tokens: int):
        rng = np.random.default_rng(1)
        self._row_size, self._width, self._chunk_rows = qtype.row_size(width), width, chunk_rows
        self._n_chunks = max(1, nbytes // (self._row_size * chunk_rows))
        self._w = any_rows(rng, GGMLQuantizationType(qtype), self._n_chunks * chunk_rows, width)
        self._x = as_activations(qtype, rng.standard_normal((most_tokens, width), np.float32))
        self._out = np.zeros((most_tokens, chunk_rows), np.float32)

    def seconds(self, tile: int, n_tokens: int, at_once: int) -> float:
        """Of one pass."""
        start = time.perf_counter()
        one_pass(
            tile,
            self._w.ctypes.data,
            self._row_size,
            self._chunk_rows,
            self._n_chunks,
            self._width,
            self._x.ctypes.data,
            self._x.strides[0],
            n_tokens,
            at_once,
            self._out.ctypes.data,
        )
        return time.perf_counter() - start


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("types", nargs="+", choices=[t.name for t in ACTIVATION_FORMAT], metavar="TYPE")
    p.add_argument("--tokens", type=int, nargs="+", default=[2, 3, 4, 6, 8], help="together (2 3 4 6 8)")
    p.add_argument("--width", type=int, default=4096, help="weights of a row (4096)")
    p.add_argument("--rows", type=int, default=64, help="of a chunk (64)")
    p.add_argument("--size", type=int, default=200, help="MiB of a matrix (200)")
    p.add_argument("-r", "--repetitions", type=int, default=3, metavar="N", help="(3)")
    args = p.parse_args()
    if min(*args.tokens, args.rows, args.size, args.repetitions) <= 0:
        raise SystemExit("--tokens, --rows, --size and --repetitions must be positive")
    if bad := next((name for name in args.types if args.width % GGMLType[name].block_size), None):
        raise SystemExit(f"--width is {args.width}; {bad} needs a multiple of {GGMLType[bad].block_size}")
    print(f"{'tokens':<9}" + "".join(f"{n:>14}" for n in args.tokens))
    with closing(KernelLibrary(default_cache_dir())) as library:
        for name in args.types:
            matrix = Matrix(GGMLType[name], args.width, args.rows, args.size << 20, max(args.tokens))
            tile = library.address(f"{name.lower()}.tile")
            ways = [(1, 1), *((n, at_once) for n in args.tokens for at_once in (n, 1))]
            matrix.seconds(tile, 1, 1)
            turns = [[matrix.seconds(tile, *way) for way in ways] for _ in range(args.repetitions)]
            best = [min(seconds) / min(turn[0] for turn in turns) for seconds in zip(*turns, strict=True)]
            pairs = zip(best[1::2], best[2::2], strict=True)
            print(f"{name:<9}" + "".join(f"{f'{a:.2f} ({b:.2f})':>14}" for a, b in pairs), flush=True)


if __name__ == "__main__":
    main()
