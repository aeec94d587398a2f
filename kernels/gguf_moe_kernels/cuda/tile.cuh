// A tile of weight times activations, TOKENS rows of activations by ROWS rows of the weight, in the defined order
// (ref/exact.py): one pass over the row for each of the four partial sums.
//
// In each step (tile_memory.cuh) weights are unpacked to int8 in shared memory once for all tokens. Warps are two by
// four, each with 32 by 32 outputs.
#include "tensor_cores.cuh"
#include "tile_memory.cuh"

constexpr int OF_WARP = 32, M = OF_WARP / 16, N = OF_WARP / 8;
constexpr int WARPS_OF_ROWS = ROWS / OF_WARP;

template <typename Block>
struct Tile : TileMemory<Block>
{
    using S = Shape<Block>;
    using Memory = TileMemory<Block>;
    using Memory::block_of, Memory::last_row, Memory::n_blocks, Memory::shared;

    int n_tokens;
    int first_token, first_row; // of the warp
    SharedAddress x_row, weight_row; // of the first of this lane's rows in load_fragments
    float sum[M][N][4];

    __device__ __forceinline__ int steps(int pass) const
    {
        int n = (n_blocks - pass + 3) / 4;
        return (n + S::IN_STEP - 1) / S::IN_STEP;
    }

    __device__ __forceinline__ void find_rows()
    {
        int lane = lane_id();
        x_row = shared_address(shared.x.chunk(first_token + lane % 16, lane / 16));
        weight_row = shared_address(shared.weight.chunk(first_row + lane / 16 * 8 + lane % 8, lane / 8 % 2));
    }

    // The fragments of a window of 32 bytes: of 16 tokens each, and of 8 rows each.
    __device__ __forceinline__ void load_fragments(int window, int (&a)[M][4], int (&b)[N][2])
    {
        static_assert(M == 2 && N == 4, "these loads");
        // Rows are aligned, and their chunks in the order of Matrix.
        SharedAddress x = x_row ^ window << 5, w = weight_row ^ window << 5;
        int low[4], high[4];
        load_matrices(x, a[0]);
        load_matrices<16 * K>(x, a[1]);
        load_matrices(w, low);
        load_matrices<16 * K>(w, high);
#pragma unroll
        for (int i = 0; i < 4; i++)
            b[i / 2][i % 2] = low[i], b[2 + i / 2][i % 2] = high[i];
    }

    __device__ __forceinline__ int row_of(int n) const { return first_row + 8 * n + lane_id() % 4 * 2; }

    __device__ __forceinline__ int token_of(int m) const { return first_token + 16 * m + lane_id() / 4; }

    // sum += scale * x_d * total for the warp's outputs; scales: d or dmin of the block's rows, x_d of block j.
    __device__ __forceinline__ void add_term(const float *scales, int j, int m, int n, const int (&total)[4])
    {
        float2 d = *reinterpret_cast<const float2 *>(scales + row_of(n));
        float x_d[2] = {shared.x_d[j][token_of(m)], shared.x_d[j][token_of(m) + 8]};
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum[m][n][i] =
                __fmaf_rn(__fmul_rn(i % 2 ? d.y : d.x, x_d[i / 2]), __int2float_rn(total[i]), sum[m][n][i]);
    }

    // A block of 256.
    __device__ __forceinline__ void multiply_long()
    {
        int total[M][N][4] = {};
#pragma unroll 2
        for (int window = 0; window < K / 32; window++) {
            int a[M][4], b[N][2];
            load_fragments(window, a, b);
#pragma unroll
            for (int half = 0; half < 32 / S::GROUP; half++)
#pragma unroll
                for (int n = 0; n < N; n++) {
                    int group = window * (32 / S::GROUP) + half;
                    int2 scale = *reinterpret_cast<const int2 *>(shared.scale[group] + row_of(n));
#pragma unroll
                    for (int m = 0; m < M; m++) {
                        int product[4];
                        multiply<S::GROUP / 16>(a[m] + 2 * half, b[n] + half, product);
#pragma unroll
                        for (int i = 0; i < 4; i++)
                            total[m][n][i] += (i % 2 ? scale.y : scale.x) * product[i];
                    }
                }
        }
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N; n++)
                add_term(shared.d[0], 0, m, n, total[m][n]);
        if constexpr (S::HAS_MINIMUM)
            take_minimums_off();
    }

    // sum -= dmin * x_d * (the minimums times the sums of activations), for a block of 256.
    __device__ __forceinline__ void take_minimums_off()
    {
        int lane = lane_id(), minimums[4];
        static_assert(N == 4, "one load for the minimums of a warp's rows");
        load_matrices(shared_address(shared.minimum[first_row + lane]), minimums);
#pragma unroll
        for (int m = 0; m < M; m++) {
            int sums[4];
            load_matrices(shared_address(shared.sums[first_token + 16 * m + lane % 16] + lane / 16 * 16), sums);
            float x_d[2] = {-shared.x_d[0][token_of(m)], -shared.x_d[0][token_of(m) + 8]};
#pragma unroll
            for (int n = 0; n < N; n++) {
                int low[4], high[4];
                multiply<1>(sums, minimums + n, low);
                multiply<1>(sums + 2, minimums + n, high);
                float2 dmin = *reinterpret_cast<const float2 *>(shared.dmin[0] + row_of(n));
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sum[m][n][i] = __fmaf_rn(__fmul_rn(i % 2 ? dmin.y : dmin.x, x_d[i / 2]),
                                             __int2float_rn(64 * high[i] + low[i]), sum[m][n][i]);
            }
        }
    }

    // Up to eight blocks of 32.
    __device__ __forceinline__ void multiply_short(int pass, int step)
    {
#pragma unroll 2
        for (int j = 0; j < S::IN_STEP; j++) {
            if (block_of(pass, step, j) >= n_blocks)
                break;
            int a[M][4], b[N][2];
            load_fragments(j, a, b);
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int m = 0; m < M; m++) {
                    int product[4];
                    if constexpr (S::TWO_SCALES) {
                        multiply<1>(a[m], b[n], product);
                        add_term(shared.d[j], j, m, n, product);
                        multiply<1>(a[m] + 2, b[n] + 1, product);
                        add_term(shared.dmin[j], j, m, n, product);
                        continue;
                    }
                    multiply<2>(a[m], b[n], product);
                    add_term(shared.d[j], j, m, n, product);
                    if constexpr (S::HAS_MINIMUM)
                        take_minimum_off(j, m, n);
                }
        }
    }

    __device__ __forceinline__ void take_minimum_off(int j, int m, int n)
    {
        float2 dmin = *reinterpret_cast<const float2 *>(shared.dmin[j] + row_of(n));
        float x_sum[2] = {shared.x_sum[j][token_of(m)], shared.x_sum[j][token_of(m) + 8]};
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum[m][n][i] = __fmaf_rn(-(i % 2 ? dmin.y : dmin.x), x_sum[i / 2], sum[m][n][i]);
    }

    __device__ __forceinline__ void run_pass(int pass)
    {
#pragma unroll
        for (int i = 0; i < M * N * 4; i++)
            sum[i / (4 * N)][i / 4 % N][i % 4] = 0.0f;
        for (int step = 0; step < steps(pass); step++) {
            typename Memory::Load load_of_step;
            this->load(pass, step, load_of_step);
            __syncthreads();
            this->put(load_of_step);
            __syncthreads();
            // A warp whose outputs are all beyond the tile's end only helps to unpack.
            if (first_token >= n_tokens || first_row > last_row)
                continue;
            if constexpr (S::IS_LONG)
                multiply_long();
            else
                multiply_short(pass, step);
        }
    }

    // store(token, row, pair) is called for outputs [token, row] and [token, row + 1].
    template <typename Store>
    __device__ __forceinline__ void run(Store store)
    {
        // In memory, not in registers: they are used once a pass.
        volatile float kept[2][M * N * 4];
        find_rows();
#pragma unroll 1
        for (int pass = 0; pass < 4; pass++) {
            run_pass(pass);
#pragma unroll
            for (int i = 0; i < M * N * 4; i++) {
                float &mine = sum[i / (4 * N)][i / 4 % N][i % 4];
                // (s0 + s1) + (s2 + s3)
                if (pass % 2)
                    mine = __fadd_rn(kept[pass / 2][i], mine);
                if (pass < 3)
                    kept[pass / 2][i] = mine;
                else
                    mine = __fadd_rn(kept[0][i], mine);
            }
        }
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N; n++) {
                store(token_of(m), row_of(n), make_float2(sum[m][n][0], sum[m][n][1]));
                store(token_of(m) + 8, row_of(n), make_float2(sum[m][n][2], sum[m][n][3]));
            }
    }
};
