"""Arrays for tests of kernels."""

import numpy as np


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def empty(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)
