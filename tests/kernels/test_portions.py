"""How the rows of one token's matrices are shared out to threads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_moe_kernels.cpu.matmul import portion


def all_portions(n: int, rows: int, least: int, n_threads: int) -> list[tuple[int, int]]:
    portions: list[tuple[int, int]] = []
    while (taken := portion.py_func(len(portions), n, rows, least, n_threads))[1]:
        portions.append(taken)
    return portions


@given(
    n=st.integers(1, 5000),
    rows=st.integers(1, 64).map(lambda i: 4 * i),
    least=st.integers(1, 300).map(lambda i: 4 * i),
    n_threads=st.integers(1, 20),
)
def test_portions_are_all_rows_one_behind_the_other(n, rows, least, n_threads):
    end = 0
    for start, n_rows in all_portions(n, rows, least, n_threads):
        assert start == end
        assert start % 4 == 0
        end += n_rows
    assert end == n


@pytest.mark.parametrize("n_threads", [2, 15])
def test_portions_become_small_towards_the_end(n_threads):
    portions = [n_rows for _, n_rows in all_portions(14336, 112, 28, n_threads)]
    assert portions[0] == 14336 // (2 * n_threads) // 112 * 112
    assert max(portions[-n_threads:]) == 28
    assert len(portions) <= 12 * n_threads


def test_one_thread_may_take_all_at_once():
    assert all_portions(512, 64, 512, 1) == [(0, 512)]
