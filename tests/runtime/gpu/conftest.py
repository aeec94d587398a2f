"""Hybrid contexts on an emulated device, or with -m gpu on a real one."""

import contextlib

import emulated
import emulated_device
import pytest
from run_folder import run_folder

from gguf_moe.arch.model import read_model
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import DeviceError
from gguf_moe.graph.task import Kind
from gguf_moe.runtime.context import Context
from gguf_moe.runtime.gpu.device import CudaDevice
from gguf_moe.runtime.gpu.placement import register_file


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory):
    if emulated.compiler() is None:
        pytest.skip("the emulator needs g++")
    return emulated.EmulatedLibrary(run_folder(tmp_path_factory, "emulated"))


@pytest.fixture
def emulated_gpu(emulated_library):
    """An emulated device, whose memory can be made to fail."""
    return emulated_device.EmulatedDevice(emulated_library)


@pytest.fixture(params=["emulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def make_device(request):
    """make_device(): a new device."""
    if request.param == "emulator":
        library = request.getfixturevalue("emulated_library")
        return lambda: emulated_device.EmulatedDevice(library)
    try:
        CudaDevice(0).close()
    except DeviceError as e:
        pytest.skip(str(e))
    return lambda: CudaDevice(0)


@pytest.fixture
def hybrid_context(library, make_device):
    """hybrid_context(path, slots, ...): a context manager; `slots` experts a layer have room on the GPU."""

    @contextlib.contextmanager
    def make(
        path,
        slots,
        n_threads=2,
        n_batch=8,
        n_ctx=48,
        kv_kind=Kind.F16,
        policy="decayed",
        spare=0,
        fill=True,
        replay=None,
        prompt_bytes=0,
        rates=None,
    ):
        checkpoint = open_checkpoint(path)
        arch, hparams, weights = read_model(checkpoint)
        context = Context(
            arch, hparams, weights, n_ctx=n_ctx, n_batch=n_batch, kv_kind=kv_kind, replay=replay
        )
        n_layer = sum(block.experts is not None for block in weights.blk)
        device = make_device()
        if rates:
            register_file(device, checkpoint)
        runner = context.prepare_gpu(device, n_threads, policy, prompt_bytes, rates)
        # A step that compiled would look like one that stands still.
        device.prepare(runner.kernels, None)
        runner.allocate_slots([slots] * n_layer, spare)
        with contextlib.closing(context):
            context.start_gpu(runner, library)
            if fill:
                runner.slots.fill()
            yield context

    return make
