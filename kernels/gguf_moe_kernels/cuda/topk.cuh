// The router's choice for one row, by a block.
#include "exact.cuh"

constexpr int TOPK_THREADS = 256;

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

// A number that is larger for a larger value, so that NaN has a place too.
__device__ __forceinline__ unsigned order_of(float value)
{
    unsigned bits = __float_as_uint(value + 0.0f); // no negative zero
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// The k largest of n values, the largest first, of equal ones the first: each thread counts for its elements how
// many are before them. With NaN among the values the choice is arbitrary but valid.
__device__ __forceinline__ void choose_largest(const float *values, int n, int k, int *chosen)
{
    for (int e = threadIdx.x; e < n; e += TOPK_THREADS) {
        unsigned mine = order_of(values[e]);
        int rank = 0;
        for (int other = 0; other < n; other++) {
            unsigned theirs = order_of(values[other]);
            rank += theirs > mine || (theirs == mine && other < e);
        }
        if (rank < k)
            chosen[rank] = e;
    }
}

// The probabilities of all experts, by one warp: in p, in the logits' place, and as what is chosen by.
__device__ __forceinline__ void weigh_experts(const MoeTopk &a, long long row, float *p, float *selection, float *scores)
{
    int n = a.n_expert, lane = lane_id();
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
}

// The weights of the chosen experts, by one warp.
__device__ __forceinline__ void weigh_chosen(const MoeTopk &a, long long row, const float *p, const int *chosen, float *weights)
{
    int k = a.k, lane = lane_id();
    // 0, or NaN if an expert is not finite: then the choice means nothing, and the output must show it.
    float check = warp_sum(p, a.n_expert);
    check -= check;
    for (int j = lane; j < k; j += WARP)
        weights[j] = p[chosen[j]] + check;
    __syncwarp();
    if (a.gating == GATING_SOFTMAX_WEIGHT)
        softmax(weights, k);
    for (int j = lane; a.gating == GATING_SIGMOID_WEIGHT && j < k; j += WARP)
        weights[j] = sigmoid(weights[j]);
    __syncwarp();
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

// Shared: probabilities and selection [n_expert], group scores [n_group], weights and chosen experts [k].
__device__ __forceinline__ void choose_experts(const MoeTopk &a, long long row)
{
    int n = a.n_expert, k = a.k;
    float *p = reinterpret_cast<float *>(dynamic_shared), *selection = p + n;
    float *scores = selection + n, *weights = scores + a.n_group;
    int *chosen = reinterpret_cast<int *>(weights + k);
    const int *given = a.given ? at<const int>(a.given + row * a.given_stride) : nullptr;
    if (threadIdx.x < WARP)
        weigh_experts(a, row, p, selection, scores);
    __syncthreads();
    for (int j = threadIdx.x; given && j < k; j += TOPK_THREADS)
        chosen[j] = given[j];
    if (!given)
        choose_largest(selection, n, k, chosen);
    __syncthreads();
    for (int j = threadIdx.x; j < k; j += TOPK_THREADS)
        at<int>(a.ids)[row * k + j] = chosen[j];
    if (threadIdx.x < WARP)
        weigh_chosen(a, row, p, chosen, weights);
}
