// Ops that touch each activation once.
#include "norm.cuh"
#include "quantize.cuh"

constexpr int THREADS = 256;

__device__ __forceinline__ void norm_by_warp(const RmsNorm &a)
{
    long long head = blockIdx.x * static_cast<long long>(THREADS / WARP) + threadIdx.x / WARP;
    if (head >= count_at(a.rows) * a.n_head)
        return;
    const float *x = at<float>(a.x) + head * a.n;
    float *out = at<float>(a.out) + head * a.n;
    float factor = norm_factor(squares_by_warp(x, a.n), a.n, a.eps);
    // Without this a lane could write an element that another one still reads, where out is x.
    __syncwarp();
    for (int i = lane_id(); i < a.n; i += WARP)
        out[i] = normed(x[i], factor, a.weight, a.bias, i);
}

__device__ __forceinline__ void norm_by_block(const RmsNorm &a)
{
    long long head = blockIdx.x;
    if (head >= count_at(a.rows) * a.n_head)
        return;
    const float *x = at<float>(a.x) + head * a.n;
    float *out = at<float>(a.out) + head * a.n;
    float factor = norm_factor(squares_by_block(x, a.n), a.n, a.eps);
#pragma unroll 8
    for (int i = threadIdx.x; i < a.n; i += THREADS)
        out[i] = normed(x[i], factor, a.weight, a.bias, i);
}

KERNEL(rms_norm, RmsNorm, NORM_THREADS)
{
    if (a.n <= SHORT)
        norm_by_warp(a);
    else
        norm_by_block(a);
}

// The element of a row that this thread has, for kernels with a block for each THREADS elements of a row.
__device__ __forceinline__ long long element()
{
    return static_cast<long long>(blockIdx.y) * THREADS + threadIdx.x;
}

KERNEL(scale, Scale, THREADS)
{
    long long row = blockIdx.x, i = element();
    if (row >= count_at(a.rows) || i >= a.n)
        return;
    float scaled = a.factor * at<const float>(a.x)[row * a.n + i];
    at<float>(a.out)[row * a.n + i] = a.residual ? scaled + at<const float>(a.residual)[row * a.n + i] : scaled;
}

KERNEL(scale_rows, ScaleRows, THREADS)
{
    long long row = blockIdx.x, i = element();
    if (row < count_at(a.rows) && i < a.n)
        at<float>(a.x)[row * a.n + i] *= at<const float>(a.factors)[row];
}

KERNEL(concat, Concat, THREADS)
{
    long long row = blockIdx.x, i = element(), n = a.n_a + a.n_b;
    if (row >= count_at(a.rows) || i >= a.n_head * n)
        return;
    long long head = row * a.n_head + i / n, j = i % n;
    at<float>(a.out)[head * n + j] = j < a.n_a
        ? at<const float>(a.a)[head * a.n_a + j]
        : at<const float>(a.b)[(head + 1) * a.b_width - n + j];
}

KERNEL(parts, Parts, THREADS)
{
    long long row = blockIdx.x, i = element();
    if (row >= count_at(a.rows) || i >= a.n_head * a.n)
        return;
    at<float>(a.out)[row * a.out_width + a.out_first + i] =
        at<const float>(a.x)[row * a.x_width + a.first + i / a.n * a.stride + i % a.n];
}

// One thread for each pair of a row.
KERNEL(rope, Rope, THREADS)
{
    long long row = blockIdx.x, n_pairs = a.n_rot / 2, pair = element();
    if (row >= count_at(a.rows) || pair >= a.n_head * n_pairs)
        return;
    long long head = pair / n_pairs, i = pair % n_pairs;
    long long first = a.pair_stride == 1 ? 2 * i : i;
    float *x = at<float>(a.x) + (row * a.n_head + head) * a.n_embd_head + first;
    float c = at<const float>(a.cos)[row * n_pairs + i], s = at<const float>(a.sin)[row * n_pairs + i];
    float x0 = x[0], x1 = x[a.pair_stride];
    x[0] = __fmaf_rn(x0, c, -(x1 * s));
    x[a.pair_stride] = __fmaf_rn(x0, s, x1 * c);
}

KERNEL(kv_store_f16, KvStore, THREADS)
{
    long long row = blockIdx.x, i = element();
    if (row >= count_at(a.rows) || i >= a.n)
        return;
    at<unsigned short>(a.cache)[(count_at(a.n_past) + row) * a.n + i] =
        f32_to_f16(at<const float>(a.x)[row * a.n + i]);
}

KERNEL(kv_store_f32, KvStore, THREADS)
{
    long long row = blockIdx.x, i = element();
    if (row >= count_at(a.rows) || i >= a.n)
        return;
    at<float>(a.cache)[(count_at(a.n_past) + row) * a.n + i] = at<const float>(a.x)[row * a.n + i];
}

// n is a multiple of 32, so a warp has a block or nothing to do.
KERNEL(kv_store_q8_0, KvStore, THREADS)
{
    long long row = blockIdx.x, i = element();
    if (row >= count_at(a.rows) || i >= a.n)
        return;
    long long block = ((count_at(a.n_past) + row) * a.n + i) / 32;
    store_q8_0(at<const float>(a.x)[row * a.n + i], at<unsigned char>(a.cache) + 34 * block);
}

KERNEL(swiglu, Swiglu, THREADS)
{
    long long row = blockIdx.x, i = element();
    if (row >= count_at(a.rows) || i >= a.n)
        return;
    float &gate = at<float>(a.gate)[row * a.n + i];
    gate = silu(gate) * at<const float>(a.up)[row * a.n + i];
}

KERNEL(swiglu_oai, SwigluOai, THREADS)
{
    long long row = blockIdx.x, i = element();
    if (row >= count_at(a.rows) || i >= a.n)
        return;
    float &gate = at<float>(a.gate)[row * a.n + i];
    gate = gated_oai(gate, at<const float>(a.up)[row * a.n + i]);
}

KERNEL(geglu, Geglu, THREADS)
{
    long long row = blockIdx.x, i = element();
    if (row >= count_at(a.rows) || i >= a.n)
        return;
    float &gate = at<float>(a.gate)[row * a.n + i];
    gate = gelu(gate) * at<const float>(a.up)[row * a.n + i];
}

KERNEL(sigmoid_mul, SigmoidMul, THREADS)
{
    long long row = blockIdx.x, i = element();
    if (row < count_at(a.rows) && i < a.n)
        at<float>(a.x)[row * a.n + i] *= sigmoid(at<const float>(a.gate)[row * a.n + i]);
}

KERNEL(softcap, Softcap, THREADS)
{
    long long row = blockIdx.x, i = element();
    if (row >= count_at(a.rows) || i >= a.n)
        return;
    float &x = at<float>(a.x)[row * a.n + i];
    x = a.cap * (1.0f - 2.0f / (1.0f + exact_exp(x * (2.0f / a.cap))));
}
