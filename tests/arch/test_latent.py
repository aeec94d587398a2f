"""Latent attention: what is read from both forms of files, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest

from gguf_moe.arch import find_arch
from gguf_moe.arch.hparams import read_hparams
from gguf_moe.arch.positions import Positions
from gguf_moe.arch.weights import load_weights
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import GGUFError
from gguf_moe_kernels.gating import Gating


@pytest.fixture
def loaded():
    """loaded(path): the architecture, the numbers and the tensors of a file."""
    opened = []

    def load(path, **arch_changes):
        opened.append(open_checkpoint(path))
        arch = replace(find_arch(opened[-1].metadata), **arch_changes)
        hparams = read_hparams(opened[-1].metadata, arch)
        return arch, hparams, load_weights(opened[-1], arch, hparams)

    yield load
    for checkpoint in opened:
        checkpoint.close()


def test_the_cache_holds_one_short_row_or_all_heads(tiny_file, loaded):
    _, new, weights = loaded(tiny_file("deepseek2"))
    assert (new.n_embd_cache, new.n_embd_q, new.n_embd_out) == (64 + 16, 4 * 48, 4 * 32)
    assert {"attn_k_b.weight", "attn_v_b.weight", "attn_q_a.weight"} < set(weights.blk[0].tensors)
    _, old, weights = loaded(tiny_file("deepseek2-old"))
    assert (old.n_embd_cache, old.n_embd_q, old.n_embd_out) == (4 * (48 + 32), 4 * 48, 4 * 32)
    assert {"attn_kv_b.weight", "attn_q.weight"} < set(weights.blk[0].tensors)


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("deepseek2", {"attention.kv_lora_rank": None}, "kv_lora_rank is missing"),
        ("deepseek2", {"attention.kv_lora_rank": 32}, "key_length is 80 .* must be 48, which follows"),
        ("deepseek2", {"attention.value_length": 32}, "value_length is 32 .* must be 64, which follows"),
        ("deepseek2", {"attention.head_count_kv": 4}, "head_count_kv is 4 .* must be 1, which follows"),
        ("deepseek2", {"attention.key_length_mla": 16}, "key_length_mla is 16 .* at least 17|from 17"),
        ("deepseek2", {"attention.value_length_mla": None}, "value_length_mla is missing"),
        ("deepseek2", {"attention.temperature_length": None}, "temperature_length is missing"),
        ("deepseek2", {"attention.q_lora_rank": 2.5}, "q_lora_rank is 2.5"),
        ("deepseek2-old", {"attention.head_count_kv": 1}, "head_count_kv is 1 .* must be 4, which follows"),
        ("deepseek2-old", {"attention.key_length": None}, "rope.dimension_count|key_length is missing"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(tiny_file, loaded, file, keys, message):
    with pytest.raises(GGUFError, match=message):
        loaded(tiny_file(file, keys))


@pytest.mark.parametrize(
    ("file", "tensor"),
    [("deepseek2", "attn_v_b"), ("deepseek2", "attn_q_a_norm"), ("deepseek2-old", "attn_q")],
)
def test_each_form_needs_its_own_tensors(tiny_file, loaded, file, tensor):
    path = tiny_file(file, tensors={f"blk.1.{tensor}.weight": None})
    with pytest.raises(GGUFError, match=rf"blk\.1\.{tensor}\.weight' is missing"):
        loaded(path)


@pytest.mark.parametrize("written", [0.1, 0.0707])
def test_the_scale_of_attention_grows_with_yarn_where_the_file_says_so(tiny_file, loaded, written):
    """As DeepSeek's own code has it: mscale^2 / sqrt(width), and rope turns without growth."""
    key = "rope.scaling.yarn_log_multiplier"
    arch, hparams, weights = loaded(tiny_file("deepseek2", {key: written}))
    mscale = written * math.log(4.0) + 1.0
    assert hparams.f_attention_scale == pytest.approx(mscale**2 / math.sqrt(48), rel=1e-6)
    assert Positions(arch, hparams, weights, 512).inputs(0, 1)["rope_cos"][0, 0] == 1.0
    arch, hparams, weights = loaded(tiny_file("deepseek2", {key: None}))
    assert Positions(arch, hparams, weights, 512).inputs(0, 1)["rope_cos"][0, 0] > 1.1


def test_queries_grow_after_each_stretch_of_positions(tiny_file, loaded):
    arch, hparams, weights = loaded(tiny_file("deepseek2"))
    factors = Positions(arch, hparams, weights, 512).inputs(18, 45)["inp_attn_scale"]
    assert factors.shape == (45, 1)
    expected = (
        [1.0] * 2
        + [1 + 0.25 * math.log(2)] * 20
        + [1 + 0.25 * math.log(3)] * 20
        + [1 + 0.25 * math.log(4)] * 3
    )
    np.testing.assert_allclose(factors[:, 0], expected, rtol=1e-6)


def test_a_vocabulary_may_tell_the_gating_of_files_that_do_not(tiny_file, loaded):
    path = tiny_file("deepseek2", {"expert_gating_func": None})
    _, hparams, _ = loaded(path)
    assert hparams.expert_gating_func is Gating.SOFTMAX
    _, hparams, _ = loaded(path, expert_gating_by_vocab={hparams.n_vocab: Gating.SIGMOID})
    assert hparams.expert_gating_func is Gating.SIGMOID
