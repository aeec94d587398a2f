// What the kernels of attention share: elements of the cache, and how splits of it are joined.
#include "exact.cuh"

// Positions of a split, which are counted from position 0. launch.py knows it.
constexpr int SPLIT = 128;
// A position's key is read by LANES lanes, CHUNK elements at a time.
constexpr int LANES = 8, CHUNK = 8;

struct F16 {
    static constexpr int SIZE = 2;

    // COUNT elements from an address that is a multiple of their size.
    template <int COUNT>
    static __device__ __forceinline__ void load(const unsigned char *from, float *out)
    {
        const uint2 *words = reinterpret_cast<const uint2 *>(from);
#pragma unroll
        for (int i = 0; i < COUNT / 4; i++) {
            uint2 pair = words[i];
            out[4 * i] = f16_to_f32(pair.x & 0xffff);
            out[4 * i + 1] = f16_to_f32(pair.x >> 16);
            out[4 * i + 2] = f16_to_f32(pair.y & 0xffff);
            out[4 * i + 3] = f16_to_f32(pair.y >> 16);
        }
    }
};

struct F32 {
    static constexpr int SIZE = 4;

    template <int COUNT>
    static __device__ __forceinline__ void load(const unsigned char *from, float *out)
    {
        const float4 *words = reinterpret_cast<const float4 *>(from);
#pragma unroll
        for (int i = 0; i < COUNT / 4; i++) {
            float4 four = words[i];
            out[4 * i] = four.x, out[4 * i + 1] = four.y, out[4 * i + 2] = four.z, out[4 * i + 3] = four.w;
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
