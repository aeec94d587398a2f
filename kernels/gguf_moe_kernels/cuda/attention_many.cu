// Causal attention for many tokens, over all positions: the results of attention.cu, bit for bit.
//
// A block takes up to QUERIES queries: tokens that follow each other, each with query heads that share keys and
// values. It walks over the splits; a split's keys, and then its values, lie in shared memory for all queries. A warp
// has OF_WARP queries, and each lane of it four positions of the keys, or four columns of the values.
// Head widths are multiples of 8, and at most WIDEST.
#include "attention.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP;
// attention_launch.py knows these two.
constexpr int QUERIES = 32, HEADS = 8;
constexpr int OF_WARP = QUERIES / WARPS, POSITIONS = SPLIT / WARP;
// Columns of a row of scores, and bytes that keep rows of the cache in different banks.
constexpr int SCORES = QUERIES + 4, PADDING = 16;
// For these widths attention.cu adds up so many sets of positions.
constexpr int SETS = 8, WIDEST = 128;

// The queries of a block: number q is head q mod n_head of token q / n_head, both from the first on.
struct Queries
{
    long long row, head, head_kv, end; // end: behind the positions that the first token sees
    int n_head, n;

    // How many positions from `start` on a query sees.
    __device__ __forceinline__ int n_seen(int q, long long start) const
    {
        long long n = end + q / n_head - start;
        return q < this->n ? static_cast<int>(max(0ll, min(n, static_cast<long long>(SPLIT)))) : 0;
    }
};

// See attention_launch.py.
struct ManyShared
{
    float *q;             // [QUERIES, n_embd_head_k]
    float *scores;        // [SPLIT, SCORES]
    unsigned char *cache; // [SPLIT] keys or values of row_size bytes

    __device__ __forceinline__ ManyShared(const Attention &a)
    {
        q = reinterpret_cast<float *>(dynamic_shared);
        scores = q + QUERIES * a.n_embd_head_k;
        cache = reinterpret_cast<unsigned char *>(scores + SPLIT * SCORES);
    }
};

// n rows of the cache into shared memory, of which d elements from `rows` on; rows are `width` elements apart.
// `out` has them as they are, or those of blocks as float32: InShared<Cache>.
template <typename Cache>
__device__ __forceinline__ void take_rows(const unsigned char *rows, long long width, int n, int d, unsigned char *out)
{
    int chunks = Cache::bytes(d) / 16, row_size = Cache::bytes(d) + PADDING;
    for (int i = threadIdx.x; i < n * chunks; i += THREADS) {
        long long j = i / chunks, chunk = i % chunks;
        *reinterpret_cast<uint4 *>(out + j * row_size + 16 * chunk) =
            *reinterpret_cast<const uint4 *>(rows + Cache::bytes(width) * j + 16 * chunk);
    }
}

template <>
__device__ __forceinline__ void take_rows<Q8_0>(
    const unsigned char *rows, long long width, int n, int d, unsigned char *out)
{
    int chunks = d / 4, row_size = F32::bytes(d) + PADDING;
    for (int i = threadIdx.x; i < n * chunks; i += THREADS) {
        long long j = i / chunks, chunk = i % chunks;
        load<Q8_0, 4>(rows + Q8_0::bytes(width) * j, 4 * chunk, reinterpret_cast<float *>(out + j * row_size) + 4 * chunk);
    }
}

template <typename Cache>
struct InSharedOf
{
    using Type = Cache;
};

template <>
struct InSharedOf<Q8_0>
{
    using Type = F32;
};

template <typename Cache>
using InShared = typename InSharedOf<Cache>::Type;

using Scores = float[OF_WARP][POSITIONS];

// What lane `lane` of attention.cu's eight adds up for each of the warp's queries and this lane's positions.
template <typename Cache>
__device__ __forceinline__ void chain(const float *q, const unsigned char *keys, int d, int lane, Scores &sums)
{
    int row_size = Cache::bytes(d) + PADDING;
#pragma unroll
    for (int i = 0; i < OF_WARP * POSITIONS; i++)
        sums[i / POSITIONS][i % POSITIONS] = 0.0f;
    for (int first = CHUNK * lane; first < d; first += CHUNK * LANES) {
        float key[POSITIONS][CHUNK];
#pragma unroll
        for (int p = 0; p < POSITIONS; p++)
            load<Cache, CHUNK>(keys + p * WARP * row_size, first, key[p]);
#pragma unroll
        for (int h = 0; h < OF_WARP; h++) {
            float query[CHUNK];
            load<F32, CHUNK>(reinterpret_cast<const unsigned char *>(q + h * d), first, query);
#pragma unroll
            for (int p = 0; p < POSITIONS; p++)
#pragma unroll
                for (int c = 0; c < CHUNK; c++)
                    sums[h][p] = __fmaf_rn(key[p][c], query[c], sums[h][p]);
        }
    }
}

// `more` is the first that is added if is_first.
__device__ __forceinline__ void add(Scores &sums, const Scores &more, bool is_first)
{
#pragma unroll
    for (int i = 0; i < OF_WARP * POSITIONS; i++) {
        float &sum = sums[i / POSITIONS][i % POSITIONS], one = more[i / POSITIONS][i % POSITIONS];
        sum = is_first ? one : sum + one;
    }
}

// The warp's part of the scores: the eight lanes' sums, added as attention.cu's lanes do.
template <typename Cache>
__device__ __forceinline__ void many_scores(const Attention &a, const ManyShared &shared, int first)
{
    int d = a.n_embd_head_k;
    const float *q = shared.q + first * d;
    const unsigned char *keys = shared.cache + lane_id() * (Cache::bytes(d) + PADDING);
    Scores sums, more, half, total;
#pragma unroll 1
    for (int odd = 0; odd < 2; odd++) {
#pragma unroll 1
        for (int lane = odd; lane < odd + 4; lane += 2) {
            chain<Cache>(q, keys, d, lane, sums);
            chain<Cache>(q, keys, d, lane + 4, more);
            add(sums, more, false);
            add(half, sums, lane == odd);
        }
        add(total, half, !odd);
    }
#pragma unroll
    for (int p = 0; p < POSITIONS; p++) {
        float *out = shared.scores + (lane_id() + p * WARP) * SCORES + first;
#pragma unroll
        for (int h = 0; h < OF_WARP; h++)
            out[h] = a.scale * total[h][p];
    }
}

// The exponentials of n scores of one query in place; their sum, and the largest score.
__device__ __forceinline__ float2 many_exponentials(float *scores, int n)
{
    float largest = __int_as_float(0xff800000), sum = 0.0f;
    for (int j = lane_id(); j < n; j += WARP)
        largest = fmaxf(largest, scores[j * SCORES]);
    largest = largest_lane(largest);
    for (int j = lane_id(); j < n; j += WARP) {
        float e = exact_exp(scores[j * SCORES] - largest);
        scores[j * SCORES] = e;
        sum += e;
    }
    return make_float2(largest, sum_lanes(sum));
}

// sums[h] = this lane's four columns of the values times the exponentials of the warp's queries. n: positions of each.
template <typename Cache, bool is_alike>
__device__ __forceinline__ void many_values(
    const float *scores,
    const unsigned char *values,
    int d,
    int column,
    const int (&n)[OF_WARP],
    int most,
    float (&sums)[OF_WARP][4])
{
    int row_size = Cache::bytes(d) + PADDING;
#pragma unroll 1
    for (int set = 0; set < SETS; set++) {
        float chains[OF_WARP][4] = {};
#pragma unroll 2
        for (int j = set; j < most; j += SETS) {
            float value[4];
            load<Cache, 4>(values + j * row_size, column, value);
            float4 four = *reinterpret_cast<const float4 *>(scores + j * SCORES);
            float score[OF_WARP] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int h = 0; h < OF_WARP; h++)
                if (is_alike || j < n[h])
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        chains[h][c] = __fmaf_rn(score[h], value[c], chains[h][c]);
        }
#pragma unroll
        for (int h = 0; h < OF_WARP; h++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                sums[h][c] = set ? sums[h][c] + chains[h][c] : chains[h][c];
    }
}

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
