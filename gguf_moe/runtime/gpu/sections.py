"""The parts of a graph that GPU and CPU share: what a layer does with its experts."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_moe.graph.task import Buffer, Graph, Op, Rows, Task
from gguf_moe_kernels.activations import ACTIVATION_FORMAT

_BY_CHOICE = (Op.ADD_ID, Op.SCALE_ID, Op.WEIGH)
"""Ops with a row a token that work on the row of each of its choices."""


@dataclass(frozen=True, slots=True)
class ExpertSection:
    """The tasks of one layer that work on its experts, between the choice and the sum."""

    rows: Task
    """EXPERT_ROWS"""
    tasks: tuple[Task, ...]
    """What is computed for each place, in order."""
    sum: Task
    """MOE_SUM"""
    x_tasks: tuple[Task, ...]
    """What makes the activations that go in."""

    @property
    def down(self) -> Task:
        """The last matmul: of each expert's hidden activations."""
        return [task for task in self.tasks if task.op is Op.MATMUL_ID][-1]

    @property
    def before_down(self) -> tuple[Task, ...]:
        """What makes the hidden activations."""
        return self.tasks[: self.tasks.index(self.down)]

    @property
    def after_down(self) -> tuple[Task, ...]:
        """What is done with what the experts gave, before the sum."""
        return self.tasks[self.tasks.index(self.down) + 1 :]

    @property
    def hidden(self) -> Buffer:
        """The activations that down meets, in the format for the first expert's weights."""
        return self.down.inputs[ACTIVATION_FORMAT[self.down.experts("weight").qtypes[0]].value]

    @property
    def x(self) -> list[Buffer]:
        """What goes in beside the choice: activations in each format, or in float32 with their weights."""
        known = [self.rows, *self.tasks]
        made = {buffer.name for task in known for buffer in task.outputs.values()}
        made |= {buffer.name for buffer in self.rows.inputs.values()}
        given = {buffer.name: buffer for task in self.tasks for buffer in task.inputs.values()}
        return [buffer for name, buffer in given.items() if name not in made]


def expert_sections(graph: Graph) -> list[ExpertSection]:
    """The layers with experts, in order."""
    sections: list[ExpertSection] = []
    rows: Task | None = None
    tasks: list[Task] = []
    for task in graph.tasks:
        if task.op is Op.EXPERT_ROWS:
            rows, tasks = task, []
        elif task.op is Op.MOE_SUM:
            assert rows is not None
            inputs = [t for expert_task in tasks for t in expert_task.after if t not in (rows, *tasks)]
            sections.append(ExpertSection(rows, tuple(tasks), task, tuple(inputs)))
            rows = None
        elif rows is not None and (task.rows is Rows.PLACES or task.op in _BY_CHOICE):
            tasks.append(task)
    return sections
