#!/usr/bin/env python3
"""Measure where the time of a layer goes when GPU and CPU share its experts.

  gpu_meetings.py FILE --resident 0.4 --routing mixtral-8x7b

One line for each layer and one for all, in microseconds, medians of the tokens that lacked an expert there:

  lacked   the share of tokens that did
  GPU      from the sum of the layer before, its norm included, to this layer's post
  there    from the post until the first thread of the crew has seen it
  all in   until the last thread has seen it
  ...      until the last thread has left this row of the crew's program; the rows' sum is the crew's time
  back     from the answer until the GPU has the sum
  idle     the share of the crew's time in which its threads did not compute, mean of all threads

The GPU's clock is read by a kernel behind each post and sum, which adds about a microsecond to each. The
crew's clock goes as fast as the GPU's says: both have the first layer's post in the first token and in the
last. The two are put together token by token, so that the shortest ways there and back are alike: a
difference between the two means something only beyond that. The crew's ops are inside stopwatches, as in
decode_times.py. Where tokens and routing come from, gpu_times.py says.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from decode_times import Stopwatches
from gpu_times import Timed
from synthetic_routing import SHAPES

from gguf_moe.graph.task import Rows
from gguf_moe.options import default_cache_dir
from gguf_moe.runtime.context import Context
from gguf_moe.runtime.gpu.device import CudaDevice, Device, wait
from gguf_moe.runtime.gpu.ops import Launch
from gguf_moe.runtime.gpu.runner import GpuRunner
from gguf_moe.runtime.program import Row
from gguf_moe_kernels import structs
from gguf_moe_kernels.cpu.library import KernelLibrary
from gguf_moe_kernels.cpu.stopwatch import BUSY, FIRST, LAST

STAMP = "mailbox.stamp"
STAMPED = re.compile(r"choose\.choose_and_post.*|mailbox\.mailbox_post|mailbox\.moe_join|fused\.join_.*")
"""The kernels that post, and those that sum: one of each in a layer with experts."""


def stamped(launches: Iterable[Launch], address: int) -> list[Launch]:
    """The launches, and behind each post and sum one that writes the time to the next int64 of `address`."""
    more: list[Launch] = []
    number: list[int] = []
    for launch in launches:
        more.append(replace(launch, after=tuple(number[n] for n in launch.after)))
        if STAMPED.fullmatch(launch.kernel):
            arguments = np.array((address,), structs.STAMP)
            address += 8
            more.append(Launch(STAMP, arguments, Rows.TOKENS, (len(more) - 1,)))
        number.append(len(more) - 1)
    return more


class Meetings:
    """A context's steps of one token from now on, with clocks; nothing may come over the link in a step."""

    def __init__(self, context: Context, runner: GpuRunner, device: Device, library: KernelLibrary):
        """The kernel STAMP must be prepared on the device."""
        step = runner.programs[1]
        assert step.program is not None
        assert len(runner.ways) == 1
        self.rows = step.rows
        self._context = context
        self._device, self._stream = device, device.stream()
        self._stamps = device.pinned(16 * len(step.sections)).view(np.int64).reshape(-1, 2)
        self._address = device.allocate(self._stamps.nbytes)
        step.launches = stamped(step.launches, self._address)
        step.move({})  # the graph is captured anew
        library.prepare(["stopwatch.stopwatch"])
        self._watches = Stopwatches(step.program.table, library, runner.n_threads)

    def run(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Run a step for each of two tokens or more. Both sides' times in us since the token's first post.

        Both are microseconds of the GPU's clock; when they begin, each side says by itself.

        Of the GPU float64 [n_tokens, n_layer, 2], after the post and after the sum; of the crew float64
        [n_tokens, n_rows, n_threads, 3]: first in, last out, busy, or NaN where a row was passed over.
        """
        stamps, crew = [], []
        target = self._stamps.__array_interface__["data"][0]
        for token in tokens:
            self._watches.times[:] = 0
            self._context.extend([token], 1)
            self._device.copy(self._stream, target, self._address, self._stamps.nbytes)
            wait(self._device, self._stream)
            stamps.append(self._stamps.copy())
            crew.append(self._watches.times[..., [FIRST // 8, LAST // 8, BUSY // 8]].copy())
        gpu, times = np.array(stamps), np.array(crew)
        posts, seen = gpu[:, 0, 0], times[:, 0, 0, 1]  # each token waits for the first layer's post
        tick = float(posts[-1] - posts[0]) / float(seen[-1] - seen[0])
        was_there = times[..., :1] > 0
        times[..., :2] -= seen.reshape(-1, 1, 1, 1)
        return (gpu - posts.reshape(-1, 1, 1)) / 1e3, np.where(was_there, times * tick / 1e3, np.nan)


def sections(rows: Sequence[Row]) -> list[range]:
    """The numbers of each layer's rows, the waiting one first."""
    starts = [i for i, row in enumerate(rows) if row.waits]
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)]


def columns(rows: Sequence[Row], section: range) -> tuple[str, ...]:
    """What `parts` gives for a layer."""
    names = [re.sub(r"-\d+", "", task.name) for i in section if (task := rows[i].task)]
    return "GPU", "there", "all in", *names, "answer", "back", "idle"


def parts(gpu: np.ndarray, crew: np.ndarray, layers: Sequence[range]) -> list[np.ndarray]:
    """For each layer float64 [n_tokens, n_columns], NaN for the tokens that lacked no expert there."""
    last, busy_for = crew[..., 1], crew[..., 2]
    seen = np.stack([last[:, section[0]].min(axis=1) for section in layers], axis=1)
    answered = np.stack([last[:, section[-1]].min(axis=1) for section in layers], axis=1)
    there, back = np.where(np.isnan(answered), np.nan, seen - gpu[..., 0]), gpu[..., 1] - answered
    # How far the crew's clock is ahead of the GPU's in each token.
    with np.errstate(invalid="ignore"):  # a token may have lacked nothing
        shortest = [np.where(np.isnan(way), np.inf, way).min(axis=1) for way in (there, back)]
        ahead = (shortest[0] - shortest[1])[:, np.newaxis] / 2
    before = np.column_stack([np.full(len(gpu), np.nan), gpu[:, 1:, 0] - gpu[:, :-1, 1]])
    found = []
    for layer, section in enumerate(layers):
        left = last[:, section[:-1]].max(axis=2)
        ends = np.column_stack([seen[:, layer], left, answered[:, layer]])
        busy = busy_for[:, section[1:-1]].sum(axis=1).mean(axis=1)
        idle = 1 - busy / (answered - seen)[:, layer]
        ways = before[:, layer], (there - ahead)[:, layer], np.diff(ends), (back + ahead)[:, layer], idle
        found.append(np.where(np.isnan(answered[:, layer, np.newaxis]), np.nan, np.column_stack(ways)))
    return found


def median(column: np.ndarray) -> float:
    """Of what is there; NaN if nothing is, as for the GPU's part before the first layer."""
    there = column[~np.isnan(column)]
    return float(np.median(there)) if len(there) else np.nan


def show(rows: Sequence[Row], gpu: np.ndarray, crew: np.ndarray) -> None:
    """The table, for each kind of layer."""
    layers = sections(rows)
    found = [(columns(rows, section), p) for section, p in zip(layers, parts(gpu, crew, layers), strict=True)]
    for kind in dict.fromkeys(names for names, _ in found):
        print(f"{'layer':>7}{'lacked':>8}" + "".join(f"{name.removeprefix('ffn_moe_'):>12}" for name in kind))
        lines = {str(layer): p for layer, (names, p) in enumerate(found) if names == kind}
        for name, p in {**lines, "all": np.concatenate(list(lines.values()))}.items():
            lacked = p[~np.isnan(p[:, -1])]
            if len(lacked):
                *us, idle = map(median, lacked.T)
                values = "".join(f"{value:>12.1f}" for value in us)
                print(f"{name:>7}{len(lacked) / len(p):>8.0%}{values}{idle:>12.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--resident", type=float, default=0.4, help="share of the experts (0.4)")
    parser.add_argument("--routing", choices=SHAPES, metavar="MODEL", help=", ".join(SHAPES))
    parser.add_argument("--depth", type=int, default=256, help="tokens before (256)")
    parser.add_argument("--tokens", type=int, default=64, help="(64)")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="number of the GPU (0)")
    args = parser.parse_args()
    device = CudaDevice(args.device, default_cache_dir())
    n_ctx = args.depth + args.tokens
    with closing(Timed(args.file, device, args.resident, args.routing, n_ctx)) as timed:
        device.prepare([STAMP], None)
        ids = np.random.default_rng(0).integers(0, timed.n_vocab, n_ctx).tolist()
        meetings = Meetings(timed.context, timed.runner, device, timed.library)
        for token in ids[: args.depth]:
            timed.context.extend([token], 1)
        show(meetings.rows, *meetings.run(ids[args.depth :]))


if __name__ == "__main__":
    main()
