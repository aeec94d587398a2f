"""llama.cpp's dot products of one quantized row with one token, called by address from its shared library."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np

from gguf_moe_kernels.quants import GGMLType

FIND = "import importlib.util as u; print(u.find_spec('llama_cpp').origin)"


class _TypeTraits(ctypes.Structure):
    """ggml_type_traits_cpu of ggml-cpu.h."""

    _fields_ = [
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    ]


def find_library(python: str) -> Path:
    """libggml-cpu of the llama-cpp-python that the interpreter `python` finds."""
    found = subprocess.run([python, "-c", FIND], capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(f"{python} (--peer-python) finds no llama_cpp; install llama-cpp-python for it")
    directory = Path(found.stdout.strip()).parent / "lib"
    libraries = sorted(directory.glob("libggml-cpu*.so"))
    if len(libraries) != 1:
        names = ", ".join(path.name for path in libraries) or "no libggml-cpu*.so"
        raise SystemExit(f"{directory} has {names}; llama-cpp-python must be built with one CPU backend")
    return libraries[0]


class GgmlKernels:
    """The kernels of a libggml-cpu."""

    def __init__(self, library: Path):
        self._library = ctypes.CDLL(str(library))
        self._library.ggml_get_type_traits_cpu.restype = ctypes.POINTER(_TypeTraits)
        self._library.ggml_row_size.restype = ctypes.c_size_t
        self._library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        self._library.ggml_cpu_init()

    def vec_dot(self, qtype: GGMLType) -> int:
        """The address of the type's ggml_vec_dot_t."""
        return self._traits(qtype).vec_dot

    def activations(self, qtype: GGMLType, x: np.ndarray) -> np.ndarray:
        """x, float32 [n], as `vec_dot` wants it: uint8."""
        met = self._traits(qtype).vec_dot_type
        if met == GGMLType.F32:
            return x.view(np.uint8)
        row = np.zeros(self._library.ggml_row_size(met, len(x)), np.uint8)
        self._traits(met).from_float(x.ctypes.data, row.ctypes.data, len(x))
        return row

    def _traits(self, qtype: int) -> _TypeTraits:
        return self._library.ggml_get_type_traits_cpu(int(qtype)).contents
