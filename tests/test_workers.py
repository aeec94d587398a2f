"""Compiling in several processes: they fill the cache, and nothing depends on their success."""

import os
import signal
import sys

import pytest

from gguf_moe.cli import workers
from gguf_moe.cli.workers import fill_cache
from gguf_moe_kernels.cpu.library import KernelLibrary

KERNELS = ["f32.dequantize", "f16.dequantize", "bf16.dequantize"]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr("gguf_moe.runtime.machine.default_threads", lambda: 2)


@pytest.fixture
def started(monkeypatch):
    """The processes that have been started."""
    processes, start = [], workers._start
    monkeypatch.setattr(workers, "_start", lambda path: processes.append(start(path)) or processes[-1])
    return processes


def test_all_kernels_are_in_the_cache_afterwards(tmp_path, started):
    tmp_path.chmod(0o700)
    calls = []
    fill_cache(tmp_path, KERNELS, lambda *call: calls.append(call))
    assert len(started) == 2
    assert [call[1:] for call in calls] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == set(KERNELS)
    assert KernelLibrary(tmp_path, pytest.fail).prepare(KERNELS) == 0


def test_a_library_loads_what_they_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr("gguf_moe_kernels.cpu.library.compiled_object", pytest.fail)
    library = KernelLibrary(tmp_path, fill_cache)
    assert library.prepare(KERNELS) == 3
    assert all(library.address(name) for name in KERNELS)


@pytest.mark.parametrize("script", ["raise SystemExit(1)", "import sys; sys.stdin.readline()", "print('?')"])
def test_without_them_the_library_compiles_itself(tmp_path, monkeypatch, caplog, script):
    monkeypatch.setattr(workers, "COMMAND", (sys.executable, "-c", script))
    calls = []
    assert KernelLibrary(tmp_path, fill_cache).prepare(KERNELS, lambda *call: calls.append(call)) == 3
    assert "a process that compiles kernels has ended too early" in caplog.text
    assert calls[-3:] == [(name, i, 3) for i, name in enumerate(KERNELS)]
    assert KernelLibrary(tmp_path).prepare(KERNELS) == 0


def test_processes_that_cannot_be_started_are_done_without(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(workers, "COMMAND", (str(tmp_path / "nothing"),))
    assert KernelLibrary(tmp_path, fill_cache).prepare(KERNELS) == 3
    assert "a process that compiles kernels has ended too early" in caplog.text


def test_one_that_dies_leaves_the_rest_to_the_others(tmp_path, started, caplog):
    tmp_path.chmod(0o700)
    fill_cache(tmp_path, ["no_such_module.tile", *KERNELS])
    assert "a process that compiles kernels has ended too early" in caplog.text
    assert len(list(tmp_path.iterdir())) == 3


def test_an_unusable_cache_directory_is_none_of_their_business(tmp_path):
    (tmp_path / "file").write_text("")
    assert KernelLibrary(tmp_path / "file" / "kernels", pytest.fail).prepare(KERNELS) == 3


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_ends_them_all(tmp_path, started):
    def interrupt(name, done, total):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fill_cache(tmp_path, KERNELS, interrupt)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def test_one_core_needs_no_processes(tmp_path, monkeypatch, started):
    monkeypatch.setattr("gguf_moe.runtime.machine.default_threads", lambda: 1)
    assert KernelLibrary(tmp_path, fill_cache).prepare(KERNELS) == 3
    assert not started
