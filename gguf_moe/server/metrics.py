"""What the server has done, in Prometheus' text format."""

from __future__ import annotations

from gguf_moe.scheduler import Scheduler

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def prometheus(scheduler: Scheduler) -> str:
    """All metrics, each with its help and type."""
    counts = scheduler.counts
    metrics = [
        ("requests_total", "counter", "Texts that were asked for.", counts.n_jobs),
        ("requests_active", "gauge", "Texts that are being written.", scheduler.n_active),
        ("requests_waiting", "gauge", "Texts that wait for their turn.", scheduler.n_waiting),
        ("prompt_tokens_total", "counter", "Tokens of prompts that were computed.", counts.n_prompt_tokens),
        ("prompt_tokens_reused_total", "counter", "Tokens found in the cache.", counts.n_reused_tokens),
        ("generated_tokens_total", "counter", "Tokens that were written.", counts.n_generated_tokens),
        ("steps_total", "counter", "Steps of the model.", counts.n_steps),
        ("step_seconds_total", "counter", "Seconds spent in steps.", round(counts.step_s, 6)),
    ]
    lines = []
    for name, kind, text, value in metrics:
        full = f"gguf_moe_{name}"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full} {value}"]
    return "\n".join(lines) + "\n"
