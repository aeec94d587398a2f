// What a block of attention.cu finds in one split of the cache.
#include "attention.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP;
// attention_launch.py knows these numbers.
constexpr int COLUMNS = 1024;
constexpr int HEADS = 8; // of a block

// The shared memory of a block: see attention_launch.py.
struct Shared {
    float *q;      // [HEADS, n_embd_head_k]
    float *scores; // [HEADS, SPLIT]
    float *sums;   // [sets, HEADS, n_embd_head_v], sets * n_embd_head_v <= COLUMNS
    float *largest, *total;    // [HEADS], of the split
    float *scale, *more_scale; // [HEADS], see Weights

    __device__ __forceinline__ Shared(const Attention &a)
    {
        q = reinterpret_cast<float *>(dynamic_shared);
        scores = q + HEADS * a.n_embd_head_k;
        sums = scores + HEADS * SPLIT;
        largest = sums + HEADS * COLUMNS;
        total = largest + HEADS;
        scale = total + HEADS;
        more_scale = scale + HEADS;
    }
};

// scores[h][j] = scale * q[h] . k[start + j]
template <typename Cache>
__device__ __forceinline__ void compute_scores(
    const Attention &a, const Part &part, const Shared &shared, long long start, int n)
{
    constexpr int TOGETHER = WARPS * (WARP / LANES);
    int lane = lane_id() % LANES, d = a.n_embd_head_k;
    int first = threadIdx.x / WARP * (WARP / LANES), mine = first + lane_id() / LANES;
    long long stride = Cache::bytes(a.n_head_kv * d);
    const unsigned char *k = at<const unsigned char>(a.k) + start * stride + Cache::bytes(part.head_kv * d);
    // All lanes of a warp stay in the loop, because they exchange values. Loads are always of a real position.
    for (int base = 0; first + base < n; base += TOGETHER) {
        float sums[HEADS] = {};
        for (int i = CHUNK * lane; i < d; i += CHUNK * LANES) {
            float keys[CHUNK];
            load<Cache, CHUNK>(k + min(mine + base, n - 1) * stride, i, keys);
#pragma unroll
            for (int h = 0; h < HEADS; h++)
                if (h < part.n_head)
#pragma unroll
                    for (int c = 0; c < CHUNK; c++)
                        sums[h] = __fmaf_rn(keys[c], shared.q[h * d + i + c], sums[h]);
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            for (int half = LANES / 2; half; half /= 2)
                sums[h] += __shfl_xor_sync(ALL_LANES, sums[h], half);
            if (int j = mine + base; lane == 0 && j < n && h < part.n_head)
                shared.scores[h * SPLIT + j] = a.scale * sums[h];
        }
    }
}

// Each score becomes exp(score - largest); a warp a head.
__device__ __forceinline__ void exponentials(const Part &part, const Shared &shared, int n)
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
template <typename Cache>
__device__ __forceinline__ int add_values(
    const Attention &a, const Part &part, const Shared &shared, long long start, int n)
{
    int d = a.n_embd_head_v, threads = d / 4;
    int sets = min(min(THREADS / threads, COLUMNS / d), 8), set = threadIdx.x / threads, i = threadIdx.x % threads * 4;
    if (set >= sets)
        return sets;
    long long stride = Cache::bytes(a.v_width);
    const unsigned char *v = at<const unsigned char>(a.v) + start * stride + Cache::bytes(part.head_kv * d);
    constexpr int AT_ONCE = 4;
    float sums[HEADS][4] = {};
    for (int base = set; base < n; base += AT_ONCE * sets) {
        float values[AT_ONCE][4];
#pragma unroll
        for (int p = 0; p < AT_ONCE; p++)
            load<Cache, 4>(v + min(base + p * sets, n - 1) * stride, i, values[p]);
#pragma unroll
        for (int p = 0; p < AT_ONCE; p++) {
            int j = base + p * sets;
            if (j >= n)
                break;
#pragma unroll
            for (int h = 0; h < HEADS; h++)
                if (h < part.n_head)
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        sums[h][c] = __fmaf_rn(shared.scores[h * SPLIT + j], values[p][c], sums[h][c]);
        }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++)
        if (h < part.n_head)
#pragma unroll
            for (int c = 0; c < 4; c++)
                shared.sums[(set * HEADS + h) * d + i + c] = sums[h][c];
    return sets;
}

// A block's whole split: afterwards largest, total and sums are in shared memory.
template <typename Cache>
__device__ __forceinline__ int take_split(
    const Attention &a, const Part &part, const Shared &shared, long long split)
{
    long long start = max(part.first, split * SPLIT), end = min(part.end, (split + 1) * SPLIT);
    int n = end - start;
    __syncthreads();
    compute_scores<Cache>(a, part, shared, start, n);
    __syncthreads();
    exponentials(part, shared, n);
    __syncthreads();
    int sets = add_values<Cache>(a, part, shared, start, n);
    __syncthreads();
    return sets;
}

__device__ __forceinline__ float sum_sets(const Attention &a, const Shared &shared, int sets, int h, int i)
{
    float sum = shared.sums[h * a.n_embd_head_v + i];
    for (int set = 1; set < sets; set++)
        sum += shared.sums[(set * HEADS + h) * a.n_embd_head_v + i];
    return sum;
}
