"""The language of kernels against Python and NumPy: what a text computes, to the bit.

A program here is run twice: compiled, and by Python itself, with functions that stand for those of the language.
"""

from __future__ import annotations

import math
from textwrap import dedent

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimkit.engines.choose import llvm_problem
from optimkit.engines.cpu import kernels
from optimkit.engines.cpu.language import CONSTANTS, FUNCTIONS, LIBM

pytestmark = pytest.mark.skipif(bool(llvm_problem()), reason=llvm_problem() or "llvmlite is there")

HEAD = f"from optimkit.engines.cpu.language import {', '.join([*FUNCTIONS, *CONSTANTS])}\n"
DTYPES = ["float32", "float64"]


def load(kind):
    return lambda array, place: kind(array[place])


def store(array, place, value):
    array[place] = value


def claim(array, step):
    array[0] += step
    return int(array[0] - step)


KINDS = {"int64": int, "float32": np.float32, "float64": float}
IN_PYTHON = {
    **KINDS,
    **{f"load_{name}": load(kind) for name, kind in KINDS.items()},
    **{f"store_{name}": store for name in KINDS},
    **{name: getattr(math, name) for name in ("sqrt", "floor", "ceil", *LIBM)},
    "rint": round,
    "claim": claim,
    "inf": math.inf,
    "nan": math.nan,
}
IN_NUMPY = {name: getattr(np, name) for name in ("sqrt", "floor", "ceil", "rint")}


def call(text, *given, loops="plain"):
    """Call a kernel with arrays, by their addresses, and numbers."""
    words = [each.ctypes.data if isinstance(each, np.ndarray) else each for each in given]
    kernels.compile_text(HEAD + dedent(text), len(words), loops).held(*words)


def same_in_python(text, *given, loops="plain"):
    """Run a program both ways; all that it leaves in the arrays, which is the same."""
    compiled, plain = ([each.copy() if isinstance(each, np.ndarray) else each for each in given] for _ in range(2))
    call(text, *compiled, loops=loops)
    scope = dict(IN_PYTHON)
    exec(dedent(text), scope)
    scope["kernel"](*plain)
    arrays = [(one, two) for one, two in zip(compiled, plain, strict=True) if isinstance(one, np.ndarray)]
    for one, two in arrays:
        assert one.tobytes() == two.tobytes(), (one, two)
    return [one for one, _ in arrays]


# ---- values

WHOLE = [
    "a + b", "a - b", "a * b", "-a", "abs(a)", "abs(a) // (abs(b) + 1)", "abs(a) % (abs(b) + 1)", "a & b", "a | b", "a >> 3",
    "a >> 63", "min(a, b)", "max(a, b)", "not a", "not a == b", "a == b", "a != b", "a < b", "a <= b", "a > b", "a >= b",
    "(a < 0) < (b < 0)", "(a < 0) >= (b < 0)", "(a < 0) == (b < 0)", "(a < b) + (b < 3)", "(a < b) & (b < 3)",
    "(a < b) | (b < 3)", "(a < b) & a", "a if b else 3", "0 != (a and b and a < b)", "0 != (a or b > 2)",
    "0x7fffffffffffffff", "True",
]  # fmt: skip


def test_whole_numbers():
    stores = "\n".join(f"    store_int64(out, {place}, int64({each}))" for place, each in enumerate(WHOLE))
    text = f"def kernel(out, a, b):\n{stores}\n"
    for a in (0, 1, 5, -1, -6, 1 << 30, -(1 << 31)):
        for b in (0, 1, -1, 4, -9, (1 << 31) + 12345):
            (out,) = same_in_python(text, np.zeros(len(WHOLE), np.int64), a, b)
    assert out[-2:].tolist() == [(1 << 63) - 1, 1]


FLOATS = [
    "a + b", "a - b", "a * b", "a / b", "-a", "abs(a)", "sqrt(a)", "floor(a)", "ceil(a)", "rint(a)", "a == b", "a != b",
    "a < b", "a <= b", "a > b", "a >= b", "(a != a) | (b < a)", "(a < b) & (b > b * b)", "a * b + a", "a * a - b * b",
    "(a + b) - a",
]  # fmt: skip
SPECIAL = [0.0, -0.0, 1.0, -1.5, 2.5, 0.1, 1 / 3, 1e-40, 1e38, 3.4e38, math.inf, -math.inf, math.nan, 1e-310, 1e308, 7e15 + 0.5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loops", ["plain", "vectorized", "unrolled"])
def test_floats(dtype, loops):
    with np.errstate(all="ignore"):
        a, b = (each.ravel().astype(dtype) for each in np.meshgrid(SPECIAL, SPECIAL))
        expected = [np.asarray(eval(each, IN_NUMPY | {"a": a, "b": b}), dtype) for each in FLOATS]
    out, n = np.zeros((len(FLOATS), a.size), dtype), a.size
    lines = [f"store_{dtype}(out, {place * n} + i, {dtype}({each}))" for place, each in enumerate(FLOATS)]
    inner = "\n        ".join([f"a, b = load_{dtype}(first, i), load_{dtype}(second, i)", *lines])
    call(f"def kernel(first, second, out, n):\n    for i in range(n):\n        {inner}\n", a, b, out, n, loops=loops)
    for each, got, wanted in zip(FLOATS, out, expected, strict=True):
        nans = np.isnan(wanted)
        assert (np.isnan(got) == nans).all(), each
        assert got[~nans].tobytes() == wanted[~nans].tobytes(), each


def test_two_kinds_meet_in_the_wider_one():
    text = """
    def kernel(whole, narrow, wide):
        n, x, y = load_int64(whole, 0), load_float32(narrow, 0), load_float64(wide, 0)
        store_float64(wide, 1, n + x)
        store_float64(wide, 2, x + y)
        store_float64(wide, 3, n + y)
        store_float64(wide, 4, x * 0.1)
        store_float64(wide, 5, x * float32(0.1))
        store_float64(wide, 6, (n > 0) + y)
        store_float32(narrow, 1, n)
        store_float32(narrow, 2, float32(y))
        store_int64(whole, 1, int64(y))
        store_int64(whole, 2, int64(-x))
        store_float64(wide, 7, n if n < 0 else x)
        store_float64(wide, 8, sqrt(n))
    """
    n, x, y = (1 << 24) + 1, np.float32(2.75), 1e9 + 0.7
    whole, narrow, wide = np.array([n, 0, 0]), np.array([x, 0, 0], np.float32), np.array([y, *[0.0] * 8])
    call(text, whole, narrow, wide)
    tenth = np.float32(0.1)
    assert wide[1:].tolist() == [np.float32(n) + x, 2.75 + y, n + y, 2.75 * 0.1, x * tenth, 1 + y, 2.75, math.sqrt(n)]
    assert narrow[1:].tolist() == [np.float32(n), np.float32(y)]
    assert whole[1:].tolist() == [int(y), -2]


POINTS = {"log": (1e-300, 0.3, 1, 7.7), "log1p": (-0.9, 1e-9, 3), "pow": (0.5, 1.1, 9), "exp": (-700, 0.1, 3, 80)}


@pytest.mark.parametrize("name", LIBM)
def test_functions_of_the_c_library(name):
    points, two = POINTS.get(name, (-3.1, -1e-9, 0.25, 2.0)), name in ("hypot", "pow")
    for dtype in DTYPES:
        x = np.array([point for point in points if 1e-30 < abs(point) < 80 or dtype == "float64"], dtype)
        out, value = np.zeros(len(x), dtype), f"{name}(x, x)" if two else f"{name}(x)"
        inner = f"x = load_{dtype}(at, i)\n        store_{dtype}(out, i, {value})"
        call(f"def kernel(at, out, n):\n    for i in range(n):\n        {inner}", x, out, len(x))
        for point, got in zip(x.tolist(), out, strict=True):
            expected = getattr(math, name)(*[point] * (1 + two))
            assert abs(float(got) - expected) <= 2 * np.spacing(np.abs(np.asarray(expected, dtype))), (dtype, point)


# ---- statements

PROGRAMS = {
    "up": "for i in range(n):\n    note(out, i)\nnote(out, n)",
    "between": "for i in range(2, n):\n    note(out, i)",
    "in steps": "for i in range(-1, n, 3):\n    note(out, i)",
    "down": "for i in range(n - 1, -1, -1):\n    note(out, i)",
    "down in steps": "for i in range(n, 0, -4):\n    note(out, i)",
    "the variable is changed": "for i in range(n):\n    i = 2 * i\n    i += 1\n    note(out, i)",
    "the end is changed": "m = n\nfor i in range(m):\n    m = 0\n    note(out, m + i)",
    "break": "for i in range(n):\n    if i == 3:\n        break\n    note(out, i)\nnote(out, -1)",
    "continue": "for i in range(n):\n    if i % 3 == 1:\n        continue\n    note(out, i)",
    "nested": "for i in range(n):\n    for j in range(i, 9):\n        if j == i + 2:\n            break\n        if j == 4:\n"
    "            continue\n        note(out, 10 * i + j)\n    if i == 5:\n        break\n    note(out, -i)",
    "while": "i = n\nwhile i:\n    i //= 2\n    note(out, i)",
    "while with turns": "i = 0\nwhile True:\n    i += 1\n    if i > n:\n        break\n"
    "    if i & 1:\n        continue\n    note(out, i)",
    "while in for": "for i in range(n):\n    j = i\n    while j > 2:\n        j -= 2\n"
    "        if j == 5:\n            break\n    note(out, j)",
    "branches": "if n > 5:\n    note(out, 1)\nelif n > 2:\n    note(out, 2)\nelse:\n    note(out, 3)\n"
    "if n == 3:\n    note(out, 4)",
    "a branch leaves": "if n > 4:\n    note(out, n)\n    return\nnote(out, -n)",
    "swap": "a, b, c = n, 2, 3\na, b = b, a\na, b, c = b + c, c, a\nnote(out, a)\nnote(out, b)\nnote(out, c)",
    "one value for two": "a = b = note(out, 7)\nb += 1\nnote(out, a)\nnote(out, b)\n"
    "c, d = e, f = 4, n\nnote(out, c + d * e + f)",
    "operators": "a = 100\na += n\na -= 3\na *= 2\na //= 3\na %= 50\na |= 4\na &= 61\na >>= 1\nnote(out, a)",
    "and": "if n > 2 and note(out, 1) > 5 and note(out, 2) < 0:\n    note(out, 3)\nnote(out, 4)",
    "or": "if n > 2 or note(out, 1) > 0 or note(out, 2) < 0:\n    note(out, 3)\nnote(out, 4)",
    "and in or": "x = n < 2 or (n > 4 and note(out, 1) > n) or not note(out, n)\nif x:\n    note(out, 3)",
    "guarded": "i = 0\nwhile i < 64 and load_int64(out, i) >= 0 and i < n:\n    i += 1\nnote(out, i)",
    "choices": "for i in range(n):\n    note(out, 1 if i < 2 else 2 if i < 4 else (i if i & 1 else -i))",
    "functions": "note(out, later(n, 2))\nnote(out, later(later(n, 1), n))\nsend(out, n)\nnote(out, factorial(n))",
    "floats": "x = half(n) + 0.25\nx /= 3\nif x < inf and not x > 2.0 and nan != nan:\n    note(out, int64(x * 1000))",
    "constants": "note(out, SIX)\nnote(out, TEN + n * TWICE)\nif -inf < n:\n    note(out, MANY)",
}  # fmt: skip

AROUND = """
SIX = 6
TEN, MANY = 10, 0x7fff0000
TWO = TWICE = 2


def note(out, what) -> int64:
    store_int64(out, 1 + claim(out, 1), what)
    return what


def kernel(out, n):
    {body}


def factorial(n) -> int64:
    if n < 2:
        return 1
    return n * factorial(n - 1)


def later(a, b) -> int64:
    for i in range(9):
        if i * b > a:
            return i
    return a - b


def send(out, n):
    if n > 3:
        return
    note(out, n)


def half(x: float64) -> float64:
    return x / 2.0
"""


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_do_what_python_does(name):
    text = AROUND.replace("{body}", PROGRAMS[name].replace("\n", "\n    "))
    for n in (0, 1, 3, 4, 8):
        same_in_python(text, np.zeros(64, np.int64), n)


def test_numbers_of_each_width_pass_through_functions():
    text = """
    def third(x: float32, y: float64) -> float32:
        return x / float32(y)

    def kernel(narrow, wide):
        store_float32(narrow, 1, third(load_float32(narrow, 0), load_float64(wide, 0)))
        store_float64(wide, 1, third(1, 3))
    """
    narrow, wide = np.array([2.0, 0], np.float32), np.array([3.0, 0])
    call(text, narrow, wide)
    assert narrow[1] == np.float32(2) / np.float32(3)
    assert wide[1] == np.float32(1) / np.float32(3)


# ---- nothing is fused, and nothing changes places

SUM = """
def kernel(values, out, n):
    total = 0.0
    for i in range(n):
        total += load_float64(values, i) * load_float64(values, i)
    store_float64(out, 0, total)
"""


@pytest.mark.parametrize("loops", ["plain", "vectorized", "unrolled"])
def test_sums_are_added_in_their_order_and_products_are_rounded(loops):
    values = np.random.default_rng(0).normal(size=999) * np.logspace(0, 8, 999)
    same_in_python(SUM, values, np.zeros(1), len(values), loops=loops)
    near = 1 + 2.0**-30
    text = "def kernel(x, out):\n    a = load_float64(x, 0)\n    store_float64(out, 0, a * a - load_float64(x, 1))\n"
    _, out = same_in_python(text, np.array([near, near * near]), np.ones(1), loops=loops)
    assert out[0] == 0, "fused, this is the rounding error of the product"


# ---- expressions that nobody wrote

BOTH = st.sampled_from(["+", "-", "*"])
DIVIDE, BITS = st.sampled_from(["//", "%"]), st.sampled_from(["&", "|"])
COMPARE = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])


def deeper(whole, floats, truths):
    """Expressions one level up, of each kind."""

    def of(template, *parts):
        return st.tuples(*parts).map(lambda found: template.format(*found))

    more = of("({} {} {})", whole, BOTH, whole) | of("(abs({}) {} (abs({}) + 1))", whole, DIVIDE, whole)
    more |= of("({} {} {})", whole, BITS, whole) | of("min({}, -{})", whole, whole)
    more |= of("({} if {} else {})", whole, truths, whole) | of("int64({})", truths) | of("({} >> 2)", whole)
    real = of("({} {} {})", floats, BOTH | st.just("/"), floats) | of("({} {} {})", floats, BOTH, whole)
    real |= of("sqrt(abs({}))", floats) | of("(-{})", floats)
    real |= of("({} if {} else {})", floats, truths, floats) | of("floor({})", floats)
    truth = of("({} {} {})", whole, COMPARE, whole) | of("({} {} {})", floats, COMPARE, floats) | of("(not {})", truths)
    truth |= of("({} and {})", truths, truths) | of("({} or {} or {})", truths, truths, truths)
    truth |= of("({} {} {})", whole, COMPARE, floats)
    return more | whole, real | floats, truth


def expressions():
    whole, floats = st.sampled_from(["a", "b", "c", "3", "(-7)"]), st.sampled_from(["x", "y", "z", "0.1", "2.0"])
    truths = st.sampled_from(["(a < b)", "(x < y)", "(z != z)"])
    for _ in range(3):
        whole, floats, truths = deeper(whole, floats, truths)
    return st.lists(st.tuples(whole, floats, truths), min_size=4, max_size=4)


@settings(max_examples=25)  # each is compiled
@given(expressions())
def test_random_expressions(expressions):
    texts = [text for three in expressions for text in three]
    lines = [f"store_float64(out, {place}, float64({text}))" for place, text in enumerate(texts)]
    text = "def kernel(out, numbers, a, b, c):\n    x, y, z = {}\n    {}\n".format(
        ", ".join(f"load_float64(numbers, {place})" for place in range(3)), "\n    ".join(lines)
    )
    for a, b, c, *numbers in ((1, -2, 40, 0.5, -0.3, 1e9), (0, 13, -13, math.inf, 2.0, math.nan), (9, 9, 1, 0.0, -0.0, 1e-200)):
        leaves = {"a": a, "b": b, "c": c} | {name: np.float64(value) for name, value in zip("xyz", numbers, strict=True)}
        scope = IN_PYTHON | {"float64": np.float64, "sqrt": np.sqrt, "floor": np.floor, **leaves}
        with np.errstate(all="ignore"):
            expected = np.array([np.float64(eval(each, dict(scope))) for each in texts])
        out = np.zeros(len(texts))
        call(text, out, np.array(numbers), a, b, c)
        np.testing.assert_array_equal(out, expected)
        assert (np.signbit(out) == np.signbit(expected))[~np.isnan(out)].all()
