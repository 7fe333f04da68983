"""The functional form: `init` and `apply`, on immutable arrays and inside of a jit."""
