"""What each layer sees: windows that don't slide, layers without rope, and queries that grow."""

import math

import numpy as np
import pytest

from gguf_moe.arch.positions import Positions
from gguf_moe.errors import GGUFError
from gguf_moe.graph.decoder import build_graph
from gguf_moe.graph.task import Kind, Op
from gguf_moe_kernels.gating import Gating


@pytest.mark.parametrize("window", [None, 4096])
def test_of_four_layers_three_see_a_stretch_and_one_has_no_rope(tiny_file, loaded, window):
    _, hparams, weights = loaded(tiny_file("llama4", {"attention.sliding_window": window}))
    assert hparams.n_swa == 8192
    assert hparams.is_swa == hparams.has_rope == (True, True, True, False, True)
    assert [block.experts is None for block in weights.blk] == [True, False, True, False, True]


def test_a_file_without_windows_is_refused(tiny_file, loaded):
    with pytest.raises(GGUFError, match=r"sliding_window is 0 .* at least 1"):
        loaded(tiny_file("llama4", {"attention.sliding_window": 0}))


def test_angles_are_made_for_the_layers_that_turn(tiny_file, loaded):
    arch, hparams, weights = loaded(tiny_file("llama4"))
    growth = 1 + 0.1 * math.log(2)
    inputs = Positions(arch, hparams, weights, 512).inputs(8190, 3)
    assert set(inputs) == {"rope_swa_cos", "rope_swa_sin", "inp_attn_scale"}
    np.testing.assert_allclose(inputs["inp_attn_scale"][:, 0], [1, growth, growth], rtol=1e-6)


@pytest.mark.parametrize(("n_expert", "norms"), [(8, True), (128, False)])
def test_the_norm_of_queries_is_not_in_the_model_with_most_experts(tiny_file, loaded, n_expert, norms):
    tensors = {}
    for il in (1, 3):
        tensors[f"blk.{il}.ffn_gate_inp.weight"] = np.zeros((n_expert, 64))
        for role, shape in (("gate", (32, 64)), ("up", (32, 64)), ("down", (64, 32))):
            tensors[f"blk.{il}.ffn_{role}_exps.weight"] = np.zeros((n_expert, *shape))
    arch, hparams, weights = loaded(tiny_file("llama4", {"expert_count": n_expert}, tensors))
    graph = build_graph(arch, hparams, weights, n_tokens=1, n_ctx=8, kv_kind=Kind.F32)
    normed = [t.name for t in graph.tasks if t.op is Op.RMS_NORM and t.name.startswith("Qcur")]
    assert normed == [f"Qcur_normed-{il}" for il in (0, 1, 2, 4) if norms]


def test_the_gating_is_the_architectures_own(tiny_file, loaded):
    _, hparams, _ = loaded(tiny_file("llama4", {"expert_gating_func": 2}))
    assert hparams.expert_gating_func is Gating.SIGMOID_WEIGHT


def test_no_other_file_can_ask_for_it(tiny_file, loaded):
    path = tiny_file("dots1", {"expert_gating_func": -1 & 0xFFFFFFFF})
    with pytest.raises(GGUFError, match="must be one of 1, 2, 3"):
        loaded(path)
