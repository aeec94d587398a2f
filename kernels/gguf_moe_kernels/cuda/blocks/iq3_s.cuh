// IQ3_S: 256 weights in 110 bytes: f16 d, 64 bytes of indices of entries of 4, 8 with their ninth bits, 32 of signs, 4
// with a nibble of scale for each group of 32 weights. Weight = d * (2 scale + 1) * sign * entry.
#include "blocks/codebook.cuh"

struct Block
{
    static constexpr int SIZE = 256, BYTES = 110, APART = 16, GROUP = 32, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = false;

    unsigned d, indices[2], signs[1], high, scales;

    static __device__ __forceinline__ int first(int part) { return 32 * part; }

    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        d = load_u16(block);
        load_words<2>(block + 2 + 8 * part, indices);
        load_words<2>(block + 74 + 4 * part, signs);
        high = __ldg(block + 66 + part), scales = __ldg(block + 106 + part / 2);
    }

    __device__ __forceinline__ Part unpack(int part) const
    {
        Part result;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            unsigned index = byte_of(indices[i / 4], i % 4) | (high >> i & 1) << 8;
            result.q[i / 4][i % 4] = negative_where(codebook[index], signs[0] >> 4 * i);
        }
        result.scale[0] = result.scale[1] = odd(scales >> 4 * (part % 2) & 15);
        result.d = low_f16(d);
        return result;
    }
};

#include "blocks/dequantize.cuh"
