// What a block of attention_one.cu finds in one split of the cache. It asks for queries, keys and values before it
// computes with any of them, and computes as attention_split.cuh does, in the same order.
#include "attention.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP;
// attention_launch.py knows these numbers. Few heads keep more blocks busy.
constexpr int HEADS = 2, COLUMNS = 1024;
// Positions that the block's lanes have at a time, and how often; chunks of a key that a lane has at a time.
constexpr int TOGETHER = WARPS * WARP / LANES, PASSES = SPLIT / TOGETHER, CHUNKS = 2;
// Positions whose values a thread asks for at once; how many threads may have a column.
constexpr int VALUES = 16, MOST_SETS = 8;

// The shared memory of a block: see attention_launch.py.
struct Shared {
    float *sums; // [sets, HEADS, n_embd_head_v], sets * n_embd_head_v <= COLUMNS; in the end [HEADS, n_embd_head_v]
    float2 *scores; // [SPLIT + 1] of both heads, then their exponentials, and 0 from the last position on
    float *largest, *total; // [HEADS]

    __device__ __forceinline__ Shared()
    {
        sums = reinterpret_cast<float *>(dynamic_shared);
        scores = reinterpret_cast<float2 *>(sums + HEADS * COLUMNS);
        largest = reinterpret_cast<float *>(scores + SPLIT + 1);
        total = largest + HEADS;
    }
};

// A thread's part of queries and keys: chunks from element `first` on of both heads and of every TOGETHER-th of n
// positions. Loads are always of real elements, and what must not count is multiplied by 0: a branch on the way from loads
// to products would let the compiler put the loads behind it.
template <typename Cache>
struct QueriesAndKeys {
    typename Cache::template Raw<CHUNK> keys[CHUNKS][PASSES];
    F32::Raw<CHUNK> queries[CHUNKS][HEADS];

    __device__ __forceinline__ void ask(const Attention &a, const Part &part, const unsigned char *k, int first, int n)
    {
        int d = a.n_embd_head_k, position = threadIdx.x / LANES;
        int stride = Cache::bytes(a.n_head_kv * d);
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            int wanted = first + chunk * CHUNK * LANES, place = min(wanted, d - CHUNK);
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                int head = static_cast<int>(part.head) + min(h, part.n_head - 1);
                queries[chunk][h] = F32::fetch<CHUNK>(at<const unsigned char>(a.q) + 4 * head * d, place);
#pragma unroll
                for (int c = 0; c < CHUNK; c++)
                    queries[chunk][h].values[c] = wanted < d ? queries[chunk][h].values[c] : 0.0f;
            }
#pragma unroll
            for (int p = 0; p < PASSES; p++)
                keys[chunk][p] = Cache::template fetch<CHUNK>(k + min(position + p * TOGETHER, n - 1) * stride, place);
        }
    }

    __device__ __forceinline__ void add_products(float (&sums)[PASSES * HEADS]) const
    {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
            for (int p = 0; p < PASSES; p++) {
                float key[CHUNK];
                Cache::values(keys[chunk][p], key);
#pragma unroll
                for (int h = 0; h < HEADS; h++)
#pragma unroll
                    for (int c = 0; c < CHUNK; c++) {
                        float &sum = sums[p * HEADS + h];
                        sum = __fmaf_rn(key[c], queries[chunk][h].values[c], sum);
                    }
            }
    }
};

// The sums of each LANES lanes: lane l of them gets that of sums[l]. The order is that of adding by halves.
__device__ __forceinline__ float sum_of_lanes(float (&sums)[LANES])
{
#pragma unroll
    for (int half = LANES / 2; half; half /= 2) {
        bool is_high = lane_id() & half;
#pragma unroll
        for (int i = 0; i < half; i++) {
            float mine = is_high ? sums[i + half] : sums[i], other = is_high ? sums[i] : sums[i + half];
            sums[i] = mine + __shfl_xor_sync(ALL_LANES, other, half);
        }
    }
    return sums[0];
}

// Each of a head's n scores becomes exp(score - largest), by one warp.
__device__ __forceinline__ void exponentials(const Shared &shared, int h, int n)
{
    constexpr int OF_LANE = SPLIT / WARP;
    float *scores = reinterpret_cast<float *>(shared.scores) + h, x[OF_LANE];
    float largest = __int_as_float(0xff800000), sum = 0.0f;
#pragma unroll
    for (int i = 0; i < OF_LANE; i++) {
        int j = i * WARP + lane_id();
        x[i] = j < n ? scores[HEADS * j] : largest;
    }
#pragma unroll
    for (int i = 0; i < OF_LANE; i++)
        largest = fmaxf(largest, x[i]);
    largest = largest_lane(largest);
#pragma unroll
    for (int i = 0; i < OF_LANE; i++) {
        int j = i * WARP + lane_id();
        x[i] = j < n ? exact_exp(x[i] - largest) : 0.0f;
        scores[HEADS * j] = x[i];
        sum += x[i];
    }
    sum = sum_lanes(sum);
    if (lane_id() == 0)
        shared.largest[h] = largest, shared.total[h] = sum;
}

// A thread's part of the values: four columns of the positions set, set + sets, ...
template <typename Cache>
struct Values {
    typename Cache::template Raw<4> raw[VALUES];
    const unsigned char *v;
    int stride, sets, set, column, n;
    bool is_in;

    __device__ __forceinline__ Values(const Attention &a, const Part &part, long long start, int n) : n(n)
    {
        int d = a.n_embd_head_v, threads = d / 4;
        sets = min(COLUMNS / d, MOST_SETS); // no more than THREADS / threads
        set = threadIdx.x / threads, column = threadIdx.x % threads * 4;
        is_in = set < sets;
        stride = Cache::bytes(a.v_width);
        v = at<const unsigned char>(a.v) + start * stride + Cache::bytes(part.head_kv * d);
    }

    __device__ __forceinline__ void ask(int first)
    {
#pragma unroll
        for (int p = 0; p < VALUES; p++)
            raw[p] = Cache::template fetch<4>(v + min(first + set + p * sets, n - 1) * stride, column);
    }

    __device__ __forceinline__ void add(const float2 *scores, int first, float (&sums)[HEADS][4]) const
    {
#pragma unroll
        for (int p = 0; p < VALUES; p++) {
            int j = first + set + p * sets;
            float value[4];
            Cache::values(raw[p], value);
            float2 score = scores[min(j, SPLIT)];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                sums[0][c] = __fmaf_rn(score.x, value[c], sums[0][c]);
                sums[1][c] = __fmaf_rn(score.y, value[c], sums[1][c]);
            }
        }
    }
};

// What the block finds in its split: afterwards largest, total and sums are in shared memory. Gives the number of sets.
template <typename Cache>
__device__ __forceinline__ int take_split(const Attention &a, const Part &part, const Shared &shared, long long split)
{
    long long start = max(part.first, split * SPLIT), end = min(part.end, (split + 1) * SPLIT);
    int n = end - start, d = a.n_embd_head_k, first = threadIdx.x % LANES * CHUNK;
    const unsigned char *k = at<const unsigned char>(a.k) + Cache::bytes((start * a.n_head_kv + part.head_kv) * d);
    QueriesAndKeys<Cache> keys;
    Values<Cache> values(a, part, start, n);
    keys.ask(a, part, k, first, n);
    values.ask(0);
    float products[PASSES * HEADS] = {}, sums[HEADS][4] = {};
    keys.add_products(products);
#pragma unroll 1
    for (int i = CHUNKS * CHUNK * LANES; i < d; i += CHUNKS * CHUNK * LANES) {
        keys.ask(a, part, k, first + i, n);
        keys.add_products(products);
    }
    float score = a.scale * sum_of_lanes(products);
    int lane = lane_id() % LANES, j = threadIdx.x / LANES + lane / HEADS * TOGETHER;
    if (j < n)
        reinterpret_cast<float *>(shared.scores)[HEADS * j + lane % HEADS] = score;
    __syncthreads();
    if (int h = threadIdx.x / WARP; h < HEADS)
        exponentials(shared, h, n);
    else if (threadIdx.x == THREADS - 1)
        shared.scores[SPLIT] = {};
    __syncthreads();
    values.add(shared.scores, 0, sums);
#pragma unroll 1
    for (int i = VALUES * values.sets; i < n; i += VALUES * values.sets) {
        values.ask(i);
        values.add(shared.scores, i, sums);
    }
    if (values.is_in)
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            int place = (values.set * HEADS + h) * a.n_embd_head_v + values.column;
            *reinterpret_cast<float4 *>(shared.sums + place) = make_float4(sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
        }
    __syncthreads();
    return values.sets;
}
