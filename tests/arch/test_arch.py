"""What is read from a file for an architecture, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from gguf_moe.arch import ARCHS
from gguf_moe.arch.rope import rope_tables
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import GGUFError, UnsupportedModelError
from gguf_moe.graph.task import Kind
from gguf_moe.runtime.placement import cache_bytes
from gguf_moe_kernels.gating import Gating

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(ARCHS))
def test_an_architecture_stands_in_the_file_of_its_name(name):
    path = ROOT / "gguf_moe" / "arch" / f"{name.replace('-', '_')}.py"
    assert path.read_text().startswith(f'"""{name}: ')


def test_an_unknown_architecture_is_named_with_the_nearest_and_all(tmp_path, loaded):
    path = tmp_path / "unknown.gguf"
    writer = GGUFWriter(path, "qwen4exp")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(
        UnsupportedModelError, match=r"'qwen4exp' is not supported \(the nearest is 'qwen"
    ) as e:
        loaded(path)
    assert all(name in str(e.value) for name in ARCHS)
    assert str(path) in str(e.value)


def test_the_defaults_of_an_architecture_hold_where_the_file_says_nothing(tiny_file, loaded):
    _, hparams, _ = loaded(tiny_file("glm4moe", {"expert_weights_norm": None, "expert_weights_scale": None}))
    assert hparams.expert_gating_func is Gating.SIGMOID
    assert not hparams.expert_weights_norm
    assert hparams.expert_weights_scale == 1.0


def test_nextn_layers_are_left_out(tiny_file, loaded):
    _, hparams, weights = loaded(tiny_file("glm4moe"))
    assert hparams.n_layer == len(weights.blk) == 3
    assert not [name for block in weights.blk for name in block.tensors if "nextn" in name]


@pytest.mark.parametrize("arch", ["qwen2moe", "qwen3moe", "mellum", "glm4moe"])
def test_experts_share_the_feed_forward_length_of_old_files(tiny_file, loaded, arch):
    _, hparams, _ = loaded(tiny_file(arch, {"expert_feed_forward_length": None}))
    assert hparams.n_ff_exp == 32  # feed_forward_length is 96, and 3 experts are used


def test_leading_blocks_are_dense_where_they_have_no_router(tiny_file, loaded):
    _, _, weights = loaded(tiny_file("dots1"))
    assert [block.experts is None for block in weights.blk] == [True, False, False]


def test_a_block_without_router_is_refused_where_none_may_be_dense(tiny_file, loaded):
    path = tiny_file("qwen3moe", tensors={"blk.1.ffn_gate_inp.weight": None})
    with pytest.raises(GGUFError, match=r"blk\.1\.ffn_gate_inp\.weight' is missing"):
        loaded(path)


def test_experts_are_required_where_no_block_may_be_dense(tiny_file, loaded):
    with pytest.raises(GGUFError, match=r"olmoe\.expert_count is 0"):
        loaded(tiny_file("olmoe", {"expert_count": 0, "expert_used_count": 0}))


def test_q_k_and_v_in_one_tensor_are_the_same_bytes(tiny_file, loaded):
    path = tiny_file("bailingmoe2")
    _, hparams, weights = loaded(path)
    with open_checkpoint(path) as checkpoint:
        whole = checkpoint.tensor("blk.1.attn_qkv.weight").data.tobytes()
    parts = [weights.blk[1][f"attn_{role}.weight"] for role in "qkv"]
    assert [part.shape for part in parts] == [(64, 64), (64, 32), (64, 32)]
    assert b"".join(part.data.tobytes() for part in parts) == whole
    assert parts[2].offset - parts[0].offset == 4 * 64 * (hparams.n_embd_q + hparams.n_embd_k_gqa)


def test_embeddings_of_each_layer_are_refused_by_their_key(tiny_file, loaded):
    path = tiny_file("gemma4", {"embedding_length_per_layer_input": 256})
    with pytest.raises(
        UnsupportedModelError, match=r"gemma4\.embedding_length_per_layer_input is 256: .* 26B-A4B"
    ):
        loaded(path)


@pytest.mark.parametrize("key", ["head_count", "head_count_kv"])
def test_numbers_of_heads_that_differ_by_layer_are_refused_where_the_architecture_has_one(
    tiny_file, loaded, key
):
    with pytest.raises(GGUFError, match=rf"attention\.{key} is .* the same for all layers"):
        loaded(tiny_file("qwen3moe", {f"attention.{key}": [2, 1, 2]}))
    _, hparams, _ = loaded(tiny_file("qwen3moe", {"attention.head_count_kv": [2, 2, 2]}))
    assert hparams.n_head_kv == 2


def test_a_tensor_that_the_architecture_lacks_is_refused(tiny_file, loaded):
    path = tiny_file("qwen2moe", tensors={"blk.0.attn_q.bias": "blk.0.attn_sinks.weight"})
    with pytest.raises(
        UnsupportedModelError, match=r"'blk\.0\.attn_sinks\.weight' is not known .*'qwen2moe'"
    ):
        loaded(path)


def test_a_shared_expert_is_complete_or_optional(tiny_file, loaded):
    path = tiny_file("deepseek", tensors={"blk.1.ffn_down_shexp.weight": None})
    with pytest.raises(GGUFError, match=r"blk\.1\.ffn_down_shexp\.weight' is missing"):
        loaded(path)
    names = [f"blk.{il}.ffn_{role}_shexp.weight" for il in (1, 2) for role in ("gate", "up", "down")]
    _, _, weights = loaded(tiny_file("ernie4_5-moe", tensors=dict.fromkeys(names)))
    assert not [name for block in weights.blk for name in block.tensors if "shexp" in name]
    path = tiny_file("ernie4_5-moe", tensors=dict.fromkeys(names[:2]))
    with pytest.raises(GGUFError, match=r"blk\.1\.ffn_gate_shexp\.weight' is missing"):
        loaded(path)


def test_shared_experts_of_different_widths_are_refused(tiny_file, loaded):
    path = tiny_file("deepseek", tensors={"blk.2.ffn_down_shexp.weight": np.zeros((64, 96))})
    with pytest.raises(GGUFError, match=r"blk\.2\.ffn_down_shexp\.weight' has the shape \[96, 64\]"):
        loaded(path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"expert_group_count": 5}, "expert_group_count is 5 .* a divisor of the 16 experts"),
        ({"expert_group_count": 16}, "expert_group_count is 16 .* with 2 or more each"),
        ({"expert_group_used_count": None}, "expert_group_used_count is missing"),
        ({"expert_group_used_count": 5}, "expert_group_used_count is 5 .* from 1 to 4"),
        ({"expert_group_used_count": 1, "expert_used_count": 5}, "used_count is 1 .* from 2 to 4"),
        ({"expert_gating_func": 9}, "expert_gating_func is 9"),
    ],
)
def test_wrong_groups_are_refused(tiny_file, loaded, keys, message):
    with pytest.raises(GGUFError, match=message):
        loaded(tiny_file("bailingmoe2", keys))


@pytest.mark.parametrize(
    ("keys", "is_swa"),
    [
        ({}, (True, False, True)),
        ({"attention.sliding_window_pattern": None}, (True, True, True)),
        ({"attention.sliding_window_pattern": 2}, (True, False, True)),
        ({"attention.sliding_window_pattern": 0}, (True, True, True)),
        ({"attention.sliding_window": 0}, (False, False, False)),
        ({"attention.sliding_window": None}, (False, False, False)),
    ],
)
def test_layers_with_a_sliding_window(tiny_file, loaded, keys, is_swa):
    arch, hparams, weights = loaded(tiny_file("mellum", keys))
    assert hparams.is_swa == is_swa
    tables = rope_tables(arch, hparams, weights, 512)
    assert ("rope" in tables, "rope_swa" in tables) == (not all(is_swa), any(is_swa))


def test_a_pattern_of_another_length_is_refused(tiny_file, loaded):
    with pytest.raises(GGUFError, match=r"sliding_window_pattern is an arr.* an array of 3"):
        loaded(tiny_file("mellum", {"attention.sliding_window_pattern": [True, False]}))


def test_a_sliding_window_counts_only_where_the_architecture_has_one(tiny_file, loaded):
    _, hparams, _ = loaded(tiny_file("phimoe", {"attention.sliding_window": 16}))
    assert not any(hparams.is_swa)


def test_layers_with_a_window_have_their_own_rope(tiny_file, loaded):
    arch, hparams, weights = loaded(tiny_file("mellum", {"rope.freq_base_swa": 500.0}))
    cos, sin = rope_tables(arch, hparams, weights, 512)["rope_swa"].angles(3, 1)
    theta = 3 * 500.0 ** (-np.arange(16) / 16)
    np.testing.assert_allclose(cos[0], np.cos(theta), rtol=1e-5)  # neither YaRN nor its magnitude
    np.testing.assert_allclose(sin[0], np.sin(theta), rtol=1e-5, atol=1e-6)


def test_long_and_short_factors_follow_the_context(tiny_file, loaded):
    arch, hparams, weights = loaded(tiny_file("phimoe"))
    cos = {n: rope_tables(arch, hparams, weights, n)["rope"].angles(1, 1)[0] for n in (64, 128, 129, 512)}
    np.testing.assert_array_equal(cos[64], cos[128])
    np.testing.assert_array_equal(cos[129], cos[512])
    assert (cos[128] != cos[129]).any()


def test_all_types_without_kernels_are_named(tiny_file, loaded):
    path = tiny_file("qwen3moe")
    data = bytearray(path.read_bytes())
    for name, qtype in (
        (b"blk.0.attn_q.weight", 24),
        (b"blk.1.attn_k.weight", 26),
        (b"blk.2.attn_k.weight", 26),
    ):
        # The type stands behind the name, the number of dimensions and two dimensions.
        at = data.index(name) + len(name) + 4 + 2 * 8
        data[at : at + 4] = qtype.to_bytes(4, "little")
    path.write_bytes(data)
    expected = r"no kernels here for the types I32 \(2 tensors\), I8 \(1 tensors\) \(supported: BF16, F16"
    with pytest.raises(UnsupportedModelError, match=expected):
        loaded(path)


@pytest.mark.parametrize("tied", [False, True])
def test_bytes_per_token_count_the_chosen_experts_and_one_row_of_the_embeddings(tiny_file, loaded, tied):
    changes = {"output.weight": None} if tied else {}
    path = tiny_file("gpt-oss", tensors=changes)
    _, hparams, weights = loaded(path)
    used, expected = hparams.n_expert_used, 0
    for tensor in GGUFReader(path).tensors:
        if "_exps." in tensor.name:
            expected += tensor.n_bytes // hparams.n_expert * used
        elif tensor.name == "token_embd.weight" and not tied:
            expected += tensor.n_bytes // hparams.n_vocab
        else:
            expected += tensor.n_bytes
    assert 0 < used < hparams.n_expert
    assert weights.bytes_per_token(used) == expected


def test_bytes_per_token_of_a_dense_file_are_all_but_the_embeddings(tiny_gguf, loaded, tmp_path):
    path = tiny_gguf(tmp_path / "dense.gguf", n_expert=0)
    _, hparams, weights = loaded(path)
    sizes = {tensor.name: tensor.n_bytes for tensor in GGUFReader(path).tensors}
    embeddings = sizes.pop("token_embd.weight")
    assert weights.bytes_per_token(0) == sum(sizes.values()) + embeddings // hparams.n_vocab


def test_heads_differ_by_layer(tiny_file, loaded):
    _, hparams, weights = loaded(tiny_file("gemma4"))
    layers = [hparams.of_layer(il) for il in range(3)]
    assert [hp.n_head_kv for hp in layers] == [2, 1, 2]
    assert [hp.n_embd_head_k for hp in layers] == [16, 32, 16]
    assert [hp.n_rot for hp in layers] == [16, 32, 16]
    assert [hparams.kv_layer(il) for il in range(3)] == [0, 1, 0]
    assert "attn_k.weight" not in weights.blk[2].tensors
    per_position = 2 * 2 * 16 + 2 * 1 * 32
    assert cache_bytes(hparams, 10, Kind.F32) == 10 * per_position * 4


@pytest.mark.parametrize("n", [2, 3, 50])
def test_layers_that_share_keys_need_one_of_each_kind_before_them(tiny_file, loaded, n):
    with pytest.raises(GGUFError, match=rf"shared_kv_layers is {n} "):
        loaded(tiny_file("gemma4", {"attention.shared_kv_layers": n}))
    _, hparams, _ = loaded(tiny_file("mellum", {"attention.shared_kv_layers": n}))
    assert hparams.kv_layer(2) == 2


def test_scales_belong_to_matrices(tiny_file, loaded):
    _, _, weights = loaded(tiny_file("qwen3moe-nvfp4", tensors={"blk.0.attn_k.scale": np.float32([0.5])}))
    assert weights.scales["blk.0.attn_k.weight"] == 0.5
    assert "blk.0.ffn_down_exps.scale" not in weights.scales
    assert weights.blk[0]["ffn_down_exps.scale"].shape == (8,)
    _, _, weights = loaded(tiny_file("qwen3moe", tensors={"blk.0.attn_k.input_scale": np.ones(1)}))
    assert not weights.scales


@pytest.mark.parametrize(
    ("arch", "name", "scale", "message"),
    [
        ("qwen3moe", "blk.0.attn_k.scale", np.ones(2), r"attn_k\.scale' has the shape \[2\]"),
        ("qwen3moe", "blk.0.attn_norm.scale", np.ones(1), r"attn_norm\.scale' is not known"),
        ("qwen3moe", "blk.0.ffn_gate_inp.scale", np.ones(64), r"ffn_gate_inp\.scale' is not known"),
        ("qwen3moe", "token_embd.scale", np.ones(1), r"token_embd\.scale' is not known"),
        ("qwen2moe", "blk.0.attn_k.scale", np.ones(1), "has a scale and a bias"),
    ],
)
def test_other_scales_are_refused(tiny_file, loaded, arch, name, scale, message):
    with pytest.raises((GGUFError, UnsupportedModelError), match=message):
        loaded(tiny_file(arch, tensors={name: scale}))
