// IQ2_S: 256 weights in 82 bytes: f16 d, 32 bytes of indices of entries of 8, 32 of signs, 8 with 2 high bits for each
// index, 8 with a nibble of scale for each group of 16 weights. Weight = d / 8 * (2 scale + 1) * sign * entry.
#include "blocks/codebook.cuh"

struct Block
{
    static constexpr int SIZE = 256, BYTES = 82, APART = 16, GROUP = 16, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = false;

    unsigned d, indices[1], signs[1], high, scales;

    static __device__ __forceinline__ int first(int part) { return 32 * part; }

    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        d = load_u16(block);
        load_words<2>(block + 2 + 4 * part, indices);
        load_words<2>(block + 34 + 4 * part, signs);
        high = __ldg(block + 66 + part), scales = __ldg(block + 74 + part);
    }

    __device__ __forceinline__ Part unpack(int part) const
    {
        Part result;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned index = byte_of(indices[0], i) | (high >> 2 * i & 3) << 8;
            put_eight(result.q[i / 2], i % 2, index, byte_of(signs[0], i));
        }
        result.scale[0] = odd(scales & 15), result.scale[1] = odd(scales >> 4);
        result.d = low_f16(d) * 0.125f;
        return result;
    }
};

#include "blocks/dequantize.cuh"
