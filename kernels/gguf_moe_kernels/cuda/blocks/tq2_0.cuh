// TQ2_0: 256 weights in 66 bytes: 64 bytes of 2 bits, f16 d. Weight = d * (q - 1).
#include "blocks/halves.cuh"

struct Block
{
    static constexpr int SIZE = 256, BYTES = 66, APART = 64, GROUP = 32, OFFSET = 1;
    static constexpr bool HAS_MINIMUM = false;

    unsigned d, quants[4];

    static __device__ __forceinline__ int first(int part) { return first_in_halves(part); }

    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        load_words<2>(block + 32 * half_of(part) + bytes_of(part), quants);
        d = load_u16(block + 64);
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
        one_group(result, low_f16(d));
        return result;
    }
};

#include "blocks/dequantize.cuh"
