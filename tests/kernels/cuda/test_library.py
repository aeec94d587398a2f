"""What a user hears where the GPU cannot be used; none of this needs CuPy or a GPU."""

import importlib
import types

import pytest

from gguf_moe_kernels.cuda import library


class CUDARuntimeError(RuntimeError):
    pass


def fake_cupy(monkeypatch, count_devices, capability="90"):
    runtime = types.SimpleNamespace(CUDARuntimeError=CUDARuntimeError, getDeviceCount=count_devices)
    device = types.SimpleNamespace(compute_capability=capability)
    cuda = types.SimpleNamespace(runtime=runtime, Device=lambda number: device)
    monkeypatch.setattr(importlib, "import_module", lambda name: types.SimpleNamespace(cuda=cuda))


def test_without_cupy(monkeypatch):
    def fail(name):
        raise ImportError(f"No module named '{name}'\nand more")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(library.CudaError, match=r"No module named 'cupy'\): install gguf-moe\[cuda13\]"):
        library.CudaLibrary(0)


def test_without_a_driver(monkeypatch):
    def fail():
        raise CUDARuntimeError("cudaErrorInsufficientDriver: the driver is too old")

    fake_cupy(monkeypatch, fail)
    with pytest.raises(library.CudaError, match=r"no GPU that it can use: cudaErrorInsufficientDriver"):
        library.CudaLibrary(0)


@pytest.mark.parametrize(
    ("n_devices", "number", "message"),
    [(0, 0, "finds no GPU"), (2, 2, "there is no GPU 2: CuPy finds 2"), (2, -1, "there is no GPU -1")],
)
def test_without_the_device(monkeypatch, n_devices, number, message):
    fake_cupy(monkeypatch, lambda: n_devices)
    with pytest.raises(library.CudaError, match=message):
        library.CudaLibrary(number)


def test_a_device_that_is_too_old(monkeypatch):
    fake_cupy(monkeypatch, lambda: 1, capability="61")
    with pytest.raises(library.CudaError, match=r"capability 6\.1, but the kernels need 7\.0"):
        library.CudaLibrary(0)
