"""The cache of compiled kernels on disk."""

import ctypes
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from gguf_moe_kernels.cpu import library
from gguf_moe_kernels.cpu.library import KernelLibrary

KERNEL = "f32.dequantize"
USE = f"""if True:
    import ctypes, logging, pathlib, sys
    import numpy as np
    from gguf_moe_kernels.cpu.library import KernelLibrary
    logging.basicConfig()
    library = KernelLibrary(pathlib.Path(sys.argv[1]))
    compiled = library.prepare(["{KERNEL}"])
    x, out = np.arange(5, dtype=np.float32), np.zeros(5, np.float32)
    function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)(library.address("{KERNEL}"))
    function(x.ctypes.data, out.ctypes.data, 5)
    assert (x == out).all()
    print(compiled, "numba" in sys.modules)
"""


def test_a_cached_kernel_runs_without_numba(tmp_path, run_python):
    assert run_python(USE, tmp_path).split() == ["1", "True"]
    assert run_python(USE, tmp_path).split() == ["0", "False"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".o"}


def test_a_cached_kernel_for_another_cpu_is_not_compiled_again(tmp_path, run_python):
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    assert run_python(USE, tmp_path, **environment).split() == ["1", "True"]
    assert run_python(USE, tmp_path, **environment).split() == ["0", "True"]


def test_a_changed_source_of_a_kernel_makes_the_cache_stale(tmp_path, run_python):
    package = Path(library.__file__).parent.parent
    copy = shutil.copytree(
        package, tmp_path / "sources" / package.name, ignore=shutil.ignore_patterns("__pycache__")
    )
    path = {"PYTHONPATH": str(tmp_path / "sources")}
    assert run_python(USE, tmp_path / "cache", **path).split()[0] == "1"
    with (copy / "cpu" / "memory.py").open("a") as source:
        source.write("# changed\n")
    assert run_python(USE, tmp_path / "cache", **path).split()[0] == "1"
    assert run_python(USE, tmp_path / "cache", **path).split()[0] == "0"


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:50] + b"?" + d[51:], lambda d: b""])
def test_a_damaged_file_is_compiled_again(tmp_path, damage):
    fresh = KernelLibrary(tmp_path)
    fresh.address(KERNEL)
    (path,) = tmp_path.glob("*.o")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert KernelLibrary(tmp_path).prepare([KERNEL]) == 1
    assert path.read_bytes() == whole
    assert KernelLibrary(tmp_path).prepare([KERNEL]) == 0


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_directory_that_others_can_write_to_is_not_used(tmp_path, caplog, mode):
    tmp_path.chmod(mode)
    with caplog.at_level(logging.WARNING):
        library = KernelLibrary(tmp_path)
    assert str(tmp_path) in caplog.text
    assert "other users can write" in caplog.text
    assert library.address(KERNEL)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_made_is_done_without(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    library = KernelLibrary(tmp_path / "file" / "kernels")
    assert "cannot keep compiled kernels" in caplog.text
    assert library.address(KERNEL)


def test_a_directory_that_cannot_be_written_is_done_without(tmp_path, caplog, monkeypatch):
    def refuse(path, data):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    library = KernelLibrary(tmp_path)
    assert library.prepare([KERNEL, "f16.dequantize"]) == 2
    assert caplog.text.count("cannot keep compiled kernels") == 1
    assert not library.keeps


def test_a_new_directory_is_closed_to_others(tmp_path):
    library = KernelLibrary(tmp_path / "a" / "b")
    library.address(KERNEL)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_progress_is_told_before_each_compilation():
    calls = []
    names = [KERNEL, "f16.dequantize", KERNEL]
    assert KernelLibrary(None).prepare(names, lambda *call: calls.append(call)) == 2
    assert calls == [(KERNEL, 0, 2), ("f16.dequantize", 1, 2)]


def test_two_libraries_live_side_by_side(tmp_path, rng):
    first, second = KernelLibrary(tmp_path), KernelLibrary(tmp_path)
    kernels = [
        ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)(x.address(KERNEL)) for x in (first, second)
    ]
    first.close()
    x, out = rng.standard_normal(5, np.float32), np.zeros(5, np.float32)
    kernels[1](x.ctypes.data, out.ctypes.data, 5)
    np.testing.assert_array_equal(out, x)
    second.close()


def test_a_closed_library_loads_again():
    library = KernelLibrary(None)
    library.address(KERNEL)
    library.close()
    assert library.address(KERNEL)
