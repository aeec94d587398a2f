"""The arguments of each op: one C struct an op, filled in by the runtime and read by the kernel.

Addresses, counts and sizes are int64; sizes and strides are in bytes unless said. The address of an array in
"(+ array)" is 0 where there is none. `rows` is the address of an int64: how many rows (tokens, or places of
tokens in experts) this step has.
"""

from __future__ import annotations

import enum

import numpy as np


def _struct(integers: str, floats: str = "") -> np.dtype:
    fields = [(name, "<i8") for name in integers.split()] + [(name, "<f4") for name in floats.split()]
    return np.dtype(fields, align=True)


def _structs(**parts: np.dtype) -> np.dtype:
    """The arguments of several ops that one kernel does."""
    return np.dtype(list(parts.items()), align=True)


# out[i] = row tokens[i] of weight, as float32 [n]
GET_ROWS = _struct("dequantize weight row_size n tokens out rows")

# x -> out, one row of n activations each
QUANTIZE = _struct("x n out out_stride rows")

# out[i, h] = x[i, h] / sqrt(mean(x[i, h]^2) + eps) (* weight) (+ bias), float32 [n_head, n] a row
RMS_NORM = _struct("x weight bias out n n_head rows", "eps")

# out[i] = factor * x[i] (+ residual[i]), float32 [n]
SCALE = _struct("x residual out n rows", "factor")

# out[i] = weight . x[i] (+ bias) (+ residual[i]); out and residual are float32 [rows, n_out]
MATMUL = _struct(
    "tile weight row_size n_out n_in x x_stride out rows chunk_rows one_token_rows least_rows n_threads bias "
    "residual"
)

# The same for experts. tiles, weights, row_sizes, x, x_stride: int64 [n_expert], because experts may differ
# in type. used, n_used, first: see EXPERT_ROWS. A place p of expert e: out[p] = weight[e] . x[e][x_index[p]];
# x_index is int32, or 0 for x[e][p].
MATMUL_ID = _struct(
    "tiles weights row_sizes n_expert n_out n_in x x_stride x_index out used n_used first chunk_rows "
    "one_token_rows least_rows n_threads"
)

# The same for matrices that each head has its own of: out[i, h] = weight[h] . x[i, h], float32
# [rows, n_head, n_out]. The matrices lie one behind the other; x[i, h] is at x + (i * n_head + h) * x_stride.
MATMUL_HEADS = _struct("tile weight row_size n_out n_in n_head x x_stride out rows chunk_rows n_threads")

# x -> out: the first n of each of n_head parts of a row, float32 [n_head, width], as one row of n activations
QUANTIZE_HEADS = _struct("x width n n_head out out_stride rows")

# out[i, h] = a[i, h], and behind it the last n_b elements of b[i, h], float32: a [n_head, n_a],
# b [n_head, b_width]
CONCAT = _struct("a n_a b b_width n_b n_head out rows")

# out[i, out_first + h * n + j] = x[i, first + h * stride + j] for each of n_head parts and j < n, float32; a
# row of x has x_width elements, one of out out_width
PARTS = _struct("x x_width first stride out out_width out_first n n_head rows")

# x[i] *= factors[i], float32 [n]; factors: float32 [rows]
SCALE_ROWS = _struct("x factors n rows")

# Rotate the first n_rot of each head's n_embd_head elements in place. cos, sin: float32 [rows, n_rot / 2].
# pair_stride 1: NORM (neighbours are a pair); n_rot / 2: NEOX (halves).
ROPE = _struct("x n_head n_embd_head n_rot pair_stride cos sin rows")

# Where the tokens of a step lie in a KV cache that several sequences share: cells, int32 [rows, 2], has for
# each token the first cell of its sequence and its position there. It is 0 where there is one sequence: then
# the first cell is 0, and the position n_past + i. The GPU has one sequence. Sequence s begins at cell
# s * n_ctx, and its tokens in a step are neighbours.

# cache[cell + position] = x[i], n elements, as float16, float32, or blocks of Q8_0 (34 bytes for 32 elements)
KV_STORE = _struct("x cache n n_past cells rows")

# out[i, h] = softmax(scale * q[i, h] . k[.., h']) . v[.., h'] over the cells from the sequence's first to the
# token's own, h' = h / (n_head / n_head_kv)
# n_swa: only the last n_swa of these positions, or all if 0; chunked: only those of the same stretch of n_swa
# positions
# sinks: float32 [n_head], a score of each head that takes part in the softmax and has no value, or 0 for none
# A row of v has v_width elements, which may be more than those of its heads, n_embd_head_v each.
# scores: float32 [threads, n, n_ctx] for a kernel that takes n heads at once, scores_stride bytes a head
HEADS_AT_ONCE = (1, 2, 4)
ATTENTION = _struct(
    "q k v sinks out n_head n_head_kv n_embd_head_k n_embd_head_v v_width n_swa chunked n_past cells "
    "scores scores_stride rows",
    "scale",
)

# logits float32 [rows, n_expert] -> ids int32 [rows, k], weights float32 [rows, k]
# selection: float32 [rows, n_expert], what is chosen by: the logits' own address if there is no bias (float32
# [n_expert], or 0) and there are no groups. group_scores: float32 [rows, n_group], or 0 without groups
# given: int32 [k] a row, rows given_stride bytes apart: ids to take instead of choosing any, or 0
MOE_TOPK = _struct(
    "logits selection bias group_scores given given_stride ids weights n_expert k n_group n_group_used "
    "gating normalize rows",
    "weights_scale",
)

# Sort places by expert. ids int32 [rows, k] -> used int32 [n_expert] (experts that have tokens, ascending),
# n_used int64, first int32 [n_expert + 1] (of used expert u: its places are first[u] .. first[u + 1]),
# token int32 [rows * k] (of a place), place int32 [rows * k] (of a token's j-th choice)
EXPERT_ROWS = _struct("ids n_expert k used n_used first token place counts rows")

# gate[i] = silu(gate[i]) * up[i], float32 [n]
SWIGLU = _struct("gate up n rows")

# g = min(gate[i], 7), u = up[i] within -7 and 7: gate[i] = g * sigmoid(1.702 * g) * (u + 1), float32 [n]
SWIGLU_OAI = _struct("gate up n rows")

# gate[i] = gelu(gate[i]) * up[i], float32 [n]
GEGLU = _struct("gate up n rows")

# x[i] = cap * tanh(x[i] / cap), float32 [n]
SOFTCAP = _struct("x n rows", "cap")

# x[i] *= sigmoid(gate[i]), float32 [n]
SIGMOID_MUL = _struct("x gate n rows")

# x[place[i, j]] += bias[ids[i, j]], float32 [n]; ids and place are int32 [rows, k], bias [n_expert, n]. A
# place of -1 is computed elsewhere.
ADD_ID = _struct("x bias ids place k n rows")

# x[place[i, j]] *= scale[ids[i, j]], float32 [n]; scale: [n_expert]; else as ADD_ID
SCALE_ID = _struct("x scale ids place k n rows")

# out[place[i, j]] = weights[i, j] * x[i], float32 [n]; weights and place are [rows, k]. A place of -1 is
# computed elsewhere.
WEIGH = _struct("x place weights out k n rows")

# out[i] = sum over j of weights[i, j] * x[place[i, j]] in the router's order (+ shared[i]) (+ residual[i])
# weights: 0 if each of them is 1
MOE_SUM = _struct("x place weights k n shared residual out rows")

# out[i] = sigmoid(weight . x[i]) * out[i], float32: x and weight [n_in], out [n]
SHEXP_GATE = _struct("x weight n_in out n rows")

# The GPU posts what it lacks. ids: int32 [rows, k], rows * k <= 256; weights: int64 [n_expert], device
# addresses, 0 for an expert that is not there.
# On the device: missing_place, int32 [rows, k], the number of a missing expert's place among all missing
# ones, or -1; n_missing, int64, how many; aborted, int64: if it is not 0, nothing is done.
# In mapped main memory: all_ids: the ids; if any is missing, used, n_used, first, x_index (there: token) and
# place as EXPERT_ROWS would have them if only the missing experts were chosen, place being -1 for others;
# x_out and x_2_out: the rows of x and x_2 (0 if there is one input), x_size bytes each, and up to 15 bytes
# that come after the last; and last the sequence number, the value of `step`. If none is missing it becomes
# -step, and who sees that may read nothing else before the step's end: the GPU has not waited for its writes.
MAILBOX_POST = _struct(
    "ids weights k used n_used first x_index place all_ids missing_place n_missing aborted "
    "x x_out x_size x_2 x_2_out x_2_size step sequence rows"
)

# MOE_SUM where the row of a choice whose missing_place is not -1 is that one of x_missing, in mapped main
# memory. With n_missing not 0 the kernel first waits until `answer` is at least the value of `step`. If
# `abort` is not 0, or if `heartbeat` does not change for `limit` nanoseconds (then abort becomes 1), it sets
# `aborted` and leaves out as it is. answer, abort, heartbeat: int64 in main memory; ready: int64 on the
# device, for the kernel alone, another one for each launch of a step, 0 before the first one. Steps count up
# from 1. The first `split` elements of a missing row come from row place[i, j] of x_link, float32 [split], on
# the device; rows of x_missing have the others alone.
MOE_JOIN = _struct(
    "x place weights k n shared residual out rows "
    "x_missing missing_place n_missing aborted step answer abort heartbeat limit ready waited x_link split"
)

# time, int64 on the device: the GPU's clock in nanoseconds, for scripts/gpu_meetings.py
STAMP = _struct("time")

# Copies of what a layer lacks. ids and missing_place: int32 [rows, k], as in MAILBOX_POST; weights: int64
# [n_expert], addresses of nbytes bytes each, a multiple of 16, that the device can read. The m-th missing one
# is copied to target + m * nbytes; table, int64 [n_expert], gets where each expert is then, or 0.
FETCH_MISSING = _struct("ids missing_place k weights nbytes target table n_expert aborted rows")

# Activations that the CPU made: with n_missing not 0 the kernel waits as MOE_JOIN does; then row
# missing_place[i, j] of x_missing, in mapped main memory, is copied to row place[i, j] of x, x_size bytes
# each, a multiple of 4, wherever missing_place is not -1.
RECEIVE = _struct(
    "x_missing x x_size place missing_place k n_missing aborted step answer abort heartbeat limit ready "
    "waited rows"
)

# Another op with its arguments; times: int64 [threads, 8], see cpu/stopwatch.py
STOPWATCH = _struct("function arguments times")

# The CPU waits for a post: a waiting row of the crew's table (see ROW_SIZE). When `sequence` has reached the
# value of `step`, it goes on with the next row, or n_rows rows further if it is -step. n_places: int64 that
# gets the number of missing places, first[n_used].
AWAIT_POST = _struct("sequence step n_used first n_places n_rows")

# answer = the value of step, after all that was written before
ANSWER = _struct("answer step")

# x[i, h] /= sqrt(sum(x[i, h]^2) + eps), float32, for the first n_head parts of n of a row of width elements
L2_NORM = _struct("x width n n_head rows", "eps")

# out[i, c] = silu(sum over j of weight[c, j] * input[i + j, c]), float32 [n]; weight: [n, d_conv]. For each
# sequence input is its state, [d_conv - 1, n], and behind it its x; the end becomes its state. At position 0
# the state is zero. A chunk is some channels.
SSM_CONV = _struct("x weight state out n d_conv n_past cells n_ctx rows")

# alpha[i] = exp(a * softplus(alpha[i] + dt)), beta[i] = sigmoid(beta[i]), float32 [n]; a, dt: [n]
DELTA_NET_GATES = _struct("alpha beta a dt n rows")

# For each of n_head heads h and its state S in the token's sequence, float32 [n, n], zero at position 0,
# token by token: S *= decay; then S += beta * (v - S k) k^T; out[i, h] = S q / sqrt(n). A row of qkv:
# n_head_k heads q, as many k, n_head v; q and k of head h are those of head h / heads_per_key % n_head_k.
# A chunk is one head.
GATED_DELTA_NET = _struct("qkv decay beta state out n n_head n_head_k heads_per_key n_past cells n_ctx rows")

# RMS_NORM of whole rows, and QUANTIZE of what it gives in each format whose address is not 0
NORM_QUANTIZE = _struct(
    "x weight bias out q8_0 q8_0_stride q8_1 q8_1_stride q8_k q8_k_stride n rows",
    "eps",
)

# The heads of q and k: RMS_NORM if the weight's address is not 0, then ROPE. q stays where it is; k, and v, a
# row of n_v elements, go to the caches as by KV_STORE.
ROPE_STORE = _struct(
    "q k v q_norm k_norm cos sin cache_k cache_v n_head n_head_kv n_embd_head n_v n_rot pair_stride "
    "n_past rows",
    "eps",
)

# Two or three MATMULs, none of which needs what another gives; without a third its n_out is 0.
MATMUL_3 = _structs(first=MATMUL, second=MATMUL, third=MATMUL)

# Two MATMUL_IDs that differ only in weights, row_sizes and out, and SWIGLU of what they give, into gate.out
MATMUL_ID_SWIGLU = _structs(gate=MATMUL_ID, up=MATMUL_ID)

ATTENTION_QUANTIZE = _structs(attention=ATTENTION, quantize=QUANTIZE)

# The sum of the experts, and the next block's norm of it
JOIN_NORM_QUANTIZE = _structs(join=MOE_JOIN, norm=NORM_QUANTIZE)

# For one token. ids are the same in all.
CHOOSE_AND_POST = _structs(topk=MOE_TOPK, places=EXPERT_ROWS, post=MAILBOX_POST)


class Control(enum.IntEnum):
    """Byte offsets in the crew's control block; each int64 that threads write has 64 bytes to itself."""

    STEP = 0
    """Number of the step to run; a change sets the crew to work."""
    ABORT = 64
    """Not 0: leave the step at the next chunk or barrier."""
    FINISHED = 128
    """How many workers have left the step."""
    CLOSING = 192
    """Not 0: workers return for good."""
    TABLE = 256
    """Address of the program: int64 [N_ROWS, 4], see ROW_SIZE."""
    N_ROWS = 264
    COUNTERS = 272
    """Address of int64 [N_ROWS, 16]: element 0 counts claimed chunks, 8 the threads that finished the row."""
    N_THREADS = 280
    SCHED_YIELD = 288
    """Addresses of the C library's functions; 0 where there are none."""
    USLEEP = 296
    CLOCK_GETTIME = 304
    CLOCK_MONOTONIC = 312
    """The clock's number on this system."""
    TIMESPEC = 320
    """int64 seconds and nanoseconds that CLOCK_GETTIME fills; for thread 0 alone."""
    WAITED = 336
    """Nanoseconds that thread 0 spent at waiting rows, in all steps."""
    SIZE = 384


ROW_SIZE = 32
"""Bytes of a row of the crew's table: int64 function, arguments, barrier flag, waiting flag.

A waiting row's function is called again and again by each thread for itself, until it returns how many rows
to go on (1 for the next). No thread meets the others there.
"""
ROW_BARRIER = 16
ROW_WAITS = 24
COUNTER_SIZE = 128
ARRIVALS = 64
"""Byte offset of the arrivals inside a row's counters."""

STEP_DONE = -1
STEP_ABORTED = -2
"""What thread 0's walk returns instead of a place in the table."""
CREW_CLOSED = -1
"""What a worker's loop returns when the crew closes."""

READ_CHUNK = 1 << 20
"""Bytes that a thread claims at a time when the read bandwidth is measured."""
