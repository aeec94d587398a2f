// What a tile (tile.cuh) keeps in shared memory, and how weights and activations get there: a step takes 256 weights
// of each row, a block of 256 or eight blocks of 32 of the same partial sum.
#include "kernel.cuh"

constexpr int THREADS = 256, TOKENS = 64, ROWS = 128, K = 256;
// matmul_launch.py knows it.
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
struct TileMemory
{
    using S = Shape<Block>;
    static_assert(sizeof(Shared<Block>) <= SHARED_BYTES, "the shared memory that matmul_launch.py asks for");

    Shared<Block> &shared;
    const unsigned char *weight; // the first row
    long long row_size;
    int last_row, n_blocks;

    // The number of the j-th block of a step.
    static __device__ __forceinline__ int block_of(int pass, int step, int j)
    {
        return pass + 4 * (step * S::IN_STEP + j);
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
};
