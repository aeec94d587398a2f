// TQ1_0: 256 weights in 54 bytes: 48 bytes of five digits in base 3, 4 bytes of four, f16 d. A byte is a fraction of
// 256. The first digits of 32 bytes come first, then their second ones, and so on to the fifth; likewise 16 bytes,
// then 4. Weight = d * (digit - 1).
#include "blocks/block.cuh"

// Digit `number` of each of four bytes.
__device__ __forceinline__ unsigned digits_of(unsigned word, int number)
{
    constexpr unsigned PAIR = 0x00ff00ff;
    unsigned power = number == 0 ? 1 : number == 1 ? 3 : number == 2 ? 9 : number == 3 ? 27 : 81;
    unsigned even = ((word & PAIR) * power & PAIR) * 3 >> 8 & PAIR;
    unsigned odd = ((word >> 8 & PAIR) * power & PAIR) * 3 >> 8 & PAIR;
    return even | odd << 8;
}

struct Block
{
    static constexpr int SIZE = 256, BYTES = 54, APART = 16, GROUP = 32, OFFSET = 1;
    static constexpr bool HAS_MINIMUM = false;

    unsigned d, quants[2][4];

    static __device__ __forceinline__ int first(int part) { return 32 * part; }

    // The parts from 5 on share 16 bytes, and the last 16 weights have the 4 bytes behind them.
    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        load_words<2>(block + (part < 5 ? 0 : 32), quants[0]);
        load_words<2>(block + (part < 5 ? 16 : part < 7 ? 32 : 36), quants[1]);
        d = load_u16(block + 52);
    }

    __device__ __forceinline__ Part unpack(int part) const
    {
        Part result;
        int number = part < 5 ? part : 2 * (part - 5), next = part < 5 ? part : number + 1;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            result.q[0][i] = digits_of(quants[0][i], number);
            result.q[1][i] = part < 7 ? digits_of(quants[1][i], next) : digits_of(quants[1][3], i);
        }
        one_group(result, low_f16(d));
        return result;
    }
};

#include "blocks/dequantize.cuh"
