// IQ1_S: 256 weights in 50 bytes: f16 d, 32 bytes of indices of entries of 8, and for each group of 32 weights an u16
// with 3 high bits for each of four indices, 3 bits of scale, and whether it is shifted down.
// Weight = d / 8 * (2 scale + 1) * (8 entry +- 1).
#include "blocks/codebook.cuh"

struct Block
{
    static constexpr int SIZE = 256, BYTES = 50, APART = 16, GROUP = 32, OFFSET = 9;
    static constexpr bool HAS_MINIMUM = false;

    unsigned d, indices[1], high;

    static __device__ __forceinline__ int first(int part) { return 32 * part; }

    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        d = load_u16(block);
        load_words<2>(block + 2 + 4 * part, indices);
        high = load_u16(block + 34 + 2 * part);
    }

    __device__ __forceinline__ Part unpack(int part) const
    {
        Part result;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned index = byte_of(indices[0], i) | (high >> 3 * i & 7) << 8;
            put_shifted_eight(result.q[i / 2], i % 2, index, high >> 15);
        }
        result.scale[0] = result.scale[1] = odd(high >> 12 & 7);
        result.d = low_f16(d) * 0.125f;
        return result;
    }
};

#include "blocks/dequantize.cuh"
