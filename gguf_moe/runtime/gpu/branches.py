"""Launches on several streams, so that those which do not wait for each other run at the same time.

Captured, this becomes a graph with branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gguf_moe.runtime.gpu.device import Device
from gguf_moe.runtime.gpu.ops import Launch

N_STREAMS = 4
"""More independent launches than this are rare: q, k, v and their parts."""


class Branches:
    """Queues launches on a main stream and helpers beside it."""

    def __init__(self, device: Device, main: Any):
        self._device = device
        self._streams = [main, *(device.stream() for _ in range(N_STREAMS - 1))]

    def queue(self, launches: Sequence[Launch], launch_on: Callable[[Any, Launch], None]) -> None:
        """Queue them behind all that is on the main stream, which at the end waits for them all.

        launch_on(stream, launch) queues one of them.
        """
        device, streams = self._device, self._streams
        afters = needed_waits(launches)
        followed = {after[0] for after in afters if len(after) == 1}
        start = device.event(streams[0])
        for stream in streams[1:]:
            device.wait_for(stream, start)
        place: list[int] = []
        events: list[Any] = []
        last = [-1] * len(streams)
        for launch, after in zip(launches, afters, strict=True):
            # Behind one that it waits for, if nothing was put behind that yet; else where the oldest end is.
            # But a branch of one launch is not worth its two meetings: it goes behind the other one.
            free = [place[n] for n in after if last[place[n]] == n]
            if after and not free and len(place) not in followed:
                free = [place[after[-1]]]
            at = free[0] if free else last.index(min(last))
            for n in after:
                if place[n] != at:
                    device.wait_for(streams[at], events[n])
            launch_on(streams[at], launch)
            events.append(device.event(streams[at]))
            last[at] = len(place)
            place.append(at)
        for at, n in enumerate(last):
            if at and n >= 0:
                device.wait_for(streams[0], events[n])


def needed_waits(launches: Sequence[Launch]) -> list[tuple[int, ...]]:
    """For each launch those of its `after` that no other of them has waited for already.

    A launch that waits for one alone can begin at once when that ends; each more costs time on the GPU.
    """
    waits: list[tuple[int, ...]] = []
    before: list[int] = []
    """All that come before a launch, a bit each."""
    for launch in launches:
        earlier = 0
        for n in launch.after:
            earlier |= before[n]
        waits.append(tuple(n for n in launch.after if not earlier >> n & 1))
        before.append(earlier | sum(1 << n for n in waits[-1]))
    return waits
