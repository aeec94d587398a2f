// IQ3_XXS: 256 weights in 98 bytes: f16 d, 64 indices of entries of 4, and for each group of 32 weights a word with
// four times 7 signs and 4 bits of scale. Weight = d / 4 * (2 scale + 1) * sign * entry.
#include "blocks/codebook.cuh"

struct Block
{
    static constexpr int SIZE = 256, BYTES = 98, APART = 16, GROUP = 32, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = false;

    unsigned d, indices[2], signs[1];

    static __device__ __forceinline__ int first(int part) { return 32 * part; }

    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        d = load_u16(block);
        load_words<2>(block + 2 + 8 * part, indices);
        load_words<2>(block + 66 + 4 * part, signs);
    }

    __device__ __forceinline__ Part unpack(int part) const
    {
        Part result;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            unsigned of_8 = even_signs(signs[0] >> 7 * (i / 2));
            unsigned entry = codebook[byte_of(indices[i / 4], i % 4)];
            result.q[i / 4][i % 4] = negative_where(entry, of_8 >> 4 * (i % 2));
        }
        result.scale[0] = result.scale[1] = odd(signs[0] >> 28);
        result.d = low_f16(d) * 0.25f;
        return result;
    }
};

#include "blocks/dequantize.cuh"
