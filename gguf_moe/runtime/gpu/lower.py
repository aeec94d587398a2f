"""From a graph to the launches of a step.

In a layer with experts the GPU computes those whose weights it has, and posts the others to the crew
(missing.py). The sum joins both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gguf_moe.graph.task import Graph, Op, Task
from gguf_moe.runtime.gpu.link import bytes_over_link
from gguf_moe.runtime.gpu.mailbox import Mailbox
from gguf_moe.runtime.gpu.meeting import Link, join, post
from gguf_moe.runtime.gpu.memory import DeviceMemory
from gguf_moe.runtime.gpu.ops import HOST_OPS, Launch, kernels_of_task, make_launch
from gguf_moe.runtime.gpu.sections import ExpertSection, expert_sections
from gguf_moe.runtime.ops import Lowered


def lower_to_gpu(
    graph: Graph, memory: DeviceMemory, mailbox: Mailbox, linked: Sequence[int] = ()
) -> list[Launch]:
    """The kernels of a step, in an order in which one stream can run them.

    linked: for each layer with experts, how many rows of missing down matrices come over the link.
    """
    sections = expert_sections(graph)
    layers = {id(task): layer for layer, s in enumerate(sections) for task in (s.rows, s.down, s.sum)}
    links = _links(sections, memory, mailbox, linked)
    launches = _Launches(memory)
    fetched: dict[int, int] = {}
    """The launches that fetch a layer's matrices: nothing waits for one but the matmul that needs it."""
    for task in graph.tasks:
        if task.name in HOST_OPS:
            continue
        layer = layers.get(id(task), -1)
        link = links.get(layer)
        after = launches.of(task.after)
        if task.op is Op.MOE_SUM:
            launches.add_all(task, after, [join(task, memory, mailbox, layer, len(sections), link)])
        elif task.op is Op.EXPERT_ROWS:
            section = sections[layer]
            after = launches.of([*task.after, *section.x_tasks])
            places = launches.add_all(task, after, kernels_of_task(task, memory))
            # Who waits for the task waits for the post: that makes the lists that the layer's kernels read.
            posted = launches.add_all(task, places, [post(section, memory, mailbox, layer)])
            if link:
                fetched[layer] = launches.add(task, posted, link.fetch())
        else:
            kernels = kernels_of_task(task, memory)
            launches.add_all(task, after, kernels)
            if link:
                received = launches.add(task, after, link.receive())
                launches.add_more(task, (received, fetched[layer]), link.matmul(kernels[0]))
    return launches.all


class _Launches:
    """The launches of a step so far, each known by its number, and which of them are a task's last."""

    def __init__(self, memory: DeviceMemory):
        self.all: list[Launch] = []
        self._memory = memory
        self._last: dict[int, tuple[int, ...]] = {}
        """By the task's id."""

    def of(self, tasks: Iterable[Task]) -> tuple[int, ...]:
        """What to wait for to wait for these tasks."""
        return tuple(dict.fromkeys(number for task in tasks for number in self._last.get(id(task), ())))

    def add(self, task: Task, after: tuple[int, ...], kernel: Lowered) -> int:
        """One that who waits for the task does not wait for; its number."""
        self.all.append(make_launch(task, self._memory, after, *kernel))
        return len(self.all) - 1

    def add_all(self, task: Task, after: tuple[int, ...], kernels: Iterable[Lowered]) -> tuple[int, ...]:
        """The task's last ones, side by side; their numbers."""
        self._last[id(task)] = last = tuple(self.add(task, after, kernel) for kernel in kernels)
        return last

    def add_more(self, task: Task, after: tuple[int, ...], kernel: Lowered) -> None:
        """One more of the task's last ones."""
        self._last[id(task)] = (*self._last[id(task)], self.add(task, after, kernel))


def _links(
    sections: Sequence[ExpertSection], memory: DeviceMemory, mailbox: Mailbox, linked: Sequence[int]
) -> dict[int, Link]:
    """The links of a step, by the layer's number among those with experts."""
    n_rows = {layer: n for layer, n in enumerate(linked) if n}
    downs = [section.down.experts("weight") for section in sections] if n_rows else []
    room = max((bytes_over_link(downs[layer], n) for layer, n in n_rows.items()), default=0)
    return {
        layer: Link(sections[layer], n, room, memory, mailbox, layer, len(sections))
        for layer, n in n_rows.items()
    }
