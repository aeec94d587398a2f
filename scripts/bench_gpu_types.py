#!/usr/bin/env python3
"""Speed of one token with matrices of every tensor type on a GPU, as a share of Q4_K's.

  bench_gpu_types.py
  bench_gpu_types.py IQ1_S NVFP4

GB/s of weights that the kernels of decoding read: of one large matrix, and of the down matrices of eight
experts of Qwen3-30B-A3B's shape. Every launch finds its weights in the GPU's memory and not in its cache. The
types take turns with Q4_K; reported are medians. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from bench_types import as_activations
from gguf import GGMLQuantizationType
from random_blocks import any_rows

from gguf_moe.options import default_cache_dir
from gguf_moe_kernels import structs
from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.cuda.launch import launch_of
from gguf_moe_kernels.cuda.library import CudaError, CudaLibrary, import_cupy
from gguf_moe_kernels.quants import GGMLType

MATRIX = (131072, 4096)
EXPERTS, N_EXPERT, N_USED = (2048, 768), 256, 8
"""Rows and their weights: of the large matrix, and of each expert."""
DRAWN_ROWS, REPLAYS = 2048, 32


@dataclass(frozen=True)
class Row:
    """Medians of one type: GB/s, and the share that this is of Q4_K's at the same moments."""

    type: str
    bits: float
    matrix: float
    matrix_share: float
    experts: float
    experts_share: float


class Weights:
    """Random weights of a type on the GPU, and launches that read them."""

    def __init__(self, cupy: Any, library: CudaLibrary, qtype: GGMLType):
        self._cupy, self._qtype = cupy, qtype
        self._rng = np.random.default_rng(1)
        self._kept: list[Any] = []
        name = qtype.name.lower()
        self._dense, self._by_expert = (
            library.kernel(f"matmul.{kernel}_{name}") for kernel in ("matmul", "matmul_id")
        )

    def matrix(self) -> tuple[int, list[Any]]:
        """Bytes that a launch reads, and the launches."""
        n_out, n_in = MATRIX
        a = np.zeros((), structs.MATMUL)
        a["weight"], a["row_size"] = self._random(n_out, n_in), self._qtype.row_size(n_in)
        a["n_out"], a["n_in"], a["rows"] = n_out, n_in, self._put(np.ones(1, np.int64))
        a["x"], a["x_stride"] = self._activations(1, n_in)
        a["out"] = self._put(np.zeros(n_out, np.float32))
        return int(a["row_size"]) * n_out, [self._launch(self._dense, a, 1)]

    def experts(self) -> tuple[int, list[Any]]:
        """Likewise; each launch has eight experts of its own."""
        n_out, n_in = EXPERTS
        row_size = self._qtype.row_size(n_in)
        first = self._random(n_out * N_EXPERT, n_in)
        places = np.arange(N_EXPERT + 1, dtype=np.int32)
        x, x_stride = self._activations(N_USED, n_in)
        a = np.zeros((), structs.MATMUL_ID)
        a["weights"] = self._put(first + np.arange(N_EXPERT) * n_out * row_size)
        a["row_sizes"], a["tiles"] = self._all(row_size), self._all(int(self._qtype))
        a["n_expert"], a["n_out"], a["n_in"] = N_EXPERT, n_out, n_in
        a["x"], a["x_stride"] = self._all(x), self._all(x_stride)
        a["n_used"], a["first"] = self._put(np.full(1, N_USED)), self._put(places)
        a["out"] = self._put(np.zeros((N_USED, n_out), np.float32))
        launches = []
        for start in range(0, N_EXPERT, N_USED):
            a = a.copy()
            a["used"] = self._put(np.roll(places[:-1], -start))
            launches.append(self._launch(self._by_expert, a, N_USED))
        return row_size * n_out * N_USED, launches

    def _launch(self, kernel: Any, a: np.ndarray, rows: int) -> Any:
        launch = launch_of(kernel.name, a, rows)
        return lambda stream: kernel.launch(stream, launch.grid, launch.block, launch.shared, a)

    def _random(self, n_rows: int, n_in: int) -> int:
        drawn = any_rows(self._rng, GGMLQuantizationType(self._qtype), DRAWN_ROWS, n_in)
        return self._put(drawn, repeats=n_rows // DRAWN_ROWS)

    def _activations(self, n: int, n_in: int) -> tuple[int, int]:
        """The address of n rows, and the bytes of one."""
        x = as_activations(self._qtype, self._rng.standard_normal((n, n_in), np.float32))
        return self._put(x), x.strides[0]

    def _all(self, value: int) -> int:
        return self._put(np.full(N_EXPERT, value, np.int64))

    def _put(self, array: np.ndarray, repeats: int = 1) -> int:
        copy = self._cupy.asarray(np.ascontiguousarray(array)).ravel()
        self._kept.append(self._cupy.tile(copy, repeats) if repeats > 1 else copy)
        return self._kept[-1].data.ptr


def speed(cupy: Any, stream: Any, n_bytes: int, launches: list[Any]) -> float:
    """GB/s of a graph of REPLAYS launches."""
    with stream:
        stream.begin_capture()
        for i in range(REPLAYS):
            launches[i % len(launches)](stream)
        graph = stream.end_capture()
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    graph.launch(stream)
    start.record(stream)
    graph.launch(stream)
    end.record(stream)
    end.synchronize()
    return REPLAYS * n_bytes / cupy.cuda.get_elapsed_time(start, end) / 1e6


def measure(cupy: Any, library: CudaLibrary, names: list[str], n_turns: int) -> Iterator[Row]:
    """Of each type."""
    stream = cupy.cuda.Stream(non_blocking=True)
    kinds = ("matrix", "experts")
    yardstick = Weights(cupy, library, GGMLType.Q4_K)
    theirs = [getattr(yardstick, kind)() for kind in kinds]
    for name in names:
        qtype = GGMLType[name]
        weights = Weights(cupy, library, qtype)
        ours = [getattr(weights, kind)() for kind in kinds]
        cupy.cuda.Device().synchronize()
        values: list[float] = []
        for own, other in zip(ours, theirs, strict=True):
            turns = [[speed(cupy, stream, *each) for each in (own, other)] for _ in range(n_turns)]
            values += [median(a for a, _ in turns), median(a / b for a, b in turns)]
        yield Row(name, 8 * qtype.type_size / qtype.block_size, *values)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("types", nargs="*", metavar="TYPE", help="tensor types (all that have kernels)")
    p.add_argument("-r", "--repetitions", type=int, default=9, metavar="N", help="turns (9)")
    args = p.parse_args()
    names = [qtype.name for qtype in ACTIVATION_FORMAT]
    if unknown := [name for name in args.types if name not in names]:
        raise SystemExit(f"There are no kernels for {unknown[0]}; types: {' '.join(names)}")
    if args.repetitions <= 0:
        raise SystemExit("--repetitions must be positive")
    try:
        cupy = import_cupy()
    except CudaError as e:
        raise SystemExit(str(e)) from e
    rows = []
    with closing(CudaLibrary(0, default_cache_dir())) as library:
        device = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        print(f"{device}; GB/s of weights, and the share of Q4_K's")
        print(f"{'type':<9}{'bits':>6}{'matrix':>9}{'share':>7}{'experts':>10}{'share':>7}")
        for row in measure(cupy, library, args.types or names, args.repetitions):
            rows.append(row)
            print(
                f"{row.type:<9}{row.bits:>6.2f}{row.matrix:>9.0f}{row.matrix_share:>7.2f}"
                f"{row.experts:>10.0f}{row.experts_share:>7.2f}",
                flush=True,
            )
    print(json.dumps({"device": device, "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
