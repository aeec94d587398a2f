"""What is measured, and what comes out."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from gguf_moe.runtime.gpu.usage import Usage


@dataclass(frozen=True, slots=True)
class BenchTest:
    """What is measured: n_prompt tokens at once, or n_gen tokens one by one; the other is 0."""

    n_threads: int
    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0

    @property
    def name(self) -> str:
        """As llama-bench writes it."""
        what = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{what} @ d{self.n_depth}" if self.n_depth else what

    @property
    def n_tokens(self) -> int:
        """Tokens that are timed."""
        return self.n_prompt or self.n_gen


@dataclass(slots=True)
class Row:
    """A test's result."""

    test: BenchTest
    bandwidths: tuple[float, float]
    """Bytes per second that as many threads can read, measured before and after the test."""
    bytes_per_token: int
    """Bytes of weights that one generated token reads."""
    speeds: list[float] = field(default_factory=list)
    """Tokens per second of each repetition."""
    usage: Usage | None = None
    """What GPU and CPU did in all repetitions; None on the CPU alone."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.speeds)

    @property
    def deviation(self) -> float:
        """The standard deviation of the repetitions; 0 for one."""
        return statistics.stdev(self.speeds) if len(self.speeds) > 1 else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes of weights read per second, if the test generated its tokens."""
        return self.mean * self.bytes_per_token

    @property
    def bandwidth_share(self) -> float:
        """The share of the read bandwidth that this is."""
        return self.bytes_per_second / statistics.fmean(self.bandwidths)
