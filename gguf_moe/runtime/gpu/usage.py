"""What the GPU's cache of experts did in some steps, and how long GPU and CPU worked."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums since loading. The difference of two is what happened between them."""

    n_tokens: int = 0
    hits: int = 0
    """Choices of experts that the GPU held."""
    misses: int = 0
    """Choices that the CPU computed."""
    uploads: int = 0
    """Experts that were brought to the GPU."""
    uploaded_bytes: int = 0
    step_s: float = 0.0
    """Seconds of all steps."""
    gpu_waited_s: float = 0.0
    """Seconds of them in which the GPU had nothing to do but wait for the CPU's answers."""
    cpu_waited_s: float = 0.0
    """Seconds of them in which the CPU waited for experts to compute."""

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))

    @property
    def hit_rate(self) -> float:
        """The share of the choices that the GPU held; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)

    @property
    def misses_per_token(self) -> float:
        return self.misses / max(1, self.n_tokens)

    @property
    def uploaded_bytes_per_token(self) -> float:
        """Bytes of experts that went over the link."""
        return self.uploaded_bytes / max(1, self.n_tokens)

    @property
    def gpu_share(self) -> float:
        """The share of the time in which the GPU worked."""
        return 1 - self.gpu_waited_s / self.step_s if self.step_s else 0.0

    @property
    def cpu_share(self) -> float:
        """The share of the time in which the CPU worked on experts."""
        return 1 - self.cpu_waited_s / self.step_s if self.step_s else 0.0
