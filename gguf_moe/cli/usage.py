"""How the commands show what GPU and CPU did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf_moe.runtime.gpu.runner import GpuRunner
    from gguf_moe.runtime.gpu.usage import Usage


def usage_line(usage: Usage) -> str:
    """In at most 80 columns."""
    return (
        f"{100 * usage.hit_rate:.1f} % hits; a token: {usage.misses_per_token:.1f} misses, "
        f"{usage.uploaded_bytes_per_token / 1e6:.1f} MB; "
        f"GPU {100 * usage.gpu_share:.0f} %, CPU {100 * usage.cpu_share:.0f} %"
    )


def slots_line(gpu: GpuRunner) -> str:
    """How many experts have a place on the GPU."""
    cache = gpu.slots.cache
    return f"experts on the GPU: {sum(cache.slots_per_layer)} of {gpu.slots.n_expert * cache.n_layer}"


def usage_report(usage: Usage) -> dict[str, Any]:
    """For --json: rates between 0 and 1, sizes in bytes, times in seconds."""
    return {
        "tokens": usage.n_tokens,
        "hit_rate": usage.hit_rate,
        "hits": usage.hits,
        "misses": usage.misses,
        "misses_per_token": usage.misses_per_token,
        "uploads": usage.uploads,
        "uploaded_bytes": usage.uploaded_bytes,
        "uploaded_bytes_per_token": usage.uploaded_bytes_per_token,
        "step_s": usage.step_s,
        "gpu_share": usage.gpu_share,
        "cpu_share": usage.cpu_share,
    }


def gpu_report(gpu: GpuRunner) -> dict[str, Any]:
    """For --json: the slots, and what happened since loading."""
    cache = gpu.slots.cache
    slots = {
        "slots_per_layer": list(cache.slots_per_layer),
        "n_expert": gpu.slots.n_expert,
        "uses_link": gpu.uses_link,
    }
    return slots | usage_report(gpu.usage())
