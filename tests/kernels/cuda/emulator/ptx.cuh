// The emulator's version of ptx.cuh: the same functions in plain C++.

#define KERNEL(name, Struct, ...) KERNEL_(name, Struct, __VA_ARGS__, 0)
#define KERNEL_(name, Struct, threads, ...)                                                                 \
    static void name##_body(const Struct a);                                                           \
    extern "C" int name(const unsigned *grid, const unsigned *block, unsigned shared, const void *arguments) \
    {                                                                                                  \
        Struct a = *static_cast<const Struct *>(arguments);                                            \
        return emulator::launch(grid, block, threads, shared, [a] { name##_body(a); });                \
    }                                                                                                  \
    static void name##_body(const Struct a)

inline void prefetch(const void *) {}

inline void copy_16(void *shared, const void *global)
{
    memcpy(shared, global, 16);
}

inline void wait_for_copies() {}

inline float4 load_fresh(const float *address)
{
    return *reinterpret_cast<const float4 *>(address);
}

inline float f16_to_f32(unsigned short bits)
{
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float sign = bits >> 15 ? -1.0f : 1.0f;
    if (exponent == 31)
        return fraction ? NAN : sign * INFINITY;
    return sign * (exponent ? ldexpf(1024 + fraction, exponent - 25) : ldexpf(fraction, -24));
}

inline unsigned short f32_to_f16(float value)
{
    unsigned sign = std::signbit(value) ? 0x8000 : 0;
    if (value != value)
        return 0x7fff;
    float magnitude = fabsf(value);
    if (magnitude >= 65520.0f)
        return sign | 0x7c00;
    int exponent = magnitude < 0x1p-14f ? -14 : ilogbf(magnitude);
    int units = static_cast<int>(rintf(ldexpf(magnitude, 10 - exponent)));
    // A carry out of the fraction is one more in the exponent, as it should be.
    return sign | (magnitude < 0x1p-14f ? units : ((exponent + 15) << 10) + units - 1024);
}

inline long long nanoseconds()
{
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

inline long long load_acquire_system(const long long *word)
{
    emulator::yield();
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

inline unsigned add_acquire_release(unsigned *word, unsigned more)
{
    return __atomic_fetch_add(word, more, __ATOMIC_ACQ_REL);
}

inline void store_release_system(long long *word, long long value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

inline void store_relaxed_system(long long *word, long long value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

inline void sleep_nanoseconds(unsigned)
{
    emulator::yield();
    sched_yield();
}
