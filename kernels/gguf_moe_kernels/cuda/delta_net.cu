// Ops of gated delta nets. A step has tokens of one sequence; at position 0 a state counts as zero.
#include "exact.cuh"

constexpr int THREADS = 256;
// launch.py and the runtime know the most elements of a head.
constexpr int MOST_LANES = 8;

// A warp takes a head.
KERNEL(l2_norm, L2Norm, THREADS)
{
    long long head = blockIdx.x * static_cast<long long>(THREADS / WARP) + threadIdx.x / WARP;
    if (head >= count_at(a.rows) * a.n_head)
        return;
    float *x = at<float>(a.x) + head / a.n_head * a.width + head % a.n_head * a.n;
    WarpDot dot;
    dot.add(x, x, a.n);
    float factor = 1.0f / sqrtf(dot.sum() + a.eps);
    __syncwarp();
    for (int i = lane_id(); i < a.n; i += WARP)
        x[i] *= factor;
}

// A thread has a channel, and takes the tokens one by one.
KERNEL(ssm_conv, SsmConv, THREADS)
{
    long long channel = blockIdx.x * static_cast<long long>(THREADS) + threadIdx.x, rows = count_at(a.rows);
    if (channel >= a.n)
        return;
    const float *x = at<const float>(a.x) + channel, *weight = at<const float>(a.weight) + channel * a.d_conv;
    float *state = at<float>(a.state) + channel, *out = at<float>(a.out) + channel;
    long long n_state = a.d_conv - 1;
    bool is_new = count_at(a.n_past) == 0;
    auto input = [&](long long i) {
        return i >= n_state ? x[(i - n_state) * a.n] : is_new ? 0.0f : state[i * a.n];
    };
    for (long long i = 0; i < rows; i++) {
        float total = 0.0f;
        for (int j = 0; j < a.d_conv; j++)
            total = __fmaf_rn(weight[j], input(i + j), total);
        out[i * a.n] = silu(total);
    }
    for (long long i = 0; i < n_state; i++)
        state[i * a.n] = input(i + rows);
}

KERNEL(delta_net_gates, DeltaNetGates, THREADS)
{
    long long row = blockIdx.x, i = blockIdx.y * static_cast<long long>(THREADS) + threadIdx.x;
    if (row >= count_at(a.rows) || i >= a.n)
        return;
    float &alpha = at<float>(a.alpha)[row * a.n + i], &beta = at<float>(a.beta)[row * a.n + i];
    alpha = exact_exp(at<const float>(a.a)[i] * softplus(alpha + at<const float>(a.dt)[i]));
    beta = sigmoid(beta);
}

// A vector of n elements over the lanes of a warp: lane l has elements l, l + 32, ..., and of what is left behind
// the last multiple of 32 the l-th.
struct Spread
{
    float whole[MOST_LANES], rest;

    __device__ __forceinline__ void load(const float *x, int n)
    {
#pragma unroll
        for (int m = 0; m < MOST_LANES; m++)
            whole[m] = m < n / WARP ? x[m * WARP + lane_id()] : 0.0f;
        rest = lane_id() < n % WARP ? x[n / WARP * WARP + lane_id()] : 0.0f;
    }

    __device__ __forceinline__ void store(float *x, int n) const
    {
#pragma unroll
        for (int m = 0; m < MOST_LANES; m++)
            if (m < n / WARP)
                x[m * WARP + lane_id()] = whole[m];
        if (lane_id() < n % WARP)
            x[n / WARP * WARP + lane_id()] = rest;
    }

    // exact.dot; all lanes have it.
    __device__ __forceinline__ float dot(const Spread &other, int n) const
    {
        float lane = 0.0f, behind = 0.0f;
#pragma unroll
        for (int m = 0; m < MOST_LANES; m++)
            if (m < n / WARP)
                lane = __fmaf_rn(whole[m], other.whole[m], lane);
        for (int i = 0; i < n % WARP; i++)
            behind = __fmaf_rn(
                __shfl_sync(ALL_LANES, rest, i), __shfl_sync(ALL_LANES, other.rest, i), behind);
        return sum_lanes(lane) + behind;
    }
};

// A warp has a row of a head's state, which is one element of v, and takes the tokens one by one.
KERNEL(gated_delta_net, GatedDeltaNet, THREADS)
{
    long long row = blockIdx.x * static_cast<long long>(THREADS / WARP) + threadIdx.x / WARP;
    int n = a.n;
    if (row >= a.n_head * n)
        return;
    long long head = row / n, of_key = head / a.heads_per_key % a.n_head_k, rows = count_at(a.rows);
    float *place = at<float>(a.state) + row * n;
    float scale = 1.0f / sqrtf(static_cast<float>(n));
    Spread state, q, k;
    state.load(place, count_at(a.n_past) == 0 ? 0 : n);
    for (long long i = 0; i < rows; i++) {
        const float *token = at<const float>(a.qkv) + i * n * (2 * a.n_head_k + a.n_head);
        q.load(token + of_key * n, n);
        k.load(token + (a.n_head_k + of_key) * n, n);
        float v = token[2 * a.n_head_k * n + row];
        float decay = at<const float>(a.decay)[i * a.n_head + head];
        float beta = at<const float>(a.beta)[i * a.n_head + head];
#pragma unroll
        for (int m = 0; m < MOST_LANES; m++)
            state.whole[m] *= decay;
        state.rest *= decay;
        float change = (v - state.dot(k, n)) * beta;
#pragma unroll
        for (int m = 0; m < MOST_LANES; m++)
            state.whole[m] = __fmaf_rn(k.whole[m], change, state.whole[m]);
        state.rest = __fmaf_rn(k.rest, change, state.rest);
        float y = state.dot(q, n) * scale;
        if (lane_id() == 0)
            at<float>(a.out)[i * a.n_head * n + row] = y;
    }
    state.store(place, n);
}
