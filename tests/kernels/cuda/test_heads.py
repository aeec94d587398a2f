"""Matrices of heads: the CUDA kernels against the reference, bit for bit."""

import numpy as np
import pytest
from weight_rows import random_activations, random_rows

from gguf_moe_kernels import structs
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import matmul

N_HEAD, N_OUT = 3, 19


@pytest.mark.parametrize("qtype", [GGMLType.F32, GGMLType.Q8_0, GGMLType.Q4_K], ids=lambda q: q.name)
@pytest.mark.parametrize("rows", [1, 6])
def test_each_head_meets_its_own_matrix(rng, call, assert_same_bits, qtype, rows):
    n = 256
    weight = random_rows(rng, qtype, N_HEAD * N_OUT, n)
    x = random_activations(rng, qtype, rows * N_HEAD, n)
    out, expected = (
        np.full((rows, N_HEAD, N_OUT), np.nan, np.float32),
        np.zeros((rows, N_HEAD, N_OUT), np.float32),
    )
    matmul.matmul_heads(qtype, weight.reshape(N_HEAD, N_OUT, -1), x.reshape(rows, N_HEAD, -1), expected)
    sizes = {
        "row_size": weight.shape[1],
        "n_out": N_OUT,
        "n_in": n,
        "n_head": N_HEAD,
        "x_stride": x.strides[0],
    }
    unused = {"tile": 0, "chunk_rows": 0, "n_threads": 0}
    call(
        f"matmul.matmul_heads_{qtype.name.lower()}",
        structs.MATMUL_HEADS,
        weight=weight,
        x=x,
        out=out,
        rows=rows,
        **sizes,
        **unused,
    )
    assert_same_bits(out, expected)
