// Activations to int8; the layout is in activations.py, the formulas in ref/activations.py.
#include "exact.cuh"

constexpr float LIMIT = 127.0f;

__device__ __forceinline__ float through_f16(float x)
{
    return f16_to_f32(f32_to_f16(x));
}

// The largest of the warp's magnitudes; NaN if one of them is not finite. Magnitudes are in the order of their
// bits: infinity and NaN come last.
__device__ __forceinline__ float finite_or_nan(unsigned magnitude)
{
    float amax = __uint_as_float(largest_lane(magnitude));
    return amax + (amax - amax);
}

__device__ __forceinline__ unsigned magnitude(float x)
{
    return __float_as_uint(x) & 0x7fffffffu;
}

__device__ __forceinline__ float inverse_scale(float amax)
{
    return amax >= SMALLEST_AMAX ? LIMIT / amax : 0.0f;
}

// Block ib of a row of n, 32 values, by one warp. Q8_1 has the sum times the scale, Q8_0 the sum of the int8.
template <bool is_q8_1>
__device__ __forceinline__ void quantize_32(const float *in, long long n, long long ib, unsigned char *out)
{
    long long fours = (n / 32 + 3) / 4;
    float *scales = reinterpret_cast<float *>(out + 128 * fours);
    float x = in[32 * ib + lane_id()];
    float amax = finite_or_nan(magnitude(x));
    int q = to_int(rintf(x * inverse_scale(amax)));
    reinterpret_cast<signed char *>(out)[32 * ib + lane_id()] = static_cast<signed char>(q);
    int sum = sum_lanes(q);
    if (lane_id())
        return;
    float d = amax / LIMIT;
    scales[ib] = through_f16(d);
    if (is_q8_1)
        scales[4 * fours + ib] = through_f16(d * static_cast<float>(sum));
    else
        reinterpret_cast<int *>(scales)[4 * fours + ib] = sum;
}

// x, of which each lane of a warp has one, as a block of 34 bytes: f16 d, 32 int8 (ref/activations.py: q8_0_blocks).
__device__ __forceinline__ void store_q8_0(float x, unsigned char *block)
{
    float amax = finite_or_nan(magnitude(x));
    int q = to_int(rintf(x * inverse_scale(amax)));
    reinterpret_cast<signed char *>(block)[2 + lane_id()] = static_cast<signed char>(q);
    if (lane_id() == 0)
        *reinterpret_cast<unsigned short *>(block) = f32_to_f16(amax / LIMIT);
}

// These 256 values as block ib of a row of n, by one warp: a lane has eight in a row, and two lanes have a sum together.
__device__ __forceinline__ void quantize_as_256(const float *values, long long n, long long ib, unsigned char *out)
{
    long long fours = (n / 256 + 3) / 4;
    int lane = lane_id();
    float *scales = reinterpret_cast<float *>(out + 1024 * fours);
    const float4 *mine = reinterpret_cast<const float4 *>(values + 8 * lane);
    float4 low = mine[0], high = mine[1];
    float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    unsigned largest = 0;
    for (int j = 0; j < 8; j++)
        largest = max(largest, magnitude(x[j]));
    float amax = finite_or_nan(largest), inverse = inverse_scale(amax);
    int sum = 0;
    unsigned long long packed = 0;
    for (int j = 0; j < 8; j++) {
        int q = to_int(rintf(x[j] * inverse));
        packed |= static_cast<unsigned long long>(q & 255) << 8 * j;
        sum += q;
    }
    reinterpret_cast<unsigned long long *>(out)[32 * ib + lane] = packed;
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    short *sums = reinterpret_cast<short *>(scales + 4 * fours) + ib / 4 * 64 + ib % 4 * 2;
    if (lane % 2 == 0)
        sums[lane / 4 * 8 + lane / 2 % 2] = static_cast<short>(sum);
    if (lane == 0)
        scales[ib] = inverse > 0.0f ? 1.0f / inverse : amax - amax;
}

// Block ib of a row of n.
__device__ __forceinline__ void quantize_256(const float *in, long long n, long long ib, unsigned char *out)
{
    quantize_as_256(in + 256 * ib, n, ib, out);
}
