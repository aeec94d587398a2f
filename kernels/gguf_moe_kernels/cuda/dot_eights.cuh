// Dot products of rows in blocks of 256: eight lanes take a block's parts, four blocks are with a warp at a time.
// So the lanes 8 m .. 8 m + 7 keep the partial sum of the blocks ib with ib mod 4 = m.
#include "exact.cuh"
#include "rows.cuh"

// Sums of N values over eight lanes each; afterwards a lane has those from number part * N / 8 on in the front.
template <int N>
__device__ __forceinline__ void sum_eight(int (&values)[N], int part)
{
    int n = N;
#pragma unroll
    for (int other = 4; other; other /= 2) {
        if (n > 1) {
            n /= 2;
            bool upper = part & other;
#pragma unroll
            for (int i = 0; i < n; i++) {
                int sent = upper ? values[i] : values[i + n];
                values[i] = (upper ? values[i + n] : values[i]) + __shfl_xor_sync(ALL_LANES, sent, other);
            }
        } else {
            values[0] += __shfl_xor_sync(ALL_LANES, values[0], other);
        }
    }
}

// The activations of a part, in the format Q8_K.
struct PartOfQ8K
{
    int q[2][4], sums[2];
};

template <typename Block>
__device__ __forceinline__ void load_part(const unsigned char *x, int fours, int four, int turn, int part, PartOfQ8K &result)
{
    const unsigned char *quants = x + 1024ll * four + 256 * turn;
#pragma unroll
    for (int run = 0; run < 2; run++) {
        int first = Block::first(part) + run * Block::APART;
        load_activations(quants + first, result.q[run]);
        // The sums of a four are int16 [8, 4, 2]: of 32 weights, block, half of the 32.
        int place = (first / 32 * 4 + turn) * 2 + first / 16 % 2;
        result.sums[run] = 0;
        if (Block::HAS_MINIMUM || Block::OFFSET)
            result.sums[run] = __ldg(reinterpret_cast<const short *>(x + (1024ll + 16) * fours + 128ll * four) + place);
    }
}

template <typename Block, int N_ROWS, int N_TOKENS, typename Weight, typename Store>
__device__ __forceinline__ void dot_eights(const Weight &weight, const TokenRows &x, long long n_in, Store store)
{
    constexpr int N = N_ROWS * N_TOKENS, MINE = N < 8 ? 1 : N / 8;
    // Four rows leave no registers for the blocks of two turns.
    constexpr int UNROLL = N_ROWS < 4 ? 2 : 1;
    int part = lane_id() % 8, turn = lane_id() / 8, first_mine = part * N / 8;
    int n_blocks = n_in / 256, fours = (n_blocks + 3) / 4;
    float sum[MINE] = {};
    const float *scales[MINE];
#pragma unroll
    for (int i = 0; i < MINE; i++)
        scales[i] = reinterpret_cast<const float *>(x.row((first_mine + i) % N_TOKENS) + fours * 1024ll);

    Block next[N_ROWS];
#pragma unroll
    for (int r = 0; r < N_ROWS; r++)
        next[r].load(weight.row(r) + min(turn, n_blocks - 1) * Block::BYTES, part);
#pragma unroll UNROLL
    for (int four = 0; four < fours; four++) {
        Block blocks[N_ROWS];
        int ib = 4 * four + turn;
#pragma unroll
        for (int r = 0; r < N_ROWS; r++) {
            blocks[r] = next[r];
            if (four + 1 < fours)
                next[r].load(weight.row(r) + static_cast<long long>(min(ib + 4, n_blocks - 1)) * Block::BYTES, part);
        }
        PartOfQ8K activations[N_TOKENS];
#pragma unroll
        for (int t = 0; t < N_TOKENS; t++)
            load_part<Block>(x.row(t), fours, four, turn, part, activations[t]);

        int totals[N], minimums[N];
        float d[N_ROWS], dmin[N_ROWS];
#pragma unroll
        for (int r = 0; r < N_ROWS; r++) {
            Part w = blocks[r].unpack(part);
            d[r] = w.d, dmin[r] = w.dmin;
#pragma unroll
            for (int t = 0; t < N_TOKENS; t++) {
                const PartOfQ8K &y = activations[t];
                int dots[2] = {-Block::OFFSET * y.sums[0], -Block::OFFSET * y.sums[1]};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    dots[0] = __dp4a(w.q[0][i], y.q[0][i], dots[0]);
                    dots[1] = __dp4a(w.q[1][i], y.q[1][i], dots[1]);
                }
                totals[r * N_TOKENS + t] = w.scale[0] * dots[0] + w.scale[1] * dots[1];
                if (Block::HAS_MINIMUM)
                    minimums[r * N_TOKENS + t] = w.minimum[0] * y.sums[0] + w.minimum[1] * y.sums[1];
            }
        }
        sum_eight(totals, part);
        if (Block::HAS_MINIMUM)
            sum_eight(minimums, part);
        if (ib < n_blocks) {
#pragma unroll
            for (int i = 0; i < MINE; i++) {
                int r = (first_mine + i) / N_TOKENS;
                float x_d = __ldg(scales[i] + ib);
                sum[i] = __fmaf_rn(__fmul_rn(pick(d, r), x_d), __int2float_rn(totals[i]), sum[i]);
                if (Block::HAS_MINIMUM)
                    sum[i] = __fmaf_rn(__fmul_rn(pick(dmin, r), -x_d), __int2float_rn(minimums[i]), sum[i]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        // (s0 + s1) + (s2 + s3)
        float total = sum[i];
        total = __fadd_rn(total, __shfl_xor_sync(ALL_LANES, total, 8));
        total = __fadd_rn(total, __shfl_xor_sync(ALL_LANES, total, 16));
        int number = first_mine + i;
        if (turn == 0 && (N >= 8 || part % (8 / N) == 0))
            store(number / N_TOKENS, number % N_TOKENS, total);
    }
}
