"""Random rows of weights and activations, for the tests of matrices."""

import numpy as np

from gguf_moe_kernels.activations import ACTIVATION_FORMAT, ActivationFormat
from gguf_moe_kernels.cuda import source
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import activations

QTYPES = [qtype for qtype in ACTIVATION_FORMAT if qtype.name.lower() in source.QTYPES]
D_OFFSETS = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_K": (0, 2), "Q5_K": (0, 2)}
D_OFFSETS |= {"Q4_1": (0, 2), "Q5_1": (0, 2), "TQ1_0": (52,), "TQ2_0": (64,), "NVFP4": ()}


def random_rows(rng, qtype, n_rows, n):
    """Random blocks whose scales are finite."""
    if ACTIVATION_FORMAT[qtype] is ActivationFormat.F32:
        x = rng.standard_normal((n_rows, n), np.float32)
        if qtype is GGMLType.BF16:
            return np.ascontiguousarray(x.view(np.uint16)[:, 1::2]).view(np.uint8)
        return x.astype(np.float16 if qtype is GGMLType.F16 else np.float32).view(np.uint8)
    blocks = rng.integers(0, 256, (n_rows, n // qtype.block_size, qtype.type_size), np.uint8)
    if qtype is GGMLType.MXFP4:
        blocks[..., 0] = rng.integers(110, 130, blocks.shape[:2])
        blocks[0, 0, 0], blocks[1, 0, 0] = 0, 1
    else:
        set_scales(blocks, qtype, rng.standard_normal)
    return blocks.reshape(n_rows, -1)


def set_scales(blocks, qtype, draw):
    """Write the float16 scales that draw(shape) gives into u8 blocks [n_rows, n_blocks, type_size]."""
    for offset in D_OFFSETS.get(qtype.name, (0,)):
        d = draw(blocks.shape[:2]).astype(np.float16)[..., None]
        if qtype is GGMLType.IQ1_M:  # four bits of d in each of the last four u16
            words = blocks[..., 48:].view(np.uint16) & 0xFFF
            words |= d.view(np.uint16) >> np.arange(0, 16, 4, dtype=np.uint16) << 12
            blocks[..., 48:] = words.view(np.uint8)
        else:
            blocks[..., offset : offset + 2] = d.view(np.uint8)


def random_activations(rng, qtype, n_rows, n):
    """Rows in the format that the type meets."""
    x = rng.standard_normal((n_rows, n), np.float32)
    activation = ACTIVATION_FORMAT[qtype]
    return x if activation is ActivationFormat.F32 else activations.quantize(activation, x)
