"""Comparison by bits."""

import numpy as np


def assert_same_bits(actual, expected):
    """Equal bit for bit, except that one NaN is as good as another."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    actual, expected = np.ascontiguousarray(actual), np.ascontiguousarray(expected)
    if actual.dtype.kind == "f":
        numbers = ~(np.isnan(actual) & np.isnan(expected))
        bits = f"u{actual.itemsize}"
        actual, expected = actual.view(bits)[numbers], expected.view(bits)[numbers]
    np.testing.assert_array_equal(actual, expected)
