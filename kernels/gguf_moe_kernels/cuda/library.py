"""The kernels of one device: compiled by NVRTC, kept on disk, loaded and launched through CuPy.

CuPy's own way from source to kernel is not taken: it always adds -ftz=true, which makes small numbers 0, and
then results would not have the CPU's bits.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gguf_moe_kernels.cuda.source import module_source, split_name
from gguf_moe_kernels.store import CodeStore

OLDEST = 70
"""The oldest compute capability that has what the kernels need, times ten."""
OPTIONS = ("-std=c++17", "--fmad=false", "--ftz=false")
FUNCTION_SHARED_SIZE, FUNCTION_MOST_DYNAMIC_SHARED = 1, 8
"""CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES and CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""

Progress = Callable[[str, int, int], None]
"""Called with a module's name, how many are done, and how many there are to load."""


class CudaError(Exception):
    """There is no CuPy, driver or GPU to use, or a kernel does not compile. The message is one sentence."""


def import_cupy() -> Any:
    """The module cupy, which is imported nowhere else.

    Raises CudaError if it is not installed, or if it finds no driver or no GPU.
    """
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as e:
        raise CudaError(
            f"CuPy cannot be imported ({_first_line(e)}): "
            "install gguf-moe[cuda13] or gguf-moe[cuda12], whichever the driver supports"
        ) from e
    try:
        n_devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as e:
        raise CudaError(f"CuPy finds no GPU that it can use: {_first_line(e)}") from e
    if not n_devices:
        raise CudaError("CuPy finds no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES")
    return cupy


class Kernel:
    """One kernel, loaded on its device."""

    def __init__(self, cupy: Any, name: str, function: Any, module: Any):
        self.name = name
        self._launch = cupy.cuda.driver.launchKernel
        self._function = function
        self._module = module  # must outlive the function

    def launch(
        self,
        stream: Any,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared: int,
        arguments: np.ndarray,
    ) -> None:
        """Start it on a CuPy stream. `arguments`, a 0-d array of the op's struct, is copied by the driver.

        The library's device must be the calling thread's current one.
        """
        sizes = [*grid, 1, 1][:3] + [*block, 1, 1][:3]
        pointers = np.array([arguments.ctypes.data], np.uintp)
        self._launch(self._function.ptr, *sizes, shared, stream.ptr, pointers.ctypes.data, 0)


class CudaLibrary:
    """Kernels by name, "file.function", for the CUDA device of this number.

    A file is one module, or one for each weight type that is used. `cache` is a directory for compiled
    modules (made when needed) or None to keep them in memory only. After `close()` nothing may run any more.
    """

    def __init__(self, device: int, cache: Path | None = None):
        self._cupy = import_cupy()
        self._store = CodeStore(cache)
        n_devices = self._cupy.cuda.runtime.getDeviceCount()
        if not 0 <= device < n_devices:
            raise CudaError(f"there is no GPU {device}: CuPy finds {n_devices}, numbered from 0")
        self._device = self._cupy.cuda.Device(device)
        capability = int(self._device.compute_capability)
        if capability < OLDEST:
            raise CudaError(
                f"GPU {device} has compute capability {capability / 10}, but the kernels need "
                f"{OLDEST / 10} or more"
            )
        self._capability = capability
        self._modules: dict[tuple[str, str | None], Any] = {}
        self._kernels: dict[str, Kernel] = {}

    def prepare(self, names: Iterable[str], progress: Progress | None = None) -> int:
        """Compile and load everything that these kernels need; the number of modules that were loaded.

        Afterwards `kernel` makes no CUDA call that could wait for running work.
        """
        names = list(dict.fromkeys(names))
        wanted = dict.fromkeys(self._key(name) for name in names)
        missing = [key for key in wanted if key not in self._modules]
        for done, (file, qtype) in enumerate(missing):
            if progress:
                progress(f"{file} {qtype}" if qtype else file, done, len(missing))
            self._modules[file, qtype] = self._load(file, qtype)
        for name in names:
            self._kernels[name] = self._kernels.get(name) or self._find(name)
        return len(missing)

    def kernel(self, name: str) -> Kernel:
        """The kernel; compiles it if `prepare` was not told of it."""
        if name not in self._kernels:
            self.prepare([name])
        return self._kernels[name]

    def close(self) -> None:
        """Let go of the modules."""
        self._kernels.clear()
        self._modules.clear()

    @staticmethod
    @functools.cache
    def _key(name: str) -> tuple[str, str | None]:
        file, _, qtype = split_name(name)
        return file, qtype

    def _load(self, file: str, qtype: str | None) -> Any:
        source = module_source(file, qtype)
        nvrtc, options = self._cupy.cuda.nvrtc, (*OPTIONS, f"--gpu-architecture=sm_{self._capability}")
        key = hashlib.sha256(repr((source, options, nvrtc.getVersion())).encode()).hexdigest()[:32]
        name = f"{file}-{qtype}-{key}.cubin" if qtype else f"{file}-{key}.cubin"
        code = self._store.read(name)
        if code is None:
            code = self._compile(f"{file}.cu", source, options, qtype)
            self._store.write(name, code)
        with self._device:
            module = self._cupy.cuda.function.Module()
            module.load(code)
        return module

    def _compile(self, name: str, source: str, options: tuple[str, ...], qtype: str | None) -> bytes:
        nvrtc = self._cupy.cuda.nvrtc
        program = nvrtc.createProgram(source, name, (), ())
        try:
            nvrtc.compileProgram(program, options)
            return nvrtc.getCUBIN(program)
        except nvrtc.NVRTCError as e:
            log = nvrtc.getProgramLog(program).strip() or _first_line(e)
            raise CudaError(f"NVRTC cannot compile {name} for {qtype or 'any type'}: {log}") from e
        finally:
            nvrtc.destroyProgram(program)

    def _find(self, name: str) -> Kernel:
        module, driver = self._modules[self._key(name)], self._cupy.cuda.driver
        with self._device:
            function = module.get_function(split_name(name)[1])
            fixed = driver.funcGetAttribute(FUNCTION_SHARED_SIZE, function.ptr)
            largest = self._device.attributes["MaxSharedMemoryPerBlockOptin"]
            driver.funcSetAttribute(function.ptr, FUNCTION_MOST_DYNAMIC_SHARED, largest - fixed)
        return Kernel(self._cupy, name, function, module)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
