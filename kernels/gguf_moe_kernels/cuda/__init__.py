"""The ops as CUDA kernels: .cu files without CUDA's headers, put together and compiled when a model needs them."""
