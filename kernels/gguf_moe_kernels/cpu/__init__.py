"""CPU kernels: Numba functions that work on raw addresses, so that a mapped file is used where it lies."""
