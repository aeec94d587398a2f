"""The kernels' callers: the same tests run in the emulator and, with -m gpu, on a device.

On a machine with few packages: pytest --confcutdir tests/kernels/cuda -m gpu tests/kernels/cuda
"""

from __future__ import annotations

import bits
import emulated
import numpy as np
import nvrtc as nvrtc_library
import pytest
from run_folder import run_folder

from gguf_moe_kernels.cuda import library
from gguf_moe_kernels.cuda.launch import launch_of

COUNTS = ("rows", "n_past", "step")
"""Fields that are given as numbers and passed as the address of an int64."""


def _address(array):
    return array.__array_interface__["data"][0]


def _fields(struct, arguments, before=""):
    """(path, value) of each field; fields that are structs themselves are given as dicts."""
    if missing := set(struct.names) - set(arguments):
        raise TypeError(f"{before or 'the kernel'} needs {sorted(missing)}")
    for name, value in arguments.items():
        if isinstance(value, dict):
            yield from _fields(struct.fields[name][0], value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _put(packed, path, value):
    *outer, last = path.split(".")
    for name in outer:
        packed = packed[name]
    packed[last] = value


class Emulator:
    def __init__(self, folder):
        self._library = emulated.EmulatedLibrary(folder)

    def launch(self, name, launch, packed):
        self._library.launch(name, launch.grid, launch.block, launch.shared, packed)

    def address(self, array):
        """Where a kernel finds this array, for arrays that hold addresses."""
        return _address(array)

    def run(self, name, launch, packed, arrays):
        """Call a kernel whose fields `arrays` are numpy arrays."""
        for field, array in arrays.items():
            _put(packed, field, _address(array))
        self.launch(name, launch, packed)


class Device:
    def __init__(self):
        self._library = library.CudaLibrary(0)
        self._cupy = library.import_cupy()
        self._kept = {}

    def address(self, array):
        copy, _ = self._kept.setdefault(_address(array), (self._cupy.asarray(array), array))
        return copy.data.ptr

    def run(self, name, launch, packed, arrays):
        """The same with copies of the arrays on the device; what the kernel wrote comes back."""
        copies = {}
        for array in arrays.values():
            copies.setdefault(_address(array), self._cupy.asarray(array))
        for field, array in arrays.items():
            _put(packed, field, copies[_address(array)].data.ptr)
        stream = self._cupy.cuda.Stream(non_blocking=True)
        self._cupy.cuda.Device().synchronize()
        self._library.kernel(name).launch(stream, launch.grid, launch.block, launch.shared, packed)
        stream.synchronize()
        for array in arrays.values():
            array[...] = copies[_address(array)].get().reshape(array.shape)


@pytest.fixture(scope="session", params=["emulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request, tmp_path_factory):
    if request.param == "emulator":
        if emulated.compiler() is None:
            pytest.skip("the emulator needs g++")
        return Emulator(run_folder(tmp_path_factory, "emulated"))
    try:
        return Device()
    except library.CudaError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def call(device):
    """call(name, struct, rows=3, x=array, n=8, ...): `rows` and the like are given as numbers.

    `launch` is for kernels that launch.py does not know, `largest_rows` what the grid is made for.
    """

    def run(name, struct, *, launch=None, largest_rows=None, **arguments):
        packed, arrays = np.zeros((), struct), {}
        for field, value in _fields(struct, arguments):
            if field.rpartition(".")[2] in COUNTS and not isinstance(value, np.ndarray):
                value = np.array([value], np.int64)
            if isinstance(value, np.ndarray):
                arrays[field] = value
            else:
                _put(packed, field, value)
        rows = largest_rows or arguments.get("rows", 1)
        device.run(name, launch or launch_of(name, packed, rows), packed, arrays)

    return run


@pytest.fixture(scope="session")
def nvrtc():
    path = nvrtc_library.library_path()
    if path is None:
        pytest.skip("the package nvidia-cuda-nvrtc is not installed")
    return nvrtc_library.Nvrtc(path)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture(scope="session")
def assert_same_bits():
    return bits.assert_same_bits
