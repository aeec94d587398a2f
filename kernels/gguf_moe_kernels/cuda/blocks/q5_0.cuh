// Q5_0: 32 weights in 22 bytes: f16 d, 4 bytes of fifth bits, 16 bytes whose low nibbles are the first 16 weights.
// weight = d * (q - 16).
#include "blocks/fifth_bits.cuh"

struct Block
{
    static constexpr int SIZE = 32, BYTES = 22, APART = 16, GROUP = 32, OFFSET = 16;
    static constexpr bool HAS_MINIMUM = false;

    unsigned d, words[5];

    static __device__ __forceinline__ int first(int) { return 0; }

    __device__ __forceinline__ void load(const unsigned char *block, int)
    {
        d = load_u16(block);
        load_words<2>(block + 2, words);
    }

    __device__ __forceinline__ Part unpack(int) const
    {
        Part result;
        unpack_nibbles(words + 1, result);
        add_fifth_bits(words[0], result);
        one_group(result, low_f16(d));
        return result;
    }
};

#include "blocks/dequantize.cuh"
