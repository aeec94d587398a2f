// Several ops of one row in one launch, with the bits of the kernels that they stand for: see fuse.py of the runtime.
#include "meeting.cuh"
#include "norm.cuh"
#include "quantize.cuh"

constexpr int THREADS = NORM_THREADS, WARPS = THREADS / WARP;

// A row of n values, by a block, in every format that is asked for.
__device__ __forceinline__ void quantize_row(const NormQuantize &a, const float *x, long long row)
{
    int warp = threadIdx.x / WARP;
    if (a.q8_k)
        for (int ib = warp; ib < a.n / 256; ib += WARPS)
            quantize_256(x, a.n, ib, at<unsigned char>(a.q8_k) + row * a.q8_k_stride);
    if (a.q8_0)
        for (int ib = warp; ib < a.n / 32; ib += WARPS)
            quantize_32<false>(x, a.n, ib, at<unsigned char>(a.q8_0) + row * a.q8_0_stride);
    if (a.q8_1)
        for (int ib = warp; ib < a.n / 32; ib += WARPS)
            quantize_32<true>(x, a.n, ib, at<unsigned char>(a.q8_1) + row * a.q8_1_stride);
}

// A row and the norm's weight in shared memory: all of both is asked for at once. The weight comes before the step.
struct NormRow {
    float *x, *weight; // [n]

    __device__ __forceinline__ NormRow(const NormQuantize &a)
    {
        x = reinterpret_cast<float *>(dynamic_shared), weight = x + a.n;
#pragma unroll 4
        for (int i = 4 * threadIdx.x; i < a.n; i += 4 * THREADS)
            four(weight, i) = a.weight ? four(at<float>(a.weight), i) : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    }

    static __device__ __forceinline__ float4 &four(float *from, int i)
    {
        return *reinterpret_cast<float4 *>(from + i);
    }

    // The norm of x, which all threads have written.
    __device__ __forceinline__ void norm_and_quantize(const NormQuantize &a, long long row)
    {
        float *out = at<float>(a.out) + row * a.n;
        __syncthreads();
        float sum = a.n <= SHORT ? squares_by_warp(x, a.n) : squares_by_block(x, a.n);
        float factor = norm_factor(sum, a.n, a.eps);
        __syncthreads(); // all have read x
#pragma unroll 4
        for (int i = threadIdx.x; i < a.n; i += THREADS) {
            float value = x[i] * factor * weight[i];
            out[i] = x[i] = a.bias ? value + at<const float>(a.bias)[i] : value;
        }
        __syncthreads();
        quantize_row(a, x, row);
    }
};

// One block a row.
KERNEL(norm_quantize, NormQuantize, THREADS)
{
    NormRow norm_row(a);
    long long row = blockIdx.x;
    if (row >= count_at(a.rows))
        return;
    float *x = at<float>(a.x) + row * a.n;
#pragma unroll 4
    for (int i = 4 * threadIdx.x; i < a.n; i += 4 * THREADS)
        NormRow::four(norm_row.x, i) = NormRow::four(x, i);
    norm_row.norm_and_quantize(a, row);
}

// One block a row. Leaves all as it is if the step is given up.
KERNEL(join_norm_quantize, JoinNormQuantize, THREADS)
{
    __shared__ Addends addends;
    NormRow norm_row(a.norm);
    const MoeJoin &join = a.join;
    long long row = blockIdx.x;
    if (!may_join(join) || row >= count_at(join.rows))
        return;
    find_addends(join, row, addends);
    float *out = at<float>(join.out) + row * join.n;
#pragma unroll 2
    for (int i = 4 * threadIdx.x; i < join.n; i += 4 * THREADS)
        NormRow::four(out, i) = NormRow::four(norm_row.x, i) = join_four(join, addends, row, i);
    norm_row.norm_and_quantize(a.norm, row);
}

// Types of the cache: a lane stores element i of all that the cache has; those of a warp's lanes are neighbours.
struct F16 {
    static __device__ __forceinline__ void store(long long cache, long long i, float x)
    {
        at<unsigned short>(cache)[i] = f32_to_f16(x);
    }
};

struct F32 {
    static __device__ __forceinline__ void store(long long cache, long long i, float x) { at<float>(cache)[i] = x; }
};

// Heads are multiples of 32, so a warp stores a whole block.
struct Q8_0 {
    static __device__ __forceinline__ void store(long long cache, long long i, float x)
    {
        store_q8_0(x, at<unsigned char>(cache) + i / 32 * 34);
    }
};

// A head, norm and rotation done, in shared memory; by one warp.
__device__ __forceinline__ void place_head(
    const RopeStore &a, const float *x, long long weight, long long row, float *head)
{
    int lane = lane_id(), n_pairs = a.n_rot / 2;
    float factor = weight ? norm_factor(squares_by_warp(x, a.n_embd_head), a.n_embd_head, a.eps) : 1.0f;
    for (int i = lane; i < a.n_embd_head; i += WARP)
        head[i] = weight ? normed(x[i], factor, weight, 0, i) : x[i];
    __syncwarp();
    for (int i = lane; i < n_pairs; i += WARP) {
        float *pair = head + (a.pair_stride == 1 ? 2 * i : i);
        float c = at<const float>(a.cos)[row * n_pairs + i], s = at<const float>(a.sin)[row * n_pairs + i];
        float x0 = pair[0], x1 = pair[a.pair_stride];
        pair[0] = __fmaf_rn(x0, c, -(x1 * s));
        pair[a.pair_stride] = __fmaf_rn(x0, s, x1 * c);
    }
    __syncwarp();
}

// A warp takes a head of q, or one of k, or as many elements of v.
template <typename Cache>
__device__ __forceinline__ void rope_store(const RopeStore &a)
{
    __shared__ float heads[WARPS][SHORT];
    long long row = blockIdx.x, number = blockIdx.y * static_cast<long long>(WARPS) + threadIdx.x / WARP;
    if (row >= count_at(a.rows))
        return;
    float *head = heads[threadIdx.x / WARP];
    long long d = a.n_embd_head, n_k = a.n_head_kv * d, position = count_at(a.n_past) + row;
    if (number < a.n_head) {
        float *q = at<float>(a.q) + (row * a.n_head + number) * d;
        place_head(a, q, a.q_norm, row, head);
        for (int i = lane_id(); i < d; i += WARP)
            q[i] = head[i];
        return;
    }
    long long first = (number - a.n_head) * d;
    if (first < n_k) {
        place_head(a, at<const float>(a.k) + row * n_k + first, a.k_norm, row, head);
        for (int i = lane_id(); i < d; i += WARP)
            Cache::store(a.cache_k, position * n_k + first + i, head[i]);
        return;
    }
    first -= n_k;
    for (long long i = first + lane_id(); i < min(first + d, a.n_v); i += WARP)
        Cache::store(a.cache_v, position * a.n_v + i, at<const float>(a.v)[row * a.n_v + i]);
}

KERNEL(rope_store_f16, RopeStore, THREADS)
{
    rope_store<F16>(a);
}

KERNEL(rope_store_f32, RopeStore, THREADS)
{
    rope_store<F32>(a);
}

KERNEL(rope_store_q8_0, RopeStore, THREADS)
{
    rope_store<Q8_0>(a);
}
