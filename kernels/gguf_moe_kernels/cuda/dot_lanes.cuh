// Dot products of rows in blocks of 32: each lane takes a whole block, so its sum of products needs no other lane.
// The terms then change hands in shared memory: a lane adds up one partial sum (blocks ib with ib mod 4 = m) of one
// row and token.
#include "exact.cuh"
#include "rows.cuh"

// 32 terms, and what keeps four rows of them in different banks.
constexpr int TERMS = WARP + 4;

template <typename Block, int N_ROWS, int N_TOKENS, int N_WARPS, typename Weight, typename Store>
__device__ __forceinline__ void dot_lanes(const Weight &weight, const TokenRows &x, long long n_in, Store store)
{
    constexpr int N = N_ROWS * N_TOKENS;
    constexpr bool TWO_SCALES = has_two_scales<Block>(), TWO_TERMS = Block::HAS_MINIMUM || TWO_SCALES;
    static_assert(4 * N <= WARP, "a lane for each partial sum");
    __shared__ float2 all_terms[N_WARPS][TWO_TERMS ? 2 : 1][N][TERMS];
    auto &terms = all_terms[threadIdx.x / WARP];
    int lane = lane_id(), number = lane / 4 % N, m = lane % 4;
    int n_blocks = n_in / 32, whole = (n_blocks + 3) / 4 * 4;
    float sum = 0.0f;

    Block next[N_ROWS];
    int first = min(lane, n_blocks - 1);
#pragma unroll
    for (int r = 0; r < N_ROWS; r++)
        next[r].load(weight.row(r) + first * Block::BYTES, first % 2);
    for (int start = 0; start < n_blocks; start += WARP) {
        Block blocks[N_ROWS];
        int ib = min(start + lane, n_blocks - 1);
#pragma unroll
        for (int r = 0; r < N_ROWS; r++) {
            blocks[r] = next[r];
            long long ib_next = min(ib + WARP, n_blocks - 1);
            if (start + WARP < n_blocks)
                next[r].load(weight.row(r) + ib_next * Block::BYTES, ib_next % 2);
        }
        Part w[N_ROWS];
#pragma unroll
        for (int r = 0; r < N_ROWS; r++)
            w[r] = blocks[r].unpack(0);
#pragma unroll
        for (int t = 0; t < N_TOKENS; t++) {
            const unsigned char *y = x.row(t);
            int q[2][4];
            load_activations(y + 32ll * ib, q[0]);
            load_activations(y + 32ll * ib + 16, q[1]);
            const unsigned char *scales = y + 32ll * whole, *sums = scales + 4ll * whole;
            float y_d = __ldg(reinterpret_cast<const float *>(scales) + ib);
            int offset = 0;
            if (Block::OFFSET)
                offset = -Block::OFFSET * __ldg(reinterpret_cast<const int *>(sums) + ib);
#pragma unroll
            for (int r = 0; r < N_ROWS; r++) {
                int total = offset, second = 0;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    total = __dp4a(w[r].q[0][i], q[0][i], total);
                    int &of_run = TWO_SCALES ? second : total;
                    of_run = __dp4a(w[r].q[1][i], q[1][i], of_run);
                }
                terms[0][r * N_TOKENS + t][lane] = make_float2(__fmul_rn(w[r].d, y_d), __int2float_rn(total));
                if (TWO_SCALES)
                    terms[TWO_TERMS][r * N_TOKENS + t][lane] =
                        make_float2(__fmul_rn(w[r].dmin, y_d), __int2float_rn(second));
                if (Block::HAS_MINIMUM)
                    terms[TWO_TERMS][r * N_TOKENS + t][lane] =
                        make_float2(-w[r].dmin, __ldg(reinterpret_cast<const float *>(sums) + ib));
            }
        }
        __syncwarp();
#pragma unroll
        for (int i = m; i < WARP; i += 4) {
            float2 term = terms[0][number][i];
            if (start + i < n_blocks) {
                sum = __fmaf_rn(term.x, term.y, sum);
                if (TWO_TERMS) {
                    float2 second = terms[TWO_TERMS][number][i];
                    sum = __fmaf_rn(second.x, second.y, sum);
                }
            }
        }
        __syncwarp();
    }
    // (s0 + s1) + (s2 + s3)
    sum = __fadd_rn(sum, __shfl_xor_sync(ALL_LANES, sum, 1));
    sum = __fadd_rn(sum, __shfl_xor_sync(ALL_LANES, sum, 2));
    if (m == 0 && lane < 4 * N)
        store(number / N_TOKENS, number % N_TOKENS, sum);
}
