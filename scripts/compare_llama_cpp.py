#!/usr/bin/env python3
"""Compare gguf-moe with llama.cpp: the same file, the same tokens.

llama.cpp runs through llama-cpp-python under --peer-python, an interpreter that has it; this one only needs
the project. Logits pass through a temporary directory: 4 bytes x positions x vocabulary for each run.

KL is KL(base || other) per position. Perplexity is that of llama.cpp's llama-perplexity: chunks of 512 tokens
that do not overlap, BOS first where the vocabulary asks for it, the second half of each chunk scored.

The rule, judged on the last lines (exit status 1 when it is not met):
  F32 file        NMSE <= 1e-6, mean KL <= 1e-8, the same greedy tokens
  quantized file  mean KL to the F32 truth <= 1.25 x llama.cpp's (the mean of its batch-512 and batch-1 runs),
                  over at least 2,000 positions
  both            the same token ids; perplexity within 0.5 % over at least 8,000 tokens

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data.topics
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from llama_cpp_peer import MAX_TOKENS, N_CTX, Job, Run, ask_run, ask_vocabulary, carry_out
from measures import agreeing_tokens, difference, n_scored

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village between two rivers,",
    "Water boils at a lower temperature on a mountain because",
    "The three most common programming languages are",
    "To bake a loaf of bread, first",
    "Dear Sir or Madam, I am writing to ask",
    "In the year 1969, two men",
    "A good way to learn a new language is",
    "The difference between a cat and a dog is",
    "def fibonacci(n):\n    ",
    "Question: How many legs does a spider have?\nAnswer:",
    "Every morning she walked to the harbour to watch",
)
POSITIONS, FIXTURE_POSITIONS = 2048, 96


@dataclass(frozen=True)
class Inputs:
    """The token ids that every run gets."""

    texts: list[str]  # a long one, then the prompts
    ids: list[list[int]]  # llama.cpp's token ids of `texts`
    sequences: list[list[int]]  # chunks of the long one
    n_kept: int  # so many of them are compared by their logits; the others only count for the perplexity
    is_f32: bool  # whether the model's tensors are all F32
    kv_type: str
    version: str  # llama-cpp-python's


def make_inputs(args: argparse.Namespace, directory: Path) -> Inputs:
    positions = args.positions or (FIXTURE_POSITIONS if args.write_fixture else POSITIONS)
    n = N_CTX if args.perplexity else min(N_CTX, positions)
    if args.perplexity:
        text = args.perplexity.read_text(encoding="utf-8")
    elif args.write_fixture:
        text = " ".join(PROMPTS)
    else:
        text = "\n".join(pydoc_data.topics.topics.values())[: 8 * positions]
    texts = [text, *PROMPTS[: args.prompts]]
    vocabulary = ask_vocabulary(args.peer_python, args.peer_model, texts, directory / "vocabulary")
    ids, bos = vocabulary["ids"], vocabulary["bos"]
    sequences = [ids[0][i : i + n] for i in range(0, len(ids[0]) - n + 1, n)]
    if not sequences:
        raise SystemExit(f"The text has {len(ids[0])} tokens, at least {n} are needed")
    if bos is not None:
        sequences = [[bos, *chunk[1:]] for chunk in sequences]
    n_kept = min(len(sequences), max(1, positions // n))
    if not args.perplexity:
        sequences = sequences[:n_kept]
    is_f32 = all(t.tensor_type == GGMLQuantizationType.F32 for t in GGUFReader(args.model).tensors)
    kv_type = args.kv or ("f32" if is_f32 else "f16")
    return Inputs(texts, ids, sequences, n_kept, is_f32, kv_type, vocabulary["version"])


def whole_job(args: argparse.Namespace, inputs: Inputs, model: Path) -> Job:
    """Logits, greedy texts and, when asked for, the perplexity."""
    return Job(
        model=str(model),
        kv_type=inputs.kv_type,
        n_batch=N_CTX,
        threads=args.threads,
        sequences=inputs.sequences,
        n_kept=inputs.n_kept,
        score=args.perplexity is not None,
        prompts=inputs.ids[1:],
    )


def peer_runs(args: argparse.Namespace, inputs: Inputs, directory: Path) -> dict[str, Run]:
    """llama.cpp's runs: `batch 512`, and with a truth file also `batch 1` and `truth`."""
    whole = whole_job(args, inputs, args.peer_model)
    logits_only = replace(whole, sequences=inputs.sequences[: inputs.n_kept], score=False, prompts=[])
    jobs = {"batch 512": whole}
    if args.truth:
        jobs["batch 1"] = replace(logits_only, n_batch=1)
        base = whole if args.write_fixture else logits_only
        jobs["truth"] = replace(base, model=str(args.truth), kv_type="f32")
    return {name: ask_run(args.peer_python, job, directory / name) for name, job in jobs.items()}


def our_run(args: argparse.Namespace, inputs: Inputs, out: Path) -> tuple[Run, bool]:
    """Our outputs, and whether our token ids are llama.cpp's."""
    import gguf_moe

    out.mkdir()
    with gguf_moe.load(args.model, n_ctx=N_CTX, threads=args.threads, kv_type=inputs.kv_type) as model:

        def greedy(ids: list[int]) -> list[int]:
            generation = model.generate(ids, max_tokens=MAX_TOKENS, temperature=0.0)
            return [piece.token for piece in generation if piece.token is not None]

        result = carry_out(whole_job(args, inputs, args.model), out, model.logits, greedy)
        return result, [model.tokenize(text, special=False) for text in inputs.texts] == inputs.ids


def compare(args: argparse.Namespace, inputs: Inputs, peers: dict[str, Run], ours: Run) -> dict[str, Any]:
    """All numbers, by the names that the table and the JSON line use."""
    theirs = peers["batch 512"]
    differences = {"ours to llama.cpp": difference(theirs.logits, ours.logits)}
    numbers: dict[str, Any] = {}
    if args.truth:
        differences["ours to the truth"] = difference(peers["truth"].logits, ours.logits)
        for name in ("batch 512", "batch 1"):
            differences[f"llama.cpp, {name}, to the truth"] = difference(
                peers["truth"].logits, peers[name].logits
            )
        kl = [d.mean_kl for name, d in differences.items() if name.endswith("to the truth")]
        if not inputs.is_f32:
            numbers["kl_ratio"] = kl[0] / ((kl[1] + kl[2]) / 2)
    agreeing = [agreeing_tokens(a, b, MAX_TOKENS) for a, b in zip(ours.greedy, theirs.greedy, strict=True)]
    numbers["greedy_same"] = sum(n == MAX_TOKENS for n in agreeing)
    numbers["greedy_prompts"] = len(agreeing)
    numbers["greedy_mean_tokens"] = float(np.mean(agreeing)) if agreeing else None
    if args.perplexity:
        n = sum(n_scored(ids) for ids in inputs.sequences)
        numbers["perplexity"], numbers["perplexity_llama_cpp"] = exp(ours.nll / n), exp(theirs.nll / n)
        numbers["perplexity_tokens"] = n
    return {"differences": {name: asdict(d) for name, d in differences.items()}, **numbers}


def judge(numbers: dict[str, Any], is_f32: bool) -> tuple[list[str], list[str]]:
    """What of the rule is not met, and what was not judged because too little was measured."""
    to_peer = numbers["differences"]["ours to llama.cpp"]
    rule = {"the same token ids": numbers["same_token_ids"]}
    if is_f32:
        rule["NMSE <= 1e-6"] = to_peer["nmse"] <= 1e-6
        rule["mean KL <= 1e-8"] = to_peer["mean_kl"] <= 1e-8
        rule["the same greedy tokens"] = numbers["greedy_same"] == numbers["greedy_prompts"]
    else:
        enough = "kl_ratio" in numbers and to_peer["positions"] >= 2000
        rule["mean KL <= 1.25 x llama.cpp's"] = numbers["kl_ratio"] <= 1.25 if enough else None
    enough = numbers.get("perplexity_tokens", 0) >= 8000
    ratio = numbers["perplexity"] / numbers["perplexity_llama_cpp"] if enough else 1.0
    rule["perplexity within 0.5 %"] = abs(ratio - 1) <= 0.005 if enough else None
    return [k for k, met in rule.items() if met is False], [k for k, met in rule.items() if met is None]


def print_report(numbers: dict[str, Any]) -> None:
    print(f"{'':<34}{'positions':>10}{'NMSE':>11}{'mean KL':>11}{'max KL':>11}{'top-1':>9}")
    for name, d in numbers["differences"].items():
        kl = f"{d['mean_kl']:>11.2e}{d['max_kl']:>11.2e}"
        print(f"{name:<34}{d['positions']:>10}{d['nmse']:>11.2e}{kl}{d['same_top_1']:>9.2%}")
    if "kl_ratio" in numbers:
        print(f"mean KL to the truth, ours / llama.cpp's: {numbers['kl_ratio']:.3f}")
    same, prompts, mean = (numbers[f"greedy_{key}"] for key in ("same", "prompts", "mean_tokens"))
    if prompts:
        print(f"greedy: {same} of {prompts} texts are the same, {mean:.1f} of {MAX_TOKENS} tokens on average")
    if "perplexity" in numbers:
        ours, theirs = numbers["perplexity"], numbers["perplexity_llama_cpp"]
        scored = numbers["perplexity_tokens"]
        print(f"perplexity: {ours:.4f}, llama.cpp {theirs:.4f} ({ours / theirs - 1:+.3%}), {scored} tokens")
    print(f"token ids: {'the same' if numbers['same_token_ids'] else 'different'}")
    print(f"rule: {'not met: ' + '; '.join(numbers['not_met']) if numbers['not_met'] else 'met'}")
    if numbers["not_judged"]:
        print(f"not judged, as too little was measured: {'; '.join(numbers['not_judged'])}")


def write_fixture(path: Path, inputs: Inputs, runs: dict[str, Run]) -> None:
    """llama.cpp's outputs, for a test that does without llama.cpp. Read it with numpy.load."""
    arrays: dict[str, Any] = {
        "version": inputs.version,
        "kv_type": inputs.kv_type,
        "text": inputs.texts[0],
        "text_ids": np.array(inputs.ids[0], np.int32),
        "prompts": inputs.texts[1:],
        "ids": np.array(inputs.sequences[0], np.int32),
        "logits": np.load(runs["batch 512"].logits[0]),
    }
    tokens = {"prompt_ids": inputs.ids[1:], "greedy": runs["batch 512"].greedy}
    if "truth" in runs:
        truth = runs["truth"]
        arrays["truth_logits"] = np.load(truth.logits[0])
        tokens["truth_greedy"] = truth.greedy
        for n_batch in (512, 1):
            arrays[f"mean_kl_batch_{n_batch}"] = difference(
                truth.logits, runs[f"batch {n_batch}"].logits
            ).mean_kl
    for name, lists in tokens.items():
        arrays.update({f"{name}_{i}": np.array(ids, np.int32) for i, ids in enumerate(lists)})
    np.savez_compressed(path, **arrays)
    print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, metavar="MODEL")
    p.add_argument("--truth", type=Path, metavar="F32_MODEL", help="the same weights as F32")
    p.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help="has llama-cpp-python")
    p.add_argument(
        "--peer-model",
        type=Path,
        metavar="MODEL",
        help="the file for llama.cpp, when it refuses MODEL's layout",
    )
    p.add_argument("--threads", type=int, default=os.cpu_count(), help="of either side (all cores)")
    p.add_argument("--prompts", type=int, default=len(PROMPTS), help=f"greedy texts ({len(PROMPTS)})")
    p.add_argument("--positions", type=int, help=f"tokens whose logits are compared ({POSITIONS})")
    p.add_argument(
        "--kv", choices=["f16", "f32", "q8_0"], help="type of the KV cache (f32 for F32 files, else f16)"
    )
    p.add_argument(
        "--perplexity", type=Path, metavar="TEXTFILE", help="also take all other input from this text"
    )
    p.add_argument(
        "--write-fixture", type=Path, metavar="OUT.npz", help="store llama.cpp's outputs, and stop"
    )
    return p


def main() -> None:
    args = parser().parse_args()
    args.peer_model = args.peer_model or args.model
    for path in (args.model, args.peer_model, args.truth, args.perplexity):
        if path and not path.is_file():
            raise SystemExit(f"{path}: no such file")
    # Without this, a terminated comparison leaves its worker and its directory behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="compare-llama-cpp-") as name:
        directory = Path(name)
        inputs = make_inputs(args, directory)
        peers = peer_runs(args, inputs, directory)
        if args.write_fixture:
            write_fixture(args.write_fixture, inputs, peers)
            return
        ours, same_token_ids = our_run(args, inputs, directory / "ours")
        numbers = compare(args, inputs, peers, ours)
    numbers["same_token_ids"] = same_token_ids
    numbers["not_met"], numbers["not_judged"] = judge(numbers, inputs.is_f32)
    print_report(numbers)
    about = {"model": args.model.name, "kv_type": inputs.kv_type, "peer": inputs.version}
    print(json.dumps(about | numbers))
    if numbers["not_met"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
