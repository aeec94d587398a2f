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
#pragma unroll 1
        for (int ib = warp; ib < a.n / 256; ib += WARPS)
            quantize_256(x, a.n, ib, at<unsigned char>(a.q8_k) + row * a.q8_k_stride);
    if (a.q8_0)
#pragma unroll 1
        for (int ib = warp; ib < a.n / 32; ib += WARPS)
            quantize_32<false>(x, a.n, ib, at<unsigned char>(a.q8_0) + row * a.q8_0_stride);
    if (a.q8_1)
#pragma unroll 1
        for (int ib = warp; ib < a.n / 32; ib += WARPS)
            quantize_32<true>(x, a.n, ib, at<unsigned char>(a.q8_1) + row * a.q8_1_stride);
}

// A row and the norm's weight in shared memory. The weight is on its way as soon as the block begins.
struct NormRow {
    float *x, *weight; // [n]

    __device__ __forceinline__ NormRow(const NormQuantize &a)
    {
        x = reinterpret_cast<float *>(dynamic_shared), weight = x + a.n;
        for (int i = 4 * threadIdx.x; i < a.n; i += 4 * THREADS) {
            if (a.weight)
                copy_16(weight + i, at<const float>(a.weight) + i);
            else
                four(weight, i) = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
        }
    }

    static __device__ __forceinline__ float4 &four(float *from, int i)
    {
        return *reinterpret_cast<float4 *>(from + i);
    }

    // The norm of x, which all threads have written.
    __device__ __forceinline__ void norm_and_quantize(const NormQuantize &a, long long row)
    {
        float *out = at<float>(a.out) + row * a.n, sum;
        wait_for_copies();
        __syncthreads();
        if (a.n <= SHORT) {
            sum = squares_by_warp(x, a.n);
            __syncthreads(); // all have read x
        } else {
            sum = squares_by_block(x, a.n); // with a barrier after x is read
        }
        float factor = norm_factor(sum, a.n, a.eps);
#pragma unroll 4
        for (int i = threadIdx.x; i < a.n; i += THREADS) {
            float value = x[i] * factor * weight[i];
            out[i] = x[i] = a.bias ? value + at<const float>(a.bias)[i] : value;
        }
        __syncthreads();
        quantize_row(a, x, row);
    }
};

// One block a row. There is memory for the row, whether the step has it or not.
KERNEL(norm_quantize, NormQuantize, THREADS)
{
    long long row = blockIdx.x;
    NormRow norm_row(a);
    for (int i = 4 * threadIdx.x; i < a.n; i += 4 * THREADS)
        copy_16(norm_row.x + i, at<const float>(a.x) + row * a.n + i);
    if (row < count_at(a.rows))
        norm_row.norm_and_quantize(a, row);
}

// One block a row. Leaves all as it is if the step is given up.
KERNEL(join_norm_quantize, JoinNormQuantize, THREADS)
{
    __shared__ Addends addends;
    const MoeJoin &join = a.join;
    long long row = blockIdx.x;
    NormRow norm_row(a.norm);
    find_addends(join, row, addends);
    if (!may_join(join) || row >= count_at(join.rows))
        return;
    float *out = at<float>(join.out) + row * join.n;
    for (int i = 4 * threadIdx.x; i < join.n; i += 4 * THREADS * COLUMNS) {
        float4 sums[COLUMNS];
        join_columns(join, addends, row, i, 4 * THREADS, sums);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
            if (int at = i + 4 * THREADS * c; at < join.n)
                NormRow::four(out, at) = NormRow::four(norm_row.x, at) = sums[c];
    }
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
