"""Sessions in files: what was computed once need not be computed again."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import gguf_moe

FIXTURES = Path(__file__).parent / "fixtures"
FIXTURE = FIXTURES / "fixture-bpe.Q4_K_M.gguf"
PROMPT = "Once upon a time, in a village between two rivers,"
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def load(kernel_cache):
    """Load the fixture's model, or that of another file."""

    def load(path=FIXTURE, **options):
        return gguf_moe.load(path, threads=2, cache_dir=kernel_cache, **options)

    return load


@pytest.fixture(scope="module")
def saved(load, tmp_path_factory):
    """A session's file, its tokens, and those that follow."""
    path = tmp_path_factory.mktemp("session") / "story.session"
    with load() as model:
        generation = model.generate(PROMPT, **GREEDY)
        list(generation)
        n = model.save_session(path)
        ids = (generation.result.prompt_token_ids + generation.result.token_ids)[:n]
        further = model.generate([*ids, 7], **GREEDY)
        list(further)
    return path, ids, further.result.token_ids


def test_another_process_goes_on_without_computing_again(load, saved):
    path, ids, further = saved
    with load() as model:
        assert model.load_session(path) == ids
        assert model.stats()["cached_tokens"] == len(ids)
        generation = model.generate([*ids, 7], **GREEDY)
        list(generation)
        assert generation.result.n_reused == len(ids)
        assert generation.result.token_ids == further


def test_a_larger_context_takes_it_and_a_smaller_does_not(load, saved):
    path, ids, _ = saved
    with load(n_ctx=256) as model:
        assert model.load_session(path) == ids
    with load(n_ctx=len(ids) - 1) as model, pytest.raises(gguf_moe.ContextFullError, match="tokens, but"):
        model.load_session(path)


def test_an_empty_session_is_one_too(load, tmp_path):
    with load() as model:
        assert model.save_session(tmp_path / "empty") == 0
        list(model.generate(PROMPT, **GREEDY))
        assert model.load_session(tmp_path / "empty") == []
        assert model.stats()["cached_tokens"] == 0


def test_a_session_keeps_the_blocks_of_a_cache_in_q8_0(load, saved, tmp_path):
    path, ids, _ = saved
    with load(kv_type="q8_0") as model:
        computed = model.logits([*ids, 7])[-1]
        model.logits(ids)
        model.save_session(tmp_path / "blocks")
        with pytest.raises(gguf_moe.GGUFMoeError, match="other settings"):
            model.load_session(path)
    assert (tmp_path / "blocks").stat().st_size < path.stat().st_size * 0.6
    with load(kv_type="q8_0") as model:
        model.load_session(tmp_path / "blocks")
        np.testing.assert_array_equal(model._context.extend([7], 1)[0], computed)


def test_other_models_and_settings_refuse_it_and_go_on(load, saved):
    path, _, _ = saved
    for model in (load(FIXTURES / "fixture-spm.Q4_K_M.gguf"), load(kv_type="f32")):
        with model:
            list(model.generate([5, 6, 7], **GREEDY))
            before = model.stats()["cached_tokens"]
            with pytest.raises(gguf_moe.GGUFMoeError, match="of another model, or of other settings"):
                model.load_session(path)
            assert model.stats()["cached_tokens"] == before


def test_every_damage_is_seen(load, saved, tmp_path):
    data = saved[0].read_bytes()
    damaged = tmp_path / "damaged"
    rng = np.random.default_rng(3)
    places = [3, 18, 30, 200, len(data) - 1, *rng.integers(0, len(data), 12).tolist()]
    with load() as model:
        for place in places:
            damaged.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
            with pytest.raises(gguf_moe.GGUFMoeError, match=r"damaged|no session|another model"):
                model.load_session(damaged)
        for length in (0, 10, 24, 100, len(data) - 1):
            damaged.write_bytes(data[:length])
            with pytest.raises(gguf_moe.GGUFMoeError, match=r"damaged|no session"):
                model.load_session(damaged)
        damaged.write_bytes(data.replace(b'"version": 1', b'"version": 2'))
        with pytest.raises(gguf_moe.GGUFMoeError, match="of version 2, not 1"):
            model.load_session(damaged)
        damaged.write_bytes(data + b"x")
        with pytest.raises(gguf_moe.GGUFMoeError, match="damaged"):
            model.load_session(damaged)


def test_files_that_cannot_be_read_or_written_are_named(load, tmp_path):
    with load() as model:
        with pytest.raises(gguf_moe.GGUFMoeError, match="cannot be read"):
            model.load_session(tmp_path / "absent")
        with pytest.raises(gguf_moe.GGUFMoeError, match="cannot be saved"):
            model.save_session(tmp_path / "absent" / "file")
        with pytest.raises(gguf_moe.GGUFMoeError, match="no session"):
            model.load_session(FIXTURE)


def test_a_copy_of_the_model_is_the_same_model(load, saved, tmp_path):
    shutil.copy(FIXTURE, tmp_path / "copy.gguf")
    with load(tmp_path / "copy.gguf") as model:
        assert model.load_session(saved[0]) == saved[1]
