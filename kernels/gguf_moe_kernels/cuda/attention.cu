// Causal attention over the KV cache, with grouped query heads, over all positions or a sliding window.
//
// The cache is cut into splits of SPLIT positions, counted from position 0. A block takes one token and up to
// HEADS query heads that share their keys and values. What it finds in a split (largest score, sum of
// exponentials, sum of values) joins what the splits before have found, in ascending order. attention_one.cu
// keeps this order for one token, attention_many.cu for many, so that the bits do not depend on the number of
// tokens in the step. Head widths are multiples of 8.
#include "attention_split.cuh"

// Walk over all splits; the state of each element so far is in `out`, that of a head in shared memory.
template <typename Cache>
__device__ __forceinline__ void walk(const Attention &a, const Part &part, const Shared &shared)
{
    int d = a.n_embd_head_v, n = part.n_head * d, t = threadIdx.x;
    long long first = part.first / SPLIT, last = (part.end - 1) / SPLIT;
    float *out = at<float>(a.out) + (part.row * a.n_head + part.head) * d;
    float largest = 0.0f, total = 0.0f; // of head t
    for (long long split = first; split <= last; split++) {
        int sets = take_split<Cache>(a, part, shared, split);
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

template <typename Cache>
__device__ __forceinline__ void attention(const Attention &a)
{
    Part part = part_of_block<HEADS>(a, blockIdx.x);
    Shared shared(a);
    if (part.row >= count_at(a.rows))
        return;
    const float *q = at<const float>(a.q) + (part.row * a.n_head + part.head) * a.n_embd_head_k;
    for (int i = threadIdx.x; i < part.n_head * a.n_embd_head_k; i += THREADS)
        shared.q[i] = q[i];
    walk<Cache>(a, part, shared);
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
