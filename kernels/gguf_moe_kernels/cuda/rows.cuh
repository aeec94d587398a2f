// The rows that a warp multiplies: some of the weight, and some of the activations.
#include "kernel.cuh"

// Rows at a stride. Numbers beyond the last row mean the last one, so that every load is of a real row.
struct RowsAt
{
    const unsigned char *first;
    long long stride;
    int last;

    __device__ __forceinline__ const unsigned char *row(int r) const
    {
        return first + min(r, last) * stride;
    }
};

using TokenRows = RowsAt;

// 16 int8 activations.
__device__ __forceinline__ void load_activations(const unsigned char *x, int (&q)[4])
{
    int4 four = __ldg(reinterpret_cast<const int4 *>(x));
    q[0] = four.x, q[1] = four.y, q[2] = four.z, q[3] = four.w;
}

// values[i] without an address for the array, which would put it in memory.
template <int N>
__device__ __forceinline__ float pick(const float (&values)[N], int i)
{
    float value = values[0];
#pragma unroll
    for (int other = 1; other < N; other++)
        value = i == other ? values[other] : value;
    return value;
}
