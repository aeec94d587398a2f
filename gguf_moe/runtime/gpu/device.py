"""What the runtime asks of a GPU: memory, copies, launches, and one graph of them for a whole step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gguf_moe.errors import DeviceError, OutOfMemoryError
from gguf_moe_kernels.cuda.launch import launch_of
from gguf_moe_kernels.cuda.library import CudaError, CudaLibrary, import_cupy

REGISTER_READ_ONLY = 8
"""cudaHostRegisterReadOnly: what a map of a file that can't be written needs."""
COPY_ANY = 4
"""cudaMemcpyDefault: the driver sees from the addresses where they are."""
NOT_READY = 600
"""cudaErrorNotReady: what was asked about goes on."""
STEP_LIMIT_S = 60.0
"""How long the GPU may take for a step, for an upload, or after the crew has finished its part of a step."""
SPIN_S = 500e-6
"""How long a stream is looked at without a pause: a step's end is near, and a sleep would take longer."""
POLL_S = 20e-6
"""Between two looks at a stream that works on."""


class Device(Protocol):
    """One GPU. Streams, graphs and events are its own objects; memory is given by address.

    Nothing here waits for the GPU but `wait`. All raise DeviceError when the GPU is lost.
    """

    def prepare(self, kernels: Iterable[str], progress: Callable[[str, int, int], None] | None) -> int:
        """Compile and load kernels by name; how many modules were not loaded yet."""

    def allocate(self, nbytes: int) -> int:
        """Address of device memory, zeroed, aligned to 256 bytes. Raises OutOfMemoryError."""

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""

    def pinned(self, nbytes: int) -> np.ndarray:
        """Zeroed main memory that the GPU can reach at the same address: u8 [nbytes]."""

    def unpin(self, array: np.ndarray) -> None:
        """Give back what `pinned` gave."""

    def register(self, address: int, nbytes: int) -> bool:
        """Let the GPU read main memory where it lies; False if the system refuses."""

    def unregister(self, address: int) -> None:
        """Undo `register`."""

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory that are free, and all."""

    def stream(self) -> Any:
        """A new queue of work."""

    def copy(self, stream: Any, target: int, source: int, nbytes: int) -> None:
        """Queue a copy between any two addresses. Main memory must be pinned or registered."""

    def launch(self, stream: Any, kernel: str, arguments: np.ndarray, rows: int) -> None:
        """Queue a kernel with its argument struct, for at most so many rows."""

    def wait_for(self, stream: Any, event: Any) -> None:
        """Let what is queued on a stream from now on wait for a mark of another stream."""

    def capture(self, stream: Any, queue: Callable[[], None]) -> Any:
        """A graph of all that `queue` puts on the stream. Nothing of it runs yet."""

    def replay(self, stream: Any, graph: Any) -> None:
        """Queue a graph."""

    def event(self, stream: Any) -> Any:
        """A mark behind all that is queued now."""

    def is_done(self, event: Any) -> bool:
        """Whether the stream has passed the mark."""

    def is_idle(self, stream: Any) -> bool:
        """Whether all that was queued is done."""

    def close(self) -> None:
        """Give all memory back."""


def wait(device: Device, stream: Any, limit_s: float | None = None) -> None:
    """Wait until a stream is idle, so that signals are seen.

    Raises DeviceError after limit_s seconds, or STEP_LIMIT_S.
    """
    wait_until(lambda: device.is_idle(stream), "a step", limit_s, SPIN_S)


def wait_until(
    is_done: Callable[[], bool], work: str, limit_s: float | None = None, spin_s: float = 0.0
) -> None:
    """Ask until it is done, for the first spin_s seconds without a pause. `work`: what the GPU is to do.

    Raises DeviceError after limit_s seconds, or STEP_LIMIT_S.
    """
    limit_s = STEP_LIMIT_S if limit_s is None else limit_s
    start = time.monotonic()
    while not is_done():
        waited = time.monotonic() - start
        if waited > limit_s:
            raise DeviceError(
                f"the GPU has not finished {work} within {limit_s:.0f} s; load the model again."
            )
        if waited > spin_s:
            time.sleep(POLL_S)


class CudaDevice:
    """A CUDA GPU through CuPy."""

    def __init__(self, index: int, cache: Path | None = None):
        """`cache` is where compiled kernels are kept."""
        with _clear_errors():
            self._cupy = import_cupy()
            self._library = CudaLibrary(index, cache)
        self._runtime = self._cupy.cuda.runtime
        self._device = self._cupy.cuda.Device(index)
        self._allocated: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}
        self._registered: set[int] = set()

    def prepare(self, kernels: Iterable[str], progress: Callable[[str, int, int], None] | None) -> int:
        with _clear_errors():
            return self._library.prepare(kernels, progress)

    def allocate(self, nbytes: int) -> int:
        with self._use():
            try:
                memory = self._cupy.cuda.Memory(nbytes)
            except self._runtime.CUDARuntimeError as e:
                free, total = self._runtime.memGetInfo()
                raise OutOfMemoryError(
                    f"the GPU cannot give {nbytes / 1e9:.2f} GB: {free / 1e9:.2f} of {total / 1e9:.2f} GB "
                    "are free; use less (--vram) or a smaller context (--ctx)."
                ) from e
            self._runtime.memset(memory.ptr, 0, nbytes)
            # Its stream is not ours: copies that are queued now must not come before the zeros.
            self._runtime.streamSynchronize(0)
            self._allocated[memory.ptr] = memory
            return memory.ptr

    def free(self, address: int) -> None:
        with self._use():
            del self._allocated[address]

    def pinned(self, nbytes: int) -> np.ndarray:
        with self._use():
            try:
                memory = self._cupy.cuda.alloc_pinned_memory(nbytes)
            except self._runtime.CUDARuntimeError as e:
                raise OutOfMemoryError(
                    f"{nbytes / 1e6:.1f} MB of main memory cannot be locked for the GPU; raise ulimit -l."
                ) from e
        array = np.frombuffer(memory, np.uint8, nbytes)
        array[:] = 0
        self._pinned[array.ctypes.data] = memory
        return array

    def unpin(self, array: np.ndarray) -> None:
        with self._use():
            del self._pinned[array.ctypes.data]

    def register(self, address: int, nbytes: int) -> bool:
        with self._device:
            try:
                self._runtime.hostRegister(address, nbytes, REGISTER_READ_ONLY)
            except self._runtime.CUDARuntimeError:
                return False
        self._registered.add(address)
        return True

    def unregister(self, address: int) -> None:
        with self._use():
            self._registered.discard(address)
            self._runtime.hostUnregister(address)

    def memory(self) -> tuple[int, int]:
        with self._use():
            return self._runtime.memGetInfo()

    def stream(self) -> Any:
        with self._use():
            return self._cupy.cuda.Stream(non_blocking=True)

    def copy(self, stream: Any, target: int, source: int, nbytes: int) -> None:
        with self._use():
            self._runtime.memcpyAsync(target, source, nbytes, COPY_ANY, stream.ptr)

    def launch(self, stream: Any, kernel: str, arguments: np.ndarray, rows: int) -> None:
        size = launch_of(kernel, arguments, rows)
        with self._use():
            self._library.kernel(kernel).launch(stream, size.grid, size.block, size.shared, arguments)

    def wait_for(self, stream: Any, event: Any) -> None:
        with self._use():
            stream.wait_event(event)

    def capture(self, stream: Any, queue: Callable[[], None]) -> Any:
        with self._use():
            stream.begin_capture()
            try:
                queue()
            except BaseException:
                stream.end_capture()
                raise
            graph = stream.end_capture()
            graph.upload(stream)
            return graph

    def replay(self, stream: Any, graph: Any) -> None:
        with self._use():
            graph.launch(stream)

    def event(self, stream: Any) -> Any:
        with self._use():
            event = self._cupy.cuda.Event(disable_timing=True)
            event.record(stream)
            return event

    def is_done(self, event: Any) -> bool:
        with self._use():
            return self._has_finished(self._runtime.eventQuery(event.ptr))

    def is_idle(self, stream: Any) -> bool:
        with self._use():
            return self._has_finished(self._runtime.streamQuery(stream.ptr))

    def _has_finished(self, status: int) -> bool:
        """CuPy's `done` would take a failure for work that goes on."""
        if status == NOT_READY:
            return False
        self._runtime.check_status(status)
        return True

    def close(self) -> None:
        for address in list(self._registered):
            try:
                self.unregister(address)
            except DeviceError:
                self._registered.discard(address)
        self._allocated.clear()
        self._pinned.clear()
        self._library.close()

    @contextmanager
    def _use(self) -> Iterator[None]:
        """The calls in it go to this GPU; what fails is a DeviceError."""
        with (
            _clear_errors(self._runtime.CUDARuntimeError, self._cupy.cuda.driver.CUDADriverError),
            self._device,
        ):
            yield


@contextmanager
def _clear_errors(*errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (CudaError, *errors) as e:  # type: ignore[misc]
        raise DeviceError(f"the GPU cannot be used: {str(e).rstrip('.')}; use --device cpu.") from e
