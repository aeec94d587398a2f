"""Fused launches: fewer of them, and not a bit of difference."""

import numpy as np
import pytest

from gguf_moe.graph.task import Kind, Rows
from gguf_moe.runtime.gpu import hybrid
from gguf_moe.runtime.gpu.fuse import fuse
from gguf_moe.runtime.gpu.ops import Launch
from gguf_moe_kernels import structs
from gguf_moe_kernels.quants import GGMLType

TOKENS = [3, 141, 59, 26, 5]


@pytest.fixture(scope="module")
def moe_file(tmp_path_factory, tiny_gguf):
    qtypes = (GGMLType.Q4_K, GGMLType.Q6_K)
    path = tmp_path_factory.mktemp("models") / "moe.gguf"
    return tiny_gguf(path, n_layer=3, n_expert=6, n_expert_used=3, seed=5, qtypes=qtypes)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.F32])
def test_it_changes_no_bit(hybrid_context, moe_file, monkeypatch, assert_same_bits, kind):
    results = []
    for is_fused in (True, False):
        monkeypatch.setattr(hybrid, "fuse", fuse if is_fused else lambda launches, n_tokens: launches)
        with hybrid_context(moe_file, 3, kv_kind=kind) as context:
            kernels = context._runner.kernels
            assert any(kernel.startswith("fused.") for kernel in kernels) == is_fused
            results.append(context.extend(TOKENS, len(TOKENS)).copy())
            results += [context.extend([token], 1).copy() for token in TOKENS]
    for fused, alone in zip(results[:6], results[6:], strict=True):
        assert_same_bits(fused, alone)


def launch(kernel, struct, after=(), **values):
    arguments = np.zeros((), struct)
    for name, value in values.items():
        arguments[name] = value
    return Launch(kernel, arguments, Rows.TOKENS, after)


def test_numbers_of_what_comes_behind_are_moved():
    launches = [
        launch("elementwise.rms_norm", structs.RMS_NORM, n_head=1, out=64, n=256),
        launch("activation.quantize_q8_k", structs.QUANTIZE, (0,), x=64, out=128),
        launch("activation.quantize_q8_0", structs.QUANTIZE, (0,), x=64, out=192),
        launch("matmul.matmul_q4_k", structs.MATMUL, (1,)),
        launch("elementwise.scale", structs.SCALE, (0, 2, 3)),
    ]
    fused = fuse(launches, 2)
    assert [(one.kernel, one.after) for one in fused] == [
        ("fused.norm_quantize", ()),
        ("matmul.matmul_q4_k", (0,)),
        ("elementwise.scale", (0, 1)),
    ]
    assert (fused[0].arguments["q8_k"], fused[0].arguments["q8_0"], fused[0].arguments["q8_1"]) == (
        128,
        192,
        0,
    )


def test_what_does_not_belong_together_stays_apart():
    launches = [
        launch("elementwise.rms_norm", structs.RMS_NORM, n_head=1, out=64, n=256),
        launch("activation.quantize_q8_k", structs.QUANTIZE, x=320, out=128),
        launch("elementwise.rms_norm", structs.RMS_NORM, n_head=2, out=64, n=128),
        launch("activation.quantize_q8_k", structs.QUANTIZE, x=64, out=128),
    ]
    assert fuse(launches, 1) == launches


@pytest.mark.parametrize("norms", [(), (100,), (100, 200)])
def test_rope_and_the_cache_are_one_launch_with_and_without_norms_of_heads(norms):
    launches = []
    for x, n_head in ((100, 8), (200, 2)):
        if x in norms:
            norm = dict(x=x, out=x, n=64, n_head=n_head, weight=x + 1, eps=1e-6)
            launches.append(launch("elementwise.rms_norm", structs.RMS_NORM, **norm))
        rope = dict(x=x, n_head=n_head, n_embd_head=64, n_rot=64)
        launches.append(launch("elementwise.rope", structs.ROPE, **rope))
    for x, cache in ((200, 1), (300, 2)):
        launches.append(launch("elementwise.kv_store_f16", structs.KV_STORE, x=x, n=128, cache=cache))
    (fused,) = fuse(launches, 1)
    assert fused.kernel == "fused.rope_store_f16"
    a = fused.arguments
    assert (a["q"], a["k"], a["v"]) == (100, 200, 300)
    assert (a["q_norm"], a["k_norm"]) == (101 if 100 in norms else 0, 201 if 200 in norms else 0)
