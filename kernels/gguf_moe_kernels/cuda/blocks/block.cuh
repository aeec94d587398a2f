// What the files of the weight types share: the form in which they hand over weights, and unaligned loads.
//
// A type's file defines `struct Block`. Its constants: SIZE weights in BYTES bytes; GROUP weights with one scale;
// OFFSET, which is taken off every quant; HAS_MINIMUM. A lane holds 32 weights of a block, a *part*: a whole block of 32, or one of eight
// parts of a block of 256. A part is two runs of 16 weights that follow each other, at Block::first(part) and
// APART after it. Block::load asks for the part's bytes, unpack makes a Part of them.
//
// For blocks of 32, load is not given a part, but whether the block's number is odd. If they have two scales (GROUP is
// 16), d is the first one, dmin the second.
#include "kernel.cuh"

struct Part
{
    int q[2][4];        // of each run, 16 quants as bytes
    int scale[2];       // of each run
    int minimum[2];     // likewise, where the type has minimums
    float d, dmin;      // of the block: weight = d * scale * (q - OFFSET) - dmin * minimum
};

template <typename Block>
__device__ constexpr bool has_two_scales()
{
    return Block::SIZE == 32 && Block::GROUP == 16;
}

// N words from `bytes`, of which only the alignment is known. Words that hold none of these bytes are not read.
template <int ALIGNMENT, int N>
__device__ __forceinline__ void load_words(const unsigned char *bytes, unsigned (&words)[N])
{
    if constexpr (ALIGNMENT % 16 == 0 && N % 4 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            uint4 four = __ldg(reinterpret_cast<const uint4 *>(bytes) + i / 4);
            words[i] = four.x, words[i + 1] = four.y, words[i + 2] = four.z, words[i + 3] = four.w;
        }
    } else if constexpr (ALIGNMENT % 8 == 0 && N % 2 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            uint2 two = __ldg(reinterpret_cast<const uint2 *>(bytes) + i / 2);
            words[i] = two.x, words[i + 1] = two.y;
        }
    } else if constexpr (ALIGNMENT % 4 == 0) {
#pragma unroll
        for (int i = 0; i < N; i++)
            words[i] = __ldg(reinterpret_cast<const unsigned *>(bytes) + i);
    } else if constexpr (N % 4 == 0) {
        // Whole vectors, and what is beyond taken off by halves: many small loads would keep the load unit busy.
        int beyond = reinterpret_cast<unsigned long long>(bytes) % 16;
        const uint4 *whole = reinterpret_cast<const uint4 *>(bytes - beyond);
        unsigned loaded[N + 4];
#pragma unroll
        for (int i = 0; i <= N; i += 4) {
            uint4 four = __ldg(whole + (i < N || beyond ? i / 4 : N / 4 - 1));
            loaded[i] = four.x, loaded[i + 1] = four.y, loaded[i + 2] = four.z, loaded[i + 3] = four.w;
        }
#pragma unroll
        for (int i = 0; i < N + 2; i++)
            loaded[i] = beyond & 8 ? loaded[i + 2] : loaded[i];
#pragma unroll
        for (int i = 0; i < N + 1; i++)
            loaded[i] = beyond & 4 ? loaded[i + 1] : loaded[i];
#pragma unroll
        for (int i = 0; i < N; i++)
            words[i] = __funnelshift_r(loaded[i], loaded[i + 1], 8 * (beyond % 4));
    } else {
        int beyond = reinterpret_cast<unsigned long long>(bytes) % 4;
        const unsigned *whole = reinterpret_cast<const unsigned *>(bytes - beyond);
        unsigned loaded[N + 1];
#pragma unroll
        for (int i = 0; i < N; i++)
            loaded[i] = __ldg(whole + i);
        loaded[N] = __ldg(whole + (beyond ? N : N - 1));
#pragma unroll
        for (int i = 0; i < N; i++)
            words[i] = __funnelshift_r(loaded[i], loaded[i + 1], 8 * beyond);
    }
}

__device__ __forceinline__ unsigned load_u16(const unsigned char *bytes)
{
    return __ldg(reinterpret_cast<const unsigned short *>(bytes));
}

__device__ __forceinline__ unsigned load_u32(const unsigned char *bytes)
{
    return __ldg(reinterpret_cast<const unsigned *>(bytes));
}

__device__ __forceinline__ float low_f16(unsigned word)
{
    return f16_to_f32(word & 0xffff);
}

__device__ __forceinline__ float high_f16(unsigned word)
{
    return f16_to_f32(word >> 16);
}

// Four words of nibbles as bytes: the low ones are the first run, the high ones the second.
__device__ __forceinline__ void unpack_nibbles(const unsigned *words, Part &part)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        part.q[0][i] = words[i] & 0x0f0f0f0f;
        part.q[1][i] = words[i] >> 4 & 0x0f0f0f0f;
    }
}

// What a block of 32 is besides its quants: one scale for all, and a minimum that the file stores negated.
__device__ __forceinline__ void one_group(Part &part, float d, float negated_minimum = 0.0f)
{
    part.scale[0] = part.scale[1] = 1;
    part.minimum[0] = part.minimum[1] = 1;
    part.d = d, part.dmin = -negated_minimum;
}
