// For one token in one launch: the router's choice, the experts' places, and what the CPU is to do.
#include "choose.cuh"
#include "meeting.cuh"

constexpr int THREADS = 256, FEW_THREADS = 128;

KERNEL(choose_and_post, ChooseAndPost, THREADS)
{
    if (count_at(a.topk.rows)) {
        choose_experts(a.topk, 0);
        __syncthreads();
    }
    const ExpertRows &places = a.places;
    rank_few(places_of(places), at<const int>(places.ids), count_at(places.rows) * places.k, places.k, [](int) { return true; });
    post_missing(a.post);
}

// By one warp, whose lane j has the j-th choice: places of the missing experts. Gives their number. Where there is
// none, that is all that the CPU gets to know.
template <int N>
__device__ __forceinline__ int place_missing(const MailboxPost &a, const ChoiceOfOne<N> &shared, int id, long long step)
{
    int lane = lane_id();
    int missing = id >= 0 && !shared.is_here[id] ? id : -1;
    int n_missing = __popc(__ballot_sync(ALL_LANES, missing >= 0));
    if (lane == 0)
        *at<long long>(a.n_missing) = n_missing;
    if (n_missing) {
        Places places{at<int>(a.used), at<long long>(a.n_used), at<int>(a.first), at<int>(a.x_index), at<int>(a.missing_place)};
        rank_by_warp(places, missing, a.k);
        if (lane < a.k)
            at<int>(a.place)[lane] = at<int>(a.missing_place)[lane];
    } else {
        if (lane < a.k)
            at<int>(a.missing_place)[lane] = -1;
        if (lane == 0)
            store_relaxed_system(at<long long>(a.sequence), -step);
    }
    return n_missing;
}

// Up to N * 32 experts, of which up to MOST_CHOSEN are chosen. A warp each chooses, places all, and places the missing
// ones; all that does not depend on the choice is read before it.
template <int N>
__device__ __forceinline__ void choose_and_post_few(const ChooseAndPost &a)
{
    __shared__ ChoiceOfOne<N> shared;
    __shared__ int n_missing;
    int t = threadIdx.x, warp = t / WARP;
    bool has_token = count_at(a.topk.rows), aborted = count_at(a.post.aborted);
    long long step = count_at(a.post.step);
    float check = 0.0f;
    if (warp == 0 && has_token)
        check = choose_experts(a.topk, shared);
    for (int e = t - WARP; warp && e < a.topk.n_expert; e += FEW_THREADS - WARP)
        shared.is_here[e] = at<const long long>(a.post.weights)[e] != 0;
    __syncthreads();
    int id = has_token && lane_id() < a.topk.k ? shared.chosen[lane_id()] : -1;
    if (warp == 0 && has_token)
        weigh_chosen(a.topk, shared, check);
    if (warp == 1)
        rank_by_warp(places_of(a.places), id, a.topk.k);
    if (warp == 2 && !aborted) {
        int n = place_missing(a.post, shared, id, step);
        if (t % WARP == 0)
            n_missing = n;
    }
    if (warp == 3 && !aborted && id >= 0)
        at<int>(a.post.all_ids)[t % WARP] = id;
    __syncthreads();
    if (!aborted && n_missing)
        post_rows(a.post, has_token, step);
}

KERNEL(choose_and_post_128, ChooseAndPost, FEW_THREADS)
{
    choose_and_post_few<4>(a);
}

KERNEL(choose_and_post_512, ChooseAndPost, FEW_THREADS)
{
    choose_and_post_few<16>(a);
}
