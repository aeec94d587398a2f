// Rows of a weight as float32. A file of blocks/ has dequantize(row, i): the element i of a row at an address.
#include "blocks/qtype.cuh"

constexpr int THREADS = 256;

KERNEL(TYPED(get_rows), GetRows, THREADS)
{
    load_tables();
    long long row = blockIdx.x, i = static_cast<long long>(blockIdx.y) * THREADS + threadIdx.x;
    if (row >= count_at(a.rows) || i >= a.n)
        return;
    long long token = at<const int>(a.tokens)[row];
    at<float>(a.out)[row * a.n + i] = dequantize(at<const unsigned char>(a.weight) + token * a.row_size, i);
}
