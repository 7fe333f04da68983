"""Parameters that join, leave, are replaced, or become another array in the caller's container."""
