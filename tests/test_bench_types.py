"""scripts/bench_types.py: one token with every tensor type, ours beside llama.cpp's dot products."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import bench_types
import ggml_kernels
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from random_blocks import any_blocks

from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.cpu.library import KernelLibrary
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import quants

TINY = bench_types.Place("cache", 5000, 2)
Dot = ctypes.CFUNCTYPE(
    None,
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t),
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
)


class FakePeer:
    """What GgmlKernels offers, by the reference's numbers; activations stay float32."""

    def __init__(self, factor: float = 1.0):
        self.n_calls, self._factor, self._functions = 0, np.float32(factor), {}

    def vec_dot(self, qtype: GGMLType) -> int:
        @Dot
        def dot(n: int, s: int, bs: int, x: int, bx: int, y: int, by: int, nrc: int) -> None:
            assert (bs, bx, by, nrc) == (0, 0, 0, 1)
            row_size = qtype.row_size(n)
            row = np.ctypeslib.as_array((ctypes.c_uint8 * row_size).from_address(x)).reshape(1, row_size)
            activations = np.ctypeslib.as_array((ctypes.c_float * n).from_address(y))
            value = self._factor * (quants.dequantize(qtype, row)[0] @ activations)
            ctypes.c_float.from_address(s).value = value
            self.n_calls += 1

        self._functions[qtype] = dot
        return ctypes.cast(dot, ctypes.c_void_p).value

    def activations(self, qtype: GGMLType, x: np.ndarray) -> np.ndarray:
        return x


@pytest.mark.parametrize("qtype", ACTIVATION_FORMAT, ids=lambda qtype: qtype.name)
def test_random_blocks_are_finite_weights_that_differ(rng: np.random.Generator, qtype: GGMLType) -> None:
    blocks = any_blocks(rng, GGMLQuantizationType(qtype), 200)
    assert blocks.shape == (200, qtype.type_size)
    weights = quants.dequantize(qtype, blocks)
    assert np.isfinite(weights).all()
    assert np.abs(weights).max() < 100
    assert len(np.unique(weights, axis=0)) > 150  # the shortest floats repeat some


def test_both_sides_multiply_the_same_rows(library: KernelLibrary) -> None:
    peer = FakePeer()
    x = np.random.default_rng(2).standard_normal(512, np.float32)
    matrix = bench_types.Matrix(np.random.default_rng(3), GGMLType.IQ2_XS, 512, 1500, threads=2)
    ours, theirs = bench_types.kernels_of(GGMLType.IQ2_XS, x, library, peer)
    expected = matrix.product(theirs)
    assert expected.shape == (16,)  # 8 rows of 148 bytes for each of two threads
    assert peer.n_calls == 16
    assert len(np.unique(expected)) == 16
    np.testing.assert_allclose(matrix.product(ours), expected, rtol=0.05, atol=0.05 * np.abs(expected).max())


def test_a_row_has_shares_and_a_ratio(library: KernelLibrary) -> None:
    bench = bench_types.Bench(library, FakePeer(), n_in=512, n_turns=2)
    row = bench.measure(GGMLType.IQ4_NL, TINY, threads=2)
    assert (row.type, row.bits, row.threads, row.place) == ("IQ4_NL", 4.5, 2, "cache")
    assert all(value > 0 for value in (row.ours, row.our_share, row.theirs, row.their_share, row.ratio))


def test_results_that_differ_end_the_program(library: KernelLibrary) -> None:
    bench = bench_types.Bench(library, FakePeer(factor=1.1), n_in=512, n_turns=1)
    with pytest.raises(SystemExit, match="Q8_0: the two sides' results differ"):
        bench.measure(GGMLType.Q8_0, TINY, threads=1)


def run(monkeypatch: pytest.MonkeyPatch, cache: Path, *arguments: str) -> None:
    monkeypatch.setattr(bench_types, "default_cache_dir", lambda: cache)
    monkeypatch.setattr(sys, "argv", ["bench_types.py", *arguments])
    bench_types.main()


def test_the_program_without_a_peer(
    monkeypatch: pytest.MonkeyPatch, kernel_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--width", "256", "--size", "8", "--cached", "4", "-r", "1"]
    run(monkeypatch, kernel_cache, "Q4_K", "TQ2_0", *tiny)
    *table, last = capsys.readouterr().out.splitlines()
    assert len(table) == 4 * (2 + 2)  # one and two threads, memory and cache
    assert table[2].split()[:2] == ["Q4_K", "4.50"]
    rows = json.loads(last)["rows"]
    assert [(row["type"], row["place"], row["threads"]) for row in rows[:4]] == [
        ("Q4_K", "memory", 1),
        ("TQ2_0", "memory", 1),
        ("Q4_K", "cache", 1),
        ("TQ2_0", "cache", 1),
    ]
    assert all(row["ours"] > 0 and row["theirs"] is None for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Q9_9"], "There are no kernels for Q9_9; types: F32 .* TQ1_0"),
        (["--width", "300"], "--width is 300; it must be a multiple of 256"),
        (["--size", "0"], "--size, --cached, --threads and --repetitions must be positive"),
        (["--peer-python", sys.executable], "finds no llama_cpp; install llama-cpp-python"),
    ],
)
def test_wrong_arguments(
    monkeypatch: pytest.MonkeyPatch, kernel_cache: Path, arguments: list[str], message: str
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, kernel_cache, *arguments)


def test_the_peers_library_is_found_beside_its_package(tmp_path: Path) -> None:
    package = tmp_path / "llama_cpp"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").touch()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    assert subprocess.run([python, "-c", ""]).returncode == 0
    with pytest.raises(SystemExit, match="has no libggml-cpu"):
        ggml_kernels.find_library(str(python))
    (package / "lib" / "libggml-cpu.so").touch()
    assert ggml_kernels.find_library(str(python)) == package / "lib" / "libggml-cpu.so"
