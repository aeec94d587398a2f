// Quants that are entries of a codebook (codebooks.py), with signs of their own or a shift. CODEBOOK is what source.py
// writes for the type: words of four weights, or of eight where these are -1, 0 and 1.
//
// A block of threads has a copy in shared memory: lanes look up different entries, and there they wait for each other
// only where entries share a bank.
#include "blocks/block.cuh"

#define HAS_CODEBOOK
__align__(16) __shared__ unsigned codebook[sizeof(CODEBOOK) / sizeof(unsigned)];

// All threads of the block take part.
__device__ __forceinline__ void load_codebook()
{
    const uint4 *from = reinterpret_cast<const uint4 *>(CODEBOOK);
    for (int i = threadIdx.x; i < sizeof(CODEBOOK) / sizeof(uint4); i += blockDim.x)
        reinterpret_cast<uint4 *>(codebook)[i] = __ldg(from + i);
    __syncthreads();
}

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
    uint2 entry = reinterpret_cast<const uint2 *>(codebook)[index];
    run[2 * half] = negative_where(entry.x, signs);
    run[2 * half + 1] = negative_where(entry.y, signs >> 4);
}

// The same for entries of -1, 0, 1: 8 * entry + 1, or - 1, and 9 more. A word of CODEBOOK has an entry's weights as 0,
// 1, 2, the first four in the low nibbles of its bytes.
__device__ __forceinline__ void put_shifted_eight(int (&run)[4], int half, unsigned index, bool is_lower)
{
    unsigned shift = is_lower ? 0 : 0x02020202u, entry = codebook[index];
    run[2 * half] = (entry << 3 & 0x18181818u) | shift;
    run[2 * half + 1] = (entry >> 1 & 0x18181818u) | shift;
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
