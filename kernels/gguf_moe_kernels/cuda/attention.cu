// Causal attention over the KV cache, with grouped query heads, over all positions or a sliding window.
//
// The cache is cut into splits of SPLIT positions, counted from position 0. A block takes one token and up to
// N_HEADS query heads that share their keys and values. What it finds in a split (largest score, sum of
// exponentials, sum of values) joins what the splits before have found, in ascending order. With a grid of depth
// 1 a block walks over its splits by itself; otherwise each block has one split, leaves its part in `scores`,
// and the last one to finish joins the parts in the same way. So the bits depend on neither the grid nor the
// number of tokens in the step.
//
// scores: for each row and head, scores_stride bytes: a counter (uint32, 0 between launches; the first head of
// the block's has it), then for each split of the grid the largest score, the sum, and n_embd_head_v values.
// Head widths are multiples of 8.
#include "attention_split.cuh"
#include "quantize.cuh"

// Walk over all splits; the state of each element so far is in `out`, that of a head in shared memory.
template <typename Cache, int N_HEADS>
__device__ __forceinline__ void walk(const Attention &a, const Part &part, const Shared<N_HEADS> &shared)
{
    int d = a.n_embd_head_v, n = part.n_head * d, t = threadIdx.x;
    long long first = part.first / SPLIT, last = (part.end - 1) / SPLIT;
    float *out = at<float>(a.out) + (part.row * a.n_head + part.head) * d;
    float largest = 0.0f, total = 0.0f; // of head t
    for (long long split = first; split <= last; split++) {
        int sets = take_split<Cache, N_HEADS>(a, part, shared, split);
        if (t < part.n_head) {
            Weights weights(split == first ? shared.largest[t] : largest, shared.largest[t]);
            largest = weights.largest;
            total = split == first ? shared.total[t] : weights.join(total, shared.total[t]);
            shared.scale[t] = weights.scale, shared.more_scale[t] = weights.more_scale;
        }
        __syncthreads();
        for (int i = t; i < n; i += THREADS) {
            float more = sum_sets(a, shared, sets, i / d, i % d);
            out[i] = split == first
                ? more
                : __fmaf_rn(out[i], shared.scale[i / d], more * shared.more_scale[i / d]);
        }
    }
    __syncthreads();
    if (t < part.n_head)
        shared.largest[t] = largest, shared.total[t] = total;
    __syncthreads();
    for (int i = t; i < n; i += THREADS)
        out[i] = finish(a, part.head + i / d, shared.largest[i / d], shared.total[i / d], out[i]);
}

// Of a token that sees one split only.
template <int N_HEADS>
__device__ __forceinline__ void finish_alone(
    const Attention &a, const Part &part, const Shared<N_HEADS> &shared, int sets)
{
    int d = a.n_embd_head_v;
    float *out = at<float>(a.out) + (part.row * a.n_head + part.head) * d;
    for (int i = threadIdx.x; i < part.n_head * d; i += THREADS) {
        int h = i / d;
        out[i] = finish(a, part.head + h, shared.largest[h], shared.total[h], sum_sets(a, shared, sets, h, i % d));
    }
}

__device__ __forceinline__ float *part_of(const Attention &a, const Part &part, int h)
{
    return at<float>(a.scores + (part.row * a.n_head + part.head + h) * a.scores_stride);
}

template <int N_HEADS>
__device__ __forceinline__ void leave_part(
    const Attention &a, const Part &part, const Shared<N_HEADS> &shared, int sets, long long place)
{
    int d = a.n_embd_head_v;
    for (int i = threadIdx.x; i < part.n_head * d; i += THREADS) {
        int h = i / d;
        float *mine = part_of(a, part, h) + 1 + place * (d + 2);
        mine[2 + i % d] = sum_sets(a, shared, sets, h, i % d);
        if (i % d == 0)
            mine[0] = shared.largest[h], mine[1] = shared.total[h];
    }
}

// True in the block that is the last of n_parts; all parts are visible to it.
__device__ __forceinline__ bool is_last(const Attention &a, const Part &part, unsigned n_parts)
{
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned *counter = reinterpret_cast<unsigned *>(part_of(a, part, 0));
        last = atomicAdd(counter, 1u) == n_parts - 1;
        if (last)
            *counter = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

__device__ __forceinline__ void join_parts(const Attention &a, const Part &part, int n_parts)
{
    int d = a.n_embd_head_v;
    float *out = at<float>(a.out) + (part.row * a.n_head + part.head) * d;
    for (int i = threadIdx.x; i < part.n_head * d; i += THREADS) {
        int h = i / d;
        const float *parts = part_of(a, part, h) + 1;
        float largest = parts[0], total = parts[1], sum = parts[2 + i % d];
#pragma unroll 4
        for (int p = 1; p < n_parts; p++) {
            parts += d + 2;
            Weights weights(largest, parts[0]);
            largest = weights.largest;
            total = weights.join(total, parts[1]);
            sum = weights.join(sum, parts[2 + i % d]);
        }
        out[i] = finish(a, part.head + h, largest, total, sum);
    }
}

// The heads that this block takes of its token.
template <int N_HEADS>
__device__ __forceinline__ Part part_of_block(const Attention &a)
{
    Part part;
    int group = static_cast<int>(a.n_head) / static_cast<int>(a.n_head_kv), blocks = (group + N_HEADS - 1) / N_HEADS;
    part.row = blockIdx.x;
    part.head_kv = blockIdx.y / blocks;
    int start = blockIdx.y % blocks * N_HEADS;
    part.head = part.head_kv * group + start;
    part.n_head = min(group - start, N_HEADS);
    part.end = count_at(a.n_past) + part.row + 1;
    part.first = 0;
    if (a.n_swa && a.n_swa < part.end)
        part.first = a.chunked ? (part.end - 1) / a.n_swa * a.n_swa : part.end - a.n_swa;
    return part;
}

// True in the block that leaves the result in a.out, when it is complete.
template <typename Cache, int N_HEADS>
__device__ __forceinline__ bool attention(const Attention &a, const Part &part)
{
    Shared<N_HEADS> shared(a);
    if (part.row >= count_at(a.rows))
        return false;
    long long first = part.first / SPLIT, n_splits = (part.end - 1) / SPLIT - first + 1;
    if (gridDim.z > 1 && blockIdx.z >= n_splits)
        return false;
    const float *q = at<const float>(a.q) + (part.row * a.n_head + part.head) * a.n_embd_head_k;
    for (int i = threadIdx.x; i < part.n_head * a.n_embd_head_k; i += THREADS)
        shared.q[i] = q[i];
    if (gridDim.z == 1) {
        walk<Cache, N_HEADS>(a, part, shared);
        return true;
    }
    int sets = take_split<Cache, N_HEADS>(a, part, shared, first + blockIdx.z);
    if (n_splits == 1) {
        finish_alone(a, part, shared, sets);
        return true;
    }
    leave_part(a, part, shared, sets, blockIdx.z);
    if (!is_last(a, part, n_splits))
        return false;
    join_parts(a, part, n_splits);
    return true;
}

KERNEL(attention_f16, Attention, THREADS)
{
    attention<F16, HEADS>(a, part_of_block<HEADS>(a));
}

KERNEL(attention_f32, Attention, THREADS)
{
    attention<F32, HEADS>(a, part_of_block<HEADS>(a));
}

KERNEL(attention_q8_0, Attention, THREADS)
{
    attention<Q8_0, HEADS>(a, part_of_block<HEADS>(a));
}

KERNEL(attention_few_f16, Attention, THREADS)
{
    attention<F16, FEW_HEADS>(a, part_of_block<FEW_HEADS>(a));
}

KERNEL(attention_few_f32, Attention, THREADS)
{
    attention<F32, FEW_HEADS>(a, part_of_block<FEW_HEADS>(a));
}

KERNEL(attention_few_q8_0, Attention, THREADS)
{
    attention<Q8_0, FEW_HEADS>(a, part_of_block<FEW_HEADS>(a));
}

// FEW_HEADS heads and QUANTIZE of what they give, which is whole blocks of 256.
template <typename Cache>
__device__ __forceinline__ void attention_q8_k(const AttentionQuantize &a)
{
    Part part = part_of_block<FEW_HEADS>(a.attention);
    if (!attention<Cache, FEW_HEADS>(a.attention, part))
        return;
    __syncthreads();
    const float *row = at<const float>(a.attention.out) + part.row * a.quantize.n;
    int first = part.head * a.attention.n_embd_head_v / 256, n = part.n_head * a.attention.n_embd_head_v / 256;
    for (int ib = threadIdx.x / WARP; ib < n; ib += WARPS)
        quantize_256(row, a.quantize.n, first + ib, at<unsigned char>(a.quantize.out) + part.row * a.quantize.out_stride);
}

KERNEL(attention_q8_k_f16, AttentionQuantize, THREADS)
{
    attention_q8_k<F16>(a);
}

KERNEL(attention_q8_k_f32, AttentionQuantize, THREADS)
{
    attention_q8_k<F32>(a);
}

KERNEL(attention_q8_k_q8_0, AttentionQuantize, THREADS)
{
    attention_q8_k<Q8_0>(a);
}
