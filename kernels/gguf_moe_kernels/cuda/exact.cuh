// Arithmetic with the roundings and orders of ref/exact.py.
#include "kernel.cuh"

// A whole number below 2^22 in magnitude; for what is not finite some number. Added to 1.5 * 2^23 it stands in
// the low bits.
__device__ __forceinline__ int to_int(float whole)
{
    constexpr float one_and_a_half = 12582912.0f;
    return static_cast<int>(__float_as_uint(whole + one_and_a_half) - __float_as_uint(one_and_a_half));
}

__device__ __forceinline__ float exact_exp(float x)
{
    x = x == x ? fminf(fmaxf(x, EXP_MIN), EXP_MAX) : x;
    float n = rintf(x * LOG2_E);
    float r = __fmaf_rn(n, -LN2_LOW, __fmaf_rn(n, -LN2_HIGH, x));
    float p = EXP_COEFFICIENTS_0;
    p = __fmaf_rn(p, r, EXP_COEFFICIENTS_1);
    p = __fmaf_rn(p, r, EXP_COEFFICIENTS_2);
    p = __fmaf_rn(p, r, EXP_COEFFICIENTS_3);
    p = __fmaf_rn(p, r, EXP_COEFFICIENTS_4);
    p = __fmaf_rn(p, r, EXP_COEFFICIENTS_5);
    p = __fmaf_rn(p, r, EXP_COEFFICIENTS_6);
    p = __fmaf_rn(p, r, EXP_COEFFICIENTS_7);
    return p * __uint_as_float(static_cast<unsigned>(to_int(n) + 127) << 23);
}

// Of positive normal numbers.
__device__ __forceinline__ float exact_log(float x)
{
    int bits = static_cast<int>(__float_as_uint(x));
    int e = (bits - SQRT_HALF_BITS) >> 23;
    float m = __uint_as_float(static_cast<unsigned>(bits - (e << 23))) - 1.0f;
    float s = m / (m + 2.0f);
    float z = s * s;
    float p = LOG_COEFFICIENTS_0;
    p = __fmaf_rn(p, z, LOG_COEFFICIENTS_1);
    p = __fmaf_rn(p, z, LOG_COEFFICIENTS_2);
    p = __fmaf_rn(p, z, LOG_COEFFICIENTS_3);
    float n = static_cast<float>(e);
    return __fmaf_rn(n, LN2_HIGH, __fmaf_rn(n, LN2_LOW, __fmaf_rn(s * z, p, s + s))) + (x - x);
}

__device__ __forceinline__ float softplus(float x)
{
    return x > SOFTPLUS_MAX ? x : exact_log(1.0f + exact_exp(x));
}

__device__ __forceinline__ float sigmoid(float x)
{
    return 1.0f / (1.0f + exact_exp(-x));
}

__device__ __forceinline__ float silu(float x)
{
    return x / (1.0f + exact_exp(-x));
}

__device__ __forceinline__ float gelu(float x)
{
    return x / (1.0f + exact_exp(-(x * __fmaf_rn(GELU_CUBIC, x * x, GELU_LINEAR))));
}

__device__ __forceinline__ float gated_oai(float g, float u)
{
    // NaN goes through the comparisons as it is.
    g = g > OAI_LIMIT ? OAI_LIMIT : g;
    u = u > OAI_LIMIT ? OAI_LIMIT : (u < -OAI_LIMIT ? -OAI_LIMIT : u);
    return g / (1.0f + exact_exp(-(OAI_ALPHA * g))) * (u + 1.0f);
}

// The sum of the warp's lanes by halves: j and j + 16, then j and j + 8, and so on. All lanes have it.
__device__ __forceinline__ float sum_lanes(float lane)
{
    for (int half = WARP / 2; half; half /= 2)
        lane += __shfl_xor_sync(ALL_LANES, lane, half);
    return lane;
}

__device__ __forceinline__ float largest_lane(float lane)
{
    for (int half = WARP / 2; half; half /= 2)
        lane = fmaxf(lane, __shfl_xor_sync(ALL_LANES, lane, half));
    return lane;
}

// Of whole numbers the order does not matter, and newer GPUs have an instruction. All lanes have the result.
__device__ __forceinline__ int sum_lanes(int lane)
{
#if __CUDA_ARCH__ >= 800
    return __reduce_add_sync(ALL_LANES, lane);
#else
    for (int half = WARP / 2; half; half /= 2)
        lane += __shfl_xor_sync(ALL_LANES, lane, half);
    return lane;
#endif
}

__device__ __forceinline__ unsigned largest_lane(unsigned lane)
{
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(ALL_LANES, lane);
#else
    for (int half = WARP / 2; half; half /= 2)
        lane = max(lane, __shfl_xor_sync(ALL_LANES, lane, half));
    return lane;
#endif
}

// A dot product by one warp: each lane's chain, and the chain of what is left behind the last 32. Parts of the
// vectors may be added one after the other, if all but the last have a multiple of 32 elements.
struct WarpDot
{
    float lane = 0.0f, rest = 0.0f;

    __device__ __forceinline__ void add(const float *w, const float *x, int n)
    {
        int whole = n / WARP * WARP;
#pragma unroll 8
        for (int i = lane_id(); i < whole; i += WARP)
            lane = __fmaf_rn(w[i], x[i], lane);
        for (int i = whole; i < n; i++)
            rest = __fmaf_rn(w[i], x[i], rest);
    }

    // All lanes have it.
    __device__ __forceinline__ float sum() const
    {
        return sum_lanes(lane) + rest;
    }
};

// exact.sum of n elements, by one warp. All lanes have it.
__device__ __forceinline__ float warp_sum(const float *x, int n)
{
    float lane = 0.0f, rest = 0.0f;
    int whole = n / WARP * WARP;
    for (int i = lane_id(); i < whole; i += WARP)
        lane += x[i];
    for (int i = whole; i < n; i++)
        rest += x[i];
    return sum_lanes(lane) + rest;
}
