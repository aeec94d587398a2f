"""gguf-moe generate: a prompt in, text out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_moe.cli.common import (
    DEMO_MODEL,
    NewFile,
    ProgressLine,
    json_option,
    load,
    model_or_demo_option,
    print_json,
    read_text,
    runtime_cache_dir,
    runtime_options,
)
from gguf_moe.cli.constraint import constraint_options
from gguf_moe.cli.sampling import sampling_options
from gguf_moe.cli.summary import about, planned, summary
from gguf_moe.cli.usage import gpu_report, slots_line, usage_line
from gguf_moe.errors import OptionError

if TYPE_CHECKING:
    from gguf_moe.experts.routing import Recorder
    from gguf_moe.generate import Generation
    from gguf_moe.model import Model
    from gguf_moe.sample import Sampling


@click.command()
@click.argument("prompt", required=False)
@model_or_demo_option
@click.option("-p", "--prompt", "prompt_option", metavar="TEXT", help="The same as PROMPT.")
@click.option("-n", "--n-predict", "max_tokens", type=click.IntRange(0), help="Stop after so many tokens.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text; may be repeated.")
@click.option("--chat/--no-chat", default=False, help="Treat PROMPT as a user's message.  [default: no]")
@constraint_options
@sampling_options
@runtime_options
@click.option(
    "--heat",
    type=NewFile(),
    help="Which experts were hot: read at the start if it exists, written at the end.",
)
@click.option(
    "--record-routing",
    "routing_file",
    type=NewFile(),
    help="Write which experts were chosen, for bench --routing.",
)
@json_option
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
def generate(
    prompt: str | None,
    path: str | None,
    prompt_option: str | None,
    max_tokens: int | None,
    stop: tuple[str, ...],
    chat: bool,
    heat: Path | None,
    routing_file: Path | None,
    as_json: bool,
    verbose: bool,
    constraint: dict[str, Any],
    sampling: Sampling,
    runtime: dict[str, Any],
) -> None:
    """Continue PROMPT, or answer it with --chat. `-` reads it from stdin."""
    if (prompt is None) == (prompt_option is None):
        raise click.UsageError("Give one prompt, as PROMPT or with -p (`-` reads stdin).")
    if path is None:
        path = str(DEMO_MODEL)
        click.echo(
            "No model was given (-m FILE): the demo model writes, which knows simple stories.", err=True
        )
    text = read_text(prompt if prompt is not None else prompt_option)
    progress = ProgressLine()
    runtime["heat"] = heat if heat and heat.exists() else None
    with load(path, runtime, progress) as model:
        if heat and not model.gpu:
            raise OptionError("--heat is for a GPU, and the model runs on the CPU; leave the option out.")
        if verbose:
            click.echo(about(model), err=True)
        question = [{"role": "user", "content": text}]
        recorder = model.record_routing() if routing_file else None
        generation = model.generate(
            model.chat_prompt(question) if chat else text,
            max_tokens=max_tokens,
            stop=stop,
            sampling=sampling,
            progress=progress,
            **constraint,
        )
        try:
            for piece in generation:
                progress.clear()
                if not as_json:
                    click.echo(piece.text, nl=False)
        finally:
            progress.clear()
            if not as_json and generation.result.text:
                click.echo()
            click.echo(summary(generation.result), err=True)
            if compared := planned(model, generation.result, runtime_cache_dir(runtime)):
                click.echo(compared, err=True)
            if model.gpu:
                click.echo(f"{slots_line(model.gpu)}; {usage_line(model.gpu.usage())}", err=True)
        _save(model, heat, routing_file, recorder)
        if as_json:
            print_json(_report(model, generation))


def _save(model: Model, heat: Path | None, routing_file: Path | None, recorder: Recorder | None) -> None:
    """Write what the options ask for."""
    if heat:
        model.save_heat(heat)
    if routing_file and recorder:
        from gguf_moe.experts.routing import save_routing

        save_routing(routing_file, recorder.routing({"model": model.path.name}))


def _report(model: Model, generation: Generation) -> dict[str, Any]:
    r = generation.result
    found: dict[str, Any] = {
        "text": r.text,
        "token_ids": r.token_ids,
        "prompt_token_ids": r.prompt_token_ids,
        "finish_reason": r.finish_reason,
        "timings": {
            "load_s": model.load_times.load_s,
            "compile_s": model.load_times.compile_s,
            "prompt_s": r.prompt_s,
            "prompt_tokens_per_s": r.prompt_tokens_per_s,
            "decode_s": r.decode_s,
            "decode_tokens_per_s": r.decode_tokens_per_s,
            "first_token_s": r.first_token_s,
        },
    }
    if model.gpu:
        found["gpu"] = gpu_report(model.gpu)
    return found
