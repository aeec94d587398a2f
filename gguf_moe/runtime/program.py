"""The crew's program: rows of kernels and arguments, and after which of them all threads meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gguf_moe.graph.task import Task
from gguf_moe_kernels import structs
from gguf_moe_kernels.cpu.library import KernelLibrary

Value = int | float | str | list[int] | list[str]
"""An argument: a number, a kernel's name (its address is meant), or the address of an array of these."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the program before kernels have addresses."""

    task: Task | None
    """What it computes; None for a row that no task of the graph stands for."""
    kernel: str
    struct: np.dtype
    values: dict[str, Value]
    waits: bool = False
    """Whether each thread waits here for somebody outside of the crew."""
    all_before: bool = False
    """Whether all rows before it must be finished."""

    def kernels(self) -> list[str]:
        """Every kernel this row needs."""
        named = [v for v in self.values.values() if isinstance(v, str)]
        listed = [k for v in self.values.values() if isinstance(v, list) for k in v if isinstance(k, str)]
        return [self.kernel, *named, *listed]


class Program:
    """The table that the crew walks, with all memory its rows point to."""

    def __init__(self, rows: list[Row], library: KernelLibrary):
        self._library = library
        self._arrays: list[np.ndarray] = []
        barriers = _barriers(rows)
        self.table = np.zeros((len(rows), structs.ROW_SIZE // 8), np.int64)
        for i, row in enumerate(rows):
            self.table[i] = library.address(row.kernel), self._arguments(row), barriers[i], row.waits
        self.counters = np.zeros((len(rows), structs.COUNTER_SIZE // 8), np.int64)

    def _arguments(self, row: Row) -> int:
        arguments = np.zeros((), row.struct)
        for name, value in row.values.items():
            if isinstance(value, list):
                value = self._keep(np.array([self._number(v) for v in value], np.int64))
            arguments[name] = self._number(value)
        return self._keep(arguments)

    def _number(self, value: int | float | str) -> int | float:
        return self._library.address(value) if isinstance(value, str) else value

    def _keep(self, array: np.ndarray) -> int:
        self._arrays.append(array)
        return array.__array_interface__["data"][0]


def _barriers(rows: list[Row]) -> list[bool]:
    """Whether all threads meet after each row: only if the next waits for one since the last meeting."""
    barriers = [False] * len(rows)
    running: set[int] = set()
    for i, row in enumerate(rows):
        after = row.task.after if row.task else ()
        if row.all_before or any(id(task) in running for task in after):
            barriers[i - 1] = True
            running.clear()
        running.add(id(row.task))
    return barriers
