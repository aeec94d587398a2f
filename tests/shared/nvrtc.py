"""NVRTC from the pip package nvidia-cuda-nvrtc: it needs neither a driver nor a GPU."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path


def library_path() -> Path | None:
    """The shared library, or None if the package is not installed."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            if "alt" not in path.name:
                return path
    return None


class Nvrtc:
    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))

    def compile(self, source: str, options: list[str]) -> tuple[bool, str]:
        """If it compiles, and the compiler's log."""
        program = ctypes.c_void_p()
        self._check(
            self._library.nvrtcCreateProgram(
                ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
            )
        )
        try:
            array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = self._library.nvrtcCompileProgram(program, len(options), array)
            size = ctypes.c_size_t()
            self._check(self._library.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
            log = ctypes.create_string_buffer(size.value)
            self._check(self._library.nvrtcGetProgramLog(program, log))
            return status == 0, log.value.decode()
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"NVRTC returns status {status}")
