// Places of choices: sorting them by expert, as structs.EXPERT_ROWS says, by one block; their weights.
#include "exact.cuh"

constexpr int PLACES_THREADS = 256;

struct Places {
    int *used;
    long long *n_used;
    int *first;
    int *token; // of a place
    int *place; // of a token's j-th choice; -1 where the expert is left out
};

__device__ __forceinline__ Places places_of(const ExpertRows &a)
{
    return {at<int>(a.used), at<long long>(a.n_used), at<int>(a.first), at<int>(a.token), at<int>(a.place)};
}

// At most PLACES_THREADS choices, one a thread. is_in(expert) says which experts take part; every thread comes
// back with the number of their places.
template <typename IsIn>
__device__ __forceinline__ int rank_few(const Places &out, const int *ids, int n, int k, IsIn is_in)
{
    __shared__ int expert[PLACES_THREADS]; // -1: not in
    __shared__ bool is_first[PLACES_THREADS];
    int t = threadIdx.x, mine = -1;
    if (t < n && is_in(ids[t]))
        mine = ids[t];
    expert[t] = mine;
    __syncthreads();
    int n_lower = 0, n_before = 0, n_in = 0;
    for (int i = 0; i < n; i++) {
        int other = expert[i];
        n_in += other >= 0;
        n_lower += other >= 0 && other < mine;
        n_before += other == mine && i < t;
    }
    is_first[t] = mine >= 0 && n_before == 0;
    __syncthreads();
    int n_used = 0, n_lower_used = 0;
    for (int i = 0; i < n; i++) {
        n_used += is_first[i];
        n_lower_used += is_first[i] && expert[i] < mine;
    }
    if (t < n)
        out.place[t] = mine >= 0 ? n_lower + n_before : -1;
    if (mine >= 0)
        out.token[n_lower + n_before] = t / k;
    if (is_first[t]) {
        out.used[n_lower_used] = mine;
        out.first[n_lower_used] = n_lower;
    }
    if (t == 0) {
        out.first[n_used] = n_in;
        *out.n_used = n_used;
    }
    __syncthreads();
    return n_in;
}

// The sum of what the threads before this one gave; `sums` has room for one number a thread.
__device__ __forceinline__ int sum_before(int mine, int *sums)
{
    int t = threadIdx.x;
    sums[t] = mine;
    __syncthreads();
    for (int distance = 1; distance < PLACES_THREADS; distance *= 2) {
        int more = t >= distance ? sums[t - distance] : 0;
        __syncthreads();
        sums[t] += more;
        __syncthreads();
    }
    int before = sums[t] - mine;
    __syncthreads();
    return before;
}

// How many of the choices from `start` on are a warp's expert, and the place of each among them, behind `next`.
// With `out` they are put there.
__device__ __forceinline__ int place_choices(const int *ids, int n, int k, int expert, int next, const Places *out)
{
    unsigned lanes_before = (1u << lane_id()) - 1;
#pragma unroll 4
    for (int base = 0; base < n; base += WARP) {
        int i = base + lane_id();
        bool is_it = i < n && ids[i] == expert;
        unsigned lanes = __ballot_sync(ALL_LANES, is_it);
        if (out && is_it) {
            int place = next + __popc(lanes & lanes_before);
            out->place[i] = place;
            out->token[place] = i / k;
        }
        next += __popc(lanes);
    }
    return next;
}

// Any number of choices: a warp an expert looks through all of them twice.
// counts: int32 [n_expert], the place behind each expert's last one.
__device__ __forceinline__ void count_many(
    const Places &out, const int *ids, int n, int k, int n_expert, int *counts)
{
    __shared__ int part[PLACES_THREADS];
    constexpr int WARPS_OF_PLACES = PLACES_THREADS / WARP;
    int t = threadIdx.x, n_used = 0, n_placed = 0;
    for (int e = t / WARP; e < n_expert; e += WARPS_OF_PLACES) {
        int count = place_choices(ids, n, k, e, 0, nullptr);
        if (lane_id() == 0)
            counts[e] = count;
    }
    __syncthreads();
    for (int start = 0; start < n_expert; start += PLACES_THREADS) {
        int e = start + t, count = e < n_expert ? counts[e] : 0;
        int place = n_placed + sum_before(count, part), u = n_used + sum_before(count > 0, part);
        if (count) {
            out.used[u] = e;
            out.first[u] = place;
        }
        if (e < n_expert)
            counts[e] = place;
        // The last thread knows the totals.
        if (t == PLACES_THREADS - 1)
            part[0] = place + count, part[1] = u + (count > 0);
        __syncthreads();
        n_placed = part[0], n_used = part[1];
        __syncthreads();
    }
    for (int e = t / WARP; e < n_expert; e += WARPS_OF_PLACES) {
        int end = place_choices(ids, n, k, e, counts[e], &out);
        __syncwarp();
        if (lane_id() == 0)
            counts[e] = end;
    }
    if (t == 0) {
        out.first[n_used] = n_placed;
        *out.n_used = n_used;
    }
}

// Of a choice, in MOE_SUM: without weights each is 1.
__device__ __forceinline__ float weight_at(long long weights, long long choice)
{
    return weights ? at<const float>(weights)[choice] : 1.0f;
}
