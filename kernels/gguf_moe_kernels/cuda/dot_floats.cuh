// Dot products of rows of floats: lane j takes the elements j, j + 32, ... in ascending order.
#include "exact.cuh"
#include "rows.cuh"

template <typename Block, int N_ROWS, int N_TOKENS, typename Weight, typename Store>
__device__ __forceinline__ void dot_floats(const Weight &weight, const TokenRows &x, long long n_in, Store store)
{
    float lanes[N_ROWS][N_TOKENS] = {}, rest[N_ROWS][N_TOKENS] = {};
    int whole = n_in / WARP * WARP;
    auto activation = [&](int t, int i) { return __ldg(reinterpret_cast<const float *>(x.row(t)) + i); };
#pragma unroll 32
    for (int i = lane_id(); i < whole; i += WARP) {
#pragma unroll
        for (int r = 0; r < N_ROWS; r++) {
            float w = Block::load(weight.row(r), i);
#pragma unroll
            for (int t = 0; t < N_TOKENS; t++)
                lanes[r][t] = __fmaf_rn(w, activation(t, i), lanes[r][t]);
        }
    }
    for (int i = whole; i < n_in; i++)
#pragma unroll
        for (int r = 0; r < N_ROWS; r++)
#pragma unroll
            for (int t = 0; t < N_TOKENS; t++)
                rest[r][t] = __fmaf_rn(Block::load(weight.row(r), i), activation(t, i), rest[r][t]);
#pragma unroll
    for (int r = 0; r < N_ROWS; r++)
#pragma unroll
        for (int t = 0; t < N_TOKENS; t++) {
            float total = sum_lanes(lanes[r][t]) + rest[r][t];
            if (lane_id() == 0)
                store(r, t, total);
        }
}
