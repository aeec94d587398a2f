"""The kernels of one model: found in the cache on disk or compiled, loaded, and given out as addresses.

A cache file is named after the kernel and a key that covers every kernel source, the compiler's version and
the CPU. It holds an object file.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

import llvmlite.binding as llvm

from gguf_moe_kernels.cpu.target import Target
from gguf_moe_kernels.store import CodeStore

Progress = Callable[[str, int, int], None]
"""Called with a kernel's name, how many are done, and how many there are to compile."""
FillCache = Callable[[Path, list[str], Progress | None], None]
"""Compiles kernels into a cache directory in a way of its own. It need not do all of them."""

ENTRY_POINT = "kernel"


class KernelLibrary:
    """Addresses of compiled kernels by name. After `close()` nothing may run in them any more.

    A name is "module.function" below gguf_moe_kernels.cpu, for example "matmul.matmul" or "q4_k.tile".
    `cache` is a directory (made when needed) or None to compile in memory only. `fill_cache` is tried first
    where several kernels are missing in the cache.
    """

    def __init__(self, cache: Path | None, fill_cache: FillCache | None = None):
        self._target = Target.host()
        self._store = CodeStore(cache)
        self._fill_cache = fill_cache
        self._addresses: dict[str, int] = {}
        self._engines: list[llvm.ExecutionEngine] = []

    def address(self, name: str) -> int:
        """The address of a kernel; compiles it if neither this library nor the cache has it."""
        self.prepare([name])
        return self._addresses[name]

    def prepare(self, names: Iterable[str], progress: Progress | None = None) -> int:
        """Make all these kernels ready; the number that had to be compiled.

        progress(name, done, total) is called before each kernel that is compiled.
        """
        missing = self._load_cached(dict.fromkeys(names))
        if missing:
            # Numba may aim at another CPU than the host (NUMBA_CPU_NAME), and it alone knows.
            self._target = Target.numba()
            missing = self._load_cached(missing)
        total = len(missing)
        if total > 1 and self._fill_cache and self._store.directory and self.keeps:
            self._fill_cache(self._store.directory, missing, progress)
            missing = self._load_cached(missing)
        for done, name in enumerate(missing, total - len(missing)):
            if progress:
                progress(name, done, total)
            code = compiled_object(name, self._target)
            self._store.write(self._file(name), code)
            self._load(name, code)
        return total

    @property
    def keeps(self) -> bool:
        """Whether the cache on disk takes what is compiled; False without one, or once writing has failed."""
        return self._store.is_writable

    def close(self) -> None:
        """Free the machine code."""
        self._addresses.clear()
        self._engines.clear()

    def _load_cached(self, names: Iterable[str]) -> list[str]:
        """Load those that the cache has; the rest, without those that are loaded already."""
        missing = []
        for name in names:
            if name in self._addresses:
                continue
            if code := self._store.read(self._file(name)):
                self._load(name, code)
            else:
                missing.append(name)
        return missing

    def _load(self, name: str, code: bytes) -> None:
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self._target.machine())
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        self._engines.append(engine)
        self._addresses[name] = engine.get_function_address(ENTRY_POINT)

    def _file(self, name: str) -> str:
        return f"{name}-{self._target.cache_key}.o"


@functools.cache
def compiled_object(name: str, target: Target) -> bytes:
    """Compile a kernel, at most once in a process."""
    from gguf_moe_kernels.cpu.compile import compile_object

    module_name, function_name = name.rsplit(".", 1)
    module = importlib.import_module(f"gguf_moe_kernels.cpu.{module_name}")
    return compile_object(getattr(module, function_name), target.machine())
