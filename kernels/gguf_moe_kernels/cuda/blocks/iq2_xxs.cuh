// IQ2_XXS: 256 weights in 66 bytes: f16 d, then 8 bytes for each group of 32 weights: four indices of entries of 8,
// and a word with four times 7 signs and 4 bits of scale. Weight = d / 8 * (2 scale + 1) * sign * entry.
#include "blocks/codebook.cuh"

struct Block
{
    static constexpr int SIZE = 256, BYTES = 66, APART = 16, GROUP = 32, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = false;

    unsigned d, words[2];

    static __device__ __forceinline__ int first(int part) { return 32 * part; }

    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        d = load_u16(block);
        load_words<2>(block + 2 + 8 * part, words);
    }

    __device__ __forceinline__ Part unpack(int part) const
    {
        Part result;
#pragma unroll
        for (int i = 0; i < 4; i++)
            put_eight(result.q[i / 2], i % 2, byte_of(words[0], i), even_signs(words[1] >> 7 * i));
        result.scale[0] = result.scale[1] = odd(words[1] >> 28);
        result.d = low_f16(d) * 0.125f;
        return result;
    }
};

#include "blocks/dequantize.cuh"
