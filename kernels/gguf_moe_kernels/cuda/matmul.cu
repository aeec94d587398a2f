// Weights times activations, dense and by expert, for few rows of activations. A warp takes ROWS rows of the weight:
// with one row of activations all of them at once, otherwise one after the other with up to TOKENS of those.
#include "blocks/qtype.cuh"
#include "dot.cuh"

constexpr int WARPS = 4, THREADS = WARPS * WARP, ROWS = 4, TOKENS = 4;

// The first row of the weight that this warp takes.
__device__ __forceinline__ long long first_row()
{
    return (blockIdx.x * static_cast<long long>(WARPS) + threadIdx.x / WARP) * ROWS;
}

__device__ __forceinline__ int last_of(long long first, long long n, int most)
{
    return static_cast<int>(min(n - first, static_cast<long long>(most))) - 1;
}

KERNEL(TYPED(matmul), Matmul, THREADS)
{
    long long n_tokens = count_at(a.rows), row = first_row(), token = blockIdx.y * static_cast<long long>(TOKENS);
    if (row >= a.n_out || token >= n_tokens)
        return;
    RowsAt x{at<const unsigned char>(a.x) + token * a.x_stride, a.x_stride, last_of(token, n_tokens, TOKENS)};
    RowsAt weight{at<const unsigned char>(a.weight) + row * a.row_size, a.row_size, last_of(row, a.n_out, ROWS)};
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
        dot_rows<Block, ROWS, 1, WARPS>(weight, x, a.n_in, store);
        return;
    }
    for (int r = 0; r <= weight.last; r++) {
        RowsAt one{weight.row(r), a.row_size, 0};
        auto store_row = [&](int, int t, float value) { store(r, t, value); };
        dot_rows<Block, 1, TOKENS, WARPS>(one, x, a.n_in, store_row);
    }
}

// The number u of the used expert whose places first[u] .. first[u + 1] have this one, or -1 if there is none.
__device__ __forceinline__ int used_expert(const MatmulId &a, int place)
{
    int n_used = count_at(a.n_used);
    const int *first = at<const int>(a.first);
    for (int start = 0; start < n_used; start += WARP) {
        int u = start + lane_id();
        bool is_it = u < n_used && first[u] <= place && place < first[u + 1];
        if (unsigned lanes = __ballot_sync(ALL_LANES, is_it))
            return start + __ffs(lanes) - 1;
    }
    return -1;
}

// A block has one place. Experts of another type, and those that are not on this device, are left out.
KERNEL(TYPED(matmul_id), MatmulId, THREADS)
{
    long long row = first_row(), place = blockIdx.y;
    int u = used_expert(a, place);
    if (u < 0 || row >= a.n_out)
        return;
    int expert = at<const int>(a.used)[u];
    long long weights = at<const long long>(a.weights)[expert];
    if (!weights || at<const long long>(a.tiles)[expert] != GGML_TYPE)
        return;
    long long row_size = at<const long long>(a.row_sizes)[expert], x_stride = at<const long long>(a.x_stride)[expert];
    long long x_row = a.x_index ? at<const int>(a.x_index)[place] : place;
    RowsAt x{at<const unsigned char>(at<const long long>(a.x)[expert]) + x_row * x_stride, x_stride, 0};
    RowsAt weight{at<const unsigned char>(weights) + row * row_size, row_size, last_of(row, a.n_out, ROWS)};
    auto store = [&](int r, int, float value) {
        if (r <= weight.last)
            at<float>(a.out)[place * a.n_out + row + r] = value;
    };
    dot_rows<Block, ROWS, 1, WARPS>(weight, x, a.n_in, store);
}
