// Q8_0: 32 weights in 34 bytes: f16 d, 32 int8.
#include "blocks/block.cuh"

struct Block
{
    static constexpr int SIZE = 32, BYTES = 34, APART = 16, GROUP = 32, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = false;

    unsigned d, quants[8];

    static __device__ __forceinline__ int first(int) { return 0; }

    __device__ __forceinline__ void load(const unsigned char *block, int)
    {
        d = load_u16(block);
        load_words<2>(block + 2, quants);
    }

    __device__ __forceinline__ Part unpack(int) const
    {
        Part result;
#pragma unroll
        for (int i = 0; i < 4; i++)
            result.q[0][i] = quants[i], result.q[1][i] = quants[4 + i];
        one_group(result, low_f16(d));
        return result;
    }
};

#include "blocks/dequantize.cuh"
