"""The CUDA engine: kernels as text, compiled by NVRTC, for CuPy arrays."""
