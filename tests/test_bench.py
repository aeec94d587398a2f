"""Measuring: what is counted and what runs, not how fast it was."""

import threading
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from gguf_moe import OptionError, OutOfMemoryError
from gguf_moe.bench import Bench, BenchTest, Row
from gguf_moe.options import Options
from gguf_moe.runtime import bandwidth, machine
from gguf_moe.runtime.bandwidth import BandwidthMeter
from gguf_moe_kernels.structs import READ_CHUNK

FIXTURE = Path(__file__).parent / "fixtures" / "fixture-bpe.Q4_K_M.gguf"


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    """Nothing here depends on the speed, so the cache may hold the buffer."""
    monkeypatch.setattr(bandwidth, "LEAST_BUFFER", 4 * READ_CHUNK)
    monkeypatch.setattr(bandwidth, "TIMES_THE_CACHE", 0)


@pytest.fixture
def bench(kernel_cache):
    with Bench(FIXTURE, Options(cache_dir=kernel_cache)) as bench:
        yield bench


def test_the_names_are_llama_benchs():
    assert BenchTest(2, n_prompt=512).name == "pp512"
    assert BenchTest(2, n_gen=64, n_depth=4096).name == "tg64 @ d4096"


def test_a_row_has_mean_deviation_and_share():
    row = Row(BenchTest(1, n_gen=4), bandwidths=(90.0, 110.0), bytes_per_token=5, speeds=[8.0, 10.0, 12.0])
    assert (row.mean, row.deviation) == (10.0, 2.0)
    assert row.bytes_per_second == 50.0
    assert row.bandwidth_share == 0.5


def test_one_repetition_has_no_deviation():
    assert Row(BenchTest(1, n_gen=4), (1.0, 1.0), 5, [8.0]).deviation == 0.0


def test_size_and_parameters_are_those_of_all_tensors(bench):
    tensors = GGUFReader(FIXTURE).tensors
    assert bench.nbytes == sum(tensor.n_bytes for tensor in tensors)
    assert bench.n_params == sum(tensor.n_elements for tensor in tensors)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("tokens", [{"n_prompt": 40}, {"n_gen": 3}])
def test_a_test_runs_at_its_depth(bench, n_threads, tokens):
    row = bench.run(BenchTest(n_threads, n_depth=20, **tokens), repetitions=2)
    assert len(row.speeds) == 2
    assert min(*row.speeds, *row.bandwidths) > 0
    assert row.bytes_per_token == bench.bytes_per_token


def test_progress_counts_repetitions(kernel_cache):
    seen = []
    with Bench(FIXTURE, Options(cache_dir=kernel_cache), lambda *call: seen.append(call)) as bench:
        bench.run(BenchTest(1, n_gen=1), repetitions=3)
    assert [call for call in seen if call[0] == "measuring"] == [("measuring", i, 3) for i in range(3)]


def test_what_the_context_does_not_hold_is_refused(kernel_cache):
    with Bench(FIXTURE, Options(cache_dir=kernel_cache)) as bench:
        bench.check(BenchTest(1, n_gen=12, n_depth=500))
        with pytest.raises(OptionError, match=r"tg13 @ d500 needs a context of 513 .* is 512"):
            bench.check(BenchTest(1, n_gen=13, n_depth=500))
    with Bench(FIXTURE, Options(n_ctx=1024, cache_dir=kernel_cache)) as bench:
        bench.check(BenchTest(1, n_gen=13, n_depth=500))


def test_no_thread_stays(kernel_cache):
    before = threading.active_count()
    with Bench(FIXTURE, Options(cache_dir=kernel_cache)) as bench:
        bench.run(BenchTest(3, n_gen=1), repetitions=1)
        assert threading.active_count() == before


@pytest.mark.parametrize(("total", "reads"), [(2, [1, 1, 0]), (5, [2, 2, 1])])
def test_reading_covers_every_byte_round_and_round(call_kernel, rng, total, reads):
    """`reads`: how often each of three chunks is read until so many are claimed."""
    buffer = rng.integers(0, 1 << 30, (3, READ_CHUNK // 4), np.int32)
    claimed = np.zeros(1, np.int64)
    result = call_kernel("bandwidth.read", buffer, buffer.nbytes, total * READ_CHUNK, claimed)
    lanes = sum(
        n * chunk.reshape(-1, 16).sum(axis=0, dtype=np.int64) for n, chunk in zip(reads, buffer, strict=True)
    )
    assert result == np.bitwise_xor.reduce(lanes.astype(np.int32).view(np.int64))
    assert claimed[0] == (total + 1) * READ_CHUNK


def test_the_bandwidth_is_a_rate(library):
    meter = BandwidthMeter(library, np.ones(2 * READ_CHUNK, np.uint8))
    assert 1e6 < meter.measure(2) < 1e14


def test_a_pass_begins_where_the_last_one_ended(library, monkeypatch):
    monkeypatch.setattr(bandwidth, "PASS_SIZE", READ_CHUNK)
    meter = BandwidthMeter(library, np.ones(5 * READ_CHUNK + 1, np.uint8))
    begins = []
    read = meter._read

    def watched(buffer, size, end, claimed):
        begins.append((int(meter._claimed[0]) // READ_CHUNK, end // READ_CHUNK, size // READ_CHUNK))
        return read(buffer, size, end, claimed)

    meter._read = watched
    meter.measure(1)
    assert begins == [(0, 1, 5), (1, 2, 5), (2, 3, 5), (3, 4, 5), (4, 5, 5)]


def test_the_buffer_is_larger_than_the_cache_as_far_as_there_is_memory(monkeypatch):
    monkeypatch.setattr(bandwidth, "TIMES_THE_CACHE", 4)
    monkeypatch.setattr(machine, "last_level_cache", lambda: 3 * READ_CHUNK)
    assert bandwidth._new_buffer().nbytes == 12 * READ_CHUNK
    monkeypatch.setattr(machine, "available_memory", lambda: 16 * READ_CHUNK)
    assert bandwidth._new_buffer().nbytes == 8 * READ_CHUNK
    monkeypatch.setattr(machine, "last_level_cache", lambda: 0)
    assert bandwidth._new_buffer().nbytes == 4 * READ_CHUNK


def test_a_machine_without_memory_for_the_buffer_is_told(library, monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 1 << 20)
    with pytest.raises(OutOfMemoryError, match="needs 4 MiB, but 1 MiB are available"):
        BandwidthMeter(library)
