"""Pinned memory through which GPU and CPU meet in each layer; structs.MAILBOX_POST says what is in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gguf_moe.experts.budget import aligned
from gguf_moe.graph.task import Buffer
from gguf_moe.runtime.gpu.device import Device
from gguf_moe.runtime.gpu.memory import Layout
from gguf_moe.runtime.memory import row_size

MOST_PLACES = 256
"""A post has at most so many places (tokens times experts used)."""
LISTS = ("used", "x_index", "place")


@dataclass(frozen=True, slots=True)
class Post:
    """Addresses of what one layer posts and gets back; the fields of structs.MAILBOX_POST."""

    sequence: int
    hidden: int
    """The answer for hidden activations alone, where down matrices come over the link."""
    answer: int
    n_used: int
    first: int
    used: int
    x_index: int
    place: int
    all_ids: int


class Mailbox:
    """One graph's posts, a part for each of n_layer layers with experts, and one area for all activations.

    `buffers` are the activations that the missing experts meet (in one or two formats), and what they give.
    These stay until the next layer that lacks an expert.
    """

    def __init__(self, device: Device, n_layer: int, n_places: int, buffers: list[Buffer]):
        layout = Layout()
        self._words = layout.add(64 * 3)
        # All layers' ids lie side by side, as a step's end reads them at once.
        ids_size = aligned(4 * n_places)
        ids = layout.add(n_layer * ids_size)
        self._posts = [
            {name: layout.add(64) for name in ("sequence", "hidden", "answer", "n_used")}
            | {"first": layout.add(4 * (n_places + 1))}
            | {name: layout.add(4 * n_places) for name in LISTS}
            | {"all_ids": ids + layer * ids_size}
            for layer in range(n_layer)
        ]
        self._buffers = {buffer.name: layout.add(buffer.rows * row_size(buffer)) for buffer in buffers}
        self._memory = device.pinned(layout.size)
        self._address = self._memory.__array_interface__["data"][0]
        all_ids = self._memory[ids : ids + n_layer * ids_size]
        self._all_ids = all_ids.view(np.int32).reshape(n_layer, ids_size // 4)
        self._abort = self._memory[self._words :].view(np.int64)[:1]
        self._heartbeat = self._memory[self._words + 64 :].view(np.int64)[:1]

    def post(self, layer: int) -> Post:
        """Addresses of a layer's part; layers with experts are counted from 0."""
        return Post(**{name: self._address + offset for name, offset in self._posts[layer].items()})

    def address(self, buffer: Buffer) -> int | None:
        """Where activations or answers are, if they are here."""
        offset = self._buffers.get(buffer.name)
        return None if offset is None else self._address + offset

    @property
    def abort_address(self) -> int:
        """The word that ends a step on the GPU when it is not 0."""
        return self._address + self._words

    @property
    def heartbeat_address(self) -> int:
        """The word that changes while the CPU works."""
        return self._address + self._words + 64

    @property
    def aborted(self) -> bool:
        """Whether a side has given the step up."""
        return bool(self._abort[0])

    def set_abort(self, value: bool) -> None:
        """Give a step up, or begin a new one."""
        self._abort[0] = value

    def beat(self) -> None:
        """Tell the GPU that the CPU is getting on."""
        self._heartbeat[0] += 1

    def posted(self, layer: int) -> int:
        """The number of the step whose post a layer has."""
        return abs(int(self._memory[self._posts[layer]["sequence"] :].view(np.int64)[0]))

    def chosen(self, n: int) -> np.ndarray:
        """The first n ids that each layer's router chose in the last step: int32 [layers, n]."""
        return self._all_ids[:, :n].copy()
