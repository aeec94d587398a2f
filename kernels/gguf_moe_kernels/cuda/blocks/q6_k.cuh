// Q6_K: 256 weights in 210 bytes: 128 bytes of low nibbles, 64 bytes of high 2 bits, 16 int8 scales, f16 d.
// Half h has 64 nibble bytes: its first 64 weights are their low nibbles, the next 64 the high ones.
#include "blocks/halves.cuh"

struct Block
{
    static constexpr int SIZE = 256, BYTES = 210, APART = 64, GROUP = 16, OFFSET = 32;
    static constexpr bool HAS_MINIMUM = false;

    unsigned low[4], high[4], d;
    int scale[2];

    static __device__ __forceinline__ int first(int part) { return first_in_halves(part); }

    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        load_words<2>(block + 16 * part, low);
        load_words<2>(block + 128 + 32 * half_of(part) + bytes_of(part), high);
        const signed char *scales = reinterpret_cast<const signed char *>(block) + 192 + first(part) / 16;
        scale[0] = __ldg(scales), scale[1] = __ldg(scales + 4);
        d = load_u16(block + 208);
    }

    __device__ __forceinline__ Part unpack(int part) const
    {
        Part result;
        unpack_nibbles(low, result);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned bits = high[i] >> bit_of(part);
            result.q[0][i] |= (bits & 0x03030303) << 4;
            result.q[1][i] |= bits & 0x30303030;
        }
        result.scale[0] = scale[0], result.scale[1] = scale[1];
        result.d = low_f16(d);
        return result;
    }
};

#include "blocks/dequantize.cuh"
