// Quants that are nibbles which stand for the 16 int8 values of a table.
#include "blocks/block.cuh"

// `table` holds the 16 values in order. As unpack_nibbles, through the table.
__device__ __forceinline__ void look_up_nibbles(const unsigned *words, const unsigned (&table)[4], Part &part)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        unsigned pairs[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // Four nibbles in a row select from each half of the table; their highest bits select the half.
            unsigned nibbles = words[i] >> 16 * half;
            unsigned below_8 = __byte_perm(table[0], table[1], nibbles & 0x7777);
            unsigned from_8 = __byte_perm(table[2], table[3], nibbles & 0x7777);
            pairs[half] = __byte_perm(below_8, from_8, 0x3210 | (nibbles & 0x8888) >> 1);
        }
        part.q[0][i] = __byte_perm(pairs[0], pairs[1], 0x6420);
        part.q[1][i] = __byte_perm(pairs[0], pairs[1], 0x7531);
    }
}

// kvalues_iq4nl: -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
constexpr unsigned IQ4_VALUES[4] = {0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535};
// kvalues_mxfp4: 0 1 2 3 4 6 8 12, and the same negated
constexpr unsigned MXFP4_VALUES[4] = {0x03020100, 0x0c080604, 0xfdfeff00, 0xf4f8fafc};
