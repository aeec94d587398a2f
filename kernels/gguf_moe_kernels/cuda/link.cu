// Experts' down matrices that come over the link while the CPU computes gate and up.
#include "meeting.cuh"

constexpr int THREADS = 256;
constexpr int UNROLL = 4;

// All blocks share each matrix. The first one also writes the table.
KERNEL(fetch_missing, FetchMissing, THREADS)
{
    if (count_at(a.aborted))
        return;
    const int *ids = at<const int>(a.ids), *missing_place = at<const int>(a.missing_place);
    long long *table = at<long long>(a.table);
    int n = count_at(a.rows) * a.k;
    if (blockIdx.x == 0) {
        for (int e = threadIdx.x; e < a.n_expert; e += THREADS)
            table[e] = 0;
        __syncthreads();
        for (int j = threadIdx.x; j < n; j += THREADS)
            if (missing_place[j] >= 0)
                table[ids[j]] = a.target + missing_place[j] * a.nbytes;
    }
    for (int j = 0; j < n; j++) {
        if (missing_place[j] < 0)
            continue;
        const uint4 *source = at<const uint4>(at<const long long>(a.weights)[ids[j]]);
        uint4 *target = at<uint4>(a.target + missing_place[j] * a.nbytes);
        long long n_parts = a.nbytes / 16, step = static_cast<long long>(gridDim.x) * THREADS;
        for (long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; i < n_parts; i += UNROLL * step) {
            // Several reads are under way at a time: each takes long.
            uint4 part[UNROLL];
            for (int u = 0; u < UNROLL; u++)
                if (i + u * step < n_parts)
                    part[u] = source[i + u * step];
            for (int u = 0; u < UNROLL; u++)
                if (i + u * step < n_parts)
                    target[i + u * step] = part[u];
        }
    }
}

// A row of blocks for each choice; each thread has one word, so all reads are under way at once.
KERNEL(receive, Receive, THREADS)
{
    if (count_at(a.aborted) || !count_at(a.n_missing) || !meet_cpu(a))
        return;
    long long j = blockIdx.x, i = static_cast<long long>(blockIdx.y) * THREADS + threadIdx.x;
    if (j >= count_at(a.rows) * a.k || i >= a.x_size / 4)
        return;
    int missing = at<const int>(a.missing_place)[j];
    if (missing >= 0)
        // Volatile: an older answer may still be in a cache.
        at<int>(a.x + at<const int>(a.place)[j] * a.x_size)[i] = at<const volatile int>(a.x_missing + missing * a.x_size)[i];
}
