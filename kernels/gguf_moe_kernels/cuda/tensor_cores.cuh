// Products of int8 matrices by one warp. The emulator of the tests has its own version of this file.
//
// In a fragment, lane 4 g + t holds of row g (and g + 8) the bytes from 4 t on (and 16 + 4 t). Lane 4 g + t has of
// a product the rows g and g + 8 and the columns 2 t and 2 t + 1: [g, 2t], [g, 2t + 1], [g + 8, 2t], [g + 8, 2t + 1].
#include "kernel.cuh"

// Where something is in shared memory.
using SharedAddress = unsigned;

__device__ __forceinline__ SharedAddress shared_address(const void *pointer)
{
    SharedAddress address;
    asm("{\n\t.reg .u64 wide;\n\tcvta.to.shared.u64 wide, %1;\n\tcvt.u32.u64 %0, wide;\n\t}"
        : "=r"(address)
        : "l"(pointer));
    return address;
}

// Four matrices of 8 rows of 16 bytes in shared memory: lane i gives the address of row i mod 8 of matrix i / 8, less
// OFFSET. Afterwards lane 4 g + t has of each matrix the bytes from 4 t on of row g.
template <int OFFSET = 0>
__device__ __forceinline__ void load_matrices(SharedAddress row, int (&words)[4])
{
#if __CUDA_ARCH__ >= 750
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(row), "n"(OFFSET));
#else
#pragma unroll
    for (int i = 0; i < 4; i++) {
        SharedAddress address = __shfl_sync(ALL_LANES, row, 8 * i + lane_id() / 4) + 4 * (lane_id() % 4);
        asm volatile("ld.shared.s32 %0, [%1 + %2];" : "=r"(words[i]) : "r"(address), "n"(OFFSET));
    }
#endif
}

#if __CUDA_ARCH__ < 800
// Adds the product of 16 rows with 8 rows of 4 bytes from each lane, for tensor cores that have other shapes. A call,
// because in place it would be the most of a kernel.
__device__ __noinline__ int4 multiply_by_lanes(int low_rows, int high_rows, int columns, int4 product)
{
    int row = lane_id() / 4, column = lane_id() % 4 * 2;
#pragma unroll 1
    for (int t = 0; t < 4; t++) {
        int low = __shfl_sync(ALL_LANES, low_rows, 4 * row + t), high = __shfl_sync(ALL_LANES, high_rows, 4 * row + t);
        int first = __shfl_sync(ALL_LANES, columns, 4 * column + t);
        int second = __shfl_sync(ALL_LANES, columns, 4 * (column + 1) + t);
        product.x = __dp4a(low, first, product.x), product.y = __dp4a(low, second, product.y);
        product.z = __dp4a(high, first, product.z), product.w = __dp4a(high, second, product.w);
    }
    return product;
}
#endif

// The product of 16 rows a with 8 rows b of 4 N bytes from each lane, N = 2 or 1: 32 or 16 in all.
template <int N>
__device__ __forceinline__ void multiply(const int *a, const int *b, int (&product)[4])
{
#if __CUDA_ARCH__ >= 800
    if constexpr (N == 2)
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%10, %10, %10, %10};"
            : "=r"(product[0]), "=r"(product[1]), "=r"(product[2]), "=r"(product[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(0));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
            : "=r"(product[0]), "=r"(product[1]), "=r"(product[2]), "=r"(product[3])
            : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(0));
#else
    int4 sum = make_int4(0, 0, 0, 0);
#pragma unroll
    for (int half = 0; half < N; half++)
        sum = multiply_by_lanes(a[2 * half], a[2 * half + 1], b[half], sum);
    product[0] = sum.x, product[1] = sum.y, product[2] = sum.z, product[3] = sum.w;
#endif
}
