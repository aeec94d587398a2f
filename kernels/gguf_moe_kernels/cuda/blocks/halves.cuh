// The order of Q2_K, Q3_K and Q6_K: a half of 128 weights has 32 bytes that hold two bits of each. Byte j has
// those of the weights j, j + 32, j + 64 and j + 96, lowest first. A part is the first or second 16 of 32 such
// bytes, and of their weights one run of the lower and one of the upper 64.
#include "blocks/block.cuh"

__device__ __forceinline__ int half_of(int part)
{
    return part / 4;
}

// Which 16 of the half's 32 bytes, in bytes.
__device__ __forceinline__ int bytes_of(int part)
{
    return part % 2 * 16;
}

// The place of the first run's two bits in its bytes; those of the second run are 4 higher.
__device__ __forceinline__ int bit_of(int part)
{
    return part % 4 / 2 * 2;
}

__device__ __forceinline__ int first_in_halves(int part)
{
    return 128 * half_of(part) + 16 * (part % 4);
}
