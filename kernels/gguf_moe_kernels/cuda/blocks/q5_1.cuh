// Q5_1: 32 weights in 24 bytes: f16 d, f16 m, 4 bytes of fifth bits, 16 bytes whose low nibbles are the first 16
// weights. weight = d * q + m.
#include "blocks/fifth_bits.cuh"

struct Block
{
    static constexpr int SIZE = 32, BYTES = 24, APART = 16, GROUP = 32, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = true;

    unsigned words[6];

    static __device__ __forceinline__ int first(int) { return 0; }

    __device__ __forceinline__ void load(const unsigned char *block, int)
    {
        load_words<8>(block, words);
    }

    __device__ __forceinline__ Part unpack(int) const
    {
        Part result;
        unpack_nibbles(words + 2, result);
        add_fifth_bits(words[1], result);
        one_group(result, low_f16(words[0]), high_f16(words[0]));
        return result;
    }
};

#include "blocks/dequantize.cuh"
