"""What is kept of each parameter, and of each group of values."""
