// MXFP4: 32 weights in 17 bytes: the exponent e, 16 bytes whose low nibbles are the first 16 weights; they stand for a
// table of doubled E2M1 values, so d = 2^(e - 128).
#include "blocks/nibble_table.cuh"

struct Block
{
    static constexpr int SIZE = 32, BYTES = 17, APART = 16, GROUP = 32, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = false;

    unsigned exponent, quants[4];

    static __device__ __forceinline__ int first(int) { return 0; }

    __device__ __forceinline__ void load(const unsigned char *block, int)
    {
        exponent = __ldg(block);
        load_words<1>(block + 1, quants);
    }

    __device__ __forceinline__ Part unpack(int) const
    {
        Part result;
        look_up_nibbles(quants, MXFP4_VALUES, result);
        // The two smallest are subnormal.
        one_group(result, __uint_as_float(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23));
        return result;
    }
};

#include "blocks/dequantize.cuh"
