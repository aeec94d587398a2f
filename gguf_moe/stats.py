"""What a model is and what it did, as numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gguf_moe.generate import Result

if TYPE_CHECKING:
    from gguf_moe.model import Model


@dataclass(slots=True)
class Totals:
    """Sums over generations, those that were stopped early too."""

    generations: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Prompt tokens that the KV cache held."""
    generated_tokens: int = 0
    prompt_s: float = 0.0
    decode_s: float = 0.0

    def add(self, result: Result) -> None:
        """Count one that has ended."""
        self.generations += 1
        self.prompt_tokens += len(result.prompt_token_ids)
        self.reused_tokens += result.n_reused
        self.generated_tokens += len(result.token_ids)
        self.prompt_s += result.prompt_s
        self.decode_s += result.decode_s


def describe(model: Model) -> dict[str, Any]:
    """Model.stats."""
    found: dict[str, Any] = {
        "model": str(model.path),
        "architecture": model.arch.name,
        "n_ctx": model.n_ctx,
        "kv_type": model.kv_kind.value,
        "n_threads": model.n_threads,
        "cached_tokens": model.n_cached,
        "load": asdict(model.load_times),
        "totals": asdict(model.totals),
    }
    if model.gpu:
        usage, cache = model.gpu.usage(), model.gpu.slots.cache
        found["experts"] = {
            "slots": sum(cache.slots_per_layer),
            "all": model.gpu.slots.n_expert * cache.n_layer,
            "hit_rate": usage.hit_rate,
            "misses_per_token": usage.misses_per_token,
            "uploaded_bytes_per_token": usage.uploaded_bytes_per_token,
            "gpu_share": usage.gpu_share,
            "cpu_share": usage.cpu_share,
        }
    return found
