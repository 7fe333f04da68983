"""The eager engine: no kernels, the functions of the array library itself."""
