"""Any value of any key gives a model or one clear error, never another exception."""

import numpy as np
import pytest

from gguf_moe.arch import ARCHS, find_arch
from gguf_moe.arch.hparams import read_hparams
from gguf_moe.arch.rope import rope_tables
from gguf_moe.arch.weights import load_weights
from gguf_moe.checkpoint import Metadata, open_checkpoint
from gguf_moe.errors import GGUFMoeError
from gguf_moe.graph.decoder import build_graph
from gguf_moe.graph.task import Kind

KEYS = """attention.key_length_swa attention.scale attention.shared_kv_layers attention.sliding_window
    attention.sliding_window_pattern attention.value_length_swa embedding_scale final_logit_softcapping
    expert_group_count expert_group_used_count expert_weights_scale logit_scale nextn_predict_layers
    residual_scale rope.dimension_count_swa
    rope.freq_base_swa rope.scaling.factor rope.scaling.original_context_length
    rope.scaling.type""".split()
VALUES = (
    (0, "u32"),
    (1, "u32"),
    (3, "u32"),
    (2**31, "u32"),
    (-5, "i32"),
    (1e-30, "f32"),
    (1e30, "f32"),
    (-1.0, "f32"),
    ("yarn", "str"),
    (True, "bool"),
    (np.array([1, 2, 3], np.int32), "arr[i32, 3]"),
    (np.array([True, False, True]), "arr[bool, 3]"),
)


def use(checkpoint, metadata):
    """Everything that is done with a file's numbers before it runs."""
    arch = find_arch(metadata)
    hparams = read_hparams(metadata, arch)
    weights = load_weights(checkpoint, arch, hparams)
    for table in rope_tables(arch, hparams, weights, 64).values():
        table.angles(0, 4)
    build_graph(arch, hparams, weights, n_tokens=4, n_ctx=64, kv_kind=Kind.F32)


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_any_value_is_used_or_refused(tiny_file, arch):
    with open_checkpoint(tiny_file(arch)) as checkpoint:
        good = checkpoint.metadata
        types = {key: good.type_name(key) for key in good}
        used, messages = 0, []
        for key in dict.fromkeys([*(key for key in good.arch), *KEYS]):
            for value, type_name in VALUES:
                changed = {f"{arch}.{key}": value, "general.architecture": arch}
                if key == "rope.scaling.factor":
                    changed[f"{arch}.rope.scaling.type"] = "yarn"
                names = types | {f"{arch}.{key}": type_name, f"{arch}.rope.scaling.type": "str"}
                checkpoint.metadata = Metadata(good.path, dict(good) | changed, names)
                try:
                    use(checkpoint, checkpoint.metadata)
                    used += 1
                except GGUFMoeError as e:
                    messages.append(str(e))
        assert used > 50
        assert len(messages) > 100
        assert all(str(good.path) in message for message in messages)
