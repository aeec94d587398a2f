"""Lines that say what a model is and how it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_moe.generate import Result
    from gguf_moe.model import Model

ENOUGH_TOKENS = 8
"""Fewer say nothing about speed."""


def about(model: Model) -> str:
    """What was loaded."""
    hp = model.hparams
    experts = f"{hp.n_expert} experts, {hp.n_expert_used} used" if hp.n_expert else "dense"
    return (
        f"{model.path.name}: {model.arch.name}, {hp.n_layer} layers, {experts}; context {model.n_ctx}, "
        f"KV cache {model.kv_kind.value}, {model.n_threads} threads; "
        f"loaded in {model.load_times.load_s:.2f} s, {model.load_times.n_compiled} kernels compiled"
    )


def planned(model: Model, r: Result, cache_dir: Path | None) -> str:
    """How the generation compares with what `gguf-moe plan` has measured; "" if it has not."""
    from gguf_moe.plan import planned_speed

    speed = planned_speed(cache_dir, model.path, model.n_threads, model.kv_kind)
    if speed is None or model.gpu or len(r.token_ids) < ENOUGH_TOKENS:
        return ""
    rate = r.decode_tokens_per_s
    read = rate * model.bytes_per_token / speed.bandwidth
    return f"{100 * rate / speed.decode:.0f} % of the plan, {100 * read:.0f} % of what memory could give"


def summary(r: Result) -> str:
    """How fast it was."""
    return (
        f"prompt {len(r.prompt_token_ids)} tokens, {r.prompt_tokens_per_s:.1f} tok/s; "
        f"generated {len(r.token_ids)}, {r.decode_tokens_per_s:.1f} tok/s; "
        f"first token {r.first_token_s:.2f} s"
    )
