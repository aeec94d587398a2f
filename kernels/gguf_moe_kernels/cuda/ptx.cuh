// What CUDA C++ can say without CUDA's headers only in PTX, and how a kernel is declared. The emulator of the
// tests has its own version of this file.

// KERNEL(name, Struct, threads) { body }: a kernel whose argument `a` is a Struct passed by value. After the threads
// may come how many blocks a multiprocessor shall hold at once. The second macro gets a name like TYPED(x) expanded.
#define KERNEL(name, Struct, ...) KERNEL_(name, Struct, __VA_ARGS__)
#define KERNEL_(name, Struct, ...)                                                                     \
    static __device__ __forceinline__ void name##_body(const Struct &a);                               \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ Struct a)   \
    {                                                                                                  \
        name##_body(a);                                                                                \
    }                                                                                                  \
    static __device__ __forceinline__ void name##_body(const Struct &a)

// Four floats that the host or another GPU may have written, past all caches that could hold older ones.
__device__ __forceinline__ float4 load_fresh(const float *address)
{
    float4 four;
    asm volatile("ld.volatile.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(four.x), "=f"(four.y), "=f"(four.z), "=f"(four.w)
                 : "l"(address));
    return four;
}

// 16 bytes from global to shared memory, without a wait where the GPU can do that; after wait_for_copies this thread
// finds its copies there, and after a barrier all threads do.
__device__ __forceinline__ void copy_16(void *shared, const void *global)
{
#if __CUDA_ARCH__ >= 800
    unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
    *static_cast<uint4 *>(shared) = *static_cast<const uint4 *>(global);
#endif
}

__device__ __forceinline__ void wait_for_copies()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Bring the line that holds this address into the second-level cache.
__device__ __forceinline__ void prefetch(const void *address)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

extern __shared__ __align__(256) unsigned char dynamic_shared[];

__device__ __forceinline__ float f16_to_f32(unsigned short bits)
{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// Rounded to nearest even.
__device__ __forceinline__ unsigned short f32_to_f16(float value)
{
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ long long nanoseconds()
{
    long long time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
    return time;
}

// A word that the host or another GPU may write; what that side wrote before it is visible afterwards.
__device__ __forceinline__ long long load_acquire_system(const long long *word)
{
    long long value;
    asm volatile("ld.acquire.sys.s64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}

__device__ __forceinline__ void store_release_system(long long *word, long long value)
{
    asm volatile("st.release.sys.s64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}

// *word += more; gives what it was. What other blocks wrote before they did the same is visible afterwards.
__device__ __forceinline__ unsigned add_acquire_release(unsigned *word, unsigned more)
{
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(word), "r"(more) : "memory");
    return before;
}

// The host sees it some time later; nothing is said about when it sees what was written before.
__device__ __forceinline__ void store_relaxed_system(long long *word, long long value)
{
    asm volatile("st.relaxed.sys.s64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}

__device__ __forceinline__ void sleep_nanoseconds(unsigned n)
{
    asm volatile("nanosleep.u32 %0;" ::"r"(n));
}
