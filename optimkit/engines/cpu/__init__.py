"""The CPU engine: kernels as text, compiled, for NumPy arrays and torch CPU tensors."""
