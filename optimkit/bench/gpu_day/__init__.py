"""The first day on a GPU: one command that looks at everything an emulated device can't show.

    python -m optimkit.bench.gpu_day --out FOLDER

`parts` says which parts there are and runs each in a process of its own, with a limit; `environment`, `bits`, `suite`, `races`,
`sanitizer`, `kernels`, `profile` and `host` are the parts.
"""
