// Q4_K: 256 weights in 144 bytes: f16 d, f16 dmin, 12 bytes of scales and minimums, 128 nibble bytes.
// Groups 2i and 2i + 1 of 32 weights are the low and the high nibbles of the i-th 32 bytes.
#include "blocks/six_bits.cuh"

struct Block
{
    static constexpr int SIZE = 256, BYTES = 144, APART = 32, GROUP = 32, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = true;

    unsigned header[4], quants[4];

    static __device__ __forceinline__ int first(int part) { return 64 * (part / 2) + 16 * (part % 2); }

    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        load_words<16>(block, header);
        load_words<16>(block + 16 + 16 * part, quants);
    }

    __device__ __forceinline__ Part unpack(int part) const
    {
        Part result;
        unpack_six_bits(header, part / 2, result);
        unpack_nibbles(quants, result);
        return result;
    }
};

#include "blocks/dequantize.cuh"
