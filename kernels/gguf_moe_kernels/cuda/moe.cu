// The router's choice, the sorting of places by expert, and what is done with the experts' outputs.
#include "places.cuh"

constexpr int THREADS = 256;

__device__ __forceinline__ float minus_infinity()
{
    return __int_as_float(0xff800000);
}

// exp(x - largest) / sum, in place, by one warp; sum in the order of exact.sum.
__device__ __forceinline__ void softmax(float *x, int n)
{
    float largest = minus_infinity();
    for (int i = lane_id(); i < n; i += WARP)
        largest = fmaxf(largest, x[i]);
    largest = largest_lane(largest);
    for (int i = lane_id(); i < n; i += WARP)
        x[i] = exact_exp(x[i] - largest);
    __syncwarp();
    float inverse = 1.0f / warp_sum(x, n);
    __syncwarp();
    for (int i = lane_id(); i < n; i += WARP)
        x[i] *= inverse;
    __syncwarp();
}

// Put -infinity for the experts outside the best n_group_used groups. A group's score is the sum of its two
// largest; of equal groups the first counts as better.
__device__ __forceinline__ void mask_groups(float *selection, float *scores, int size, int n_group, int n_used)
{
    for (int g = lane_id(); g < n_group; g += WARP) {
        float largest = minus_infinity(), second = minus_infinity();
        for (int e = g * size; e < (g + 1) * size; e++) {
            second = fmaxf(second, fminf(largest, selection[e]));
            largest = fmaxf(largest, selection[e]);
        }
        scores[g] = largest + second;
    }
    __syncwarp();
    for (int g = lane_id(); g < n_group; g += WARP) {
        int n_better = 0;
        for (int other = 0; other < n_group; other++)
            n_better += scores[other] > scores[g] || (scores[other] == scores[g] && other < g);
        for (int e = g * size; n_better >= n_used && e < (g + 1) * size; e++)
            selection[e] = minus_infinity();
    }
    __syncwarp();
}

struct Candidate {
    int expert; // -1: none
    float value;

    __device__ __forceinline__ bool is_better_than(const Candidate &other) const
    {
        if (expert < 0 || other.expert < 0)
            return expert >= 0;
        return value > other.value || (value == other.value && expert < other.expert);
    }
};

// The best of those that come after `last`, by value downwards and then by number upwards. With NaN among the
// values the choice is arbitrary but valid.
__device__ __forceinline__ Candidate next_best(const float *values, int n, const Candidate &last)
{
    Candidate best{-1, 0.0f};
    for (int e = lane_id(); e < n; e += WARP) {
        Candidate c{e, values[e]};
        bool is_left =
            last.expert < 0 || c.value < last.value || (c.value == last.value && e > last.expert);
        if (is_left && c.is_better_than(best))
            best = c;
    }
    for (int half = WARP / 2; half; half /= 2) {
        Candidate other{__shfl_xor_sync(ALL_LANES, best.expert, half),
                        __shfl_xor_sync(ALL_LANES, best.value, half)};
        if (other.is_better_than(best))
            best = other;
    }
    // NaN can make lanes differ.
    best = {__shfl_sync(ALL_LANES, best.expert, 0), __shfl_sync(ALL_LANES, best.value, 0)};
    if (best.expert < 0)
        best = {(last.expert + 1) % n, last.value};
    return best;
}

// One warp a row. Shared: probabilities and selection [n_expert], group scores [n_group], weights [k].
KERNEL(moe_topk, MoeTopk, WARP)
{
    long long row = blockIdx.x;
    if (row >= count_at(a.rows))
        return;
    int n = a.n_expert, k = a.k, lane = lane_id();
    float *p = reinterpret_cast<float *>(dynamic_shared), *selection = p + n;
    float *scores = selection + n, *weights = scores + a.n_group;
    float *logits = at<float>(a.logits) + row * n;
    for (int e = lane; e < n; e += WARP)
        p[e] = a.gating == GATING_SIGMOID ? sigmoid(logits[e]) : logits[e];
    __syncwarp();
    if (a.gating == GATING_SOFTMAX)
        softmax(p, n);
    for (int e = lane; e < n; e += WARP)
        logits[e] = p[e];
    bool is_apart = a.selection != a.logits;
    for (int e = lane; e < n; e += WARP)
        selection[e] = is_apart ? p[e] + (a.bias ? at<const float>(a.bias)[e] : 0.0f) : p[e];
    __syncwarp();
    if (a.group_scores) {
        mask_groups(selection, scores, n / a.n_group, a.n_group, a.n_group_used);
        for (int g = lane; g < a.n_group; g += WARP)
            at<float>(a.group_scores)[row * a.n_group + g] = scores[g];
    }
    for (int e = lane; is_apart && e < n; e += WARP)
        at<float>(a.selection)[row * n + e] = selection[e];
    // 0, or NaN if an expert is not finite: then the choice means nothing, and the output must show it.
    float check = warp_sum(p, n);
    check -= check;
    const int *given = a.given ? at<const int>(a.given + row * a.given_stride) : nullptr;
    Candidate chosen{-1, 0.0f};
    for (int j = 0; j < k; j++) {
        if (given)
            chosen.expert = given[j];
        else
            chosen = next_best(selection, n, chosen);
        if (lane == 0) {
            at<int>(a.ids)[row * k + j] = chosen.expert;
            weights[j] = p[chosen.expert] + check;
        }
    }
    __syncwarp();
    if (a.gating == GATING_SOFTMAX_WEIGHT)
        softmax(weights, k);
    float total = 1.0f;
    if (a.normalize) {
        total = 0.0f;
        for (int j = 0; j < k; j++)
            total += weights[j];
        // NaN stays NaN.
        total = total < SMALLEST_SUM ? SMALLEST_SUM : total;
    }
    for (int j = lane; j < k; j += WARP)
        at<float>(a.weights)[row * k + j] = weights[j] / total * a.weights_scale;
}

// One block. Few places are ranked by comparing each with all; many are counted, a thread an expert.
KERNEL(expert_rows, ExpertRows, PLACES_THREADS)
{
    Places places{at<int>(a.used), at<long long>(a.n_used), at<int>(a.first), at<int>(a.token), at<int>(a.place)};
    long long n = count_at(a.rows) * a.k;
    if (n <= PLACES_THREADS)
        rank_few(places, at<const int>(a.ids), n, a.k, [](int) { return true; });
    else
        count_many(places, at<const int>(a.ids), n, a.k, a.n_expert, at<int>(a.counts));
}

// The element of a row that this thread has.
__device__ __forceinline__ long long element()
{
    return static_cast<long long>(blockIdx.y) * THREADS + threadIdx.x;
}

// A block's row is one choice of one token.
KERNEL(add_id, AddId, THREADS)
{
    long long choice = blockIdx.x, i = element();
    if (choice >= count_at(a.rows) * a.k || i >= a.n)
        return;
    long long place = at<const int>(a.place)[choice], expert = at<const int>(a.ids)[choice];
    at<float>(a.x)[place * a.n + i] += at<const float>(a.bias)[expert * a.n + i];
}

KERNEL(scale_id, ScaleId, THREADS)
{
    long long choice = blockIdx.x, i = element();
    if (choice >= count_at(a.rows) * a.k || i >= a.n)
        return;
    long long place = at<const int>(a.place)[choice], expert = at<const int>(a.ids)[choice];
    at<float>(a.x)[place * a.n + i] *= at<const float>(a.scale)[expert];
}

KERNEL(moe_sum, MoeSum, THREADS)
{
    long long row = blockIdx.x, i = element();
    if (row >= count_at(a.rows) || i >= a.n)
        return;
    float sum = 0.0f;
    for (long long j = row * a.k; j < (row + 1) * a.k; j++) {
        float x = at<const float>(a.x)[at<const int>(a.place)[j] * a.n + i];
        sum = __fmaf_rn(at<const float>(a.weights)[j], x, sum);
    }
    if (a.shared)
        sum += at<const float>(a.shared)[row * a.n + i];
    if (a.residual)
        sum += at<const float>(a.residual)[row * a.n + i];
    at<float>(a.out)[row * a.n + i] = sum;
}

// One block a row.
KERNEL(shexp_gate, ShexpGate, THREADS)
{
    __shared__ float gate;
    long long row = blockIdx.x;
    if (row >= count_at(a.rows))
        return;
    if (threadIdx.x < WARP) {
        WarpDot dot;
        dot.add(at<const float>(a.weight), at<const float>(a.x) + row * a.n_in, a.n_in);
        float sum = dot.sum();
        if (threadIdx.x == 0)
            gate = sigmoid(sum);
    }
    __syncthreads();
    for (long long i = threadIdx.x; i < a.n; i += THREADS)
        at<float>(a.out)[row * a.n + i] *= gate;
}
