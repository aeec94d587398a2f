// Q2_K: 256 weights in 84 bytes: 16 bytes with a scale in the low and a minimum in the high nibble, for groups
// of 16 weights, 64 bytes of 2 bits, f16 d, f16 dmin.
#include "blocks/halves.cuh"

struct Block
{
    static constexpr int SIZE = 256, BYTES = 84, APART = 64, GROUP = 16, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = true;

    unsigned quants[4], scales[2], d;

    static __device__ __forceinline__ int first(int part) { return first_in_halves(part); }

    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        load_words<4>(block + 16 + 32 * half_of(part) + bytes_of(part), quants);
        const unsigned char *group = block + first(part) / 16;
        scales[0] = __ldg(group), scales[1] = __ldg(group + 4);
        d = load_u32(block + 80);
    }

    __device__ __forceinline__ Part unpack(int part) const
    {
        Part result;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned bits = quants[i] >> bit_of(part);
            result.q[0][i] = bits & 0x03030303;
            result.q[1][i] = bits >> 4 & 0x03030303;
        }
#pragma unroll
        for (int run = 0; run < 2; run++) {
            result.scale[run] = scales[run] & 15;
            result.minimum[run] = scales[run] >> 4;
        }
        result.d = low_f16(d), result.dmin = high_f16(d);
        return result;
    }
};

#include "blocks/dequantize.cuh"
