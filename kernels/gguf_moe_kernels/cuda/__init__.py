"""The ops as CUDA kernels: .cu files that need no CUDA headers, compiled when a model needs them."""
