// Quants that are entries of a codebook (codebooks.py), with signs of their own or a shift. CODEBOOK, which source.py
// writes for the type, has words of four weights.
#include "blocks/block.cuh"

// Eight signs from seven bits: an even number of them is negative.
__device__ __forceinline__ unsigned even_signs(unsigned bits)
{
    bits &= 0x7f;
    return bits | (__popc(bits) & 1) << 7;
}

// The bytes of `word`, none of which is 0, with the other sign where `signs` has a 1 in its lowest four bits.
__device__ __forceinline__ unsigned negative_where(unsigned word, unsigned signs)
{
    unsigned ones = (signs & 15) * 0x00204081u & 0x01010101u;
    return (word ^ ones * 0xff) + ones;
}

// Entry `index` of eight weights with eight signs, at the place `half` of a run.
__device__ __forceinline__ void put_eight(int (&run)[4], int half, unsigned index, unsigned signs)
{
    run[2 * half] = negative_where(__ldg(CODEBOOK + 2 * index), signs);
    run[2 * half + 1] = negative_where(__ldg(CODEBOOK + 2 * index + 1), signs >> 4);
}

// The same for entries of -1, 0, 1, which CODEBOOK has as 0, 1, 2: 8 * entry + 1, or - 1, and 9 more.
__device__ __forceinline__ void put_shifted_eight(int (&run)[4], int half, unsigned index, bool is_lower)
{
    unsigned shift = is_lower ? 0 : 0x02020202u;
    run[2 * half] = (__ldg(CODEBOOK + 2 * index) << 3) + shift;
    run[2 * half + 1] = (__ldg(CODEBOOK + 2 * index + 1) << 3) + shift;
}

__device__ __forceinline__ unsigned byte_of(unsigned word, int number)
{
    return word >> 8 * number & 0xff;
}

// A scale as these types store them: 2 scale + 1.
__device__ __forceinline__ int odd(unsigned scale)
{
    return 2 * scale + 1;
}
