// What the kernels of attention share: elements of the cache, and how splits of it are joined.
#include "exact.cuh"

// Positions of a split, which are counted from position 0. attention_launch.py knows it.
constexpr int SPLIT = 128;
// A position's key is read by LANES lanes, CHUNK elements at a time.
constexpr int LANES = 8, CHUNK = 8;

// Types of the cache: bytes(n) of n elements, and load of COUNT elements of a row from element i on, which is a
// multiple of COUNT.
struct F16 {
    static __device__ __forceinline__ long long bytes(long long n) { return 2 * n; }

    template <int COUNT>
    static __device__ __forceinline__ void load(const unsigned char *row, int i, float *out)
    {
        const uint2 *words = reinterpret_cast<const uint2 *>(row + 2 * i);
#pragma unroll
        for (int j = 0; j < COUNT / 4; j++) {
            uint2 pair = words[j];
            out[4 * j] = f16_to_f32(pair.x & 0xffff);
            out[4 * j + 1] = f16_to_f32(pair.x >> 16);
            out[4 * j + 2] = f16_to_f32(pair.y & 0xffff);
            out[4 * j + 3] = f16_to_f32(pair.y >> 16);
        }
    }
};

struct F32 {
    static __device__ __forceinline__ long long bytes(long long n) { return 4 * n; }

    template <int COUNT>
    static __device__ __forceinline__ void load(const unsigned char *row, int i, float *out)
    {
        const float4 *words = reinterpret_cast<const float4 *>(row + 4 * i);
#pragma unroll
        for (int j = 0; j < COUNT / 4; j++) {
            float4 four = words[j];
            out[4 * j] = four.x, out[4 * j + 1] = four.y, out[4 * j + 2] = four.z, out[4 * j + 3] = four.w;
        }
    }
};

// Blocks of 32 in 34 bytes: f16 d, 32 int8. They lie on even addresses.
struct Q8_0 {
    static __device__ __forceinline__ long long bytes(long long n) { return n / 32 * 34; }

    template <int COUNT>
    static __device__ __forceinline__ void load(const unsigned char *row, int i, float *out)
    {
        const unsigned short *block = reinterpret_cast<const unsigned short *>(row + i / 32 * 34);
        float d = f16_to_f32(block[0]);
#pragma unroll
        for (int j = 0; j < COUNT / 2; j++) {
            unsigned pair = block[1 + i % 32 / 2 + j];
            out[2 * j] = d * static_cast<float>(static_cast<signed char>(pair & 255));
            out[2 * j + 1] = d * static_cast<float>(static_cast<signed char>(pair >> 8));
        }
    }
};

// How what was found so far and what one more split has found are weighed. One of the two weights is 1.
struct Weights {
    float largest, scale, more_scale;

    __device__ __forceinline__ Weights(float largest_so_far, float more_largest)
    {
        float rise = more_largest - largest_so_far, small = exact_exp(-fabsf(rise));
        largest = fmaxf(largest_so_far, more_largest);
        scale = rise > 0.0f ? small : 1.0f;
        more_scale = rise > 0.0f ? 1.0f : small;
    }

    __device__ __forceinline__ float join(float sum, float more) const
    {
        return __fmaf_rn(sum, scale, more * more_scale);
    }
};

__device__ __forceinline__ float finish(const Attention &a, long long head, float largest, float total, float out)
{
    if (!a.sinks)
        return out / total;
    float sink = at<const float>(a.sinks)[head], both = fmaxf(largest, sink);
    float scale = exact_exp(largest - both);
    return out * scale / (total * scale + exact_exp(sink - both));
}
