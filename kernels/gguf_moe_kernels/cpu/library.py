"""The kernels of one model: found in the cache on disk or compiled, loaded, and given out as addresses.

A cache file is named after the kernel and a key that covers every kernel source, the compiler's version and
the CPU. It holds a SHA-256 and an object file. Code from disk is executed, so the directory must belong to
the user and be closed to others; otherwise it is not used.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import llvmlite.binding as llvm

from gguf_moe_kernels.cpu.target import Target

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a kernel's name, how many are done, and how many there are to compile."""
FillCache = Callable[[Path, list[str], Progress | None], None]
"""Compiles kernels into a cache directory in a way of its own. It need not do all of them."""

ENTRY_POINT = "kernel"
_DIGEST_SIZE = 32


class KernelLibrary:
    """Addresses of compiled kernels by name. After `close()` nothing may run in them any more.

    A name is "module.function" below gguf_moe_kernels.cpu, for example "matmul.matmul" or "q4_k.tile".
    `cache` is a directory (made when needed) or None to compile in memory only. `fill_cache` is tried first
    where several kernels are missing in the cache.
    """

    def __init__(self, cache: Path | None, fill_cache: FillCache | None = None):
        self._target = Target.host()
        self._cache = cache if cache is not None and _is_private(cache) else None
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
        if total > 1 and self._fill_cache and self._cache and os.access(self._cache, os.W_OK):
            self._fill_cache(self._cache, missing, progress)
            missing = self._load_cached(missing)
        for done, name in enumerate(missing, total - len(missing)):
            if progress:
                progress(name, done, total)
            code = compiled_object(name, self._target)
            self._write(name, code)
            self._load(name, code)
        return total

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
            if code := self._read(name):
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

    def _path(self, name: str) -> Path | None:
        return self._cache and self._cache / f"{name}-{self._target.cache_key}.o"

    def _read(self, name: str) -> bytes | None:
        path = self._path(name)
        try:
            data = path.read_bytes() if path else b""
        except OSError:
            return None
        digest, code = data[:_DIGEST_SIZE], data[_DIGEST_SIZE:]
        return code if code and hashlib.sha256(code).digest() == digest else None

    def _write(self, name: str, code: bytes) -> None:
        path = self._path(name)
        if path is None:
            return
        unfinished = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        try:
            unfinished.write_bytes(hashlib.sha256(code).digest() + code)
            unfinished.replace(path)
        except OSError as e:
            logger.warning("cannot keep compiled kernels in %s: %s", path.parent, e)
            unfinished.unlink(missing_ok=True)
            self._cache = None


@functools.cache
def compiled_object(name: str, target: Target) -> bytes:
    """Compile a kernel, at most once in a process."""
    from gguf_moe_kernels.cpu.compile import compile_object

    module_name, function_name = name.rsplit(".", 1)
    module = importlib.import_module(f"gguf_moe_kernels.cpu.{module_name}")
    return compile_object(getattr(module, function_name), target.machine())


def _is_private(directory: Path) -> bool:
    """Make the directory if it is missing; True if only this user can write to it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as e:
        logger.warning("cannot keep compiled kernels in %s: %s", directory, e)
        return False
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        logger.warning("not using %s for compiled kernels: other users can write to it", directory)
        return False
    return True
