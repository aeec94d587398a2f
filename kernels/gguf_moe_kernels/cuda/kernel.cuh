// What every kernel file starts from: the declaration of a kernel, addresses, lanes.
#include "ptx.cuh"

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// An array at an address of an argument struct.
template <typename T>
__device__ __forceinline__ T *at(long long address)
{
    return reinterpret_cast<T *>(address);
}

// The number of rows, past positions, ... that this step has.
__device__ __forceinline__ long long count_at(long long address)
{
    return *at<const long long>(address);
}

__device__ __forceinline__ int lane_id()
{
    return threadIdx.x % WARP;
}
