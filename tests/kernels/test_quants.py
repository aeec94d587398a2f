"""Every tensor type: dequantization, and the tile against the reference, bit for bit."""

import ctypes
import mmap
import sys

import gguf
import numpy as np
import pytest

from gguf_moe_kernels.activations import ACTIVATION_FORMAT, ActivationFormat
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import activations, matmul, quants

QTYPES = tuple(ACTIVATION_FORMAT)
QUANTIZED = [qtype for qtype in QTYPES if qtype not in quants.FLOAT_TYPES]
by_type = pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)


@pytest.fixture
def dequantize(call_kernel):
    def run(qtype, rows):
        n = rows.shape[1] // qtype.type_size * qtype.block_size
        out = np.full((len(rows), n), np.nan, np.float32)
        for row, result in zip(rows, out, strict=True):
            call_kernel(f"{qtype.name.lower()}.dequantize", row, result, n)
        return out

    return run


@pytest.fixture
def tile(call_kernel):
    def run(qtype, rows, n, x, x_index=None):
        n_x = len(x) if x_index is None else len(x_index)
        out = np.full((n_x, len(rows)), np.nan, np.float32)
        index = 0 if x_index is None else x_index
        name = f"{qtype.name.lower()}.tile"
        call_kernel(name, rows, rows.shape[1], len(rows), n, x, x.strides[0], index, n_x, out, out.strides[0])
        return out

    return run


def activate(qtype, x):
    """x in the format that weights of this type meet."""
    activation = ACTIVATION_FORMAT[qtype]
    return x if activation is ActivationFormat.F32 else activations.quantize(activation, x)


def any_bytes(rng, qtype, n_rows, n):
    """Random bytes without NaN or infinity, which gguf and the kernels may spell differently."""
    rows = rng.integers(0, 256, (n_rows, qtype.row_size(n)), np.uint8)
    finite = np.isfinite(quants.dequantize(qtype, rows)).all(axis=1)
    return rows[finite]


@by_type
def test_dequantized_rows_equal_ggufs(rng, qtype, dequantize, random_rows, assert_same_bits):
    extra = any_bytes(rng, qtype, 200 if qtype.block_size > 1 else 0, qtype.block_size)
    for rows in (random_rows(rng, qtype, 5, 768), extra):
        with np.errstate(all="ignore"):
            expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(qtype))
        assert_same_bits(quants.dequantize(qtype, rows), expected)
        assert_same_bits(dequantize(qtype, rows), expected)


@by_type
@pytest.mark.parametrize(
    ("n_rows", "n_blocks", "n_x"),
    [
        *((1, 1, 1), (7, 3, 2), (5, 4, 17), (3, 6, 1), (7, 4, 1), (6, 8, 1), (9, 12, 1), (4, 28, 1)),
        *((9, 4, 2), (5, 2, 2), (7, 7, 3), (9, 5, 3), (6, 8, 4), (11, 3, 4), (6, 4, 5), (18, 4, 6)),
        *((5, 4, 65), (6, 3, 66), (7, 4, 67), (9, 4, 68)),
    ],
)
def test_tile_equals_the_reference(rng, qtype, n_rows, n_blocks, n_x, tile, random_rows, assert_same_bits):
    n = n_blocks * (qtype.block_size if qtype.block_size > 1 else 40)
    rows = random_rows(rng, qtype, n_rows, n)
    x = activate(qtype, rng.standard_normal((n_x, n), np.float32))
    assert_same_bits(tile(qtype, rows, n, x), matmul.tile(qtype, rows, x))


@pytest.fixture
def at_the_end_of_memory():
    """at_the_end_of_memory(array): the same bytes, and behind them memory that nobody may read."""
    pages = []

    def place(array):
        size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        pages.append(memory := mmap.mmap(-1, size + mmap.PAGESIZE))
        end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + size
        assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
        placed = np.frombuffer(memory, np.uint8, array.nbytes, size - array.nbytes).reshape(array.shape)
        placed[:] = array
        return placed

    return place


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect")
@by_type
@pytest.mark.parametrize("n_x", [1, 2, 3, 4])
@pytest.mark.parametrize(("n_rows", "n_blocks"), [(8, 3), (9, 1), (6, 6)])
def test_rows_for_a_few_tokens_depend_on_no_bytes_behind_them(
    rng, qtype, n_rows, n_blocks, n_x, tile, random_rows, assert_same_bits, at_the_end_of_memory
):
    n = n_blocks * qtype.block_size
    rows = random_rows(rng, qtype, n_rows, n)
    x = activate(qtype, rng.standard_normal((n_x, n), np.float32))
    expected = matmul.tile(qtype, rows, x)
    assert_same_bits(tile(qtype, at_the_end_of_memory(rows), n, x), expected)
    rows[1::2] = 0xFF  # most types' scales are no numbers then
    assert_same_bits(tile(qtype, rows, n, x)[:, ::2], expected[:, ::2])


@by_type
def test_tile_gathers_activations_by_index(rng, qtype, tile, random_rows, assert_same_bits):
    rows = random_rows(rng, qtype, 3, 512)
    x = activate(qtype, rng.standard_normal((4, 512), np.float32))
    index = np.array([3, 0, 3, 1, 2, 2], np.int32)
    assert_same_bits(tile(qtype, rows, 512, x, index), tile(qtype, rows, 512, x)[index])


@by_type
def test_tile_of_any_bytes_equals_the_reference(rng, qtype, tile, assert_same_bits):
    n = 2 * qtype.block_size if qtype.block_size > 1 else 72
    rows = rng.integers(0, 256, (64, qtype.row_size(n)), np.uint8)
    x = activate(qtype, rng.standard_normal((2, n), np.float32))
    assert_same_bits(tile(qtype, rows, n, x), matmul.tile(qtype, rows, x))


@by_type
def test_tile_is_near_the_truth(rng, qtype, tile, random_rows):
    rows = random_rows(rng, qtype, 64, 1024)
    x = rng.standard_normal((8, 1024), np.float32)
    truth = x.astype(np.float64) @ quants.dequantize(qtype, rows).astype(np.float64).T
    error = tile(qtype, rows, 1024, activate(qtype, x)) - truth
    assert np.mean(error**2) / np.mean(truth**2) <= (5e-4 if qtype in QUANTIZED else 1e-9)


@by_type
def test_zero_weights_and_zero_activations_give_zero(rng, qtype, tile, random_rows):
    zeros = np.zeros((3, qtype.row_size(512)), np.uint8)
    x = rng.standard_normal((2, 512), np.float32)
    assert not np.any(quants.dequantize(qtype, zeros))
    assert not np.any(tile(qtype, zeros, 512, activate(qtype, x)))
    rows = random_rows(rng, qtype, 3, 512)
    assert not np.any(tile(qtype, rows, 512, activate(qtype, np.zeros_like(x))))


# Scales of one byte that always give a number.
ALWAYS_NUMBERS = (GGMLType.MXFP4, GGMLType.NVFP4)


@pytest.mark.parametrize("qtype", [q for q in QTYPES if q not in ALWAYS_NUMBERS], ids=lambda q: q.name)
def test_a_weight_that_is_not_a_number_shows(rng, qtype, tile, dequantize, random_rows):
    rows = random_rows(rng, qtype, 2, 512)
    block = rows[0, qtype.row_size(512) - qtype.type_size :]
    scale = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208, "TQ1_0": 52, "TQ2_0": 64}.get(qtype.name, 0)
    nan = np.float32(np.nan) if qtype is GGMLType.F32 else np.float16(np.nan)
    if qtype is GGMLType.IQ1_M:
        block[49::2] = (block[49::2] & 15) | np.array(
            [0x00, 0x00, 0xE0, 0x70], np.uint8
        )  # 0x7E00, by nibbles
    else:
        block[scale : scale + nan.nbytes] = np.frombuffer(nan.tobytes(), np.uint8)
    if qtype is GGMLType.BF16:
        block[:] = (0xC0, 0x7F)
    assert np.isnan(dequantize(qtype, rows)[0]).any()
    result = tile(qtype, rows, 512, activate(qtype, rng.standard_normal((2, 512), np.float32)))
    assert np.isnan(result[:, 0]).all()
    assert np.isfinite(result[:, 1]).all()
