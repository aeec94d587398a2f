// The fifth bits of Q5_0 and Q5_1: bit i belongs to weight i of the block.
#include "blocks/block.cuh"

__device__ __forceinline__ void add_fifth_bits(unsigned bits, Part &part)
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        // The product has bit k of four at 8 k.
        unsigned spread = (bits >> 4 * i & 15) * 0x00204081 & 0x01010101;
        part.q[i / 4][i % 4] |= spread << 4;
    }
}
