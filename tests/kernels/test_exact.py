"""The reference's float32 arithmetic against exact rational numbers."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from gguf_moe_kernels.ref import exact

F32 = np.float32
TINY, HUGE = F32(2**-149), F32(np.finfo(np.float32).max)


def rounded(exact_value):
    """The float32 nearest to a fraction, ties to even; the float32 grid is scanned around a first guess."""
    guess = F32(np.clip(float(exact_value), -float(HUGE), float(HUGE)))
    near = [guess, np.nextafter(guess, F32(-np.inf)), np.nextafter(guess, F32(np.inf))]
    near = [value for value in near if np.isfinite(value)]
    return min(near, key=lambda v: (abs(Fraction(float(v)) - exact_value), int(v.view(np.uint32)) & 1))


def check_fma(triples):
    a, b, c = np.array(triples, F32).T
    for x, y, z, result in zip(a, b, c, exact.fma(a, b, c), strict=True):
        value = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert result == rounded(value), f"fma({x!r}, {y!r}, {z!r})"


def test_fma_of_random_numbers(rng):
    check_fma(rng.standard_normal((500, 3)) * np.exp2(rng.integers(-30, 31, (500, 3))))


def test_fma_of_random_subnormal_results(rng):
    check_fma(rng.standard_normal((500, 3)) * np.exp2([-70.0, -72.0, -141.0]))


def test_fma_of_awkward_numbers():
    values = [
        0.0,
        1.0,
        -1.0,
        1 + 2**-23,
        1 - 2**-24,
        2**12 + 1,
        2**-12 + 2**-24,
        2**24 + 2,
        2**-75,
        -(2**-74),
    ]
    values += [float(TINY), -float(TINY), 2**-126, 3 * 2**-149, 2**60 + 2**37]
    check_fma(list(itertools.product(values, repeat=3)))


def test_fma_breaks_near_ties_by_what_float64_would_lose():
    # 1 + 2^-24 is a float32 midpoint; the product adds or takes away too little for float64 to see.
    a, b = F32(2**-24 * (1 + 2**-23)), F32(1 - 2**-23)
    near_tie = F32(2**-60)
    for sign in (1, -1):
        check_fma([(sign * near_tie, near_tie, 1 + 2**-23), (a, b, 1.0), (sign * a, b, -1.0)])
    x = exact.fma(F32(1 + 2**-12), F32(1 + 2**-12), F32(-(2**-60)))
    assert x == rounded(Fraction(1 + 2**-12) ** 2 - Fraction(1, 2**60))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_fma_of_what_is_not_finite(value):
    np.testing.assert_equal(exact.fma(F32(value), F32(2.0), F32(1.0)), F32(value))
    np.testing.assert_equal(exact.fma(F32(value), F32(2.0), F32(-value)), F32(np.nan))
    assert exact.fma(HUGE, HUGE, F32(0.0)) == np.inf


def test_exp_is_within_two_ulp(rng):
    x = np.concatenate([rng.uniform(-87, 88, 2000), rng.uniform(-1, 1, 2000)]).astype(F32)
    truth = np.exp(x.astype(np.float64))
    assert np.max(np.abs(exact.exp(x) - truth) / np.spacing(truth.astype(F32))) < 2.0


def test_exp_outside_its_range():
    np.testing.assert_array_equal(exact.exp(F32([0.0, -0.0])), F32([1.0, 1.0]))
    low, high, nan = exact.exp(F32([-np.inf, np.inf, np.nan]))
    assert (low, high) == (exact.exp(F32([-87.0]))[0], exact.exp(F32([88.0]))[0])
    assert math.isnan(nan)


def test_log_is_within_two_ulp(rng):
    x = np.concatenate([np.exp(rng.uniform(-87, 88, 2000)), rng.uniform(0.5, 2, 2000), [1.0]]).astype(F32)
    truth = np.log(x.astype(np.float64))
    assert np.max(np.abs(exact.log(x) - truth) / np.spacing(np.abs(truth).astype(F32))) < 2.0


def test_log_and_softplus_of_what_is_not_finite():
    assert np.isnan(exact.log(F32([np.nan, np.inf]))).all()
    np.testing.assert_equal(exact.softplus(F32([np.nan, np.inf])), F32([np.nan, np.inf]))


def test_softplus(rng):
    x = rng.uniform(-10, 40, 2000).astype(F32)
    np.testing.assert_allclose(
        exact.softplus(x), np.logaddexp(0.0, x.astype(np.float64)), rtol=1e-3, atol=1e-7
    )


@pytest.mark.parametrize("n", [1, 31, 32, 33, 100, 256])
def test_sums_are_near_the_truth(rng, n):
    w, x = rng.standard_normal((2, 3, n)).astype(F32)
    np.testing.assert_allclose(exact.dot(w, x), np.sum(w.astype(float) * x, axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(exact.sum(x), np.sum(x.astype(float), axis=1), rtol=1e-4, atol=1e-5)


def test_the_order_of_a_dot_product_is_the_lanes():
    # Lane 0 loses the 1 beside 2^24; in another order it would survive.
    w = np.zeros(64, F32)
    w[0], w[32], w[1] = 2**24, 1.0, -(2**24)
    assert exact.dot(w, np.ones(64, F32)) == 0.0


def test_the_order_of_a_quantized_sum_is_four_partial_sums():
    terms = F32([2**24, -(2**24), 0, 0, 1.0, 0, 0, 0])
    assert exact.sum_blocks([(terms, np.ones(8, F32))]) == 0.0
