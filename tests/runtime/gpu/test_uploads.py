"""Experts of a file that the system does not let the GPU read: they come through pinned memory."""

import logging
import threading

import numpy as np
import pytest

import gguf_moe
from gguf_moe.errors import DeviceError
from gguf_moe.runtime.gpu import device, placement, slots, uploads
from gguf_moe.runtime.gpu.uploads import Copy, StagedUploads
from gguf_moe_kernels.quants import GGMLType

TOKENS = [3, 141, 59, 26, 5, 35, 8]


@pytest.fixture
def load(emulated_gpu, tmp_path, tiny_gguf, monkeypatch, kernel_cache):
    """load(): a model whose experts do not all fit, with pieces that hold a part of a matrix."""
    monkeypatch.setattr(uploads, "PIECE_SIZE", 5000)
    monkeypatch.setattr(placement, "open_device", lambda name, *arguments: emulated_gpu)
    path = tiny_gguf(tmp_path / "moe.gguf", qtypes=(GGMLType.Q4_K,))
    monkeypatch.setattr(placement, "slots_per_layer", lambda left, sizes, n_expert: [2] * len(sizes))
    options = {"n_ctx": 32, "threads": 1, "cache_dir": kernel_cache, "device": "cuda:0", "policy": "lru"}
    return lambda: gguf_moe.load(path, **options)


def logits(model):
    model._context.truncate(0)
    return np.concatenate([model._context.extend([token], 1).copy() for token in TOKENS])


def sources(device, model):
    """Addresses of experts from which the device has copied."""
    layers = [tensors for layer in model.gpu.slots._layers for tensors in (layer.ffn_gate_exps,)]
    return {source for source, _ in device.copied} & {a for layer in layers for a in layer.addresses}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_experts_come_through_pinned_memory(load, emulated_gpu, assert_same_bits, caplog, monkeypatch, share):
    monkeypatch.setattr(slots, "SMALL_SHARE", share)
    with load() as model:
        expected = logits(model)
        assert sources(emulated_gpu, model)
    emulated_gpu.copied.clear()
    emulated_gpu.registers = False
    with caplog.at_level(logging.WARNING), load() as model:
        assert_same_bits(logits(model), expected)
        model.gpu.slots.settle()
        assert_same_bits(logits(model), expected)
        assert model.gpu.usage().uploads > 4
        assert not sources(emulated_gpu, model)
    assert "cannot be locked in memory" in caplog.text
    threads = [thread.name for thread in threading.enumerate()]
    assert not [name for name in threads if name.startswith(("gguf-moe uploads", "gguf-moe experts"))]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_choices_count_as_hits_if_the_step_found_them_there(load, monkeypatch, share):
    monkeypatch.setattr(slots, "SMALL_SHARE", share)
    with load() as model:
        used, there = model.gpu.slots.used, []

        def record(ids, step_s):
            tables = model.gpu.slots.tables.addresses[:, 0]
            there.extend(tables[layer, expert] != 0 for layer, row in enumerate(ids) for expert in row)
            used(ids, step_s)

        model.gpu.slots.used = record
        logits(model)
        usage = model.gpu.usage()
    assert usage.hits == sum(there)
    assert usage.misses == len(there) - sum(there) > 0


def test_an_upload_that_fails_beside_a_step_ends_the_next_one(load, monkeypatch):
    def fail(copies):
        raise DeviceError("the GPU cannot be used: cudaErrorDevicesUnavailable; use --device cpu.")

    with load() as model:
        monkeypatch.setattr(model.gpu.slots._uploads, "start", fail)
        with pytest.raises(DeviceError, match="DevicesUnavailable"):
            logits(model)


def test_bytes_arrive_in_order_and_in_pieces(emulated_gpu, monkeypatch, rng):
    monkeypatch.setattr(uploads, "PIECE_SIZE", 1000)
    data = rng.integers(0, 256, 123_456, np.uint8)
    staged, target = StagedUploads(emulated_gpu), emulated_gpu.pinned(data.nbytes)
    marks = [
        staged.start([Copy(target.ctypes.data + at, data.ctypes.data + at, 41_152)])
        for at in range(0, data.nbytes, 41_152)
    ]
    while not all(staged.is_done(mark) for mark in marks):
        pass
    np.testing.assert_array_equal(target, data)
    staged.close()


def test_a_gpu_that_is_lost_meanwhile(load, emulated_gpu, monkeypatch):
    emulated_gpu.registers = False

    def fail(stream):
        raise DeviceError("the GPU cannot be used: cudaErrorDevicesUnavailable; use --device cpu.")

    with load() as model:
        monkeypatch.setattr(emulated_gpu, "event", fail)
        room = model.gpu.slots
        room.cache.resize([1] * 2)
        room.tables.addresses[:] = 0
        room.cache.resize([2] * 2)
        with pytest.raises(DeviceError, match="DevicesUnavailable"):
            room.fill()


@pytest.mark.parametrize("registers", [True, False])
def test_an_upload_that_never_arrives_is_given_up(load, emulated_gpu, monkeypatch, registers):
    emulated_gpu.registers = registers
    with load() as model:
        room = model.gpu.slots
        room.cache.resize([1] * 2)
        room.tables.addresses[:] = 0
        room.cache.resize([2] * 2)
        monkeypatch.setattr(device, "STEP_LIMIT_S", 0.2)
        monkeypatch.setattr(emulated_gpu, "is_done", lambda event: False)
        with pytest.raises(DeviceError, match="has not finished an upload within"):
            room.fill()


def test_pinned_memory_that_never_gets_free_is_given_up(emulated_gpu, monkeypatch):
    monkeypatch.setattr(uploads, "PIECE_SIZE", 1000)
    monkeypatch.setattr(device, "STEP_LIMIT_S", 0.2)
    monkeypatch.setattr(emulated_gpu, "is_done", lambda event: False)
    data = np.zeros(1000 * (uploads.N_PIECES + 1), np.uint8)
    staged, target = StagedUploads(emulated_gpu), emulated_gpu.pinned(data.nbytes)
    mark = staged.start([Copy(target.ctypes.data, data.ctypes.data, data.nbytes)])
    with pytest.raises(DeviceError, match="has not finished an upload within"):
        device.wait_until(lambda: staged.is_done(mark), "the test", 10.0)
    staged.close()
