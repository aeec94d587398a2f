// Weights times activations, dense and by expert, for many rows of activations. matmul.cu is for few, and gives the
// same bits.
#include "blocks/qtype.cuh"
#include "dot_floats.cuh"
#include "tile.cuh"

constexpr int FLOAT_TOKENS = 4;

// Where a tile's rows of activations are.
struct TokensOfTile
{
    const unsigned char *first;
    long long stride;
    const int *index; // or none
    int n;

    __device__ __forceinline__ const unsigned char *row(int token) const
    {
        int t = min(token, n - 1);
        return first + (index ? index[t] : t) * stride;
    }
};

// The outputs of one tile. store(token, row, pair): see Tile::run; beyond the last token and row it may be called.
template <typename Block, typename Store>
__device__ __forceinline__ void run_tile(
    const unsigned char *weight, long long row_size, long long n_rows, long long n_in, const TokensOfTile &x, Store store)
{
    int last_row = static_cast<int>(min(n_rows, static_cast<long long>(ROWS))) - 1;
    if constexpr (Block::SIZE == 1) {
        for (int token = threadIdx.x / WARP * FLOAT_TOKENS; token < x.n; token += THREADS / WARP * FLOAT_TOKENS)
            for (int row = 0; row <= last_row; row++)
                for (int t = 0; t < FLOAT_TOKENS; t++) {
                    RowsAt one{weight + row * row_size, 0, 0}, activations{x.row(token + t), 0, 0};
                    auto store_one = [&](int, int, float value) { store.one(token + t, row, value); };
                    dot_floats<Block, 1, 1>(one, activations, n_in, store_one);
                }
    } else {
        Shared<Block> &shared = *reinterpret_cast<Shared<Block> *>(dynamic_shared);
        int warp = threadIdx.x / WARP;
        Tile<Block> tile{{shared, weight, row_size, last_row, static_cast<int>(n_in / Block::SIZE)}, x.n,
                         warp / WARPS_OF_ROWS * OF_WARP, warp % WARPS_OF_ROWS * OF_WARP};
        // Threads may still read the tile before.
        __syncthreads();
        if (threadIdx.x < TOKENS)
            shared.rows_of_x[threadIdx.x] = x.row(threadIdx.x);
        __syncthreads();
        tile.run(store);
    }
}

// Writes outputs [token, row] from the tile's first on; n_out apart.
struct Output
{
    float *first;
    long long n_out;
    int n_tokens;
    long long n_rows;       // from the tile's first on
    const float *bias, *residual; // of the tile's first output, or none

    __device__ __forceinline__ void one(int token, int row, float value) const
    {
        if (token >= n_tokens || row >= n_rows)
            return;
        if (bias)
            value = __fadd_rn(value, bias[row]);
        if (residual)
            value = __fadd_rn(value, residual[token * n_out + row]);
        first[token * n_out + row] = value;
    }

    __device__ __forceinline__ void operator()(int token, int row, float2 pair) const
    {
        if (bias || residual || n_out % 2 || row + 1 >= n_rows) {
            one(token, row, pair.x);
            one(token, row + 1, pair.y);
        } else if (token < n_tokens) {
            *reinterpret_cast<float2 *>(first + token * n_out + row) = pair;
        }
    }
};

KERNEL(TYPED(matmul), Matmul, THREADS, 2)
{
    long long n = count_at(a.rows), token = blockIdx.x * static_cast<long long>(TOKENS);
    long long row = blockIdx.y * static_cast<long long>(ROWS);
    if (token >= n)
        return;
    load_tables();
    int n_tokens = static_cast<int>(min(n - token, static_cast<long long>(TOKENS)));
    TokensOfTile x{at<const unsigned char>(a.x) + token * a.x_stride, a.x_stride, nullptr, n_tokens};
    long long place = token * a.n_out + row;
    Output store{at<float>(a.out) + place, a.n_out, n_tokens, a.n_out - row,
                 a.bias ? at<const float>(a.bias) + row : nullptr,
                 a.residual ? at<const float>(a.residual) + place : nullptr};
    run_tile<Block>(at<const unsigned char>(a.weight) + row * a.row_size, a.row_size, a.n_out - row, a.n_in, x, store);
}

// Up to TOKENS places of one expert; n is 0 if there is no such tile.
struct PlacesOfTile
{
    int expert, first, n;
};

// Tiles are counted over the experts that are on this device and have this file's type.
__device__ __forceinline__ PlacesOfTile find_tile(const MatmulId &a, int tile)
{
    int n_used = count_at(a.n_used), before = 0;
    for (int start = 0; start < n_used; start += WARP) {
        int u = start + lane_id(), expert = 0, first = 0, n = 0;
        if (u < n_used) {
            expert = at<const int>(a.used)[u], first = at<const int>(a.first)[u];
            bool is_here = at<const long long>(a.weights)[expert] && at<const long long>(a.tiles)[expert] == GGML_TYPE;
            n = is_here ? at<const int>(a.first)[u + 1] - first : 0;
        }
        int tiles = (n + TOKENS - 1) / TOKENS, end = tiles;
        for (int distance = 1; distance < WARP; distance *= 2) {
            int more = __shfl_up_sync(ALL_LANES, end, distance);
            end += lane_id() >= distance ? more : 0;
        }
        int start_of_mine = before + end - tiles;
        unsigned lanes = __ballot_sync(ALL_LANES, tile >= start_of_mine && tile < before + end);
        if (lanes) {
            int lane = __ffs(lanes) - 1, skipped = TOKENS * (tile - __shfl_sync(ALL_LANES, start_of_mine, lane));
            return {__shfl_sync(ALL_LANES, expert, lane), __shfl_sync(ALL_LANES, first, lane) + skipped,
                    min(__shfl_sync(ALL_LANES, n, lane) - skipped, TOKENS)};
        }
        before += __shfl_sync(ALL_LANES, end, WARP - 1);
    }
    return {0, 0, 0};
}

// A block takes every gridDim.x-th tile.
KERNEL(TYPED(matmul_id), MatmulId, THREADS, 2)
{
    long long row = blockIdx.y * static_cast<long long>(ROWS);
    load_tables();
    for (int tile = blockIdx.x;; tile += gridDim.x) {
        PlacesOfTile places = find_tile(a, tile);
        if (!places.n)
            return;
        long long row_size = at<const long long>(a.row_sizes)[places.expert];
        long long stride = at<const long long>(a.x_stride)[places.expert];
        const unsigned char *x = at<const unsigned char>(at<const long long>(a.x)[places.expert]);
        TokensOfTile tokens{a.x_index ? x : x + places.first * stride, stride,
                            a.x_index ? at<const int>(a.x_index) + places.first : nullptr, places.n};
        Output store{at<float>(a.out) + places.first * a.n_out + row, a.n_out, places.n, a.n_out - row, nullptr, nullptr};
        const unsigned char *weight = at<const unsigned char>(at<const long long>(a.weights)[places.expert]);
        run_tile<Block>(weight + row * row_size, row_size, a.n_out - row, a.n_in, tokens, store);
    }
}
