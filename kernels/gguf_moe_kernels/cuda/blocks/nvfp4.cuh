// NVFP4: 64 weights in 36 bytes, here two blocks of 32: four bytes of scales, one for 16 weights each, then 8 bytes of
// nibbles for each 16 weights, the first 8 of them low. They stand for MXFP4's table of doubled values. A scale has 4
// bits of exponent and 3 of mantissa; 0x7f is 0.
#include "blocks/nibble_table.cuh"

// Half of a scale.
__device__ __forceinline__ float half_of_scale(unsigned byte)
{
    return byte == 0x7f ? 0.0f : __fmul_rn(__uint_as_float((byte & 0x7f) << 20), 0x1p119f);
}

struct Block
{
    static constexpr int SIZE = 32, BYTES = 18, APART = 16, GROUP = 16, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = false;

    unsigned scales, quants[4];

    static __device__ __forceinline__ int first(int) { return 0; }

    __device__ __forceinline__ void load(const unsigned char *block, int half)
    {
        const unsigned char *whole = block - BYTES * half;
        scales = load_u16(whole + 2 * half);
        load_words<4>(whole + 4 + 16 * half, quants);
    }

    __device__ __forceinline__ Part unpack(int) const
    {
        Part mixed, result;
        look_up_nibbles(quants, MXFP4_VALUES, mixed);
#pragma unroll
        for (int i = 0; i < 8; i++)
            result.q[i / 4][i % 4] = mixed.q[i % 4 / 2][i / 4 * 2 + i % 2];
        one_group(result, half_of_scale(scales & 0xff));
        result.dmin = half_of_scale(scales >> 8);
        return result;
    }
};

#include "blocks/dequantize.cuh"
