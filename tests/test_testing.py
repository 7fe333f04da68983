"""`optimkit.testing` as its users have it: what it finds, how it says so, and the pytest plugin."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from optimizers import Trust, public

import optimkit
from optimkit import Optimizer, Penalty, Scalar, Transform, zeros
from optimkit.engines import canonical
from optimkit.engines.cpu import text as cpu_text
from optimkit.engines.eager import sliced
from optimkit.engines.eager import whole as eager
from optimkit.fusion.trace import Traced
from optimkit.testing import BACKENDS, LAYOUTS, check, check_optimizer, check_penalty, check_transform
from optimkit.testing.compare import difference
from optimkit.transforms import L1, L2, ClipByGlobalNorm, ClipByValue, ElasticNet, WeightDecay

EAGER = {"backends": ["numpy-eager"]}


class SignMomentum(Optimizer):
    lr: Scalar = 1e-3
    beta: Scalar = 0.9

    def slots(self):
        return {"m": zeros}

    def update(self, w, g, s, h, xp):
        m = h.beta * s.m + (1 - h.beta) * g
        return h.lr * xp.sign(m), {"m": m}


def sign_momentum(w, g, state, t):
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    return w - 0.5 * np.sign(state["m"])


# ---- what passes


def test_a_users_rule_with_a_reference():
    report = check_optimizer(SignMomentum, lr=0.5, beta=0.9, reference=sign_momentum, backends=["numpy-eager", "numpy-llvm"])
    assert report.passed == ["numpy-eager", "numpy-llvm"]
    assert str(report) == "passed: numpy-eager, numpy-llvm"


def test_an_optimizer_without_parameters_stands_for_its_class_and_settings():
    rule = SignMomentum(lr=0.5, transforms=[ClipByValue(0.01)], maximize=True)

    def reference(w, g, state, t):
        return sign_momentum(w, np.clip(-g, -0.01, 0.01), state, t)

    assert check_optimizer(rule, reference=reference, **EAGER).passed == ["numpy-eager"]
    fails(lambda: check_optimizer(rule, reference=sign_momentum, **EAGER), r"^SignMomentum\(lr=0\.5, beta=0\.9, transforms=")
    with pytest.raises(TypeError, match="has parameters; pass its class and settings"):
        check_optimizer(SignMomentum(np.ones(2)), **EAGER)


def test_transforms_with_a_reference():
    clip = check_transform(ClipByValue(0.01), reference=lambda w, g, state, t: w - 0.125 * np.clip(g, -0.01, 0.01), **EAGER)
    assert clip.passed == ["numpy-eager"]
    decay = check_transform(WeightDecay(0.5), reference=lambda w, g, state, t: w - 0.125 * (g + 0.5 * w), **EAGER)
    assert decay.passed == ["numpy-eager"]
    assert check_transform(ClipByGlobalNorm(1.0), optimizer=partial(optimkit.Adam, lr=0.1), **EAGER).passed == ["numpy-eager"]


PENALTIES = {
    L1(0.25): lambda w: 0.25 * np.sign(w),
    L2(0.25): lambda w: 0.5 * w,
    ElasticNet(0.25, 0.125): lambda w: 0.25 * np.sign(w) + 0.25 * w,
}


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_penalties_with_a_reference(penalty):
    """Gradient and value of each belong together."""
    assert check_penalty(penalty, reference=PENALTIES[penalty], **EAGER).passed == ["numpy-eager"]


def test_no_penalty_was_forgotten():
    assert {type(penalty) for penalty in PENALTIES} == public(Penalty)


def test_a_backend_that_is_not_there_is_reported_with_its_reason(monkeypatch):
    absent = check.Backend("absent-eager", "a_library_that_is_not_there", "eager")
    monkeypatch.setitem(BACKENDS, "absent-eager", absent)
    report = check_optimizer(SignMomentum, backends=["absent-eager", "numpy-eager"])
    assert report.passed == ["numpy-eager"]
    assert "a_library_that_is_not_there can't be imported" in report.skipped["absent-eager"]
    assert "skipped: absent-eager: a_library" in str(report)
    with pytest.raises(RuntimeError, match="none of the backends could run: absent-eager: a_library"):
        check_optimizer(SignMomentum, backends=["absent-eager"])


# ---- what fails, in words


def fails(call, *patterns):
    with pytest.raises(AssertionError) as caught:
        call()
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), str(caught.value)


def test_a_wrong_reference_is_named_with_parameter_step_and_both_values():
    def wrong(w, g, state, t):
        return sign_momentum(w, g, state, t) + (1e-3 if t == 2 else 0)

    fails(
        lambda: check_optimizer(SignMomentum, lr=0.5, reference=wrong, **EAGER),
        r"^SignMomentum\(lr=0\.5\) fails:\n",
        r"  - the rule called by hand, float32: parameter 'contiguous' \(shape \(3, 5\), contiguous\), step 2: the weight: ",
        r"15 of 15 elements differ, the first at \[0, 0\]: -?\d+\.\d+, expected -?\d+\.\d+, by the reference",
        r"  - the rule called by hand, float64: ",
        r"\nIt passes on numpy-eager\.$",
    )


@pytest.mark.parametrize("inside", [False, True])
def test_a_small_difference_is_found(inside):
    """eps = 1e-8 outside of the root, and inside, beside gradients of sizes from 1e-13 to 1e2."""

    def reference(w, g, state, t):
        v = state["v"] = 0.99 * state.get("v", 0) + (1 - 0.99) * g * g
        return w - 0.01 * g / (np.sqrt(v + 1e-16) if inside else np.sqrt(v) + 1e-8)

    settings = {"lr": 0.01, "eps": 1e-8, "reference": reference, **EAGER}
    if inside:
        fails(lambda: check_optimizer(optimkit.RMSProp, **settings), "float64: .* by the reference")
    else:
        assert check_optimizer(optimkit.RMSProp, **settings).passed == ["numpy-eager"]


BREAKS = {
    "the tracer": (lambda patch: patch.setattr(Traced, "__rsub__", Traced.__sub__), ["numpy-eager", "numpy-llvm"]),
    "a kernel's operation": (lambda patch: patch.setitem(cpu_text.TABLE, "subtract", "({1} - {0})"), ["numpy-llvm"]),
    "an eager operation": (lambda patch: patch.setitem(sliced._UFUNCS, "sign", np.negative), ["numpy-eager"]),
    "a number cast early": (lambda patch: patch.setattr(eager.EagerRunner, "_scalar", early), ["array_api_strict-eager"]),
    "the layout": (lambda patch: patch.setattr("optimkit.arrays.MemoryOrder.apply", lambda self, x: x.T), ["numpy-eager"]),
}


def early(self, node, tables, p, member):
    """Every number in float16, as an early cast would have it."""
    found = scalar(self, node, tables, p, member)
    return found if "bool" in str(found.dtype) else member.weight.__array_namespace__().asarray(
        float(np.float16(float(found))), dtype=found.dtype
    )


scalar = eager.EagerRunner._scalar


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_engine_is_found_and_named(what, monkeypatch):
    """Each part below the rule, broken: the check fails, and says on which backend."""
    change, backends = BREAKS[what]

    class Fresh(SignMomentum):  # a class of its own: not traced before
        pass

    assert check_optimizer(Fresh, lr=0.3, beta=0.7, backends=backends).passed == backends

    class Broken(SignMomentum):
        pass

    change(monkeypatch)
    for backend in backends:
        fails(
            lambda backend=backend: check_optimizer(Broken, lr=0.3, beta=0.7, backends=[backend]),
            rf"  - {backend}, float32: parameter '.*' \(shape .*\), step \d: (the weight|slot 'm'): ",
            "by the rule called by hand",
        )


def test_a_broken_order_of_reductions_is_found(monkeypatch):
    class Fresh(Trust):
        pass

    monkeypatch.setattr(cpu_text, "LANES", 64)
    assert canonical.LANES == 128
    fails(lambda: check_optimizer(Fresh, backends=["numpy-llvm"]), "numpy-llvm, float64: parameter ", "called by hand")


def test_a_gradient_that_is_written_is_found(monkeypatch):
    step = Optimizer.step
    monkeypatch.setattr(Optimizer, "step", lambda self, grads: step(self, grads, zero_grad=True))
    fails(lambda: check_optimizer(SignMomentum, **EAGER), "the gradient was written")


def test_a_value_that_is_not_the_integral_of_its_gradient_is_found():
    class Forgot(Penalty):
        rate: Scalar = 0.5

        def penalize(self, w, h, xp):
            return h.rate * w  # without the factor 2

        def value(self, w):
            return self.rate * float((w * w).sum())

    fails(lambda: check_penalty(Forgot(), **EAGER), r"Forgot\(rate=0\.5\): value\(w\) rises by .* in which penalize says")


def test_an_error_inside_says_where_it_ran():
    class Branches(Optimizer):
        def update(self, w, g, s, h, xp):
            return g if g > 0 else -g

    with pytest.raises(TypeError, match=r"xp\.where") as caught:
        check_optimizer(Branches, **EAGER)
    assert caught.value.__notes__ == ["while it ran on numpy-eager, float32"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_optimizer(SignMomentum, backends=["numpy"]), r"backends = \['numpy'\] must be some of numpy-llvm"),
        (lambda: check_optimizer(SignMomentum, backends=[]), r"backends = \[\] must be"),
        (lambda: check_optimizer(SignMomentum, dtypes=["int32"]), r"dtypes = \['int32'\] must be a list of 'float32'"),
        (lambda: check_optimizer(SignMomentum, dtypes="float32"), "dtypes = 'float32' must be"),
        (lambda: check_optimizer(SignMomentum, steps=0), "steps = 0 must be a whole number from 1"),
        (lambda: check_optimizer(SignMomentum, rate=1.0, **EAGER), "rate"),
        (lambda: check_optimizer(SignMomentum, engine="eager"), "engine = 'eager' is the matter of the backends"),
        (lambda: check_transform(ClipByValue), r"must be a Transform with its numbers"),
        (lambda: check_penalty(ClipByValue(1.0)), "must be a Penalty with its numbers"),
        (lambda: BACKENDS["jax-functional"].make([1.0], "float32", "fortran"), "layout = 'fortran' must be one of"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


# ---- comparisons


def test_differences_in_words():
    x = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    assert difference(x, x) == ""
    assert difference(x, x.T) == "2 of 4 elements differ, the first at [0, 1]: 2.0, expected 3.0"
    assert difference(x, x.astype(float)) == "dtype float32, expected float64"
    assert difference(x, x[0]) == "shape (2, 2), expected (2,)"
    assert difference(np.array(1.0), np.array(1.5)) == "1.0, expected 1.5"
    assert difference(np.array([0.0, np.nan]), np.array([-0.0, np.nan])) == ""
    assert difference(np.array([0.0]), np.array([-0.0]), signed_zeros=True).endswith("the first at [0]: 0.0, expected -0.0")
    assert difference(np.float32([1e-40]), np.float32([0])) != ""
    assert difference(np.float32([1e-40]), np.float32([0]), flushed=True) == ""
    assert difference(x, x * np.float32(1 + 1e-6)) != ""
    assert difference(x, x * np.float32(1 + 1e-6), tolerance=1e-5) == ""
    assert difference(x, x * np.float32(1 + 1e-4), tolerance=1e-5) != ""
    assert difference(np.array([np.inf, 1]), np.array([1e308, 1]), tolerance=1.0) != ""
    assert difference(np.array([np.nan, 1]), np.array([1.0, 1]), tolerance=1.0) != ""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (0,), (4,), (2, 3), (2, 3, 4)])
def test_layouts_hold_the_values_and_are_what_they_say(layout, shape):
    values = np.random.default_rng(0).normal(size=shape)
    x = BACKENDS["numpy-eager"].make(values, "float64", layout)
    np.testing.assert_array_equal(x, values)
    if len(shape) > 1:
        assert x.flags.c_contiguous == (layout == "contiguous")
        assert x.flags.f_contiguous == (layout == "fortran" or (layout == "permuted" and len(shape) == 2))
        assert (min(x.strides) < 0) == ("negative" in layout)


# ---- the plugin, and what is imported

PLUGIN_TEST = """
import numpy as np
from optimkit import SGD
from optimkit.testing import Backend

def test_mine(optimkit_backend):
    assert isinstance(optimkit_backend, Backend)
    if optimkit_backend.functional:
        return
    w = optimkit_backend.make(np.ones(3), "float32")
    SGD({"w": w}, lr=0.5, engine=optimkit_backend.engine).step({"w": optimkit_backend.make(np.ones(3), "float32")})
    assert optimkit_backend.to_numpy(w).tolist() == [0.5] * 3
"""


def python(*arguments, cwd=None):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


def test_the_plugin_gives_users_the_backends_and_prints_why_one_is_skipped(tmp_path):
    (tmp_path / "test_mine.py").write_text(PLUGIN_TEST)
    plugin = [] if installed() else ["-p", "optimkit.testing.fixtures"]
    run = ["-m", "pytest", "-rsA", "-p", "no:cacheprovider", *plugin, "test_mine.py", "-k", "numpy-eager or cupy-eager"]
    done = python(*run, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED test_mine.py::test_mine[numpy-eager]" in done.stdout
    assert f"{len(BACKENDS) - 2} deselected" in done.stdout
    reason = BACKENDS["cupy-eager"].available()
    if reason:
        assert f"cupy-eager: {reason[:40]}" in " ".join(done.stdout.split()), done.stdout


def installed():
    """Whether the entry point is there: in an environment where optimkit was installed by pip."""
    from importlib.metadata import entry_points

    return any(entry.value == "optimkit.testing.fixtures" for entry in entry_points(group="pytest11"))


def test_importing_it_needs_no_pytest_and_nothing_heavy():
    heavy = ["pytest", "numba", "cupy", "torch", "jax", "scipy", "array_api_strict", "matplotlib", "hypothesis"]
    code = f"import sys, optimkit.testing; print([name for name in {heavy} if name in sys.modules])"
    done = python("-c", code)
    assert done.stdout == "[]\n", done.stdout + done.stderr
    code = f"import sys, optimkit.testing.fixtures; print([name for name in {heavy[1:]} if name in sys.modules])"
    assert python("-c", code).stdout == "[]\n"


def test_the_public_names_are_there():
    assert {"Oracle", "Report", "check_optimizer", "check_transform", "check_penalty"} <= set(optimkit.testing.__all__)
    assert all(hasattr(optimkit.testing, name) for name in optimkit.testing.__all__)
    assert issubclass(Penalty, Transform)
