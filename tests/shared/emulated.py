"""The emulator: a kernel file compiled as C++, and its kernels called like a device's."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from gguf_moe_kernels.cuda.source import module_source, split_name

FOLDER = Path(__file__).parents[1] / "kernels" / "cuda" / "emulator"
# Without no-gnu-unique the libraries of two types share what a template keeps in shared memory. Where g++ has
# _FORTIFY_SOURCE by itself (Ubuntu), a jump from one thread's stack to another's would end the process.
FLAGS = [
    "-std=c++17",
    "-O1",
    "-U_FORTIFY_SOURCE",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-gnu-unique",
    "-fPIC",
    "-shared",
    "-w",
]


def compiler() -> str | None:
    return shutil.which("g++")


class EmulatedLibrary:
    """Launches kernels on arrays in main memory. `folder` keeps what is compiled; processes may share it."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._module = functools.cache(self._compile)

    def launch(self, name: str, grid, block, shared: int, arguments: np.ndarray) -> None:
        file, function, qtype = split_name(name)
        entry = getattr(self._module(file, qtype), function)
        sizes = [np.array([*size, 1, 1][:3], np.uint32) for size in (grid, block)]
        pointers = [ctypes.c_void_p(size.ctypes.data) for size in sizes]
        status = entry(*pointers, ctypes.c_uint(shared), ctypes.c_void_p(arguments.ctypes.data))
        if status:
            reason = "its threads wait for each other for ever" if status == 1 else "the launch is not valid"
            raise RuntimeError(f"{name} {grid} {block} {shared}: {reason}")

    def prepare(self, names) -> None:
        """Compile what these kernels need."""
        for name in names:
            file, _, qtype = split_name(name)
            self._module(file, qtype)

    def _compile(self, file: str, qtype: str | None) -> ctypes.CDLL:
        library = self._folder / f"{file}-{qtype}.so"
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                self._build(file, qtype, Path(folder) / library.name).replace(library)
        return ctypes.CDLL(str(library))

    @staticmethod
    def _build(file: str, qtype: str | None, library: Path) -> Path:
        replaced = {path.name: path.read_text() for path in FOLDER.glob("*.cuh")}
        source = library.with_suffix(".cpp")
        source.write_text(f'#include "{FOLDER}/cuda.h"\n' + module_source(file, qtype, replaced))
        done = subprocess.run(
            [str(compiler()), *FLAGS, str(source), "-o", str(library)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"g++ cannot compile {file}.cu for {qtype}:\n{done.stderr[:4000]}")
        return library
