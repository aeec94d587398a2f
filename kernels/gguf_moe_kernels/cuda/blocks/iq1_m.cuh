// IQ1_M: 256 weights in 56 bytes: 32 bytes of indices of entries of 8, a nibble for each of them with 3 high bits and
// whether it is shifted down, and four u16 with 3 bits of scale for four groups of 16 weights and 4 bits of the f16 d.
// Weight = d / 8 * (2 scale + 1) * (8 entry +- 1).
#include "blocks/codebook.cuh"

struct Block
{
    static constexpr int SIZE = 256, BYTES = 56, APART = 16, GROUP = 16, OFFSET = 9;
    static constexpr bool HAS_MINIMUM = false;

    unsigned indices[1], high, scales[2];

    static __device__ __forceinline__ int first(int part) { return 32 * part; }

    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        load_words<4>(block + 4 * part, indices);
        high = load_u16(block + 32 + 2 * part);
        load_words<8>(block + 48, scales);
    }

    __device__ __forceinline__ Part unpack(int part) const
    {
        Part result;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned nibble = high >> 4 * i;
            unsigned index = byte_of(indices[0], i) | (nibble & 7) << 8;
            put_shifted_eight(result.q[i / 2], i % 2, index, nibble & 8);
        }
        unsigned of_four = scales[part / 4] >> 16 * (part / 2 % 2) >> 6 * (part % 2);
        result.scale[0] = odd(of_four & 7), result.scale[1] = odd(of_four >> 3 & 7);
        unsigned low = scales[0] >> 12 & 0xf | scales[0] >> 24 & 0xf0;
        unsigned upper = scales[1] >> 4 & 0xf00 | scales[1] >> 16 & 0xf000;
        result.d = low_f16(low | upper) * 0.125f;
        return result;
    }
};

#include "blocks/dequantize.cuh"
