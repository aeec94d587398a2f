"""Float32 arithmetic with exactly the kernels' roundings: fma, exp, log, and the order of each sum."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from gguf_moe_kernels.constants import (
    EXP_COEFFICIENTS,
    EXP_MAX,
    EXP_MIN,
    GELU_CUBIC,
    GELU_LINEAR,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    LOG_COEFFICIENTS,
    SOFTPLUS_MAX,
    SQRT_HALF_BITS,
)

ONE, TWO = np.float32(1.0), np.float32(2.0)
LANES = 32


def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: infinities and NaN pass without numpy's warnings, as they do through a kernel."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*args, **options)

    return wrapped


@quiet
def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32, elementwise, rounded once.

    The product is exact in float64. The sum is rounded to odd there (its last bit is set if it is not exact),
    which keeps on which side of a float32 midpoint it lies (Boldo and Melquiond, "Emulation of FMA").
    """
    product, addend = np.asarray(a, np.float64) * np.asarray(b, np.float64), np.asarray(c, np.float64)
    total = product + addend
    # Two-sum (Knuth): what the addition lost.
    virtual = total - product
    lost = (product - (total - virtual)) + (addend - virtual)
    bits = total.view(np.int64)
    inexact_and_even = (lost != 0) & np.isfinite(total) & (bits & 1 == 0)
    away_from_zero = (lost > 0) == (total > 0)
    odd = bits + np.where(inexact_and_even, np.where(away_from_zero, 1, -1), 0)
    return odd.view(np.float64).astype(np.float32)


@quiet
def exp(x: np.ndarray) -> np.ndarray:
    """e^x of float32 by the polynomial of constants.py. NaN stays NaN."""
    x = np.clip(np.asarray(x, np.float32), EXP_MIN, EXP_MAX)
    n = np.rint(x * LOG2_E)
    r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x))
    p = np.full_like(x, EXP_COEFFICIENTS[0])
    for coefficient in EXP_COEFFICIENTS[1:]:
        p = fma(p, r, coefficient)
    return np.ldexp(p, np.where(np.isnan(n), 0, n).astype(np.int32))


@quiet
def log(x: np.ndarray) -> np.ndarray:
    """The natural logarithm of positive normal float32, by the polynomial of constants.py. NaN stays NaN."""
    x = np.asarray(x, np.float32)
    bits = x.view(np.int32)
    e = (bits - SQRT_HALF_BITS) >> 23
    m = (bits - (e << 23)).view(np.float32) - ONE
    s = m / (m + TWO)
    z = s * s
    p = np.full_like(x, LOG_COEFFICIENTS[0])
    for coefficient in LOG_COEFFICIENTS[1:]:
        p = fma(p, z, coefficient)
    n = e.astype(np.float32)
    log_m = fma(s * z, p, s + s)
    return fma(n, LN2_HIGH, fma(n, LN2_LOW, log_m)) + (x - x)


@quiet
def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + e^x), float32."""
    return np.where(x > SOFTPLUS_MAX, x, log(ONE + exp(x)))


@quiet
def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), float32."""
    return x / (ONE + exp(-x))


@quiet
def gelu(x: np.ndarray) -> np.ndarray:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), float32."""
    return x / (ONE + exp(-(x * fma(GELU_CUBIC, x * x, GELU_LINEAR))))


def dot(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Dot product over the last axis of float32 arrays whose other axes broadcast.

    Lane j of 32 takes the elements j, j + 32, ... by fma in ascending order. Elements beyond the last
    multiple of 32 go to a chain of fma that is added last.
    """
    shape = np.broadcast_shapes(w.shape, x.shape)
    whole = shape[-1] // LANES * LANES
    lanes, rest = np.zeros((*shape[:-1], LANES), np.float32), np.zeros(shape[:-1], np.float32)
    for i in range(0, whole, LANES):
        lanes = fma(w[..., i : i + LANES], x[..., i : i + LANES], lanes)
    for i in range(whole, shape[-1]):
        rest = fma(w[..., i], x[..., i], rest)
    return _sum_lanes(lanes, rest)


def sum(x: np.ndarray) -> np.ndarray:
    """Sum over the last axis of a float32 array, in the order of `dot`."""
    whole = x.shape[-1] // LANES * LANES
    lanes, rest = np.zeros((*x.shape[:-1], LANES), np.float32), np.zeros(x.shape[:-1], np.float32)
    for i in range(0, whole, LANES):
        lanes = lanes + x[..., i : i + LANES]
    for i in range(whole, x.shape[-1]):
        rest = rest + x[..., i]
    return _sum_lanes(lanes, rest)


@quiet
def _sum_lanes(lanes: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Lanes are added by halves: j and j + 16, then j and j + 8, and so on; then the rest."""
    while (half := lanes.shape[-1] // 2) > 0:
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0] + rest


@quiet
def sum_blocks(terms: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Sum over the last axis (blocks) of the products a * b of each pair in `terms`, all float32.

    Block ib adds its products by fma, in the order of `terms`, to partial sum ib mod 4; the result is
    (s0 + s1) + (s2 + s3).
    """
    shape = np.broadcast_shapes(*(factor.shape for term in terms for factor in term))
    s = [np.zeros(shape[:-1], np.float32) for _ in range(4)]
    for ib in range(shape[-1]):
        for a, b in terms:
            s[ib % 4] = fma(a[..., ib], b[..., ib], s[ib % 4])
    return (s[0] + s[1]) + (s[2] + s[3])
