"""The one call of CUDA's driver that CuPy lacks: a launch that may begin before the last one has ended.

Programmatic dependent launch, from compute capability 9.0 on: a kernel's blocks take their places while the
kernel before it still runs, and wait there (wait_for_earlier in ptx.cuh). That hides most of a launch's cost.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

EARLIEST = 90
"""The compute capability that has it, times ten."""
_PROGRAMMATIC_STREAM_SERIALIZATION = 6


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute, whose value has 64 bytes."""

    _fields_ = (("id", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_int * 16))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("n_attributes", ctypes.c_uint),
    )


EarlyLaunch = Callable[[int, list[int], int, int, int], int]
"""(function, [3 sizes of the grid, 3 of a block], shared bytes, stream, address of the arguments' addresses)
-> CUresult"""


def early_launch() -> EarlyLaunch | None:
    """The call, or None where the driver does not have it."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        call = library.cuLaunchKernelEx
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.POINTER(_Config), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    attribute = _Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION)
    attribute.value[0] = 1

    def launch(function: int, sizes: list[int], shared: int, stream: int, pointers: int) -> int:
        config = _Config(tuple(sizes[:3]), tuple(sizes[3:]), shared, stream, ctypes.pointer(attribute), 1)
        return call(ctypes.byref(config), function, pointers, None)

    return launch
