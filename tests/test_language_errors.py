"""What is not in the language of kernels is refused, and its line is named; so is an engine by the name that it had."""

from __future__ import annotations

import numpy as np
import pytest
from optimizers import public

from optimkit import Optimizer
from optimkit.engines.choose import llvm_problem
from optimkit.engines.cpu import kernels
from optimkit.engines.cpu.language import CONSTANTS, FUNCTIONS, NotInLanguage
from optimkit.engines.cpu.lower import lower
from optimkit.engines.protocol import KernelError
from optimkit.rules.numbers import REQUIRED

needs_llvm = pytest.mark.skipif(bool(llvm_problem()), reason=llvm_problem() or "llvmlite is there")
HEAD = f"from optimkit.engines.cpu.language import {', '.join([*FUNCTIONS, *CONSTANTS])}\n"

REFUSED = {
    "x = [1]": "List is not in the language",
    "x = n.real": "Attribute is not in the language",
    "x = out[0]": "Subscript is not in the language",
    "x = 'a'": "'a' is no number",
    "x = None": "None is no number",
    "x = 2j": "2j is no number",
    "'a docstring'": "only a call stands by itself",
    "n + 1": "only a call stands by itself",
    "pass": "Pass is not in the language",
    "x: int = 3": "AnnAssign is not in the language",
    "x = (y := n)": "NamedExpr is not in the language",
    "del n": "Delete is not in the language",
    "with n:\n        n = 2": "With is not in the language",
    "def inner():\n        return": "FunctionDef is not in the language",
    "x = lambda: n": "Lambda is not in the language",
    "while n:\n        n -= 1\n    else:\n        n = 3": "a loop has no else",
    "for i in range(n):\n        n -= 1\n    else:\n        n = 3": "a loop no else",
    "for i in n:\n        n = 2": "a loop goes over a range",
    "for i in reversed(range(n)):\n        n = 2": "a loop goes over a range",
    "for i in range():\n        n = 2": "a range has one to three numbers",
    "for i in range(1, 2, 1, 1):\n        n = 2": "a range has one to three numbers",
    "for i in range(n, step=2):\n        n = 2": "a range has one to three numbers",
    "for i in range(0, n, n):\n        n = 2": "the step of a range is written as a number",
    "for i in range(0, n, 0):\n        n = 2": "the step of a range is written as a number, and is not 0",
    "for i in range(2.5):\n        n = 2": "a value of kind double does not become i64 unasked",
    "for i, in range(n):\n        n = 2": "names are assigned to",
    "break": "this stands in loops only",
    "if n:\n        continue": "this stands in loops only",
    "return\n    n = 2": "this is never reached",
    "return n": "a function gives back what its head says",
    "x = 1 < n < 3": "two values are compared at a time",
    "x = n is n": "Is is not in the language",
    "x = n in n": "In is not in the language",
    "x = n ** 2": "Pow is not in the language",
    "n <<= 2": "LShift is not in the language",
    "n ^= 2": "BitXor is not in the language",
    "n **= 2": "Pow is not in the language",
    "x = n / 2": "Div is not for values of kind i64",
    "n /= 2": "Div is not for values of kind i64",
    "x = 2.0 // 1.0": "FloorDiv is not for values of kind double",
    "x = 2.0 & 1.0": "BitAnd is not for values of kind double",
    "x = ~n": "Invert is not for values of kind i64",
    "x = +n": "UAdd is not for values of kind i64",
    "x = -(n < 2)": "USub is not for values of kind i1",
    "x = not 2.0": "a float is compared",
    "if 2.0:\n        n = 1": "a float is compared",
    "x = n and 0.5": "a float is compared",
    "x = 1 if 0.5 else 2": "a float is compared",
    "x = unknown": "unknown has no value here",
    "unknown += 1": "unknown has no value here",
    "x = min": "min has no value here",
    "x = unknown(n)": "there is no function unknown of 1 arguments",
    "x = n(n)": "there is no function n of 1 arguments",
    "x = n.real(n)": "there is no function n.real of 1 arguments",
    "x = sqrt(n, n)": "there is no function sqrt of 2 arguments",
    "x = min(n, n, n)": "there is no function min of 3 arguments",
    "x = half(1, 2.0)": "there is no function half of 2 arguments",
    "call()": "call is told the address of a kernel",
    "store_int64(out, 0, value=n)": "there is no function store_int64 of 2 arguments",
    "store_int64(out, 0, n, value=n)": "there is no function store_int64 of 3 arguments",
    "x = min(*n)": "Starred is not in the language",
    "x = half(**n)": "there is no function half of 0 arguments",
    "x = 1\n    x = 2.0": "x is of kind i64, and is given a value of kind double",
    "x = 1.0\n    x = 2": "x is of kind double, and is given a value of kind i64",
    "x = float32(1)\n    x += 0.1": "x is of kind float, and is given a value of kind double",
    "x = (1, 2)": "names are assigned to, with as many values",
    "x, y = n": "names are assigned to, with as many values",
    "x, = n": "names are assigned to, with as many values",
    "x, y = 1, 2, 3": "names are assigned to, with as many values",
    "x, *y = 1, 2": "names are assigned to, with as many values",
    "[x, y] = 1, 2": "names are assigned to, with as many values",
    "n[0] = 2": "names are assigned to, with as many values",
    "n.x = 2": "names are assigned to, with as many values",
    "n += 1, 2": "names are assigned to, with as many values",
    "x = send(n)": "send gives nothing back",
    "x = store_int64(out, 0, n)": "store_int64 gives nothing back",
    "SIZE += 1": "SIZE stands for something else in this text",
    "half = 2": "half stands for something else in this text",
    "store_int64(out, 0, 2.0)": "a value of kind double does not become i64 unasked",
    "store_int64(out, 1.0, 2)": "a value of kind double does not become i64 unasked",
    "store_float32(out, 0, 0.1)": "a value of kind double does not become float unasked",
    "x = load_int64(1.0, 0)": "a value of kind double does not become i64 unasked",
    "x = whole(1.0)": "a value of kind double does not become i64 unasked",
    "x = 18446744073709551617": "18446744073709551617 is no number of 64 bits",
}  # fmt: skip
ENDS = """

SIZE = 3


def half(x: float64) -> float64:
    return x / 2.0


def whole(x) -> int64:
    return x


def send(x):
    call(x)
"""


@pytest.mark.parametrize("body", REFUSED)
def test_what_is_not_in_the_language_is_refused(body):
    text = f"{HEAD}def kernel(out, n):\n    {body}\n{ENDS}"
    with pytest.raises(NotInLanguage) as told:
        lower(text)
    message, _, line = str(told.value).rpartition(", in line ")
    assert REFUSED[body] in message
    number, _, shown = line.partition(": ")
    assert text.splitlines()[int(number) - 1].strip() == shown
    assert shown in body


PLAIN = "def kernel(n):\n    return\n"
REFUSED_TEXTS = {
    "": "there is no function kernel, in line 1: ",
    "def other(n):\n    return\n": "there is no function kernel",
    f"import math\n{PLAIN}": "Import does not stand outside of functions, in line 1: import math",
    f"from math import sqrt\n{PLAIN}": "ImportFrom does not stand outside of functions, in line 1",
    f"from optimkit.engines.cpu.language import sine\n{PLAIN}": "the language has no sine, in line 1",
    f"from optimkit.engines.cpu.language import *\n{PLAIN}": "the language has no *, in line 1",
    f"A = 1.5\n{PLAIN}": "A stands for a whole number, or nothing, in line 1: A = 1.5",
    f"A = True\n{PLAIN}": "A stands for a whole number",
    f"A = 18446744073709551617\n{PLAIN}": "is no number of 64 bits, in line 1",
    f"A, B = 1\n{PLAIN}": "names are assigned to, with as many values, in line 1",
    f"class A:\n    n = 1\n{PLAIN}": "ClassDef does not stand outside of functions",
    f"{PLAIN}{PLAIN}": "kernel stands for two things, in line 1",
    f"def min(a, b) -> int64:\n    return 1\n{PLAIN}": "min stands for two things, in line 1",
    "def kernel(n=2):\n    return\n": "no defaults, stars or decorators, in line 1: def kernel(n=2):",
    "def kernel(n, *, m=2):\n    return\n": "no defaults, stars or decorators",
    "def kernel(*n):\n    return\n": "no defaults, stars or decorators",
    "def kernel(**n):\n    return\n": "no defaults, stars or decorators",
    "def kernel(n, /):\n    return\n": "no defaults, stars or decorators",
    "def kernel(n, n):\n    return\n": "no defaults, stars or decorators",
    f"@cache\n{PLAIN}": "no defaults, stars or decorators, in line 2",
    "async def kernel(n):\n    return\n": "AsyncFunctionDef does not stand outside of functions",
    "def kernel(n: int):\n    return\n": "int is none of the kinds int64, float32, float64",
    "def kernel(n: float64):\n    return\n": "a kernel takes words, and gives back a word or nothing, in line 1",
    "def kernel(n) -> float64:\n    return 1.0\n": "a kernel takes words, and gives back a word or nothing",
    "def kernel(n) -> 'int64':\n    return n\n": "'int64' is none of the kinds",
    "def kernel(n) -> int64:\n    return\n": "a function gives back what its head says, in line 2",
    "def kernel(n) -> int64:\n    return 1.0\n": "a value of kind double does not become i64 unasked, in line 2",
    "def kernel(n) -> int64:\n    if n:\n        return 1\n": "kernel ends without a value",
}


@pytest.mark.parametrize("text", REFUSED_TEXTS)
def test_texts_that_are_none_are_refused(text):
    with pytest.raises(NotInLanguage) as told:
        lower(text)
    assert REFUSED_TEXTS[text] in str(told.value)


@needs_llvm
@pytest.mark.parametrize("text", ["def kernel(n):\n    x = [n]\n", "def kernel(n:\n"])
def test_a_kernel_that_is_refused_is_an_error_with_its_text(text):
    with pytest.raises(KernelError, match="a kernel can't be compiled: ") as told:
        kernels.compile_text(text)
    assert str(told.value).endswith("\n" + text)


@pytest.mark.parametrize("kind", sorted(public(Optimizer), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_the_engine_has_another_name_now(kind):
    numbers = {name: 0.5 for name, number in kind._numbers.items() if number.default is REQUIRED}
    for params in (None, np.ones(3)):
        with pytest.raises(ValueError, match="engine = 'numba' is called engine = 'llvm' now: kernels are compiled"):
            kind(params, engine="numba", **numbers)
    with pytest.raises(ValueError, match="engine = 'numba' is called engine = 'llvm' now"):
        kind.explain(engine="numba")
    for other in ("eager", "nothing"):
        with pytest.raises(ValueError, match=f"engine = '{other}' must be 'llvm' or 'cuda', the engines that make kernels"):
            kind.explain(engine=other)
