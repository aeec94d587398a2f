// F32: each weight by itself.
#include "blocks/block.cuh"

#define FLOAT_TYPE 1

struct Block
{
    static constexpr int SIZE = 1, BYTES = 4;

    static __device__ __forceinline__ float load(const unsigned char *row, long long i)
    {
        float value = __ldg(reinterpret_cast<const float *>(row) + i);
        return value;
    }
};

#include "blocks/dequantize.cuh"
