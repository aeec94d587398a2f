"""When a side fails in the middle of a step there is an exception, no hang, and the next step is right."""

import _thread
import threading

import numpy as np
import pytest

from gguf_moe.errors import DeviceError
from gguf_moe.runtime.gpu import device, hybrid, meeting
from gguf_moe.runtime.gpu.link import Rates
from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.cuda.source import QTYPES
from gguf_moe_kernels.quants import GGMLType


@pytest.fixture(scope="module")
def moe_file(tmp_path_factory, tiny_gguf):
    qtypes = tuple(q for q in ACTIVATION_FORMAT if q.name in ("Q4_K", "Q8_0") and q.name.lower() in QTYPES)
    return tiny_gguf(tmp_path_factory.mktemp("models") / "moe.gguf", n_layer=2, qtypes=qtypes)


def expect_right_steps(context, expected):
    context.truncate(0)
    np.testing.assert_array_equal(context.extend([1], 1), expected)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_while_the_crew_does_not_answer(hybrid_context, moe_file, monkeypatch):
    with hybrid_context(moe_file, 0) as context:
        expected = context.extend([1], 1).copy()
        crew = context._runner._crew
        run = crew.run

        def never_answer(program, watch):
            threading.Timer(0.2, _thread.interrupt_main).start()
            while True:
                watch(0.05)
                threading.Event().wait(0.05)

        monkeypatch.setattr(crew, "run", never_answer)
        with pytest.raises(KeyboardInterrupt):
            context.extend([2], 1)
        assert context.tokens == [1]
        monkeypatch.setattr(crew, "run", run)
        expect_right_steps(context, expected)


def test_an_error_in_the_crew(hybrid_context, moe_file, monkeypatch):
    with hybrid_context(moe_file, 0) as context:
        expected = context.extend([1], 1).copy()
        crew = context._runner._crew
        run = crew.run

        def fail(program, watch):
            raise RuntimeError("a worker has died")

        monkeypatch.setattr(crew, "run", fail)
        with pytest.raises(RuntimeError, match="has died"):
            context.extend([2], 1)
        monkeypatch.setattr(crew, "run", run)
        expect_right_steps(context, expected)


@pytest.mark.parametrize("rates", [None, Rates(1.0, 100.0), Rates(1.0, 0.3)])
def test_the_gpu_gives_up_a_crew_that_went_away(hybrid_context, tiny_gguf, tmp_path, monkeypatch, rates):
    monkeypatch.setattr(meeting, "HEARTBEAT_LIMIT_NS", 100_000_000)
    path = tiny_gguf(tmp_path / "moe.gguf", n_layer=2, qtypes=(GGMLType.Q8_0,))
    with hybrid_context(path, 0, rates=rates) as context:
        monkeypatch.setattr(context.gpu.trial, "way", int(rates is not None))
        expected = context.extend([1], 1).copy()
        crew = context._runner._crew
        run = crew.run
        monkeypatch.setattr(crew, "run", lambda program, watch: None)
        with pytest.raises(DeviceError, match="gave a step up"):
            context.extend([2], 1)
        monkeypatch.setattr(crew, "run", run)
        expect_right_steps(context, expected)


def test_a_gpu_that_stands_still_is_noticed(hybrid_context, moe_file, monkeypatch):
    monkeypatch.setattr(hybrid, "PROGRESS_LIMIT_S", 0.3)
    monkeypatch.setattr(device, "STEP_LIMIT_S", 5.0)
    with hybrid_context(moe_file, 0) as context:
        expected = context.extend([1], 1).copy()
        program = context._runner.programs[1]
        release = threading.Event()
        start = program.start

        def start_late(stream, slots):
            threading.Timer(1.0, lambda: start(stream, slots)).start()
            release.set()

        monkeypatch.setattr(program, "start", start_late)
        monkeypatch.setattr(context._runner._device, "is_idle", lambda stream: not release.is_set())
        with pytest.raises(DeviceError, match=r"has not got on|has not finished"):
            context.extend([2], 1)
        monkeypatch.undo()
        threading.Event().wait(1.5)
        expect_right_steps(context, expected)


def test_a_failing_cuda_call(hybrid_context, moe_file, monkeypatch):
    with hybrid_context(moe_file, 0) as context:
        context.extend([1], 1)

        def fail(stream, graph):
            raise DeviceError("the GPU cannot be used: cudaErrorIllegalAddress; use --device cpu.")

        monkeypatch.setattr(context._runner._device, "replay", fail)
        with pytest.raises(DeviceError, match="IllegalAddress"):
            context.extend([2], 1)


def test_a_lost_gpu_is_said_and_the_cpu_still_works(
    hybrid_context, crew_context, moe_file, monkeypatch, make_device
):
    lost = DeviceError("the GPU cannot be used: cudaErrorDevicesUnavailable; use --device cpu.")

    def fail(*arguments):
        raise lost

    with hybrid_context(moe_file, 1) as context:
        context.extend([1], 1)
        for name in ("copy", "replay", "is_idle", "is_done", "event", "memory", "free", "unpin"):
            monkeypatch.setattr(context._runner._device, name, fail)
        with pytest.raises(DeviceError, match="DevicesUnavailable"):
            context.extend([2], 1)
    with crew_context(moe_file, 1) as context:
        assert np.isfinite(context.extend([1], 1)).all()
