// What the kernels of attention share: elements of the cache, and how splits of it are joined.
#include "exact.cuh"

// Positions of a split, which are counted from position 0. attention_launch.py knows it.
constexpr int SPLIT = 128;
// A position's key is read by LANES lanes, CHUNK elements at a time.
constexpr int LANES = 8, CHUNK = 8;

// Types of the cache: bytes(n) of n elements; fetch of COUNT elements of a row from element i on, which is a multiple of
// COUNT, as they lie there; values of what was fetched.
struct F16 {
    static __device__ __forceinline__ long long bytes(long long n) { return 2 * n; }

    template <int COUNT>
    struct alignas(2 * COUNT) Raw {
        unsigned pairs[COUNT / 2];
    };

    template <int COUNT>
    static __device__ __forceinline__ Raw<COUNT> fetch(const unsigned char *row, int i)
    {
        return *reinterpret_cast<const Raw<COUNT> *>(row + 2 * i);
    }

    template <int COUNT>
    static __device__ __forceinline__ void values(const Raw<COUNT> &raw, float *out)
    {
#pragma unroll
        for (int j = 0; j < COUNT / 2; j++) {
            out[2 * j] = f16_to_f32(raw.pairs[j] & 0xffff);
            out[2 * j + 1] = f16_to_f32(raw.pairs[j] >> 16);
        }
    }
};

struct F32 {
    static __device__ __forceinline__ long long bytes(long long n) { return 4 * n; }

    template <int COUNT>
    struct alignas(16) Raw {
        float values[COUNT];
    };

    template <int COUNT>
    static __device__ __forceinline__ Raw<COUNT> fetch(const unsigned char *row, int i)
    {
        return *reinterpret_cast<const Raw<COUNT> *>(row + 4 * i);
    }

    template <int COUNT>
    static __device__ __forceinline__ void values(const Raw<COUNT> &raw, float *out)
    {
#pragma unroll
        for (int j = 0; j < COUNT; j++)
            out[j] = raw.values[j];
    }
};

// Blocks of 32 in 34 bytes: f16 d, 32 int8. They lie on even addresses.
struct Q8_0 {
    static __device__ __forceinline__ long long bytes(long long n) { return n / 32 * 34; }

    template <int COUNT>
    struct Raw {
        unsigned short d, pairs[COUNT / 2];
    };

    template <int COUNT>
    static __device__ __forceinline__ Raw<COUNT> fetch(const unsigned char *row, int i)
    {
        const unsigned short *block = reinterpret_cast<const unsigned short *>(row + i / 32 * 34);
        Raw<COUNT> raw{block[0]};
#pragma unroll
        for (int j = 0; j < COUNT / 2; j++)
            raw.pairs[j] = block[1 + i % 32 / 2 + j];
        return raw;
    }

    template <int COUNT>
    static __device__ __forceinline__ void values(const Raw<COUNT> &raw, float *out)
    {
        float d = f16_to_f32(raw.d);
#pragma unroll
        for (int j = 0; j < COUNT / 2; j++) {
            out[2 * j] = d * static_cast<float>(static_cast<signed char>(raw.pairs[j] & 255));
            out[2 * j + 1] = d * static_cast<float>(static_cast<signed char>(raw.pairs[j] >> 8));
        }
    }
};

template <typename Cache, int COUNT>
__device__ __forceinline__ void load(const unsigned char *row, int i, float *out)
{
    Cache::values(Cache::template fetch<COUNT>(row, i), out);
}

// What a block of one token works on.
struct Part {
    long long row, head, head_kv;
    int n_head; // of this block
    long long first, end; // the positions that the token sees
};

// The heads that this block takes of a token, up to N_HEADS that share keys and values.
template <int N_HEADS>
__device__ __forceinline__ Part part_of_block(const Attention &a, long long row)
{
    Part part;
    int group = static_cast<int>(a.n_head) / static_cast<int>(a.n_head_kv), blocks = (group + N_HEADS - 1) / N_HEADS;
    part.row = row;
    part.head_kv = blockIdx.y / blocks;
    int start = blockIdx.y % blocks * N_HEADS;
    part.head = part.head_kv * group + start;
    part.n_head = min(group - start, N_HEADS);
    part.end = count_at(a.n_past) + row + 1;
    part.first = 0;
    if (a.n_swa && a.n_swa < part.end)
        part.first = a.chunked ? (part.end - 1) / a.n_swa * a.n_swa : part.end - a.n_swa;
    return part;
}

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
