"""Several sequences in one step: each has the bits that it has alone."""

import contextlib

import numpy as np
import pytest

from gguf_moe.errors import ContextFullError
from gguf_moe.graph.task import Kind
from gguf_moe.runtime.sequence import Part

PROMPTS = [[1, 9, 4, 7, 3], [1, 9, 4, 2], [5]]
NEXT = [[6, 2], [8, 8], [3, 1]]


def alone(context, prompt, more):
    """The logits of the prompt's last token and of each that follows."""
    context.truncate(0)
    return [context.extend(prompt, 1)[0].copy(), *(context.extend([token], 1)[0].copy() for token in more)]


@pytest.fixture(
    scope="module",
    params=[
        ("moe_file", Kind.F16),
        ("dense_file", Kind.F16),
        ("moe_file", Kind.Q8_0),
        ("recurrent_file", Kind.F16),
    ],
    ids=lambda param: f"{param[0]}-{param[1].value}",
)
def expected(request, crew_context):
    """A file, the type of the cache, and the logits of each sequence alone."""
    path, kv_kind = request.getfixturevalue(request.param[0]), request.param[1]
    with crew_context(path, 1, kv_kind=kv_kind) as context:
        return path, kv_kind, [alone(context, *both) for both in zip(PROMPTS, NEXT, strict=True)]


def take_turns(context, assert_same_bits, expected):
    """The second sequence joins while the first decodes; a long prompt and single tokens share a step."""
    a, b, c = context.sequences
    assert_same_bits(context.step([Part(a, PROMPTS[0], 1)])[0][0], expected[0][0])
    context.step([Part(b, PROMPTS[1][:2], 0)])
    logits = context.step([Part(a, NEXT[0][:1], 1), Part(b, PROMPTS[1][2:], 1), Part(c, PROMPTS[2], 1)])
    for mine, wanted in zip(logits, (expected[0][1], expected[1][0], expected[2][0]), strict=True):
        assert_same_bits(mine[0], wanted)
    logits = context.step([Part(c, NEXT[2][:1], 1), Part(a, NEXT[0][1:], 1)])
    assert_same_bits(logits[0][0], expected[2][1])
    assert_same_bits(logits[1][0], expected[0][2])


@pytest.mark.parametrize("n_threads", [1, 3])
def test_each_sequence_has_the_bits_that_it_has_alone(crew_context, expected, n_threads, assert_same_bits):
    path, kv_kind, logits = expected
    with crew_context(path, n_threads, n_seq_max=3, kv_kind=kv_kind) as context:
        take_turns(context, assert_same_bits, logits)


def test_the_oracle_agrees(inline_context, expected, assert_same_bits):
    path, kv_kind, logits = expected
    with contextlib.closing(inline_context(path, n_seq_max=3, kv_kind=kv_kind)) as context:
        take_turns(context, assert_same_bits, logits)


@pytest.mark.parametrize(
    "expected", [("moe_file", Kind.F16), ("dense_file", Kind.F16), ("moe_file", Kind.Q8_0)], indirect=True
)
def test_a_prefix_is_copied_and_goes_on_as_if_computed(crew_context, expected, assert_same_bits):
    path, kv_kind, logits = expected
    with crew_context(path, 2, n_seq_max=2, kv_kind=kv_kind) as context:
        a, b = context.sequences
        context.step([Part(a, PROMPTS[0], 0)])
        context.state.copy_prefix(a, b, 3)
        assert b.tokens == PROMPTS[1][:3]
        assert_same_bits(context.step([Part(b, PROMPTS[1][3:], 1)])[0][0], logits[1][0])
        assert a.tokens == PROMPTS[0]


def test_a_full_sequence_leaves_the_others_as_they_were(crew_context, moe_file):
    with crew_context(moe_file, 1, n_ctx=6, n_seq_max=2) as context:
        a, b = context.sequences
        context.step([Part(a, PROMPTS[0], 0)])
        with pytest.raises(ContextFullError, match="2 more tokens do not fit into the context of 6"):
            context.step([Part(b, [1], 1), Part(a, [1, 2], 1)])
        assert (len(a.tokens), len(b.tokens)) == (5, 0)
        assert np.isfinite(context.step([Part(b, [1], 1), Part(a, [1], 1)])[0]).all()
