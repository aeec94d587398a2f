// BF16: each weight by itself.
#include "blocks/block.cuh"

#define FLOAT_TYPE 1

struct Block
{
    static constexpr int SIZE = 1, BYTES = 2;

    static __device__ __forceinline__ float load(const unsigned char *row, long long i)
    {
        unsigned short value = __ldg(reinterpret_cast<const unsigned short *>(row) + i);
        return __uint_as_float(static_cast<unsigned>(value) << 16);
    }
};

#include "blocks/dequantize.cuh"
