"""gguf-moe plan: will a file fit, where does it go, and how fast will it be?"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import click

from gguf_moe.cli.common import ProgressLine, cache_dir_option, json_option, kv_option, print_json

if TYPE_CHECKING:
    from gguf_moe.plan import Plan


@click.command(short_help="Say before loading FILE if it fits, and how fast it will be.")
@click.argument("path", metavar="FILE")
@click.option("--vram", metavar="SIZE", help="Plan for a GPU with so much memory, as 12G.  [default: none]")
@click.option("--ram", metavar="SIZE", help="Plan for so much main memory.  [default: what is available]")
@click.option("--ctx", "n_ctx", type=click.IntRange(1), help="Context, in tokens.  [default: at most 4096]")
@click.option("-t", "--threads", type=click.IntRange(1), help="CPU threads.  [default: cores]")
@kv_option
@click.option("--measure/--no-measure", default=True, help="Run some layers, the first time.  [default: yes]")
@click.option("--again", is_flag=True, help="Measure anew.")
@cache_dir_option
@json_option
def plan(
    path: str,
    vram: str | None,
    ram: str | None,
    measure: bool,
    again: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Say before loading FILE what goes where, if it fits, how fast it will be, and what would help.

    The speed comes from some of the file's layers, measured once on this machine's CPU.
    """
    from gguf_moe.options import Options
    from gguf_moe.plan import make_plan

    if options["cache_dir"] is None:
        del options["cache_dir"]
    progress = ProgressLine()
    made = make_plan(
        path, Options(vram=vram, **options), ram=ram, measures=measure, again=again, progress=progress
    )
    progress.clear()
    if as_json:
        print_json(_report(made))
    else:
        click.echo("\n".join(_lines(made)))


def _lines(plan: Plan) -> list[str]:
    hp, sizes = plan.hparams, plan.sizes
    kind = f"{hp.n_expert} experts, {hp.n_expert_used} used" if hp.n_expert else "dense"
    lines = [f"{plan.path.name}: {plan.architecture}, {hp.n_layer} layers, {kind}", ""]
    lines += _table(plan)
    lines += ["", *_speed_lines(plan)]
    lines += _wrapped(f"limit        {plan.limit}")
    lines += _wrapped(f"would help   {plan.advice}")
    if plan.gpu and plan.fits and sizes.experts and plan.gpu.share < 1.0:
        lines += ["", "Real text uses some experts more than others, so fewer are missing than here."]
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 80, subsequent_indent=" " * 13)


def _table(plan: Plan) -> list[str]:
    unit, size = ("GB", 1e9) if plan.sizes.total >= 1e9 else ("MB", 1e6)
    sizes, gpu = plan.sizes, plan.gpu
    cache = f"KV cache, {plan.n_ctx} x {plan.kv_type}"
    rows = [("always used", sizes.always_used, gpu.always_used if gpu else 0)]
    if sizes.experts:
        rows.append(("experts", sizes.experts, gpu.expert_bytes if gpu else 0))
    rows.append((cache, 0 if gpu else sizes.kv_cache, sizes.first_kv_cache if gpu else 0))
    if gpu:
        rows.append(("CUDA", 0, gpu.cuda))
    rows.append(("together", plan.memory_needed, sum(row[2] for row in rows)))
    rows.append(("there is", plan.memory, gpu.budget if gpu else 0))
    head = f"{unit:24}{'memory':>10}" + (f"{'GPU':>10}" if gpu else "")
    lines = [head]
    for name, memory, on_gpu in rows:
        lines.append(f"{name:24}{memory / size:10.2f}" + (f"{on_gpu / size:10.2f}" if gpu else ""))
    if gpu and gpu.n_experts:
        lines.append(f"experts on the GPU: {gpu.slots} of {gpu.n_experts} ({100 * gpu.share:.0f} %)")
    if gpu and sizes.first_kv_cache < gpu.kv_cache:
        full = f"{gpu.kv_cache / size:.2f} {unit}"
        lines.append(f"The KV cache grows to {full} at the expense of experts.")
    elif not gpu:
        lines.append("The KV cache takes memory as it fills.")
    lines.append("It fits." if plan.fits else "It does not fit.")
    return lines


def _speed_lines(plan: Plan) -> list[str]:
    speed = plan.speed
    if speed is None:
        return []
    decode = plan.decode
    lines = [f"prompt       {speed.prompt:.1f} tok/s on the CPU, for {speed.n_prompt} tokens"]
    if plan.gpu and decode:
        lines.append(f"decode       {decode:.1f} tok/s for what the CPU computes, experts chosen evenly")
    elif decode:
        lines.append(f"decode       {decode:.1f} tok/s with {plan.n_threads} threads")
    lines.append(
        f"             {plan.sizes.per_token / 1e6:.0f} MB of weights a token; the CPU alone reads "
        f"{100 * plan.bandwidth_share:.0f} %"
    )
    lines.append(f"             of the {speed.bandwidth / 1e9:.1f} GB/s that memory gives")
    lines.append(f"             (from {speed.n_layer} of {plan.hparams.n_layer} layers, measured here)")
    return lines


def _report(plan: Plan) -> dict[str, Any]:
    """Sizes in bytes, speeds in tokens per second."""
    sizes, gpu, speed = plan.sizes, plan.gpu, plan.speed
    found: dict[str, Any] = {
        "model": str(plan.path),
        "architecture": plan.architecture,
        "n_ctx": plan.n_ctx,
        "kv_type": plan.kv_type,
        "n_threads": plan.n_threads,
        "always_used": sizes.always_used,
        "experts": sizes.experts,
        "kv_cache": sizes.kv_cache,
        "first_kv_cache": sizes.first_kv_cache if gpu else 0,
        "weights_bytes_per_token": sizes.per_token,
        "memory_needed": plan.memory_needed,
        "memory": plan.memory,
        "fits": plan.fits,
        "limit": plan.limit,
        "advice": plan.advice,
    }
    if gpu:
        found["gpu"] = {
            "budget": gpu.budget,
            "always_used": gpu.always_used,
            "kv_cache": gpu.kv_cache,
            "cuda": gpu.cuda,
            "experts": gpu.slots,
            "experts_of": gpu.n_experts,
        }
    if speed:
        found["speed"] = {
            "prompt": speed.prompt,
            "n_prompt": speed.n_prompt,
            "cpu_decode": speed.decode,
            "decode": plan.decode,
            "read_bandwidth": speed.bandwidth,
            "bandwidth_share": plan.bandwidth_share,
            "layers_measured": speed.n_layer,
        }
    return found
