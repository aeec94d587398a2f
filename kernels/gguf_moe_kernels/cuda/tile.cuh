// A tile of weight times activations, TOKENS rows of activations by ROWS rows of the weight, in the defined order
// (ref/exact.py): one pass over the row for each of the four partial sums.
//
// A step takes 256 weights of each row: a block of 256, or eight blocks of 32 of the same partial sum. They are
// unpacked to int8 in shared memory once for all tokens. Warps are two by four, each with 32 by 32 outputs.
#include "tensor_cores.cuh"

constexpr int THREADS = 256, TOKENS = 64, ROWS = 128, K = 256;
constexpr int OF_WARP = 32, M = OF_WARP / 16, N = OF_WARP / 8;
constexpr int WARPS_OF_ROWS = ROWS / OF_WARP;
// launch.py knows it.
constexpr int SHARED_BYTES = 64 << 10;

// Rows of K bytes in chunks of 16, in an order in which eight rows' chunks of one number are in different banks.
struct Chunks
{
    unsigned char bytes[16];
};

template <int COUNT>
struct Matrix
{
    Chunks rows[COUNT][K / 16];

    __device__ __forceinline__ unsigned char *chunk(int row, int number)
    {
        return rows[row][number ^ (row & 7)].bytes;
    }
};

// How weights with scales for GROUP of them meet activations. IN_STEP: blocks in a step.
template <typename Block>
struct Shape
{
    static constexpr bool IS_LONG = Block::SIZE == 256;
    static constexpr int GROUP = Block::GROUP;
    static constexpr int GROUPS = IS_LONG ? K / GROUP : 1, IN_STEP = K / Block::SIZE;
    static constexpr bool HAS_MINIMUM = Block::HAS_MINIMUM, TWO_SCALES = has_two_scales<Block>();
};

template <typename Block>
struct alignas(256) Shared
{
    using S = Shape<Block>;
    Matrix<ROWS> weight;
    Matrix<TOKENS> x;
    // The sums of 16 activations as 64 high + low: low[16], high[16].
    unsigned char sums[S::IS_LONG && S::HAS_MINIMUM ? TOKENS : 1][32];
    unsigned char minimum[S::IS_LONG && S::HAS_MINIMUM ? ROWS : 1][16];
    int scale[S::GROUPS][ROWS];
    float d[S::IN_STEP][ROWS], dmin[S::HAS_MINIMUM || S::TWO_SCALES ? S::IN_STEP : 1][ROWS];
    float x_d[S::IN_STEP][TOKENS], x_sum[S::HAS_MINIMUM && !S::IS_LONG ? S::IN_STEP : 1][TOKENS];
    const unsigned char *rows_of_x[TOKENS];
};

template <typename Block>
struct Tile
{
    using S = Shape<Block>;
    static_assert(sizeof(Shared<Block>) <= SHARED_BYTES, "the shared memory that launch.py asks for");

    Shared<Block> &shared;
    const unsigned char *weight; // the first row
    long long row_size;
    int last_row, n_tokens, n_blocks;
    int first_token, first_row; // of the warp
    SharedAddress x_row, weight_row; // of the first of this lane's rows in load_fragments
    float sum[M][N][4];

    // The number of the j-th block of a step.
    static __device__ __forceinline__ int block_of(int pass, int step, int j)
    {
        return pass + 4 * (step * S::IN_STEP + j);
    }

    __device__ __forceinline__ int steps(int pass) const
    {
        int n = (n_blocks - pass + 3) / 4;
        return (n + S::IN_STEP - 1) / S::IN_STEP;
    }

    static constexpr int PARTS = ROWS * 8 / THREADS, CHUNKS = TOKENS * K / 16 / THREADS;
    static constexpr int SCALES = (TOKENS * S::IN_STEP + THREADS - 1) / THREADS, SUMS = TOKENS * 8 / THREADS;

    // What a thread brings in a step, on the way from memory: parts of rows of the weight, activations, their scales
    // and sums.
    struct Load
    {
        Block parts[PARTS];
        int4 chunks[CHUNKS];
        float x_d[SCALES], x_sum[SCALES];
        int sums[SUMS];
    };

    __device__ __forceinline__ int part_of_thread() const { return S::IS_LONG ? threadIdx.x % 8 : 0; }

    __device__ __forceinline__ int block_of_thread() const { return S::IS_LONG ? 0 : threadIdx.x % 8; }

    static __device__ __forceinline__ int row_of_part(int i) { return threadIdx.x / 8 + i * (THREADS / 8); }

    // All loads come before the first use. Blocks behind the row's last are that one.
    __device__ __forceinline__ void load(int pass, int step, Load &to) const
    {
        int n_fours = (n_blocks + 3) / 4, last = n_blocks - 1;
        long long ib = min(block_of(pass, step, block_of_thread()), last);
#pragma unroll
        for (int i = 0; i < PARTS; i++)
            to.parts[i].load(weight + min(row_of_part(i), last_row) * row_size + ib * Block::BYTES,
                             S::IS_LONG ? part_of_thread() : ib % 2);
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            int number = threadIdx.x + i * THREADS, token = number / (K / 16), start = number % (K / 16) * 16;
            long long of_chunk = min(block_of(pass, step, start / Block::SIZE), last);
            to.chunks[i] = __ldg(reinterpret_cast<const int4 *>(
                shared.rows_of_x[token] + of_chunk * Block::SIZE + start % Block::SIZE));
        }
#pragma unroll
        for (int i = 0; i < SCALES; i++) {
            int number = threadIdx.x + i * THREADS, of_scale = min(block_of(pass, step, number / TOKENS), last);
            const float *scales = reinterpret_cast<const float *>(
                shared.rows_of_x[number % TOKENS] + 4ll * Block::SIZE * n_fours);
            to.x_d[i] = __ldg(scales + of_scale);
            if (S::HAS_MINIMUM && !S::IS_LONG)
                to.x_sum[i] = __ldg(scales + 4 * n_fours + of_scale);
        }
        if (S::HAS_MINIMUM && S::IS_LONG)
#pragma unroll
            for (int i = 0; i < SUMS; i++) {
                // Two sums of 16; those of a four of blocks are int16 [8, 4, 2]: of 32, block, half of the 32.
                int number = threadIdx.x + i * THREADS;
                const unsigned char *plane = shared.rows_of_x[number / 8] + (1024ll + 16) * n_fours + 128 * (ib / 4);
                to.sums[i] = __ldg(reinterpret_cast<const int *>(plane) + number % 8 * 4 + ib % 4);
            }
    }

    __device__ __forceinline__ void put(const Load &from)
    {
#pragma unroll
        for (int i = 0; i < PARTS; i++)
            put_part(row_of_part(i), part_of_thread(), block_of_thread(), from.parts[i].unpack(part_of_thread()));
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            int number = threadIdx.x + i * THREADS;
            *reinterpret_cast<int4 *>(shared.x.chunk(number / (K / 16), number % (K / 16))) = from.chunks[i];
        }
#pragma unroll
        for (int i = 0; i < SCALES; i++) {
            int number = threadIdx.x + i * THREADS;
            if (number < TOKENS * S::IN_STEP) {
                shared.x_d[number / TOKENS][number % TOKENS] = from.x_d[i];
                if (S::HAS_MINIMUM && !S::IS_LONG)
                    shared.x_sum[number / TOKENS][number % TOKENS] = from.x_sum[i];
            }
        }
        if (S::HAS_MINIMUM && S::IS_LONG)
#pragma unroll
            for (int i = 0; i < SUMS; i++) {
                int number = threadIdx.x + i * THREADS;
                int first = static_cast<short>(from.sums[i]), second = from.sums[i] >> 16;
                unsigned char *sums = shared.sums[number / 8] + 2 * (number % 8);
                sums[0] = first & 63, sums[1] = second & 63;
                sums[16] = first >> 6, sums[17] = second >> 6;
            }
    }

    __device__ __forceinline__ void put_part(int row, int part, int j, const Part &w)
    {
        int first = S::IS_LONG ? Block::first(part) : 32 * j;
#pragma unroll
        for (int run = 0; run < 2; run++) {
            int start = first + run * Block::APART;
            int q[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                q[i] = Block::OFFSET ? subtract_bytes(w.q[run][i], Block::OFFSET) : w.q[run][i];
            *reinterpret_cast<int4 *>(shared.weight.chunk(row, start / 16)) = make_int4(q[0], q[1], q[2], q[3]);
            if (S::IS_LONG)
                shared.scale[start / S::GROUP][row] = w.scale[run];
            if (S::IS_LONG && S::HAS_MINIMUM)
                shared.minimum[row][start / 16] = w.minimum[run];
        }
        shared.d[j][row] = w.d;
        if (S::HAS_MINIMUM || S::TWO_SCALES)
            shared.dmin[j][row] = w.dmin;
    }

    // offset off each byte; bytes are below 128.
    static __device__ __forceinline__ int subtract_bytes(int bytes, int offset)
    {
        unsigned high = 0x80808080u;
        return ((bytes | high) - offset * 0x01010101u) ^ high;
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
            Load load_of_step;
            load(pass, step, load_of_step);
            __syncthreads();
            put(load_of_step);
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
