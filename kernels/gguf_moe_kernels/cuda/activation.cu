// Activations to int8.
#include "quantize.cuh"

constexpr int THREADS = 128, WARPS = THREADS / WARP;

// The block of the row that this warp has.
__device__ __forceinline__ long long warp_block()
{
    return static_cast<long long>(blockIdx.y) * WARPS + threadIdx.x / WARP;
}

// A grid row is a row of x, or one head's part of it; a warp has a block of it.
#define QUANTIZERS(format, size, quantize)                                                           \
    KERNEL(quantize_##format, Quantize, THREADS)                                                     \
    {                                                                                                \
        long long row = blockIdx.x;                                                                  \
        if (row < count_at(a.rows) && warp_block() < a.n / size)                                     \
            quantize(at<const float>(a.x) + row * a.n, a.n, warp_block(),                            \
                     at<unsigned char>(a.out) + row * a.out_stride);                                 \
    }                                                                                                \
    KERNEL(quantize_heads_##format, QuantizeHeads, THREADS)                                          \
    {                                                                                                \
        long long head = blockIdx.x;                                                                 \
        if (head < count_at(a.rows) * a.n_head && warp_block() < a.n / size)                         \
            quantize(at<const float>(a.x) + head * a.width, a.n, warp_block(),                       \
                     at<unsigned char>(a.out) + head * a.out_stride);                                \
    }
QUANTIZERS(q8_0, 32, quantize_32<false>)
QUANTIZERS(q8_1, 32, quantize_32<true>)
QUANTIZERS(q8_k, 256, quantize_256)
