// Q4_0: 32 weights in 18 bytes: f16 d, 16 bytes whose low nibbles are the first 16 weights. weight = d * (q - 8).
#include "blocks/block.cuh"

struct Block
{
    static constexpr int SIZE = 32, BYTES = 18, APART = 16, GROUP = 32, OFFSET = 8;
    static constexpr bool HAS_MINIMUM = false;

    unsigned d, quants[4];

    static __device__ __forceinline__ int first(int) { return 0; }

    __device__ __forceinline__ void load(const unsigned char *block, int)
    {
        d = load_u16(block);
        load_words<2>(block + 2, quants);
    }

    __device__ __forceinline__ Part unpack(int) const
    {
        Part result;
        unpack_nibbles(quants, result);
        one_group(result, low_f16(d));
        return result;
    }
};

#include "blocks/dequantize.cuh"
