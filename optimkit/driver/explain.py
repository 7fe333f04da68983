"""An optimizer as text: `Adam.explain("float32")` on the class, `opt.explain()` on an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optimkit.arrays import DTYPES, DType
from optimkit.driver.run import Run
from optimkit.engines.choose import KERNELS, check_engine, compiling
from optimkit.fusion.show import show_plan
from optimkit.fusion.stages import Plan, total_rounds
from optimkit.rules.chain import Chain
from optimkit.rules.numbers import REQUIRED
from optimkit.rules.programs import plan_of, program_of


class Explain:
    """The method `explain`, which works on a class and on an optimizer."""

    def __get__(self, optimizer: Any, kind: Any) -> Callable[..., str]:
        if optimizer is None:

            def explain(dtype: str = "float32", engine: str = "llvm") -> str:
                """The stages and kernels of the rule for arrays of a dtype, as text.

                Parameters
                ----------
                dtype : {"float32", "float64"}
                engine : {"llvm", "cuda"}
                """
                return explain_chain(default_rule(kind)._run.chain(), dtype, engine)

            return explain

        def explain_own() -> str:
            """The stages and kernels of the optimizer for the parameters that it has, as text."""
            return explain_run(optimizer._run)

        return explain_own


def default_rule(kind: Any) -> Any:
    """An optimizer of a class with its defaults; numbers without one get a value, since none is in a kernel."""
    return kind(**{name: 0.5 for name, number in kind._numbers.items() if number.default is REQUIRED})


def explain_run(run: Run) -> str:
    """The plans and kernels of the buckets of a run."""
    with run.lock:
        if not run.entries:
            return explain_chain(run.chain())
        texts = {}
        for bucket in run.build_buckets():
            dtype, engine = bucket.entries[0].dtype, bucket.engine.name if bucket.engine.texts else "llvm"
            texts[id(bucket.plan), dtype, engine] = explain_plan(bucket.plan, dtype, engine)
        return "\n\n".join(texts.values())


def explain_chain(chain: Chain, dtype: str = "float32", engine: str = "llvm") -> str:
    """The plan and the kernels of a chain for arrays of a dtype, without parameters."""
    if engine not in KERNELS:
        if engine == "numba":
            check_engine(engine)  # says what it is called now
        raise ValueError(f"engine = {engine!r} must be 'llvm' or 'cuda', the engines that make kernels")
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r} must be {' or '.join(map(repr, DTYPES))}")
    return explain_plan(plan_alone(chain, dtype), DTYPES[dtype], engine)


def plan_alone(chain: Chain, dtype: str) -> Plan:
    """The plan of a chain for an optimizer of which it is the only one."""
    record = DTYPES[dtype]
    key, program = program_of(chain, record, record.wide)
    return plan_of(key, program, total_rounds([program]))


def explain_plan(plan: Plan, dtype: DType, engine: str) -> str:
    """A plan's stages, and the text of its kernels for an engine."""
    texts = compiling(engine).texts
    assert texts is not None
    return "\n\n".join([show_plan(plan, dtype.itemsize), *texts(plan, dtype)])
