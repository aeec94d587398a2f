"""Files with recurrent layers: their numbers, the forms of their tensors, and the rope of their attention."""

import numpy as np
import pytest
from gguf import GGUFReader

from gguf_moe.arch import find_arch
from gguf_moe.arch.hparams import read_hparams
from gguf_moe.arch.model import read_model
from gguf_moe.arch.rope import rope_tables
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import GGUFError
from gguf_moe.graph.task import Kind

TOKENS = [3, 141, 59, 26, 5, 35, 89, 79, 32]


def read(path):
    """The architecture, the numbers and the names of the tensors of each block."""
    with open_checkpoint(path) as checkpoint:
        arch, hparams, weights = read_model(checkpoint)
        return arch, hparams, weights


def logits(context, path):
    with context(path, 2, kv_kind=Kind.F32) as context:
        return context.extend(TOKENS, len(TOKENS)).copy()


@pytest.mark.parametrize(
    ("arch", "keys", "is_recr"),
    [
        ("qwen3next", {}, (True, False, True)),
        ("qwen3next", {"full_attention_interval": 3}, (True, True, False)),
        ("qwen3next", {"full_attention_interval": 1}, (False, False, False)),
        ("qwen35moe", {"attention.recurrent_layers": [True, True, False, False]}, (True, True, False)),
        (
            "qwen35moe",
            {"attention.recurrent_layers": None, "full_attention_interval": 2},
            (True, False, True),
        ),
    ],
)
def test_which_layers_are_recurrent(tiny_file, arch, keys, is_recr):
    with open_checkpoint(tiny_file(arch, keys)) as checkpoint:
        hparams = read_hparams(checkpoint.metadata, find_arch(checkpoint.metadata))
    assert hparams.is_recr == is_recr
    assert len(hparams.kv_layers) == is_recr.count(False)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attention.recurrent_layers": [True] * 4}, "one layer at least is not recurrent"),
        ({"attention.recurrent_layers": [True, False]}, "an array of 4, one for each layer"),
        ({"attention.recurrent_layers": None, "full_attention_interval": 4}, "interval is 4 .* from 1 to 3"),
        ({"ssm.time_step_rank": 3}, "time_step_rank is 3 .* a multiple of the 2 groups"),
        ({"ssm.inner_size": 32}, "inner_size is 32 .* 64, the width of 4 heads of 16"),
        ({"ssm.conv_kernel": 1}, "conv_kernel is 1 .* from 2"),
        ({"ssm.state_size": None}, "state_size is missing"),
        ({"attention.value_length": 16}, "value_length is 16 .* the same for keys and values"),
        ({"rope.dimension_sections": [4, 2, 2]}, "dimension_sections is .* an array of four numbers"),
        ({"rope.dimension_sections": [0, 0, 0, 0]}, "together from 1 to 16"),
    ],
)
def test_wrong_numbers_are_refused(tiny_file, keys, message):
    with pytest.raises(GGUFError, match=message):
        read(tiny_file("qwen35moe", keys))


def test_layers_have_the_tensors_of_their_kind(tiny_file):
    _, _, weights = read(tiny_file("qwen35moe"))
    assert ["ssm_a" in block.tensors for block in weights.blk] == [True, False, True]
    assert ["attn_q.weight" in block.tensors for block in weights.blk] == [False, True, False]


def test_a_convolution_is_f32(tiny_file):
    path = tiny_file("qwen3next")
    data = bytearray(path.read_bytes())
    name = b"blk.0.ssm_conv1d.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # behind the number of dimensions and two of them
    data[at : at + 4] = (1).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(GGUFError, match=r"ssm_conv1d\.weight is stored as F16, but vectors and convolutions"):
        read(path)


def by_group(qkv, z, n_group):
    """The rows of the older tensor ssm_in: for each group its query, its key, its values and their gate."""
    n_key = (len(qkv) - len(z)) // 2
    parts = (qkv[:n_key], qkv[n_key : 2 * n_key], qkv[2 * n_key :], z)
    return np.concatenate([part.reshape(n_group, -1, part.shape[1]) for part in parts], axis=1).reshape(
        -1, qkv.shape[1]
    )


def test_files_with_one_matrix_for_the_whole_input(tiny_file, crew_context, assert_same_bits):
    path = tiny_file("qwen3next")
    expected = logits(crew_context, path)
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    changes = {}
    for il in (0, 2):
        names = [f"blk.{il}.attn_qkv.weight", f"blk.{il}.attn_gate.weight"]
        changes |= dict.fromkeys(names)
        changes[f"blk.{il}.ssm_in.weight"] = by_group(*(tensors[name] for name in names), n_group=2)
    assert_same_bits(logits(crew_context, tiny_file("qwen3next", tensors=changes)), expected)


def test_queries_with_gates_keys_and_values_in_one_tensor(tiny_file, crew_context, assert_same_bits):
    path = tiny_file("qwen3next")
    expected = logits(crew_context, path)
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    names = [f"blk.1.attn_{role}.weight" for role in "qkv"]
    whole = np.concatenate([tensors[name] for name in names])
    path = tiny_file("qwen3next", tensors={**dict.fromkeys(names), "blk.1.attn_qkv.weight": whole})
    assert_same_bits(logits(crew_context, path), expected)


@pytest.mark.parametrize(
    ("sections", "still"),
    [([3, 3, 2, 0], []), ([3, 2, 2, 1], [7]), ([1, 1, 1, 0], []), ([1, 0, 0, 1], [1, 3, 5, 7])],
)
def test_pairs_of_the_fourth_coordinate_are_not_turned(tiny_file, sections, still):
    arch, hparams, weights = read(tiny_file("qwen35moe", {"rope.dimension_sections": sections}))
    cos, sin = rope_tables(arch, hparams, weights, 64)["rope"].angles(5, 1)
    theta = 5 * 10000.0 ** (-np.arange(8) / 8)
    theta[still] = 0.0
    np.testing.assert_allclose(cos[0], np.cos(theta), rtol=1e-5)
    np.testing.assert_allclose(sin[0], np.sin(theta), rtol=1e-5)
