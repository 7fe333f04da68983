"""The benchmark: whole steps side by side, in interleaved rounds, with the memory's own speed beside them.

`shapes` and `workloads` say what is run, `contestants` who runs it, `floor` what the memory alone
takes, `measure` how time is taken, `fresh` and `warm` what else is measured, `targets` what is
promised, `report` how it is shown. `cpu` and `cupy` put it together, `run` is the entry.
"""
