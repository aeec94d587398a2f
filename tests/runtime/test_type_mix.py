"""A "dynamic" mix: each tensor has a type of its own, and gate, up and down of one layer differ."""

import contextlib

import numpy as np

from gguf_moe.checkpoint import open_checkpoint
from gguf_moe_kernels.quants import GGMLType as T

# In the order of the file: embeddings; q, k, v, output, gate, up, down of each layer. Last: the output.
MIX = (
    *(T.Q4_K, T.Q5_K, T.Q8_0, T.IQ4_XS, T.Q6_K, T.IQ2_XXS, T.IQ1_M, T.IQ3_S),
    *(T.Q5_K, T.Q6_K, T.F16, T.IQ3_XXS, T.IQ2_S, T.NVFP4, T.TQ1_0, T.Q6_K),
)
IDS = [1, 260, 17, 99, 261]


def test_a_dynamic_mix_gives_the_same_bits_in_all_ways(tmp_path, tiny_gguf, crew_context, inline_context):
    path = tiny_gguf(tmp_path / "mix.gguf", qtypes=MIX)
    with open_checkpoint(path) as checkpoint:
        used = [
            [checkpoint.tensor(f"blk.{il}.ffn_{name}_exps.weight").qtype for name in ("gate", "up", "down")]
            for il in range(2)
        ]
    assert used == [[T.IQ2_XXS, T.IQ1_M, T.IQ3_S], [T.IQ2_S, T.NVFP4, T.TQ1_0]]
    with contextlib.closing(inline_context(path)) as context:
        oracle = context.extend(IDS, 5).copy()
    assert np.isfinite(oracle).all()
    for n_threads, n_batch in ((1, 8), (3, 2)):
        with crew_context(path, n_threads, n_batch=n_batch) as context:
            np.testing.assert_array_equal(context.extend(IDS, 5), oracle)
