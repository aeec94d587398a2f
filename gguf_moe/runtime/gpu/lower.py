"""From a graph to the launches of a step.

In a layer with experts the GPU computes those whose weights it has, and posts the others to the crew
(missing.py). The sum joins both.
"""

from __future__ import annotations

from collections.abc import Sequence

from gguf_moe.graph.task import Graph, Op
from gguf_moe.runtime.gpu.link import bytes_over_link
from gguf_moe.runtime.gpu.mailbox import Mailbox
from gguf_moe.runtime.gpu.meeting import Link, join, post
from gguf_moe.runtime.gpu.memory import DeviceMemory
from gguf_moe.runtime.gpu.ops import HOST_OPS, Launch, kernels_of_task, make_launch
from gguf_moe.runtime.gpu.sections import ExpertSection, expert_sections


def lower_to_gpu(
    graph: Graph, memory: DeviceMemory, mailbox: Mailbox, linked: Sequence[int] = ()
) -> list[Launch]:
    """The kernels of a step, in an order in which one stream can run them.

    linked: for each layer with experts, how many rows of missing down matrices come over the link.
    """
    launches: list[Launch] = []
    last: dict[int, list[int]] = {}
    """What to wait for to wait for a task: launches by the task's id."""
    sections = expert_sections(graph)
    posts = {id(s.rows): (layer, s) for layer, s in enumerate(sections)}
    joins = {id(s.sum): layer for layer, s in enumerate(sections)}
    links = _links(sections, memory, mailbox, linked)
    fetches: dict[int, int] = {}
    for task in graph.tasks:
        if task.name in HOST_OPS:
            continue
        if task.op is Op.MOE_SUM:
            layer = joins[id(task)]
            lowered = [join(task, memory, mailbox, layer, len(sections), links.get(id(sections[layer].down)))]
        elif task.op is Op.EXPERT_ROWS:
            layer, section = posts[id(task)]
            lowered = [*kernels_of_task(task, memory), post(section, memory, mailbox, layer)]
        else:
            lowered = kernels_of_task(task, memory)
        before = [*task.after, *(posts[id(task)][1].x_tasks if id(task) in posts else ())]
        after = tuple(dict.fromkeys(n for t in before for n in last.get(id(t), ())))
        # A post makes the lists that the layer's kernels read; kernels of several types do not depend.
        is_chain = task.op is Op.EXPERT_ROWS
        last[id(task)] = []
        for kernel in lowered:
            launches.append(make_launch(task, memory, after, *kernel))
            number = len(launches) - 1
            last[id(task)] = [number] if is_chain else [*last[id(task)], number]
            after = (number,) if is_chain else after
        if is_chain and (link := links.get(id(posts[id(task)][1].down))):
            # Nothing waits for it but the matmul that needs it.
            fetches[id(link.section.down)] = len(launches)
            launches.append(make_launch(task, memory, after, *link.fetch()))
        elif link := links.get(id(task)):
            launches.append(make_launch(task, memory, after, *link.receive()))
            last[id(task)].append(len(launches))
            both = (len(launches) - 1, fetches[id(task)])
            launches.append(make_launch(task, memory, both, *link.matmul(lowered[0])))
    return launches


def _links(
    sections: Sequence[ExpertSection], memory: DeviceMemory, mailbox: Mailbox, linked: Sequence[int]
) -> dict[int, Link]:
    """The links of a step, by the id of the down matmul."""
    n_rows = {layer: n for layer, n in enumerate(linked) if n}
    downs = [section.down.experts("weight") for section in sections] if n_rows else []
    room = max((bytes_over_link(downs[layer], n) for layer, n in n_rows.items()), default=0)
    return {
        id(sections[layer].down): Link(sections[layer], n, room, memory, mailbox, layer, len(sections))
        for layer, n in n_rows.items()
    }
