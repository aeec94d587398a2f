"""Making a context ready for work: kernels compiled, threads started, weights where they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gguf_moe.checkpoint import Checkpoint
from gguf_moe.runtime.context import Context
from gguf_moe.runtime.crew import kernels_of
from gguf_moe.runtime.gpu import placement
from gguf_moe.runtime.gpu.device import Device
from gguf_moe.runtime.gpu.link import measured_rates
from gguf_moe.runtime.gpu.placement import GpuBudget
from gguf_moe.runtime.gpu.runner import GpuRunner
from gguf_moe_kernels.cpu.library import KernelLibrary

Compiling = Callable[[str, int, int], None]
"""Called with a kernel's name, how many are done, and how many there are."""


def start_on_cpu(
    context: Context,
    library: KernelLibrary,
    n_threads: int,
    compiling: Compiling | None,
    more_kernels: Sequence[str] = (),
) -> int:
    """Compile what is not in the library, then start; how many kernels were compiled."""
    rows = context.rows(n_threads)
    n_compiled = library.prepare([*kernels_of(rows), *more_kernels], compiling)
    context.start(rows, library, n_threads)
    return n_compiled


def prepare_gpu(
    context: Context,
    device: Device,
    checkpoint: Checkpoint,
    library: KernelLibrary,
    n_threads: int,
    policy: str,
    compiling: Compiling | None,
    more_kernels: Sequence[str] = (),
    prompt_bytes: int = 0,
) -> tuple[GpuRunner, int]:
    """The same for a GPU, which gets the weights that are always used. `start_on_gpu` is the second half.

    prompt_bytes of the memory for experts are lent to long prompts.
    """
    rates = None
    is_registered = placement.register_file(device, checkpoint)
    if is_registered and context.has_experts:
        rates = measured_rates(device, checkpoint, library, n_threads)
    runner = context.prepare_gpu(device, n_threads, policy, prompt_bytes, rates, is_registered)
    kernels = [*kernels_of(runner.rows), runner.embedding_kernel, *more_kernels]
    n_compiled = device.prepare(runner.kernels, compiling) + library.prepare(kernels, compiling)
    return runner, n_compiled


def start_on_gpu(
    context: Context,
    runner: GpuRunner,
    budget: GpuBudget,
    library: KernelLibrary,
) -> None:
    """Give experts the memory that is left, and start. Raises OutOfMemoryError if there is too little."""
    placement.allocate_slots(runner, budget)
    context.start_gpu(runner, library)
