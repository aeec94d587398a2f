// Dot products in the defined order (ref/exact.py), by one warp.
#include "dot_eights.cuh"
#include "dot_floats.cuh"
#include "dot_lanes.cuh"

// Weight is RowsAt or has its row(r). store(r, t, weight row r . activation row t) is called once for each r < N_ROWS and t < N_TOKENS, by one lane.
template <typename Block, int N_ROWS, int N_TOKENS, int N_WARPS, typename Weight, typename Store>
__device__ __forceinline__ void dot_rows(const Weight &weight, const TokenRows &x, long long n_in, Store store)
{
    if constexpr (Block::SIZE == 1)
        dot_floats<Block, N_ROWS, N_TOKENS>(weight, x, n_in, store);
    else if constexpr (Block::SIZE == 32)
        dot_lanes<Block, N_ROWS, N_TOKENS, N_WARPS>(weight, x, n_in, store);
    else
        dot_eights<Block, N_ROWS, N_TOKENS>(weight, x, n_in, store);
}
