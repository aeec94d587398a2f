"""What fits into memory, and the pages of a file that is not there yet."""

import dataclasses
import logging
import os
import sys

import pytest

import gguf_moe
from gguf_moe.arch import find_arch
from gguf_moe.arch.hparams import read_hparams
from gguf_moe.arch.weights import load_weights
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.graph.task import Kind
from gguf_moe.runtime import machine, pages, placement

GIB = 1 << 30


@pytest.fixture
def checkpoint(tiny_gguf, tmp_path):
    with open_checkpoint(tiny_gguf(tmp_path / "model.gguf", n_ctx=4096)) as checkpoint:
        yield checkpoint


@pytest.fixture
def hparams(checkpoint):
    return read_hparams(checkpoint.metadata, find_arch(checkpoint.metadata))


def with_memory(monkeypatch, available, total=64 * GIB):
    monkeypatch.setattr(machine, "available_memory", lambda: available)
    monkeypatch.setattr(machine, "total_memory", lambda: total)


def test_with_plenty_of_memory_the_context_is_the_models(monkeypatch, checkpoint, hparams):
    with_memory(monkeypatch, 32 * GIB)
    assert placement.context_length(checkpoint, hparams, Kind.F16, None) == 4096


def test_with_little_memory_it_is_what_fits(monkeypatch, checkpoint, hparams):
    room = 1024 * placement.cache_bytes(hparams, 1, Kind.F16) / placement.KV_SHARE
    with_memory(monkeypatch, checkpoint.nbytes + int(room) + 1)
    assert placement.context_length(checkpoint, hparams, Kind.F16, None) == 1024
    assert placement.context_length(checkpoint, hparams, Kind.F32, None) == 512


def test_a_context_that_was_asked_for_is_kept_or_refused(monkeypatch, checkpoint, hparams):
    with_memory(monkeypatch, placement.cache_bytes(hparams, 1000, Kind.F16))
    assert placement.context_length(checkpoint, hparams, Kind.F16, 1000) == 1000
    with pytest.raises(gguf_moe.OutOfMemoryError, match="1001 positions needs"):
        placement.context_length(checkpoint, hparams, Kind.F16, 1001)


def test_a_context_beyond_the_trained_one_is_warned_about(checkpoint, hparams, caplog):
    placement.context_length(checkpoint, hparams, Kind.F16, 5000)
    assert "longer than the 4096" in caplog.text


def test_cache_bytes_are_what_the_buffers_take(hparams):
    per_position = hparams.n_layer * hparams.n_head_kv * (hparams.n_embd_head_k + hparams.n_embd_head_v)
    assert placement.cache_bytes(hparams, 10, Kind.F16) == 10 * per_position * 2
    assert placement.cache_bytes(hparams, 10, Kind.F32) == 10 * per_position * 4
    assert placement.cache_bytes(hparams, 10, Kind.Q8_0) == 10 * per_position * 34 // 32


def test_the_cache_type_follows_the_matrices(checkpoint, hparams):
    weights = load_weights(checkpoint, find_arch(checkpoint.metadata), hparams)
    assert placement.kv_kind("f32", hparams, weights) is Kind.F32
    assert placement.kv_kind(None, hparams, weights) is Kind.F16


def test_heads_that_are_no_whole_blocks_are_refused(checkpoint, hparams):
    weights = load_weights(checkpoint, find_arch(checkpoint.metadata), hparams)
    assert placement.kv_kind("q8_0", hparams, weights) is Kind.Q8_0
    narrow = dataclasses.replace(hparams, n_embd_head_v=48)
    with pytest.raises(gguf_moe.OptionError, match=r"values have 48 in layer 0 .* use f16 \(--kv f16\)"):
        placement.kv_kind("q8_0", narrow, weights)


def test_a_file_beyond_memory_is_warned_about_with_numbers(monkeypatch, checkpoint, caplog):
    with_memory(monkeypatch, 0, total=checkpoint.nbytes - 1)
    placement.warm_page_cache(checkpoint, None)
    assert "this machine has 0.0 GiB" in caplog.text


def test_logits_beyond_memory_are_refused(monkeypatch):
    with_memory(monkeypatch, GIB)
    with pytest.raises(gguf_moe.OutOfMemoryError, match=r"the logits need 2\.0 GiB, but 1\.0 GiB"):
        placement.check_memory(2 * GIB, "the logits")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the page cache is asked in Linux's way")
@pytest.mark.parametrize("can_populate", [True, False])
def test_a_cold_file_is_read_with_progress_and_a_warm_one_left_alone(
    checkpoint, caplog, monkeypatch, can_populate
):
    if not can_populate:  # as with Linux before 5.14
        monkeypatch.setattr(pages, "MADV_POPULATE_READ", -1)
    caplog.set_level(logging.WARNING)
    with checkpoint.path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    seen = []
    pages.read_ahead(checkpoint, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (checkpoint.nbytes, checkpoint.nbytes)
    assert pages.resident_share(checkpoint) == 1.0
    seen.clear()
    placement.warm_page_cache(checkpoint, lambda done, total: seen.append(done))
    assert not seen
    assert not caplog.text


def test_pages_that_are_not_there_make_the_file_be_read(monkeypatch, checkpoint):
    monkeypatch.setattr(pages, "resident_share", lambda checkpoint: 0.2)
    seen = []
    placement.warm_page_cache(checkpoint, lambda done, total: seen.append(done))
    assert seen[-1] == checkpoint.nbytes


def test_threads_stay_within_what_the_process_may_use(monkeypatch):
    assert 1 <= machine.default_threads() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(machine, "_cpu_quota", lambda: 1)
    assert machine.default_threads() == 1


def test_the_last_level_cache_is_the_largest_of_a_core(monkeypatch, tmp_path):
    assert machine.last_level_cache() >= 0
    monkeypatch.setattr(machine, "_CPUS", tmp_path)
    assert machine.last_level_cache() == 0
    for index, size in enumerate(("48K", "2048K", "491520K")):
        cache = tmp_path / f"cpu0/cache/index{index}"
        cache.mkdir(parents=True)
        (cache / "size").write_text(f"{size}\n")
    assert machine.last_level_cache() == 480 << 20


def test_available_memory_is_below_the_total():
    assert 0 < machine.available_memory() <= machine.total_memory()
