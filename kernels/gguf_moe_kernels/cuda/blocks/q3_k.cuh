// Q3_K: 256 weights in 110 bytes: 32 bytes of third bits (bit j of byte i: weight i of the j-th 32), 64 bytes of
// the low 2 bits, 12 bytes of 6-bit scales for groups of 16, f16 d.
// Scale s has 4 bits in byte s mod 8 (low nibbles: s < 8), its high 2 bits in byte 8 + s mod 4 at 2 (s / 4).
#include "blocks/halves.cuh"

struct Block
{
    static constexpr int SIZE = 256, BYTES = 110, APART = 64, GROUP = 16, OFFSET = 4;
    static constexpr bool HAS_MINIMUM = false;

    unsigned third[4], quants[4], low[2], high, d;

    static __device__ __forceinline__ int first(int part) { return first_in_halves(part); }

    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        load_words<2>(block + bytes_of(part), third);
        load_words<2>(block + 32 + 32 * half_of(part) + bytes_of(part), quants);
        const unsigned char *scales = block + 96 + part % 4;
        low[0] = __ldg(scales), low[1] = __ldg(scales + 4), high = __ldg(scales + 8);
        d = load_u16(block + 108);
    }

    __device__ __forceinline__ Part unpack(int part) const
    {
        Part result;
        int group = 4 * half_of(part) + bit_of(part) / 2;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned bits = quants[i] >> bit_of(part), thirds = third[i] >> group;
            result.q[0][i] = (bits & 0x03030303) | (thirds & 0x01010101) << 2;
            result.q[1][i] = (bits >> 4 & 0x03030303) | (thirds & 0x04040404);
        }
#pragma unroll
        for (int run = 0; run < 2; run++) {
            int of_16 = low[run] >> 4 * half_of(part) & 15;
            result.scale[run] = (of_16 | (high >> (4 * half_of(part) + 2 * run) & 3) << 4) - 32;
        }
        result.d = low_f16(d);
        return result;
    }
};

#include "blocks/dequantize.cuh"
