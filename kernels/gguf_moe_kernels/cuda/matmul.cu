// Weights times activations, dense and by expert, for few rows of activations. A warp takes WARP_ROWS rows of the
// weight (warp_rows.py): with one row of activations all of them at once, otherwise one after the other with up to TOKENS of those.
#include "blocks/qtype.cuh"
#include "dot.cuh"

// matmul_launch.py knows these.
constexpr int WARPS = 4, THREADS = WARPS * WARP, TOKENS = 4;

__device__ __forceinline__ int last_of(long long first, long long n, int most)
{
    return static_cast<int>(min(n - first, static_cast<long long>(most))) - 1;
}

// The first row of the weight that this warp of the block takes.
__device__ __forceinline__ long long first_row(long long block, int rows)
{
    return (block * WARPS + threadIdx.x / WARP) * rows;
}

// Ask for all of a warp's rows at once, before the first of them is used.
__device__ __forceinline__ void prefetch_rows(const Matmul &a, long long row)
{
    constexpr int LINE = 128;
    const unsigned char *weight = at<const unsigned char>(a.weight) + row * a.row_size;
    long long size = min(a.n_out - row, static_cast<long long>(WARP_ROWS)) * a.row_size;
    for (long long i = LINE * lane_id(); i < size; i += LINE * WARP)
        prefetch(weight + i);
}

__device__ __forceinline__ void matmul_rows(const Matmul &a, long long row)
{
    prefetch_rows(a, row);
    load_tables();
    long long n_tokens = count_at(a.rows), token = blockIdx.y * static_cast<long long>(TOKENS);
    if (row >= a.n_out || token >= n_tokens)
        return;
    RowsAt x{at<const unsigned char>(a.x) + token * a.x_stride, a.x_stride, last_of(token, n_tokens, TOKENS)};
    RowsAt weight{at<const unsigned char>(a.weight) + row * a.row_size, a.row_size, last_of(row, a.n_out, WARP_ROWS)};
    auto store = [&](int r, int t, float value) {
        if (r > weight.last || t > x.last)
            return;
        long long place = (token + t) * a.n_out + row + r;
        if (a.bias)
            value = __fadd_rn(value, at<const float>(a.bias)[row + r]);
        if (a.residual)
            value = __fadd_rn(value, at<const float>(a.residual)[place]);
        at<float>(a.out)[place] = value;
    };
    if (x.last == 0) {
        dot_rows<Block, WARP_ROWS, 1, WARPS>(weight, x, a.n_in, store);
        return;
    }
    for (int r = 0; r <= weight.last; r++) {
        RowsAt one{weight.row(r), a.row_size, 0};
        auto store_row = [&](int, int t, float value) { store(r, t, value); };
        dot_rows<Block, 1, TOKENS, WARPS>(one, x, a.n_in, store_row);
    }
}

KERNEL(TYPED(matmul), Matmul, THREADS)
{
    matmul_rows(a, first_row(blockIdx.x, WARP_ROWS));
}

__device__ __forceinline__ long long n_blocks(const Matmul &a)
{
    return (a.n_out + WARPS * WARP_ROWS - 1) / (WARPS * WARP_ROWS);
}

// Two or three matmuls whose activations are there already; the third may have no rows.
KERNEL(TYPED(matmul_3), Matmul3, THREADS)
{
    long long block = blockIdx.x, n_first = n_blocks(a.first), n_both = n_first + n_blocks(a.second);
    Matmul part = a.first;
    if (block >= n_first) {
        part = block < n_both ? a.second : a.third;
        block -= block < n_both ? n_first : n_both;
    }
    matmul_rows(part, first_row(block, WARP_ROWS));
}

// Each head has a matrix of its own, and its own part of a token's activations.
KERNEL(TYPED(matmul_heads), MatmulHeads, THREADS)
{
    load_tables();
    long long blocks = (a.n_out + WARPS * WARP_ROWS - 1) / (WARPS * WARP_ROWS), head = blockIdx.x / blocks;
    long long row = first_row(blockIdx.x % blocks, WARP_ROWS);
    long long n_tokens = count_at(a.rows), token = blockIdx.y * static_cast<long long>(TOKENS);
    if (row >= a.n_out || token >= n_tokens)
        return;
    auto matrix = at<const unsigned char>(a.weight) + head * a.n_out * a.row_size;
    auto first = at<const unsigned char>(a.x) + (token * a.n_head + head) * a.x_stride;
    RowsAt x{first, a.n_head * a.x_stride, last_of(token, n_tokens, TOKENS)};
    RowsAt weight{matrix + row * a.row_size, a.row_size, last_of(row, a.n_out, WARP_ROWS)};
    auto store = [&](int r, int t, float value) {
        if (r <= weight.last && t <= x.last)
            at<float>(a.out)[((token + t) * a.n_head + head) * a.n_out + row + r] = value;
    };
    if (x.last == 0) {
        dot_rows<Block, WARP_ROWS, 1, WARPS>(weight, x, a.n_in, store);
        return;
    }
    for (int r = 0; r <= weight.last; r++) {
        RowsAt one{weight.row(r), a.row_size, 0};
        auto store_row = [&](int, int t, float value) { store(r, t, value); };
        dot_rows<Block, 1, TOKENS, WARPS>(one, x, a.n_in, store_row);
    }
}

// The number of the expert whose places have this one, or -1 if there is none.
__device__ __forceinline__ int expert_of(const MatmulId &a, int place)
{
    const int *first = at<const int>(a.first), *used = at<const int>(a.used);
    for (int start = 0; start < a.n_expert; start += WARP) {
        // What lies behind the used experts is read too: waiting for n_used first would take twice as long.
        int u = min(start + lane_id(), static_cast<int>(a.n_expert) - 1), expert = used[u];
        int n_used = count_at(a.n_used), here = first[u], next = first[u + 1];
        bool is_it = u < n_used && here <= place && place < next;
        if (unsigned lanes = __ballot_sync(ALL_LANES, is_it))
            return __shfl_sync(ALL_LANES, expert, __ffs(lanes) - 1);
        if (start + WARP >= n_used)
            return -1;
    }
    return -1;
}

// What a place's warps need, all asked for at once.
struct PlaceOfExpert {
    const unsigned char *weight;
    long long row_size;
    bool is_here; // on this device, and of this type
    RowsAt x;

    __device__ __forceinline__ PlaceOfExpert(const MatmulId &a, int expert, long long place)
    {
        weight = at<const unsigned char>(at<const long long>(a.weights)[expert]);
        row_size = at<const long long>(a.row_sizes)[expert];
        long long tile = at<const long long>(a.tiles)[expert], stride = at<const long long>(a.x_stride)[expert];
        auto x_first = at<const unsigned char>(at<const long long>(a.x)[expert]);
        long long x_row = a.x_index ? at<const int>(a.x_index)[place] : place;
        is_here = weight && tile == GGML_TYPE;
        x = {x_first + x_row * stride, stride, 0};
    }

    __device__ __forceinline__ RowsAt rows(long long row, long long n_out, int most) const
    {
        return {weight + row * row_size, row_size, last_of(row, n_out, most)};
    }
};

// A block has one place. Experts of another type, and those that are not on this device, are left out.
KERNEL(TYPED(matmul_id), MatmulId, THREADS)
{
    long long row = first_row(blockIdx.x, WARP_ROWS_BY_EXPERT), place = blockIdx.y;
    int expert = expert_of(a, place);
    if (expert < 0)
        return;
    PlaceOfExpert here(a, expert, place);
    if (!here.is_here)
        return;
    load_tables();
    if (row >= a.n_out)
        return;
    RowsAt weight = here.rows(row, a.n_out, WARP_ROWS_BY_EXPERT);
    auto store = [&](int r, int, float value) {
        if (r <= weight.last)
            at<float>(a.out)[place * a.n_out + row + r] = value;
    };
    dot_rows<Block, WARP_ROWS_BY_EXPERT, 1, WARPS>(weight, here.x, a.n_in, store);
}

// matmul_launch.py knows this one too.
constexpr int ROWS_OF_EACH = 2;

// Rows of two weights: ROWS_OF_EACH of `gate`, then as many of `up`.
struct GateAndUp
{
    RowsAt gate, up;

    __device__ __forceinline__ const unsigned char *row(int r) const
    {
        return r < ROWS_OF_EACH ? gate.row(r) : up.row(r - ROWS_OF_EACH);
    }
};

// Blocks that a multiprocessor shall hold, where that costs no registers that are needed: so all 768 blocks of
// Qwen3-30B-A3B run at once on an H100.
constexpr int SWIGLU_BLOCKS = GGML_TYPE == GGML_TYPE_Q4_K ? 6 : 1;

// matmul_id of two weights with the same activations, and SWIGLU of what they give.
KERNEL(TYPED(matmul_id_swiglu), MatmulIdSwiglu, THREADS, SWIGLU_BLOCKS)
{
    __shared__ float all_values[WARPS][2 * ROWS_OF_EACH];
    float *values = all_values[threadIdx.x / WARP];
    long long row = first_row(blockIdx.x, ROWS_OF_EACH), place = blockIdx.y;
    int expert = expert_of(a.gate, place);
    if (expert < 0)
        return;
    PlaceOfExpert gate(a.gate, expert, place), up(a.up, expert, place);
    if (!gate.is_here)
        return;
    load_tables();
    if (row >= a.gate.n_out)
        return;
    GateAndUp weight{gate.rows(row, a.gate.n_out, ROWS_OF_EACH), up.rows(row, a.gate.n_out, ROWS_OF_EACH)};
    auto store = [&](int r, int, float value) { values[r] = value; };
    dot_rows<Block, 2 * ROWS_OF_EACH, 1, WARPS>(weight, gate.x, a.gate.n_in, store);
    __syncwarp();
    int r = lane_id();
    if (r <= weight.gate.last)
        at<float>(a.gate.out)[place * a.gate.n_out + row + r] = silu(values[r]) * values[ROWS_OF_EACH + r];
}
