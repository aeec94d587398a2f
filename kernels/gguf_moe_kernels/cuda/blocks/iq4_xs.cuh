// IQ4_XS: 256 weights in 136 bytes: f16 d, 16 bits with the high 2 of each group's scale, 4 bytes with its low 4,
// 128 nibble bytes. Of a group's 16 bytes the low nibbles are its first 16 weights; they stand for a table.
#include "blocks/nibble_table.cuh"

struct Block
{
    static constexpr int SIZE = 256, BYTES = 136, APART = 16, GROUP = 32, OFFSET = 0;
    static constexpr bool HAS_MINIMUM = false;

    unsigned header[2], quants[4];

    static __device__ __forceinline__ int first(int part) { return 32 * part; }

    __device__ __forceinline__ void load(const unsigned char *block, int part)
    {
        load_words<8>(block, header);
        load_words<8>(block + 8 + 16 * part, quants);
    }

    __device__ __forceinline__ Part unpack(int part) const
    {
        Part result;
        look_up_nibbles(quants, IQ4_VALUES, result);
        int low = header[1] >> 4 * part & 15, high = header[0] >> (16 + 2 * part) & 3;
        result.scale[0] = result.scale[1] = (low | high << 4) - 32;
        result.d = low_f16(header[0]);
        return result;
    }
};

#include "blocks/dequantize.cuh"
