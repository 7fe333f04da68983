"""The driver: parameters, groups, numbers, steps and state. Knows no formula and no array library."""
