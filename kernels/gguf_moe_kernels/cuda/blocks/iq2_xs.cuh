// IQ2_XS: 256 weights in 74 bytes: f16 d, 32 u16 with 9 bits of index and 7 signs for 8 weights each, 8 bytes with a
// nibble of scale for each group of 16 weights. Weight = d / 8 * (2 scale + 1) * sign * entry.
#include "blocks/codebook.cuh"

struct Block
{
    static constexpr int SIZE = 256, BYTES = 74, APART = 16, GROUP = 16, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = false;

    unsigned d, words[2], scales;

    static __device__ __forceinline__ int first(int part) { return 32 * part; }

    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        d = load_u16(block);
        load_words<2>(block + 2 + 8 * part, words);
        scales = __ldg(block + 66 + part);
    }

    __device__ __forceinline__ Part unpack(int part) const
    {
        Part result;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned word = words[i / 2] >> 16 * (i % 2) & 0xffff;
            put_eight(result.q[i / 2], i % 2, word & 511, even_signs(word >> 9));
        }
        result.scale[0] = odd(scales & 15), result.scale[1] = odd(scales >> 4);
        result.d = low_f16(d) * 0.125f;
        return result;
    }
};

#include "blocks/dequantize.cuh"
