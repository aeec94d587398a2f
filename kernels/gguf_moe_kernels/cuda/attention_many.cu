// Causal attention for many tokens, over all positions: the results of attention.cu, bit for bit.
//
// A block takes up to QUERIES queries: tokens that follow each other, each with query heads that share keys and
// values. It walks over the splits; a split's keys, and then its values, lie in shared memory for all queries. A warp
// has OF_WARP queries, and each lane of it four positions of the keys, or four columns of the values.
// Head widths are multiples of 8, and at most WIDEST.
#include "attention_many.cuh"

// What a lane has of the warp's queries so far.
struct State
{
    float largest[OF_WARP], total[OF_WARP], out[OF_WARP][4];
};

template <typename Cache>
__device__ __forceinline__ void take_many(
    const Attention &a, const Queries &queries, const ManyShared &shared, long long split, State &state)
{
    int first = threadIdx.x / WARP * OF_WARP, column = 4 * lane_id();
    long long start = split * SPLIT;
    // The last token of the block sees most.
    int n_rows = queries.n_seen(queries.n - 1, start), n[OF_WARP], most = 0;
    bool is_alike = true;
#pragma unroll
    for (int h = 0; h < OF_WARP; h++) {
        n[h] = queries.n_seen(first + h, start);
        most = max(most, n[h]);
        is_alike = is_alike && n[h] == n[0];
    }
    int d_k = a.n_embd_head_k, d_v = a.n_embd_head_v;
    long long k_width = a.n_head_kv * d_k;
    long long k = a.k + Cache::bytes(start * k_width + queries.head_kv * d_k);
    long long v = a.v + Cache::bytes(start * a.v_width + queries.head_kv * d_v);
    __syncthreads();
    take_rows<Cache>(at<const unsigned char>(k), k_width, n_rows, d_k, shared.cache);
    __syncthreads();
    float2 found[OF_WARP];
    if (most) {
        many_scores<InShared<Cache>>(a, shared, first);
        __syncwarp();
#pragma unroll
        for (int h = 0; h < OF_WARP; h++)
            found[h] = many_exponentials(shared.scores + first + h, n[h]);
        __syncwarp();
    }
    __syncthreads();
    take_rows<Cache>(at<const unsigned char>(v), a.v_width, n_rows, d_v, shared.cache);
    __syncthreads();
    if (!most || column >= d_v)
        return;
    float sums[OF_WARP][4];
    if (is_alike)
        many_values<InShared<Cache>, true>(shared.scores + first, shared.cache, d_v, column, n, most, sums);
    else
        many_values<InShared<Cache>, false>(shared.scores + first, shared.cache, d_v, column, n, most, sums);
#pragma unroll
    for (int h = 0; h < OF_WARP; h++) {
        if (!n[h])
            continue;
        Weights weights(split ? state.largest[h] : found[h].x, found[h].x);
        state.largest[h] = weights.largest;
        state.total[h] = split ? weights.join(state.total[h], found[h].y) : found[h].y;
#pragma unroll
        for (int c = 0; c < 4; c++)
            state.out[h][c] = split ? weights.join(state.out[h][c], sums[h][c]) : sums[h][c];
    }
}

template <typename Cache>
__device__ __forceinline__ void attention_many(const Attention &a)
{
    ManyShared shared(a);
    Queries queries;
    long long group = a.n_head / a.n_head_kv, n_rows = count_at(a.rows), of_group = (group + HEADS - 1) / HEADS;
    long long first_head = blockIdx.y % of_group * HEADS, most_heads = min(group, static_cast<long long>(HEADS));
    long long n_tokens = QUERIES / most_heads;
    // Later tokens take longer, so they begin.
    queries.row = (gridDim.x - 1 - blockIdx.x) * n_tokens;
    if (queries.row >= n_rows)
        return;
    queries.head_kv = blockIdx.y / of_group;
    queries.head = queries.head_kv * group + first_head;
    queries.n_head = min(group - first_head, most_heads);
    queries.n = queries.n_head * min(n_tokens, n_rows - queries.row);
    queries.end = count_at(a.n_past) + queries.row + 1;
    int d_k = a.n_embd_head_k, d_v = a.n_embd_head_v;
    for (int i = threadIdx.x; i < QUERIES * d_k; i += THREADS) {
        int q = min(i / d_k, queries.n - 1);
        long long head = (queries.row + q / queries.n_head) * a.n_head + queries.head + q % queries.n_head;
        shared.q[i] = at<const float>(a.q)[head * d_k + i % d_k];
    }
    State state;
    long long last = (queries.end + (queries.n - 1) / queries.n_head - 1) / SPLIT;
    for (long long split = 0; split <= last; split++)
        take_many<Cache>(a, queries, shared, split, state);
    int first = threadIdx.x / WARP * OF_WARP, column = 4 * lane_id();
#pragma unroll
    for (int h = 0; h < OF_WARP; h++) {
        int q = first + h;
        if (q >= queries.n || column >= d_v)
            continue;
        long long head = queries.head + q % queries.n_head;
        float *out = at<float>(a.out) + ((queries.row + q / queries.n_head) * a.n_head + head) * d_v + column;
#pragma unroll
        for (int c = 0; c < 4; c++)
            out[c] = finish(a, head, state.largest[h], state.total[h], state.out[h][c]);
    }
}

KERNEL(attention_f16, Attention, THREADS, 2)
{
    attention_many<F16>(a);
}

KERNEL(attention_f32, Attention, THREADS, 2)
{
    attention_many<F32>(a);
}

KERNEL(attention_q8_0, Attention, THREADS, 2)
{
    attention_many<Q8_0>(a);
}
