"""Which launches wait for which, and where they are put."""

import numpy as np

from gguf_moe.graph.task import Rows
from gguf_moe.runtime.gpu.branches import Branches, needed_waits
from gguf_moe.runtime.gpu.ops import Launch


def launches_after(*afters):
    return [Launch(f"kernel_{i}", np.zeros(()), Rows.TOKENS, after) for i, after in enumerate(afters)]


class Streams:
    """A device that writes down what is queued: streams and events are numbers."""

    def __init__(self):
        self.n_streams = 1
        self.n_events = 0
        self.waits = []

    def stream(self):
        self.n_streams += 1
        return self.n_streams - 1

    def event(self, stream):
        self.n_events += 1
        return self.n_events - 1

    def wait_for(self, stream, event):
        self.waits.append((stream, event))


def test_waits_that_others_imply_are_left_out():
    launches = launches_after((), (0,), (0, 1), (0, 1), (0, 2, 3), (1, 4))
    assert needed_waits(launches) == [(), (0,), (1,), (1,), (2, 3), (4,)]


def queued(device, launches):
    """The stream of each launch."""
    found = []
    branches = Branches(device, 0)
    branches.queue(launches, lambda stream, launch: found.append(stream))
    return found


def test_a_chain_stays_on_one_stream():
    # 2 and 3 could run side by side; 5 writes what 3 has read.
    device, launches = Streams(), launches_after((), (0,), (1,), (1,), (2, 3), (3, 4), (5,))
    assert queued(device, launches) == [0] * 7
    assert len(device.waits) == 3  # the helpers for the beginning


def test_branches_of_more_launches_run_side_by_side():
    device, launches = Streams(), launches_after((), (0,), (0,), (1,), (2,), (3, 4), (5,))
    expected = [0, 0, 1, 0, 1, 0, 0]
    assert queued(device, launches) == expected
    assert len(device.waits) == 3 + 2 + 1  # the fork, the meeting, the end
