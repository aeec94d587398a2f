// Parts of attention_many.cu: a block's queries, a split's keys or values in shared memory, and what they give.
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
