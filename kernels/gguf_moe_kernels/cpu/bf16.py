"""BF16: the upper half of a float32; the weights meet float32 activations."""

from __future__ import annotations

from gguf_moe_kernels.cpu.compile import kernel
from gguf_moe_kernels.cpu.dot import make_dot_float
from gguf_moe_kernels.cpu.memory import load_bf16, store_f32
from gguf_moe_kernels.cpu.tile import make_float_tile
from gguf_moe_kernels.cpu.vector import load_bf16x32

tile = make_float_tile(make_dot_float(load_bf16x32, load_bf16, 2))


@kernel
def dequantize(row, out, n):
    for i in range(n):
        store_f32(out, 4 * i, load_bf16(row, 2 * i))
    return 0
