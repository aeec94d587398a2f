"""The link within a step: rows of missing down matrices come over it while the CPU computes gate and up.

The CPU is at the limit of main memory's speed then, and what the link brings, it need not read. So many rows
come that both are ready at the same time; the CPU computes the others. Whether that is faster depends on the
machine, the experts' sizes and how many are missing; so a step with the link and one without take turns, and
the faster way is kept.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from gguf_moe.arch.weights import Experts
from gguf_moe.checkpoint import Checkpoint, ExpertTensors
from gguf_moe.errors import OutOfMemoryError
from gguf_moe.runtime.bandwidth import KERNEL as BANDWIDTH_KERNEL
from gguf_moe.runtime.bandwidth import LEAST_BUFFER, BandwidthMeter
from gguf_moe.runtime.gpu.device import Device, wait
from gguf_moe_kernels.cpu.library import KernelLibrary

ROWS_TOGETHER = 32
"""The link brings whole groups of so many rows, as the CPU's kernels take them."""
CPU_SHARE = 0.75
"""The share of the read bandwidth at which the CPU's kernels take weights (Q4_K with 16 threads)."""
LINK_SHARE = 0.8
"""The share of the copy engine's speed that copies by a kernel had."""
PROBE_BYTES = 64 << 20
N_PROBES = 64
"""Copies that go on while the CPU reads: enough for a fast link."""
PROBE_LIMIT_S = 30.0
ALIGNMENT = 16
N_TRIED = 16
"""Steps of a trial. The first does not count: it may have to make its graph."""
N_KEPT = 240
"""Steps between two trials."""
N_FIRST = 64
"""Steps before the first trial: the cache is not warm yet."""


def can_link(experts: Experts) -> bool:
    """Whether the kernels can do it: down matrices of one type and size, at even addresses."""
    down = experts.ffn_down_exps
    is_even = all(n % ALIGNMENT == 0 for n in (*down.nbytes, *down.addresses))
    return is_even and len(set(down.qtypes)) == 1 and len(set(down.nbytes)) == 1


class Rates(NamedTuple):
    """Bytes of weights per second, while both work."""

    cpu: float
    link: float


def rows_over_link(experts: Experts, rates: Rates, can_cut: bool) -> int:
    """How many rows of a missing down matrix come over the link; 0 for none, all where it cannot be cut."""
    down = experts.ffn_down_exps
    n_rows, down_bytes = down.shape[1], down.nbytes[0]
    if not can_link(experts):
        return 0
    if not can_cut:
        return n_rows
    first_bytes = experts.ffn_gate_exps.nbytes[0] + experts.ffn_up_exps.nbytes[0]
    share = (first_bytes + down_bytes) / rates.cpu / (down_bytes / rates.cpu + down_bytes / rates.link)
    rows = int(share * n_rows) // ROWS_TOGETHER * ROWS_TOGETHER
    return rows if rows < n_rows else n_rows


def bytes_over_link(experts: ExpertTensors, n_rows: int) -> int:
    """Bytes of the first n_rows rows of an expert."""
    return experts.nbytes[0] // experts.shape[1] * n_rows


def measured_rates(
    device: Device, checkpoint: Checkpoint, library: KernelLibrary, n_threads: int
) -> Rates | None:
    """The rates of this machine, or None if it has too little memory to measure them.

    The device must be able to read the file where it lies. Copies go on while the CPU reads, and neither
    reads twice what a cache could hold, if the file is large.
    """
    library.prepare([BANDWIDTH_KERNEL], None)
    buffer = max(checkpoint.buffers, key=len)
    nbytes = min(PROBE_BYTES, len(buffer))
    try:
        meter = BandwidthMeter(library, buffer if len(buffer) > LEAST_BUFFER else None)
        target = device.allocate(nbytes)
    except OutOfMemoryError:
        return None
    stream, source = device.stream(), buffer.__array_interface__["data"][0]
    n_pieces, probes = len(buffer) // nbytes, []
    start = time.perf_counter()
    for i in range(N_PROBES, 0, -1):
        device.copy(stream, target, source + i % n_pieces * nbytes, nbytes)
        probes.append(device.event(stream))
    cpu = meter.measure(n_threads)
    n_done, seconds = sum(map(device.is_done, probes)), time.perf_counter() - start
    wait(device, stream, PROBE_LIMIT_S)
    device.free(target)
    return Rates(CPU_SHARE * cpu, LINK_SHARE * n_done * nbytes / seconds)


class Trial:
    """Which of n_ways ways to run a step is fastest. The first begins; each is tried again now and then."""

    def __init__(self, n_ways: int):
        self._means = [0.0] * n_ways
        """Seconds of a step when a way was used last; 0 for one that was not tried yet."""
        self._n_trials = 0
        self._times: list[float] = []
        self._turn_to(0, N_FIRST)

    @property
    def best(self) -> int:
        """The fastest way as far as is known; the first one before all were tried."""
        return self._means.index(min(self._means)) if all(self._means) else 0

    def took(self, seconds: float) -> None:
        """A step took so long."""
        self._times.append(seconds)
        if len(self._times) < self._length:
            return
        last = self._times[1:][-N_TRIED:]
        self._means[self.way] = sum(last) / len(last)
        others = [way for way in range(len(self._means)) if way != self.best]
        if not all(self._means):
            self._turn_to(self._means.index(0.0), N_TRIED)
        elif self._length == N_TRIED or not others:
            self._turn_to(self.best, N_KEPT)
        else:
            self._n_trials += 1
            self._turn_to(others[self._n_trials % len(others)], N_TRIED)

    def _turn_to(self, way: int, n_steps: int) -> None:
        self.way = way
        """How to run the next step."""
        self._length = n_steps
        self._times.clear()
