// The two kernels of the meeting of GPU and CPU, and one by which it is measured.
#include "meeting.cuh"

constexpr int THREADS = PLACES_THREADS;

KERNEL(mailbox_post, MailboxPost, THREADS)
{
    post_missing(a);
}

// Leaves `out` as it is if the step is given up.
KERNEL(moe_join, MoeJoin, THREADS)
{
    if (!may_join(a))
        return;
    long long row = blockIdx.x, i = static_cast<long long>(blockIdx.y) * THREADS + threadIdx.x;
    if (row < count_at(a.rows) && i < a.n)
        at<float>(a.out)[row * a.n + i] = join_element(a, row, i);
}

KERNEL(stamp, Stamp, 1)
{
    *at<long long>(a.time) = nanoseconds();
}
