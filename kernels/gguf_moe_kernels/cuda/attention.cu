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
#include "attention.cuh"
#include "quantize.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP;
// launch.py knows these numbers.
constexpr int COLUMNS = 1024;
// Heads of a block: many read less, few keep more blocks busy when there is one token.
constexpr int HEADS = 8, FEW_HEADS = 2;

// What a block works on.
struct Part {
    long long row, head, head_kv;
    int n_head; // of this block
    long long first, end; // the positions that the token sees
};

// The shared memory of a block: see launch.py.
template <int N_HEADS>
struct Shared {
    float *q;      // [N_HEADS, n_embd_head_k]
    float *scores; // [N_HEADS, SPLIT]
    float *sums;   // [sets, N_HEADS, n_embd_head_v], sets * n_embd_head_v <= COLUMNS
    float *largest, *total;    // [N_HEADS], of the split
    float *scale, *more_scale; // [N_HEADS], see Weights

    __device__ __forceinline__ Shared(const Attention &a)
    {
        q = reinterpret_cast<float *>(dynamic_shared);
        scores = q + N_HEADS * a.n_embd_head_k;
        sums = scores + N_HEADS * SPLIT;
        largest = sums + N_HEADS * COLUMNS;
        total = largest + N_HEADS;
        scale = total + N_HEADS;
        more_scale = scale + N_HEADS;
    }
};

// scores[h][j] = scale * q[h] . k[start + j]. With few heads a lane asks for the keys of all its positions at once.
template <typename Cache, int N_HEADS>
__device__ __forceinline__ void compute_scores(
    const Attention &a, const Part &part, const Shared<N_HEADS> &shared, long long start, int n)
{
    constexpr int TOGETHER = WARPS * (WARP / LANES), PASSES = SPLIT / TOGETHER;
    constexpr int AT_ONCE = N_HEADS <= FEW_HEADS ? PASSES : 1, CHUNKS = N_HEADS <= FEW_HEADS ? 2 : 1;
    int lane = lane_id() % LANES, d = a.n_embd_head_k;
    int first = threadIdx.x / WARP * (WARP / LANES), mine = first + lane_id() / LANES;
    long long stride = Cache::SIZE * a.n_head_kv * d;
    const unsigned char *k = at<const unsigned char>(a.k) + start * stride + Cache::SIZE * part.head_kv * d;
    // All lanes of a warp stay in the loop, because they exchange values. Loads are always of a real position.
    for (int base = 0; first + base < n; base += AT_ONCE * TOGETHER) {
        float sums[AT_ONCE][N_HEADS] = {};
        for (int i = CHUNK * lane; i < d; i += CHUNKS * CHUNK * LANES) {
            float keys[CHUNKS][AT_ONCE][CHUNK];
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
                for (int p = 0; p < AT_ONCE; p++) {
                    int j = min(mine + base + p * TOGETHER, n - 1), place = min(i + chunk * CHUNK * LANES, d - CHUNK);
                    Cache::template load<CHUNK>(k + j * stride + Cache::SIZE * place, keys[chunk][p]);
                }
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; chunk++) {
                int place = i + chunk * CHUNK * LANES;
                if (place >= d)
                    break;
#pragma unroll
                for (int h = 0; h < N_HEADS; h++)
                    if (h < part.n_head)
#pragma unroll
                        for (int c = 0; c < CHUNK; c++)
#pragma unroll
                            for (int p = 0; p < AT_ONCE; p++)
                                sums[p][h] = __fmaf_rn(keys[chunk][p][c], shared.q[h * d + place + c], sums[p][h]);
            }
        }
#pragma unroll
        for (int p = 0; p < AT_ONCE; p++)
#pragma unroll
            for (int h = 0; h < N_HEADS; h++) {
                for (int half = LANES / 2; half; half /= 2)
                    sums[p][h] += __shfl_xor_sync(ALL_LANES, sums[p][h], half);
                int j = mine + base + p * TOGETHER;
                if (lane == 0 && j < n && h < part.n_head)
                    shared.scores[h * SPLIT + j] = a.scale * sums[p][h];
            }
    }
}

// Each score becomes exp(score - largest); a warp a head.
template <int N_HEADS>
__device__ __forceinline__ void exponentials(const Part &part, const Shared<N_HEADS> &shared, int n)
{
    for (int h = threadIdx.x / WARP; h < part.n_head; h += WARPS) {
        float *scores = shared.scores + h * SPLIT;
        float largest = __int_as_float(0xff800000);
        for (int j = lane_id(); j < n; j += WARP)
            largest = fmaxf(largest, scores[j]);
        largest = largest_lane(largest);
        float sum = 0.0f;
        for (int j = lane_id(); j < n; j += WARP) {
            scores[j] = exact_exp(scores[j] - largest);
            sum += scores[j];
        }
        sum = sum_lanes(sum);
        if (lane_id() == 0)
            shared.largest[h] = largest, shared.total[h] = sum;
    }
}

// sums[set][h][i] = the values of positions set, set + sets, ... times their exponentials
template <typename Cache, int N_HEADS>
__device__ __forceinline__ int add_values(
    const Attention &a, const Part &part, const Shared<N_HEADS> &shared, long long start, int n)
{
    int d = a.n_embd_head_v, threads = d / 4;
    int sets = min(min(THREADS / threads, COLUMNS / d), 8), set = threadIdx.x / threads, i = threadIdx.x % threads * 4;
    if (set >= sets)
        return sets;
    long long stride = Cache::SIZE * a.v_width;
    const unsigned char *v =
        at<const unsigned char>(a.v) + start * stride + Cache::SIZE * (part.head_kv * d + i);
    constexpr int AT_ONCE = N_HEADS <= FEW_HEADS ? 16 : 4;
    float sums[N_HEADS][4] = {};
    for (int base = set; base < n; base += AT_ONCE * sets) {
        float values[AT_ONCE][4];
#pragma unroll
        for (int p = 0; p < AT_ONCE; p++)
            Cache::template load<4>(v + min(base + p * sets, n - 1) * stride, values[p]);
#pragma unroll
        for (int p = 0; p < AT_ONCE; p++) {
            int j = base + p * sets;
            if (j >= n)
                break;
#pragma unroll
            for (int h = 0; h < N_HEADS; h++)
                if (h < part.n_head)
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        sums[h][c] = __fmaf_rn(shared.scores[h * SPLIT + j], values[p][c], sums[h][c]);
        }
    }
#pragma unroll
    for (int h = 0; h < N_HEADS; h++)
        if (h < part.n_head)
#pragma unroll
            for (int c = 0; c < 4; c++)
                shared.sums[(set * N_HEADS + h) * d + i + c] = sums[h][c];
    return sets;
}

// A block's whole split: afterwards largest, total and sums are in shared memory.
template <typename Cache, int N_HEADS>
__device__ __forceinline__ int take_split(
    const Attention &a, const Part &part, const Shared<N_HEADS> &shared, long long split)
{
    long long start = max(part.first, split * SPLIT), end = min(part.end, (split + 1) * SPLIT);
    int n = end - start;
    __syncthreads();
    compute_scores<Cache, N_HEADS>(a, part, shared, start, n);
    __syncthreads();
    exponentials(part, shared, n);
    __syncthreads();
    int sets = add_values<Cache, N_HEADS>(a, part, shared, start, n);
    __syncthreads();
    return sets;
}

template <int N_HEADS>
__device__ __forceinline__ float sum_sets(const Attention &a, const Shared<N_HEADS> &shared, int sets, int h, int i)
{
    float sum = shared.sums[h * a.n_embd_head_v + i];
    for (int set = 1; set < sets; set++)
        sum += shared.sums[(set * N_HEADS + h) * a.n_embd_head_v + i];
    return sum;
}

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
    part.first = a.n_swa && a.n_swa < part.end ? part.end - a.n_swa : 0;
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

KERNEL(attention_few_f16, Attention, THREADS)
{
    attention<F16, FEW_HEADS>(a, part_of_block<FEW_HEADS>(a));
}

KERNEL(attention_few_f32, Attention, THREADS)
{
    attention<F32, FEW_HEADS>(a, part_of_block<FEW_HEADS>(a));
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
