// The router's choice, the sorting of places by expert, and what is done with the experts' outputs.
#include "places.cuh"
#include "topk.cuh"

constexpr int THREADS = 256;

// One block a row.
KERNEL(moe_topk, MoeTopk, TOPK_THREADS)
{
    if (blockIdx.x < count_at(a.rows))
        choose_experts(a, blockIdx.x);
}

// One block. Few places are ranked by comparing each with all; many are counted, a thread an expert.
KERNEL(expert_rows, ExpertRows, PLACES_THREADS)
{
    long long n = count_at(a.rows) * a.k;
    if (n <= PLACES_THREADS)
        rank_few(places_of(a), at<const int>(a.ids), n, a.k, [](int) { return true; });
    else
        count_many(places_of(a), at<const int>(a.ids), n, a.k, a.n_expert, at<int>(a.counts));
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

KERNEL(weigh, Weigh, THREADS)
{
    long long choice = blockIdx.x, i = element();
    if (choice >= count_at(a.rows) * a.k || i >= a.n)
        return;
    float x = at<const float>(a.x)[choice / a.k * a.n + i];
    at<float>(a.out)[at<const int>(a.place)[choice] * a.n + i] = at<const float>(a.weights)[choice] * x;
}

KERNEL(moe_sum, MoeSum, THREADS)
{
    long long row = blockIdx.x, i = element();
    if (row >= count_at(a.rows) || i >= a.n)
        return;
    float sum = 0.0f;
    for (long long j = row * a.k; j < (row + 1) * a.k; j++) {
        float x = at<const float>(a.x)[at<const int>(a.place)[j] * a.n + i];
        sum = __fmaf_rn(weight_at(a.weights, j), x, sum);
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
