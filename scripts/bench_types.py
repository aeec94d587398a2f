#!/usr/bin/env python3
"""Speed of one token with a matrix of every tensor type, beside llama.cpp's kernels in the same run.

  bench_types.py --peer-python PEER

GB/s of weights, from memory and from the core's own cache. Ours is the type's tile kernel, one call for each
thread. llama.cpp's is its vec_dot, called row by row from compiled code as its own matrix product does, on
the same bytes; weights that it would repack are as in the file. For each type the four take turns: ours and
llama.cpp's, and both for Q4_K, so that shares of Q4_K's speed come from the same moments. Reported are
medians; Q4_K's share of itself shows how far to trust them. The results of both sides are compared first.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from ggml_kernels import GgmlKernels, find_library
from gguf import GGMLQuantizationType
from numba import njit
from random_blocks import any_rows

from gguf_moe.options import default_cache_dir
from gguf_moe_kernels.activations import ACTIVATION_FORMAT, ActivationFormat
from gguf_moe_kernels.cpu.library import KernelLibrary
from gguf_moe_kernels.cpu.memory import make_call
from gguf_moe_kernels.cpu.target import Target
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import activations

MAX_NMSE = 1e-3
"""Both sides round activations to 8 bits; a kernel that is called wrongly is far from that."""
call_tile, call_vec_dot = make_call(10), make_call(8)


@njit(nogil=True)
def our_passes(tile, n_passes, w, row_size, n_rows, n_in, x, out):
    """n_passes times: out[r] = w[r] . x for all rows, by a tile kernel (cpu/tile.py)."""
    for _ in range(n_passes):
        call_tile(tile, w, row_size, n_rows, n_in, x, 0, 0, 1, out, 0)


@njit(nogil=True)
def their_passes(vec_dot, n_passes, w, row_size, n_rows, n_in, x, out):
    """The same by a ggml_vec_dot_t (ggml-cpu.h)."""
    for _ in range(n_passes):
        for r in range(n_rows):
            call_vec_dot(vec_dot, n_in, out + 4 * r, 0, w + r * row_size, 0, x, 0, 1)


@dataclass(frozen=True)
class Kernel:
    """One side's kernel for a type."""

    passes: Callable[..., Any]
    address: int
    x: np.ndarray
    """The activations in its own format."""


@dataclass(frozen=True)
class Place:
    """Where weights come from, and how many."""

    name: str
    part: int
    """Bytes for each thread, about."""
    n_passes: int


@dataclass(frozen=True)
class Row:
    """Medians of one type; GB/s, and the share that this is of Q4_K's of the same side and moment."""

    type: str
    bits: float
    threads: int
    place: str
    ours: float
    our_share: float
    theirs: float | None = None
    their_share: float | None = None
    ratio: float | None = None


def as_activations(qtype: GGMLType, x: np.ndarray) -> np.ndarray:
    """Rows of float32 in the format that a type's kernel takes."""
    activation = ACTIVATION_FORMAT[qtype]
    return x if activation is ActivationFormat.F32 else activations.quantize(activation, x)


def kernels_of(
    qtype: GGMLType, x: np.ndarray, library: KernelLibrary, peer: GgmlKernels | None
) -> list[Kernel]:
    """Our kernel, and the peer's if there is one."""
    tile = library.address(f"{qtype.name.lower()}.tile")
    kernels = [Kernel(our_passes, tile, as_activations(qtype, x[None]))]
    if peer:
        kernels.append(Kernel(their_passes, peer.vec_dot(qtype), peer.activations(qtype, x)))
    return kernels


class Matrix:
    """Random weights of a type, a part for each thread."""

    def __init__(self, rng: np.random.Generator, qtype: GGMLType, n_in: int, n_bytes: int, threads: int):
        row_size = qtype.row_size(n_in)
        self.n_in = n_in
        self._rows = max(4, n_bytes // row_size // 4 * 4)  # of a part: the tile takes four at a time
        rows = any_rows(rng, GGMLQuantizationType(qtype), threads * self._rows, n_in)
        self._parts = rows.reshape(threads, self._rows, row_size)
        self._out = np.zeros((threads, self._rows), np.float32)

    def product(self, kernel: Kernel) -> np.ndarray:
        """All rows times x, float32."""
        for i in range(len(self._parts)):
            self._run(kernel, i, 1)
        return self._out.ravel().copy()

    def speed(self, kernel: Kernel, n_passes: int, pool: ThreadPoolExecutor) -> float:
        """GB/s of weights with a thread of the pool for each part."""
        start = time.perf_counter()
        list(pool.map(lambda i: self._run(kernel, i, n_passes), range(len(self._parts))))
        return n_passes * self._parts.nbytes / (time.perf_counter() - start) / 1e9

    def _run(self, kernel: Kernel, i: int, n_passes: int) -> None:
        w, out = self._parts[i], self._out[i]
        kernel.passes(
            kernel.address,
            n_passes,
            w.ctypes.data,
            w.shape[1],
            len(w),
            self.n_in,
            kernel.x.ctypes.data,
            out.ctypes.data,
        )


def check_agreement(qtype: GGMLType, matrix: Matrix, kernels: list[Kernel]) -> None:
    """End the program where the two sides' results differ by more than rounding."""
    results = [matrix.product(kernel).astype(np.float64) for kernel in kernels]
    nmse = np.mean((results[0] - results[-1]) ** 2) / np.mean(results[0] ** 2)
    if not nmse <= MAX_NMSE:
        raise SystemExit(f"{qtype.name}: the two sides' results differ, NMSE {nmse:.2g} (over {MAX_NMSE})")


class Bench:
    """Measures types beside Q4_K."""

    def __init__(self, library: KernelLibrary, peer: GgmlKernels | None, n_in: int, n_turns: int):
        self._library, self._peer = library, peer
        self._n_in, self._n_turns = n_in, n_turns
        self._rng = np.random.default_rng(1)
        self._x = self._rng.standard_normal(n_in, np.float32)

    def measure(self, qtype: GGMLType, place: Place, threads: int) -> Row:
        speeds = self._speeds(qtype, place, threads)
        shares = np.median(speeds[:, 0] / speeds[:, 1], axis=0).tolist()
        medians = np.median(speeds[:, 0], axis=0).tolist()
        row: dict[str, Any] = {"ours": medians[0], "our_share": shares[0]}
        if self._peer:
            ratio = median((speeds[:, 0, 0] / speeds[:, 0, 1]).tolist())
            row |= {"theirs": medians[1], "their_share": shares[1], "ratio": ratio}
        bits = 8 * qtype.type_size / qtype.block_size
        return Row(qtype.name, bits, threads, place.name, **row)

    def _speeds(self, qtype: GGMLType, place: Place, threads: int) -> np.ndarray:
        """GB/s: float64 [turn, type or Q4_K, side]."""
        both = []
        for each in (qtype, GGMLType.Q4_K):
            matrix = Matrix(self._rng, each, self._n_in, place.part, threads)
            kernels = kernels_of(each, self._x, self._library, self._peer)
            check_agreement(each, matrix, kernels)
            both.append((matrix, kernels))
        with ThreadPoolExecutor(threads) as pool:

            def turn() -> list[list[float]]:
                return [[m.speed(kernel, place.n_passes, pool) for kernel in kernels] for m, kernels in both]

            return np.array([turn() for _ in range(self._n_turns)])


def show(row: Row) -> None:
    line = f"{row.type:<9}{row.bits:>6.2f}{row.ours:>9.2f}{row.our_share:>7.2f}"
    if row.ratio is not None:
        line += f"{row.theirs:>11.2f}{row.their_share:>7.2f}{row.ratio:>7.2f}"
    print(line, flush=True)


def places(n_bytes: int, cached: int, threads: int) -> list[Place]:
    """Memory, and a cache that weights are read from as often as makes the same number of bytes."""
    part = n_bytes // threads
    return [Place("memory", part, 1), Place("cache", cached, max(1, part // cached))]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("types", nargs="*", metavar="TYPE", help="tensor types (all that have kernels)")
    p.add_argument("--peer-python", metavar="PYTHON", help="has llama-cpp-python (without it: ours alone)")
    p.add_argument("-t", "--threads", type=int, nargs="*", default=[1, 2], help="(1 2)")
    p.add_argument("-r", "--repetitions", type=int, default=5, metavar="N", help="turns (5)")
    p.add_argument("--width", type=int, default=4096, help="weights of a row (4096)")
    p.add_argument("--size", type=int, default=300 << 10, help="KiB of a type's weights (307200)")
    p.add_argument("--cached", type=int, default=192, help="KiB that a core's own cache holds (192)")
    args = p.parse_args()
    names = {qtype.name: qtype for qtype in ACTIVATION_FORMAT}
    if unknown := [name for name in args.types if name not in names]:
        raise SystemExit(f"There are no kernels for {unknown[0]}; types: {' '.join(names)}")
    if args.width <= 0 or args.width % 256:
        raise SystemExit(f"--width is {args.width}; it must be a multiple of 256, the weights of a block")
    if min(args.size, args.cached, args.repetitions, *args.threads) <= 0:
        raise SystemExit("--size, --cached, --threads and --repetitions must be positive")
    peer = GgmlKernels(find_library(args.peer_python)) if args.peer_python else None
    rows = []
    with closing(KernelLibrary(default_cache_dir())) as library:
        bench = Bench(library, peer, args.width, args.repetitions)
        for threads in args.threads:
            for place in places(args.size << 10, args.cached << 10, threads):
                print(f"{threads} threads, from {place.name}; GB/s of weights, and the share of Q4_K's")
                theirs = f"{'llama.cpp':>11}{'share':>7}{'ratio':>7}" if peer else ""
                print(f"{'type':<9}{'bits':>6}{'ours':>9}{'share':>7}{theirs}")
                for name in args.types or names:
                    rows.append(bench.measure(names[name], place, threads))
                    show(rows[-1])
    cpu = Target.numba().cpu
    print(json.dumps({"cpu": cpu, "width": args.width, "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
