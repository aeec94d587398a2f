// The meeting of GPU and CPU in a layer: the GPU posts the experts that it lacks, the CPU answers with their
// outputs. Both write to main memory that is mapped into the GPU's addresses. See structs.MAILBOX_POST.
#include "places.cuh"

// Whole parts of 16 bytes: what comes after the rows may go along.
__device__ __forceinline__ void copy_rows(const long long from, const long long to, long long size)
{
    const uint4 *source = at<const uint4>(from);
    uint4 *target = at<uint4>(to);
    for (long long i = threadIdx.x; i < (size + 15) / 16; i += blockDim.x)
        target[i] = source[i];
}

// By one block: the activations, and last the sequence number: whoever reads it finds all that the block wrote before.
__device__ __forceinline__ void post_rows(const MailboxPost &a, long long rows, long long step)
{
    copy_rows(a.x, a.x_out, a.x_size * rows);
    if (a.x_2)
        copy_rows(a.x_2, a.x_2_out, a.x_2_size * rows);
    // What the other threads wrote is before thread 0's release, because of the barrier.
    __syncthreads();
    if (threadIdx.x == 0)
        store_release_system(at<long long>(a.sequence), step);
}

// By one block.
__device__ __forceinline__ void post_missing(const MailboxPost &a)
{
    if (count_at(a.aborted))
        return;
    const int *ids = at<const int>(a.ids);
    const long long *weights = at<const long long>(a.weights);
    long long rows = count_at(a.rows), step = count_at(a.step);
    int n = rows * a.k, t = threadIdx.x;
    Places places{at<int>(a.used), at<long long>(a.n_used), at<int>(a.first), at<int>(a.x_index), at<int>(a.missing_place)};
    int n_missing = rank_few(places, ids, n, a.k, [weights](int expert) { return weights[expert] == 0; });
    if (t < n) {
        at<int>(a.all_ids)[t] = ids[t];
        at<int>(a.place)[t] = at<int>(a.missing_place)[t];
    }
    if (t == 0)
        *at<long long>(a.n_missing) = n_missing;
    if (n_missing)
        post_rows(a, rows, step);
    else if (t == 0)
        store_relaxed_system(at<long long>(a.sequence), -step);
}

// What the waiting thread tells the other blocks, in `ready`.
constexpr long long GIVEN_UP = -1;

// Wait for the answer. False if the step is to be left: somebody has set the abort word, or the heartbeat
// stood still for too long, and then it is set here.
template <typename Args>
__device__ __forceinline__ bool wait_for_answer(const Args &a, long long step)
{
    // Each look is a read over the bus, so the rarer news are looked for more rarely.
    constexpr int LOOKS = 16;
    long long heartbeat = load_acquire_system(at<const long long>(a.heartbeat));
    const long long start = nanoseconds();
    long long since = start;
    for (int look = 1;; look++) {
        if (load_acquire_system(at<const long long>(a.answer)) >= step) {
            *at<long long>(a.waited) += nanoseconds() - start;
            return true;
        }
        if (look % LOOKS == 0) {
            if (load_acquire_system(at<const long long>(a.abort)))
                return false;
            long long beat = load_acquire_system(at<const long long>(a.heartbeat)), now = nanoseconds();
            if (beat != heartbeat)
                heartbeat = beat, since = now;
            else if (now - since > a.limit) {
                store_release_system(at<long long>(a.abort), 1);
                return false;
            }
        }
        sleep_nanoseconds(100);
    }
}

// True when the CPU's rows may be read. Thread 0 of block 0 looks at main memory; the others wait for it.
template <typename Args>
__device__ __forceinline__ bool meet_cpu(const Args &a)
{
    __shared__ bool has_answer;
    long long step = count_at(a.step);
    long long *ready = at<long long>(a.ready);
    if (threadIdx.x == 0) {
        if (blockIdx.x == 0 && blockIdx.y == 0) {
            has_answer = wait_for_answer(a, step);
            if (!has_answer)
                *at<long long>(a.aborted) = 1;
            __threadfence();
            store_release_system(ready, has_answer ? step : GIVEN_UP);
        } else {
            long long seen;
            while ((seen = load_acquire_system(ready)) != step && seen != GIVEN_UP)
                sleep_nanoseconds(100);
            has_answer = seen == step;
        }
        __threadfence_system();
    }
    __syncthreads();
    return has_answer;
}

// Whether the sum may be made: false if the step is given up.
__device__ __forceinline__ bool may_join(const MoeJoin &a)
{
    long long aborted = count_at(a.aborted), n_missing = count_at(a.n_missing);
    return !aborted && (!n_missing || meet_cpu(a));
}

// MOE_SUM's element i of a row, whose addends lie on either side.
__device__ __forceinline__ float join_element(const MoeJoin &a, long long row, long long i)
{
    float sum = 0.0f;
#pragma unroll 8
    for (long long j = row * a.k; j < (row + 1) * a.k; j++) {
        int missing = at<const int>(a.missing_place)[j];
        long long place = at<const int>(a.place)[j];
        float x;
        if (missing < 0)
            x = at<const float>(a.x)[place * a.n + i];
        else if (i < a.split)
            x = at<const float>(a.x_link)[place * a.split + i];
        else // Volatile: an older answer may still be in a cache.
            x = at<const volatile float>(a.x_missing)[missing * (a.n - a.split) + i - a.split];
        sum = __fmaf_rn(weight_at(a.weights, j), x, sum);
    }
    if (a.shared)
        sum += at<const float>(a.shared)[row * a.n + i];
    if (a.residual)
        sum += at<const float>(a.residual)[row * a.n + i];
    return sum;
}

// The most choices of a token that find_addends takes; fuse.py knows it too.
constexpr int MOST_CHOICES = 64;

// What MOE_SUM adds for a row: where it is, on either side, and its weight.
struct Addends {
    const float *first[MOST_CHOICES]; // for elements before `split`
    const float *x[MOST_CHOICES];
    float weight[MOST_CHOICES];
};

__device__ __forceinline__ void add_weighted(float4 &sum, float weight, const float4 &x)
{
    sum.x = __fmaf_rn(weight, x.x, sum.x), sum.y = __fmaf_rn(weight, x.y, sum.y);
    sum.z = __fmaf_rn(weight, x.z, sum.z), sum.w = __fmaf_rn(weight, x.w, sum.w);
}

__device__ __forceinline__ void add(float4 &sum, const float4 &more)
{
    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
}

// By all threads of a block, into shared memory. A row that the step does not have may have anything there.
__device__ __forceinline__ void find_addends(const MoeJoin &a, long long row, Addends &addends)
{
    int j = threadIdx.x;
    if (j < a.k) {
        long long choice = row * a.k + j;
        int missing = at<const int>(a.missing_place)[choice];
        long long place = at<const int>(a.place)[choice];
        addends.weight[j] = weight_at(a.weights, choice);
        if (missing < 0)
            addends.first[j] = addends.x[j] = at<const float>(a.x) + place * a.n;
        else {
            addends.first[j] = at<const float>(a.x_link) + place * a.split;
            addends.x[j] = at<const float>(a.x_missing) + missing * (a.n - a.split) - a.split;
        }
    }
    __syncthreads();
}

// Fours of elements that a thread sums at once, and addends of each: all of them are asked for before one is used.
constexpr int COLUMNS = 2, AT_ONCE = 8;

// sums[c] = join_element of the elements i + c * step and the three behind it, where there are such.
__device__ __forceinline__ void join_columns(
    const MoeJoin &a, const Addends &addends, long long row, int i, int step, float4 (&sums)[COLUMNS])
{
    float4 shared[COLUMNS], residual[COLUMNS];
    int k = a.k;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        bool is_there = i + c * step < a.n;
        long long at_row = row * a.n + i + c * step;
        sums[c] = {};
        if (a.shared && is_there)
            shared[c] = *at<const float4>(a.shared + 4 * at_row);
        if (a.residual && is_there)
            residual[c] = *at<const float4>(a.residual + 4 * at_row);
    }
#pragma unroll 1
    for (int first = 0; first < k; first += AT_ONCE) {
        float4 x[COLUMNS][AT_ONCE];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++)
                if (int column = i + c * step; first + j < k && column < a.n)
                    x[c][j] = load_fresh((column < a.split ? addends.first : addends.x)[first + j] + column);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            if (first + j < k)
#pragma unroll
                for (int c = 0; c < COLUMNS; c++)
                    add_weighted(sums[c], addends.weight[first + j], x[c][j]);
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        if (a.shared)
            add(sums[c], shared[c]);
        if (a.residual)
            add(sums[c], residual[c]);
    }
}
