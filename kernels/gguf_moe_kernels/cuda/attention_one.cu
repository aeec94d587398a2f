// attention.cu for one token, with its bits: a block has one split of the cache. It leaves what it has found in `scores`,
// and the last one to finish joins the parts of all.
//
// scores: for each head, scores_stride bytes: a counter (uint32, 0 between launches; the first head of the block's has
// it), then for each split of the grid the largest score, the sum, and n_embd_head_v values.
#include "attention_one.cuh"
#include "quantize.cuh"

__device__ __forceinline__ float *part_of(const Attention &a, const Part &part, int h)
{
    return reinterpret_cast<float *>(at<unsigned char>(a.scores) + (part.head + h) * a.scores_stride);
}

// True in the block that is the last of n_parts; all parts are visible to it.
__device__ __forceinline__ bool is_last(const Attention &a, const Part &part, unsigned n_parts)
{
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned *counter = reinterpret_cast<unsigned *>(part_of(a, part, 0));
        // What the other threads wrote is before it, because of the barrier.
        last = add_acquire_release(counter, 1) == n_parts - 1;
        if (last)
            *counter = 0;
    }
    __syncthreads();
    return last;
}

// Element i of head h in all parts, which are asked for JOINED at a time.
__device__ __forceinline__ float join_parts(const Attention &a, const Part &part, int n_parts, int h, int i)
{
    constexpr int JOINED = 4;
    int d = a.n_embd_head_v;
    const float *parts = part_of(a, part, h) + 1;
    float largest = 0.0f, total = 0.0f, sum = 0.0f;
#pragma unroll 1
    for (int first = 0; first < n_parts; first += JOINED) {
        float heads[JOINED][3];
#pragma unroll
        for (int p = 0; p < JOINED; p++) {
            const float *one = parts + min(first + p, n_parts - 1) * (d + 2);
            heads[p][0] = one[0], heads[p][1] = one[1], heads[p][2] = one[2 + i];
        }
#pragma unroll
        for (int p = 0; p < JOINED; p++) {
            if (first + p >= n_parts)
                break;
            if (first + p == 0) {
                largest = heads[p][0], total = heads[p][1], sum = heads[p][2];
                continue;
            }
            Weights weights(largest, heads[p][0]);
            largest = weights.largest;
            total = weights.join(total, heads[p][1]);
            sum = weights.join(sum, heads[p][2]);
        }
    }
    return finish(a, part.head + h, largest, total, sum);
}

// True in the block that leaves the result, in a.out and in shared.sums, when it is complete.
template <typename Cache>
__device__ __forceinline__ bool attention(const Attention &a, const Part &part, const Shared &shared)
{
    long long first = part.first / SPLIT;
    int n_splits = static_cast<int>((part.end - 1) / SPLIT - first) + 1, place = blockIdx.z, d = a.n_embd_head_v;
    if (place >= n_splits)
        return false;
    int sets = take_split<Cache>(a, part, shared, first + place), n = part.n_head * d;
    float *out = at<float>(a.out) + part.head * d;
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += THREADS) {
        int h = i / d;
        float sum = shared.sums[i];
        for (int set = 1; set < sets; set++)
            sum += shared.sums[set * HEADS * d + i];
        if (n_splits > 1) {
            float *mine = part_of(a, part, h) + 1 + place * (d + 2);
            mine[2 + i % d] = sum;
            if (i % d == 0)
                mine[0] = shared.largest[h], mine[1] = shared.total[h];
        } else { // no other thread reads this element
            out[i] = shared.sums[i] = finish(a, part.head + h, shared.largest[h], shared.total[h], sum);
        }
    }
    if (n_splits == 1)
        return true;
    if (!is_last(a, part, n_splits))
        return false;
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += THREADS)
        out[i] = shared.sums[i] = join_parts(a, part, n_splits, i / d, i % d);
    return true;
}

template <typename Cache>
__device__ __forceinline__ void attention(const Attention &a)
{
    Shared shared;
    attention<Cache>(a, part_of_block<HEADS>(a, 0), shared);
}

// And QUANTIZE of what the heads give, which is whole blocks of 256.
template <typename Cache>
__device__ __forceinline__ void attention_q8_k(const AttentionQuantize &a)
{
    Shared shared;
    Part part = part_of_block<HEADS>(a.attention, 0);
    if (!attention<Cache>(a.attention, part, shared))
        return;
    __syncthreads();
    int d = a.attention.n_embd_head_v, first = part.head * d / 256;
    for (int ib = threadIdx.x / WARP; ib < part.n_head * d / 256; ib += WARPS)
        quantize_as_256(shared.sums + 256 * ib, a.quantize.n, first + ib, at<unsigned char>(a.quantize.out));
}

KERNEL(attention_f16, Attention, THREADS)
{
    attention<F16>(a);
}

KERNEL(attention_f32, Attention, THREADS)
{
    attention<F32>(a);
}

KERNEL(attention_q8_0, Attention, THREADS)
{
    attention<Q8_0>(a);
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
