"""The bundled demo model: a trained router, real words, a real perplexity."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gguf_moe
from gguf_moe.arch.model import read_model
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.evaluate import perplexity
from gguf_moe.graph.task import Kind, Task
from gguf_moe.model import Model
from gguf_moe.runtime.inline import InlineContext

PATH = Path(gguf_moe.__file__).parent / "models" / "demo.gguf"
HELD_OUT = (Path(__file__).parent / "fixtures" / "held-out.txt").read_text(encoding="utf-8")

OPENINGS = (  # those of docs/demo-model.md
    "Once upon a time, there was a little fox named Milo.",
    "One rainy morning, Lily and her grandmother",
    "In a cottage in the woods, there lived a kind baker",
    "Long ago, in a deep valley,",
    "One snowy night, a brave rabbit named Ruby",
)


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with gguf_moe.load(PATH) as model:
        yield model


def test_small_enough_for_the_wheel() -> None:
    assert PATH.stat().st_size <= 12_000_000


def test_says_what_it_is_and_where_its_data_comes_from() -> None:
    with open_checkpoint(PATH) as checkpoint:
        metadata = checkpoint.metadata
        assert metadata.string("general.name") == "gguf-moe demo"
        assert metadata.string("general.license") == "apache-2.0"
        assert "SmolLM2-135M-Instruct" in metadata.string("general.dataset.0.description")


def test_writes_words(model: Model) -> None:
    generation = model.generate("Once upon a time, there was", max_tokens=80, temperature=0.7, seed=1)
    text = "".join(piece.text for piece in generation)
    assert len(generation.result.token_ids) >= 40
    known = set(re.findall(r"[a-z']+", HELD_OUT.lower()))
    words = re.findall(r"[a-z']+", text.lower())
    assert sum(word in known for word in words) > 0.9 * len(words)


@pytest.mark.parametrize("opening", OPENINGS)
def test_goes_on_without_saying_the_same_again(model: Model, opening: str) -> None:
    generation = model.generate(opening, max_tokens=200, temperature=0.7, seed=1)
    words = re.findall(r"[a-z']+", "".join(piece.text for piece in generation).lower())
    assert len(generation.result.token_ids) >= 80
    four_in_a_row = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    assert len(set(four_in_a_row)) > 0.95 * len(four_in_a_row)


def test_perplexity_of_text_it_has_not_seen(model: Model) -> None:
    assert perplexity(model, HELD_OUT[:6000]).value < 2.5


def test_the_router_uses_all_experts(model: Model) -> None:
    tokens = model.tokenize(HELD_OUT[:2000])[:192]
    ids: dict[str, np.ndarray] = {}

    def look(task: Task) -> None:
        if task.name.startswith("ffn_moe_topk-"):
            ids[task.name] = context.buffer(task.outputs["ids"].name)[: len(tokens)].copy()

    with open_checkpoint(PATH) as checkpoint:
        arch, hparams, weights = read_model(checkpoint)
        context = InlineContext(
            arch, hparams, weights, n_ctx=192, n_batch=192, kv_kind=Kind.F16, on_task=look
        )
        context.extend(tokens, 1)
    assert len(ids) == hparams.n_layer
    for chosen in ids.values():
        shares = np.bincount(chosen.reshape(-1), minlength=hparams.n_expert) / chosen.size
        assert shares.min() > 0.03
        assert shares.max() < 0.40
