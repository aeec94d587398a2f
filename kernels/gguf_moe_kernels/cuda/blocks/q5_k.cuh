// Q5_K: 256 weights in 176 bytes: f16 d, f16 dmin, 12 bytes of scales and minimums, 32 bytes of fifth bits,
// 128 nibble bytes. As Q4_K; bit j of the fifth bits' i-th byte belongs to the i-th weight of group j.
#include "blocks/six_bits.cuh"

struct Block
{
    static constexpr int SIZE = 256, BYTES = 176, APART = 32, GROUP = 32, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = true;

    unsigned header[4], fifth[4], quants[4];

    static __device__ __forceinline__ int first(int part) { return 64 * (part / 2) + 16 * (part % 2); }

    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        load_words<16>(block, header);
        load_words<16>(block + 16 + part % 2 * 16, fifth);
        load_words<16>(block + 48 + 16 * part, quants);
    }

    __device__ __forceinline__ Part unpack(int part) const
    {
        Part result;
        unpack_six_bits(header, part / 2, result);
        unpack_nibbles(quants, result);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned bits = fifth[i] >> part / 2 * 2;
            result.q[0][i] |= (bits & 0x01010101) << 4;
            result.q[1][i] |= (bits >> 1 & 0x01010101) << 4;
        }
        return result;
    }
};

#include "blocks/dequantize.cuh"
