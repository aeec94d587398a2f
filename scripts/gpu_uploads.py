#!/usr/bin/env python3
"""How fast experts come to the GPU while tokens are decoded, beside what the link does alone.

  gpu_uploads.py FILE mixtral-8x7b --layers 32 [--share 0.25]

FILE is one of those of `make_model.py full`. Every missing expert is asked for (FIFO, no limit of uploads
under way), so that the link always has work. What counts is the time in which copies run: events stand
before and behind those of each step. Alone: pieces of 64 MiB from pinned memory, and from the mapped file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import cupy  # noqa: TID251
import gpu_arm
import numpy as np

from gguf_moe.runtime.gpu.device import Device, wait
from gguf_moe.runtime.gpu.uploads import Copy, DirectUploads

PIECE, N_PIECES, LIMIT_S = 64 << 20, 32, 60.0
N_WARM_UP, N_TOKENS = 16, 96


class TimedUploads(DirectUploads):
    """Keeps the events around the copies of each step."""

    def __init__(self, device: Device):
        super().__init__(device)
        self.steps: list[tuple[Any, Any, int]] = []

    def start(self, copies: Sequence[Copy]) -> Any:
        before, behind = cupy.cuda.Event(), cupy.cuda.Event()
        before.record(self._stream)
        mark = super().start(copies)
        behind.record(self._stream)
        self.steps.append((before, behind, sum(copy.nbytes for copy in copies)))
        return mark

    def rate(self) -> tuple[float, int]:
        """Bytes per second while copies ran, and bytes in all."""
        self.steps[-1][1].synchronize()
        seconds = sum(cupy.cuda.get_elapsed_time(a, b) for a, b, _ in self.steps) / 1e3
        nbytes = sum(n for _, _, n in self.steps)
        return nbytes / seconds, nbytes


def alone(device: Device, source: int, target: int) -> float:
    """Bytes per second of copies from one address, with nothing else at work: the median of 5."""
    stream = device.stream()
    times = []
    for _ in range(5):
        before, behind = cupy.cuda.Event(), cupy.cuda.Event()
        before.record(stream)
        for _ in range(N_PIECES):
            device.copy(stream, target, source, PIECE)
        behind.record(stream)
        wait(device, stream, LIMIT_S)
        times.append(cupy.cuda.get_elapsed_time(before, behind) / 1e3)
    return N_PIECES * PIECE / median(times)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file", type=Path, metavar="FILE")
    p.add_argument("model", choices=gpu_arm.synthetic_routing.SHAPES, metavar="MODEL")
    p.add_argument("--layers", type=int, required=True)
    p.add_argument("--share", type=float, default=0.25, help="of the experts on the GPU (0.25)")
    args = p.parse_args()
    config = gpu_arm.Config(
        args.model, args.layers, share=args.share, policy="fifo", max_in_flight=1 << 20, link="never"
    )
    with ExitStack() as stack:
        context = gpu_arm.start(stack, args.file, config)
        assert context.gpu is not None
        device, slots = context.gpu._device, context.gpu.slots
        target = device.allocate(PIECE)
        pinned = device.pinned(PIECE)
        pinned[:] = np.random.default_rng(0).integers(0, 256, PIECE, np.uint8)
        best = alone(device, pinned.ctypes.data, target)
        mapped = alone(device, slots._layers[0].ffn_gate_exps.addresses[0], target)
        slots.settle()
        uploads = slots._uploads = TimedUploads(device)
        gpu_arm.decode(context, N_WARM_UP, overlap=True, limit_s=LIMIT_S)
        slots.settle()
        uploads.steps.clear()
        speed = gpu_arm.decode(context, N_TOKENS, overlap=True, limit_s=LIMIT_S)
        rate, nbytes = uploads.rate()
        slots.settle()
    print(f"alone: pinned {best / 1e9:.1f} GB/s, mapped file {mapped / 1e9:.1f} GB/s")
    print(f"while decoding at {speed:.1f} tok/s: {nbytes / 1e9:.1f} GB at {rate / 1e9:.1f} GB/s, ", end="")
    print(f"{rate / best:.0%} of pinned")


if __name__ == "__main__":
    main()
