// CUDA's words in C++, for one block at a time: each thread of the block is a fiber that runs until it has to
// wait for others. Blocks run one after the other in ascending order. A fiber that has ended waits for the next
// block: to make one anew takes system calls.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <sched.h>
#include <ucontext.h>
#include <vector>

struct dim3 { unsigned x = 1, y = 1, z = 1; };
#define VECTORS(T, name)                                                                          \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                            \
    struct alignas(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; };                 \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                     \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(int, int)
VECTORS(unsigned, uint)
VECTORS(float, float)
VECTORS(short, short)
VECTORS(unsigned short, ushort)
VECTORS(signed char, char)
VECTORS(unsigned char, uchar)
VECTORS(long long, longlong)

namespace emulator
{
constexpr int STACK = 256 << 10, MOST_THREADS = 1024, MOST_SHARED = 228 << 10, LANES = 32;

// The meeting of the lanes of one mask. Two sets of values, because a lane may be one meeting ahead.
struct Meeting
{
    unsigned mask = 0;
    unsigned long long arrivals[LANES] = {};
    unsigned long long values[2][LANES] = {};
};

struct Fiber
{
    ucontext_t start;
    jmp_buf state;
    dim3 thread;
    bool started = false, finished = true, waiting = false;
    unsigned long long barriers = 0;
};

inline Fiber fibers[MOST_THREADS];
inline unsigned n_fibers;
inline std::vector<Meeting> meetings[MOST_THREADS / LANES];
inline char *stacks;
inline Fiber *current;
inline dim3 block_index, block_size, grid_size;
inline jmp_buf scheduler;
inline const std::function<void()> *body;
inline unsigned long long progress;
alignas(256) inline unsigned char shared[MOST_SHARED];

inline void yield()
{
    if (_setjmp(current->state) == 0)
        _longjmp(scheduler, 1);
}

template <typename Ready>
void wait_for(Ready ready)
{
    while (!ready()) {
        current->waiting = true;
        yield();
    }
    current->waiting = false;
    progress++;
}

inline unsigned number() { return current - fibers; }

inline void run_fiber()
{
    for (;;) {
        (*body)();
        current->finished = true;
        progress++;
        yield();
    }
}

inline void barrier()
{
    unsigned long long mine = ++current->barriers;
    wait_for([mine] {
        for (unsigned i = 0; i < n_fibers; i++)
            if (!fibers[i].finished && fibers[i].barriers < mine)
                return false;
        return true;
    });
}

// Every lane of the mask gives a value; returns the values of all of them.
inline const unsigned long long *meet(unsigned mask, unsigned long long value)
{
    unsigned warp = number() / LANES, lane = number() % LANES;
    Meeting *meeting = nullptr;
    for (Meeting &m : meetings[warp])
        if (m.mask == mask)
            meeting = &m;
    if (!meeting) {
        meetings[warp].push_back({mask});
        meeting = &meetings[warp].back();
    }
    if (!(mask >> lane & 1)) {
        fprintf(stderr, "lane %u is not in its own mask %08x\n", lane, mask);
        abort();
    }
    unsigned long long mine = ++meeting->arrivals[lane];
    unsigned long long *values = meeting->values[mine & 1];
    values[lane] = value;
    wait_for([=] {
        for (unsigned i = 0; i < LANES && warp * LANES + i < n_fibers; i++)
            if (mask >> i & 1 && !fibers[warp * LANES + i].finished && meeting->arrivals[i] < mine)
                return false;
        return true;
    });
    return values;
}

// One block. False if its threads wait for each other for ever.
inline bool run_block()
{
    for (unsigned i = 0; i < n_fibers; i++) {
        Fiber &f = fibers[i];
        f.started = f.started && f.finished; // one that was left in its block begins anew
        f.finished = f.waiting = false;
        f.barriers = 0;
        f.thread = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
    }
    for (auto &of_warp : meetings) {
        of_warp.clear();
        of_warp.reserve(LANES);
    }
    static unsigned i, n_left;
    static unsigned long long before;
    static bool all_wait;
    do {
        n_left = 0, before = progress, all_wait = true;
        for (i = 0; i < n_fibers; i++) {
            current = &fibers[i];
            if (current->finished)
                continue;
            if (_setjmp(scheduler) == 0) {
                if (current->started)
                    _longjmp(current->state, 1);
                current->started = true;
                getcontext(&current->start);
                current->start.uc_stack.ss_sp = stacks + static_cast<size_t>(i) * STACK;
                current->start.uc_stack.ss_size = STACK;
                current->start.uc_link = nullptr;
                makecontext(&current->start, run_fiber, 0);
                setcontext(&current->start);
            }
            if (!current->finished)
                n_left++, all_wait = all_wait && current->waiting;
        }
        if (n_left && all_wait && progress == before)
            return false;
    } while (n_left);
    return true;
}

// 0, or 1 for a deadlock, or 2 if the launch is not valid.
inline int launch(const unsigned *grid, const unsigned *block, unsigned most, unsigned n_shared,
                  std::function<void()> function)
{
    block_size = {block[0], block[1], block[2]}, grid_size = {grid[0], grid[1], grid[2]};
    unsigned n = block[0] * block[1] * block[2];
    if (!n || n > most || n > MOST_THREADS || n_shared > MOST_SHARED || grid[1] > 65535 || grid[2] > 65535)
        return 2;
    n_fibers = n;
    if (!stacks)  // memory that is not touched takes none
        stacks = static_cast<char *>(malloc(static_cast<size_t>(MOST_THREADS) * STACK));
    body = &function;
    for (block_index.z = 0; block_index.z < grid[2]; block_index.z++)
        for (block_index.y = 0; block_index.y < grid[1]; block_index.y++)
            for (block_index.x = 0; block_index.x < grid[0]; block_index.x++) {
                memset(shared, 0xff, n_shared);
                if (!run_block())
                    return 1;
            }
    return 0;
}
} // namespace emulator

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define threadIdx (emulator::current->thread)
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size
#define dynamic_shared emulator::shared

inline void __syncthreads() { emulator::barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { emulator::meet(mask, 0); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(unsigned) { emulator::yield(); sched_yield(); }

template <typename T>
T lane_value(unsigned mask, T value, int source)
{
    unsigned long long bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = emulator::meet(mask, bits)[source];
    memcpy(&value, &bits, sizeof(T));
    return value;
}
// A source outside of the lane's own group of `width` lanes means the lane itself, as in PTX's shfl.
inline int own_lane() { return emulator::number() % 32; }
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32)
{
    return lane_value(mask, value, (own_lane() & -width) | (lane & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int other, int width = 32)
{
    int source = own_lane() ^ other, end = (own_lane() & -width) + width;
    return lane_value(mask, value, source < end ? source : own_lane());
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32)
{
    int source = own_lane() + delta, end = (own_lane() & -width) + width;
    return lane_value(mask, value, source < end ? source : own_lane());
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32)
{
    int source = own_lane() - static_cast<int>(delta);
    return lane_value(mask, value, source >= (own_lane() & -width) ? source : own_lane());
}
inline unsigned __ballot_sync(unsigned mask, int predicate)
{
    const unsigned long long *values = emulator::meet(mask, predicate != 0);
    unsigned bits = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1 && values[i])
            bits |= 1u << i;
    return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 32; i += 8)
        c += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
    return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c)
{
    for (int i = 0; i < 32; i += 8)
        c += static_cast<uint8_t>(a >> i) * static_cast<uint8_t>(b >> i);
    return c;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
    unsigned long long both = static_cast<unsigned long long>(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = selector >> 4 * i & 15, byte = both >> 8 * (pick & 7) & 255;
        result |= (pick & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return result;
}
template <typename F>
unsigned each_byte(unsigned a, unsigned b, F function)
{
    unsigned result = 0;
    for (int i = 0; i < 32; i += 8)
        result |= (function(a >> i & 255, b >> i & 255) & 255u) << i;
    return result;
}
inline unsigned __vsub4(unsigned a, unsigned b) { return each_byte(a, b, [](unsigned x, unsigned y) { return x - y; }); }
inline unsigned __vadd4(unsigned a, unsigned b) { return each_byte(a, b, [](unsigned x, unsigned y) { return x + y; }); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift)
{
    return (static_cast<unsigned long long>(high) << 32 | low) >> (shift & 31);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline int __float2int_rn(float a) { return static_cast<int>(rintf(a)); }
inline int __float_as_int(float a) { return __builtin_bit_cast(int, a); }
inline unsigned __float_as_uint(float a) { return __builtin_bit_cast(unsigned, a); }
inline float __int_as_float(int a) { return __builtin_bit_cast(float, a); }
inline float __uint_as_float(unsigned a) { return __builtin_bit_cast(float, a); }
template <typename T>
T __ldg(const T *p) { return *p; }
#define MIN_MAX(T)                                       \
    inline T min(T a, T b) { return b < a ? b : a; }     \
    inline T max(T a, T b) { return a < b ? b : a; }
MIN_MAX(int)
MIN_MAX(unsigned)
MIN_MAX(long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

template <typename T>
T atomicAdd(T *p, T value) { T old = *p; *p = old + value; return old; }
template <typename T>
T atomicMax(T *p, T value) { T old = *p; *p = old < value ? value : old; return old; }
template <typename T>
T atomicOr(T *p, T value) { T old = *p; *p = old | value; return old; }
template <typename T>
T atomicExch(T *p, T value) { T old = *p; *p = value; return old; }
template <typename T>
T atomicCAS(T *p, T expected, T value) { T old = *p; if (old == expected) *p = value; return old; }
