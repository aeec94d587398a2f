// RMS norms. One of up to SHORT elements is summed by one warp, a longer one by a block of NORM_THREADS.
#include "exact.cuh"

// launch.py knows both numbers.
constexpr int SHORT = 512, NORM_THREADS = 256;

__device__ __forceinline__ float norm_factor(float dot, long long n, float eps)
{
    return 1.0f / sqrtf(dot / static_cast<float>(n) + eps);
}

__device__ __forceinline__ float squares_by_warp(const float *x, long long n)
{
    WarpDot dot;
    dot.add(x, x, n);
    return dot.sum();
}

// Each of NORM_THREADS threads adds up every NORM_THREADS-th element, each warp its lanes, and all threads the
// warps in order. All threads of the block have the sum.
__device__ __forceinline__ float squares_by_block(const float *x, long long n)
{
    __shared__ float sums[NORM_THREADS / WARP];
    float mine = 0.0f;
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += NORM_THREADS)
        mine = __fmaf_rn(x[i], x[i], mine);
    mine = sum_lanes(mine);
    if (lane_id() == 0)
        sums[threadIdx.x / WARP] = mine;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < NORM_THREADS / WARP; warp++)
        sum += sums[warp];
    return sum;
}

// x[i] normed; weight and bias are addresses of float32, or 0 for none.
__device__ __forceinline__ float normed(float x, float factor, long long weight, long long bias, int i)
{
    float value = x * factor;
    if (weight)
        value *= at<const float>(weight)[i];
    return bias ? value + at<const float>(bias)[i] : value;
}
