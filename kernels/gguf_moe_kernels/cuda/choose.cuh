// The router's choice for one token by one warp, without groups of experts: the bits of topk.cuh with fewer steps, of
// which each waits for the one before. Lane l has the experts l, l + 32, ... in registers.
#include "places.cuh"
#include "rows.cuh"
#include "topk.cuh"

// No more choices than lanes; fuse.py knows it.
constexpr int MOST_CHOSEN = WARP;
// So many lanes are asked at once, where what lanes have beyond the last one changes nothing.
constexpr int TOGETHER = 4;

// What order_of has made a number of.
__device__ __forceinline__ float value_of(unsigned order)
{
    return __uint_as_float(order ^ (order >> 31 ? 0x80000000u : 0xffffffffu));
}

// exact.sum of n elements, of which lane l has the elements l, l + 32, ... All lanes have it.
template <int N>
__device__ __forceinline__ float sum_of_warp(const float (&x)[N], int n)
{
    int n_rest = n % WARP;
    float lane = 0.0f, rest = 0.0f, last = pick(x, n / WARP);
#pragma unroll
    for (int i = 0; i < N; i++)
        lane = i < n / WARP ? lane + x[i] : lane;
    last = lane_id() < n_rest ? last : 0.0f;
#pragma unroll 1
    for (int i = 0; i < n_rest; i += TOGETHER)
#pragma unroll
        for (int j = 0; j < TOGETHER; j++)
            rest += __shfl_sync(ALL_LANES, last, i + j);
    return sum_lanes(lane) + rest;
}

// softmax of topk.cuh; gives the sum of the exponentials.
template <int N>
__device__ __forceinline__ float softmax_of_warp(float (&x)[N], int n)
{
    unsigned largest = 0;
#pragma unroll
    for (int i = 0; i < N; i++)
        largest = max(largest, i * WARP + lane_id() < n ? order_of(x[i]) : 0);
    float top = value_of(largest_lane(largest));
#pragma unroll
    for (int i = 0; i < N; i++)
        x[i] = exact_exp(x[i] - top);
    float sum = sum_of_warp(x, n), inverse = 1.0f / sum;
#pragma unroll
    for (int i = 0; i < N; i++)
        x[i] *= inverse;
    return sum;
}

// choose_largest of topk.cuh: round by round the largest that is left, of equal ones the first. A key of 0 is none.
template <int N>
__device__ __forceinline__ void choose_by_warp(unsigned (&keys)[N], int k, int *chosen)
{
    int lane = lane_id();
#pragma unroll 1
    for (int j = 0; j < k; j++) {
        unsigned best = keys[0];
#pragma unroll
        for (int i = 1; i < N; i++)
            best = max(best, keys[i]);
        unsigned top = largest_lane(best);
        bool is_it = best == top;
        int mine = 0;
#pragma unroll
        for (int i = N - 1; i >= 0; i--)
            mine = keys[i] == top ? i : mine;
        unsigned e = mine * WARP + lane, lanes = __ballot_sync(ALL_LANES, is_it);
        if (lanes & (lanes - 1)) {
            unsigned first = ~largest_lane(is_it ? ~e : 0u);
            is_it = is_it && e == first;
        }
        if (is_it) {
            chosen[j] = e;
#pragma unroll
            for (int i = 0; i < N; i++)
                keys[i] = i == mine ? 0 : keys[i];
        }
    }
}

// What the threads of a block share.
template <int N>
struct ChoiceOfOne {
    float p[N * WARP];       // probabilities of the experts
    bool is_here[N * WARP];  // whether this device has them
    int chosen[MOST_CHOSEN];
};

// By one warp: p, chosen, and what MOE_TOPK leaves of all experts. Gives 0, or NaN if an expert is not finite.
template <int N>
__device__ __forceinline__ float choose_experts(const MoeTopk &a, ChoiceOfOne<N> &shared)
{
    int n = a.n_expert, k = a.k, lane = lane_id();
    bool is_apart = a.selection != a.logits;
    float *logits = at<float>(a.logits), p[N], sum = 0.0f;
    unsigned keys[N];
    int given = a.given && lane < k ? at<const int>(a.given)[lane] : 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
        int e = i * WARP + lane;
        p[i] = e < n ? logits[e] : 0.0f;
    }
    if (a.gating == GATING_SIGMOID)
#pragma unroll
        for (int i = 0; i < N; i++)
            p[i] = sigmoid(p[i]);
    if (a.gating == GATING_SOFTMAX)
        sum = softmax_of_warp(p, n);
    else
        sum = sum_of_warp(p, n);
#pragma unroll
    for (int i = 0; i < N; i++) {
        int e = i * WARP + lane;
        float selection = is_apart ? p[i] + (a.bias && e < n ? at<const float>(a.bias)[e] : 0.0f) : p[i];
        keys[i] = e < n ? max(order_of(selection), 1u) : 0u;
        if (e < n) {
            shared.p[e] = logits[e] = p[i];
            if (is_apart)
                at<float>(a.selection)[e] = selection;
        }
    }
    if (!a.given)
        choose_by_warp(keys, k, shared.chosen);
    else if (lane < k)
        shared.chosen[lane] = given;
    return sum - sum;
}

// By the same warp: ids and weights. `check` is what choose_experts has given.
template <int N>
__device__ __forceinline__ void weigh_chosen(const MoeTopk &a, const ChoiceOfOne<N> &shared, float check)
{
    int k = a.k, lane = lane_id();
    float w[1] = {0.0f}, total = 1.0f;
    if (lane < k) {
        int e = shared.chosen[lane];
        at<int>(a.ids)[lane] = e;
        w[0] = shared.p[e] + check;
    }
    if (a.gating == GATING_SOFTMAX_WEIGHT)
        softmax_of_warp(w, k);
    if (a.gating == GATING_SIGMOID_WEIGHT)
        w[0] = sigmoid(w[0]);
    if (a.normalize) {
        total = 0.0f;
        float mine = lane < k ? w[0] : 0.0f;
#pragma unroll 1
        for (int i = 0; i < k; i += TOGETHER)
#pragma unroll
            for (int j = 0; j < TOGETHER; j++)
                total += __shfl_sync(ALL_LANES, mine, i + j);
        // NaN stays NaN.
        total = total < SMALLEST_SUM ? SMALLEST_SUM : total;
    }
    if (lane < k)
        at<float>(a.weights)[lane] = w[0] / total * a.weights_scale;
}

// rank_few by one warp, for the k choices of one token: lane j has the j-th, or -1 where it is left out.
__device__ __forceinline__ void rank_by_warp(const Places &out, int id, int k)
{
    int lane = lane_id(), n_lower = 0, n_before = 0;
#pragma unroll 1
    for (int i = 0; i < k; i += TOGETHER)
#pragma unroll
        for (int j = i; j < i + TOGETHER; j++) {
            int other = __shfl_sync(ALL_LANES, id, j);
            n_lower += other >= 0 && other < id;
            n_before += other == id && j < lane;
        }
    unsigned in = __ballot_sync(ALL_LANES, id >= 0), firsts = __ballot_sync(ALL_LANES, id >= 0 && n_before == 0);
    int n_lower_used = n_lower;
    if (firsts != in) {
        n_lower_used = 0;
#pragma unroll 1
        for (int i = 0; i < k; i++) {
            int other = __shfl_sync(ALL_LANES, id, i);
            n_lower_used += (firsts >> i & 1) && other < id;
        }
    }
    if (lane < k)
        out.place[lane] = id >= 0 ? n_lower + n_before : -1;
    if (id >= 0)
        out.token[n_lower + n_before] = 0;
    if (firsts >> lane & 1) {
        out.used[n_lower_used] = id;
        out.first[n_lower_used] = n_lower;
    }
    if (lane == 0) {
        out.first[__popc(firsts)] = __popc(in);
        *out.n_used = __popc(firsts);
    }
}
