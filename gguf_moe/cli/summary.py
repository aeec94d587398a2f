"""Lines that say what a model is and how it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gguf_moe.generate import Result
    from gguf_moe.model import Model


def about(model: Model) -> str:
    """What was loaded."""
    hp = model.hparams
    experts = f"{hp.n_expert} experts, {hp.n_expert_used} used" if hp.n_expert else "dense"
    return (
        f"{model.path.name}: {model.arch.name}, {hp.n_layer} layers, {experts}; context {model.n_ctx}, "
        f"KV cache {model.kv_kind.value}, {model.n_threads} threads; "
        f"loaded in {model.load_times.load_s:.2f} s, {model.load_times.n_compiled} kernels compiled"
    )


def summary(r: Result) -> str:
    """How fast it was."""
    return (
        f"prompt {len(r.prompt_token_ids)} tokens, {r.prompt_tokens_per_s:.1f} tok/s; "
        f"generated {len(r.token_ids)}, {r.decode_tokens_per_s:.1f} tok/s; "
        f"first token {r.first_token_s:.2f} s"
    )
