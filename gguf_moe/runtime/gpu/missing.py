"""What the crew does in a step on a GPU: the experts that the GPU lacks.

They are the same tasks as on a CPU alone, on buffers that the GPU has posted or in main memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from gguf_moe.graph.task import Buffer, Graph, Rows
from gguf_moe.runtime.gpu.mailbox import Mailbox, Post
from gguf_moe.runtime.gpu.sections import ExpertSection, expert_sections
from gguf_moe.runtime.lower import lower_task
from gguf_moe.runtime.memory import Memory
from gguf_moe.runtime.program import Row, Value
from gguf_moe_kernels import structs


def lower_to_crew(
    graph: Graph, memory: Memory, mailbox: Mailbox, n_threads: int, linked: Sequence[int] = ()
) -> list[Row]:
    """What the crew does in a step: for each layer wait for the post, compute the missing experts, answer.

    In a layer that is linked it answers with their hidden activations, then computes the rows of down that do
    not come over the link.
    """
    rows: list[Row] = []
    for layer, section in enumerate(expert_sections(graph)):
        view = _MissingExperts(memory, mailbox, layer, section)
        n_linked = linked[layer] if linked else 0
        tasks = section.before_down if n_linked else section.tasks
        computed = [lower_task(task, view, n_threads) for task in tasks]
        if n_linked:
            computed.append(_answer(view.post.hidden, memory))
            if n_linked < section.down.outputs["out"].cols:
                down = lower_task(section.down, view, n_threads)
                computed += [_rows_from(down, n_linked), _answer(view.post.answer, memory)]
        else:
            computed.append(_answer(view.post.answer, memory))
        wait: dict[str, Value] = {
            "sequence": view.post.sequence,
            "step": memory.number_address,
            "n_used": view.post.n_used,
            "first": view.post.first,
            "n_places": view.rows_address(Rows.PLACES),
            "n_rows": len(computed) + 1,
        }
        rows.append(Row(None, "mailbox.await_post", structs.AWAIT_POST, wait, waits=True))
        rows += computed
    return rows


def _answer(word: int, memory: Memory) -> Row:
    values: dict[str, Value] = {"answer": word, "step": memory.number_address}
    return Row(None, "mailbox.answer", structs.ANSWER, values, all_before=True)


def _rows_from(down: Row, first: int) -> Row:
    """A matmul of experts without the first rows of each; the outputs lie close together."""
    addresses, sizes = (cast("list[int]", down.values[name]) for name in ("weights", "row_sizes"))
    moved = [address + first * size for address, size in zip(addresses, sizes, strict=True)]
    changed: dict[str, Value] = {"weights": moved, "n_out": cast(int, down.values["n_out"]) - first}
    return replace(down, values=down.values | changed)


class _MissingExperts:
    """A layer's buffers as the crew sees them: what the GPU posted, where answers go, and main memory."""

    def __init__(self, memory: Memory, mailbox: Mailbox, layer: int, section: ExpertSection):
        self.post: Post = mailbox.post(layer)
        self._memory = memory
        self._mailbox = mailbox
        places, ids = section.rows.outputs, section.rows.inputs["ids"]
        self._posted = {
            places["used"].name: self.post.used,
            places["n_used"].name: self.post.n_used,
            places["first"].name: self.post.first,
            places["token"].name: self.post.x_index,
            places["place"].name: self.post.place,
            ids.name: self.post.all_ids,
        }

    def address(self, buffer: Buffer) -> int:
        if (address := self._posted.get(buffer.name)) is not None:
            return address
        if (address := self._mailbox.address(buffer)) is not None:
            return address
        return self._memory.address(buffer)

    @property
    def n_past_address(self) -> int:
        return self._memory.n_past_address

    def rows_address(self, rows: Rows) -> int:
        return self._memory.rows_address(rows)
