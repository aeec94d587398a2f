"""F32: plain float32 weights; they meet float32 activations."""

from __future__ import annotations

from gguf_moe_kernels.cpu.compile import kernel
from gguf_moe_kernels.cpu.dot import dot_f32
from gguf_moe_kernels.cpu.memory import load_f32, store_f32
from gguf_moe_kernels.cpu.tile import make_float_tile

tile = make_float_tile(dot_f32)


@kernel
def dequantize(row, out, n):
    for i in range(n):
        store_f32(out, 4 * i, load_f32(row, 4 * i))
    return 0
