"""An array that stays the same object may be another after all: its dtype, shape, strides and memory, and whether it can be
written. A step sees it, warm or not, on every engine: the step is that of a new array with these values, or an error.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import optimkit
from optimkit.testing.backends import BACKENDS

ENGINES = [name for name in ("numpy-llvm", "numpy-eager") if not BACKENDS[name].available()]
KINDS = [np.array, lambda x: x.view(Named).copy()]


class Named(np.ndarray):
    """What a user may derive from NumPy's arrays."""


def start(engine, kind=np.array, steps=3, **options):
    params = {"a": kind(np.arange(1.0, 5.0).reshape(2, 2)), "b": kind(np.ones(4)), "c": kind(np.ones((3, 2), np.float32))}
    opt = optimkit.Adam(params, lr=0.1, engine=engine.removeprefix("numpy-"), **options)
    for _ in range(steps):
        opt.step(grads_of(params))
    return params, opt


def grads_of(params, scale=1.0):
    return {name: np.full(w.shape, scale, np.float32 if name == "c" else float) for name, w in params.items()}


def everything(params, opt):
    return {name: (np.array(w).tobytes(), opt.state[name].t, opt.state[name]["m"].tobytes()) for name, w in params.items()}


def set_dtype(w):
    w.dtype = np.int64


def set_shape(w):
    w.shape = (2, 2)


def set_size(w):
    w.resize(1000, refcheck=False)


def set_size_to_nothing(w):
    w.resize(0, refcheck=False)


def set_read_only(w):
    w.flags.writeable = False


def set_strides(w):
    w.strides = (0,)


REFUSED = {
    "dtype": (set_dtype, TypeError, r"parameter 'b' is int64"),
    "shape": (set_shape, ValueError, r"parameter 'b' was a numpy array of shape \(4,\), float64 and became a .* \(2, 2\)"),
    "resize": (set_size, ValueError, r"parameter 'b' was a numpy array of shape \(4,\), float64 and became a .* \(1000,\)"),
    "nothing": (set_size_to_nothing, ValueError, r"parameter 'b' was a numpy array of shape \(4,\)"),
    "read-only": (set_read_only, ValueError, r"parameter 'b' is read-only; pass a writable array"),
    "broadcast": (set_strides, ValueError, r"parameter 'b' is broadcast \(a stride is 0\)"),
}


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS, ids=["array", "subclass"])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("change", REFUSED)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_does_not_fit_is_refused_before_anything_is_written(engine, change, steps, kind):
    params, opt = start(engine, kind, steps)
    act, error, message = REFUSED[change]
    act(params["b"])
    before = everything({name: params[name] for name in "ac"}, opt)
    for _ in range(2):
        with pytest.raises(error, match=message):
            opt.step(grads_of({"a": params["a"], "b": np.ones(4), "c": params["c"]}))
        assert everything({name: params[name] for name in "ac"}, opt) == before
    assert opt.count == steps


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_other_strides_are_another_memory_order(engine, clipped, steps):
    """(2, 2) the other way round: what the user sees in the array is what is trained, and the state keeps its places."""
    options = {"transforms": [optimkit.transforms.ClipByGlobalNorm(0.5)]} if clipped else {}
    results = []
    for in_place in (True, False):
        params, opt = start(engine, steps=steps, **options)
        if in_place:
            params["a"].strides = params["a"].strides[::-1]
        else:
            params["a"] = params["a"].T
        for _ in range(3):
            opt.step({**grads_of(params), "a": np.arange(4.0).reshape(2, 2)})
        results.append(everything(params, opt))
    assert results[0] == results[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_that_moved_is_followed(engine):
    """`resize` there and back: other memory, the same object and shape."""
    results = []
    for in_place in (True, False):
        params, opt = start(engine)
        if in_place:
            kept = [np.ones(4) for _ in range(100)]
            params["b"].resize(1 << 20, refcheck=False)
            params["b"].resize(4, refcheck=False)
            del kept
        for _ in range(3):
            opt.step(grads_of(params, 0.5))
        results.append(everything(params, opt))
    assert results[0] == results[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_read_only_weight_that_takes_no_part_disturbs_nobody(engine):
    params, opt = start(engine)
    params["b"].flags.writeable = False
    opt.freeze("b")
    before = params["b"].tobytes()
    for grads in (grads_of(params), {"a": np.ones((2, 2))}, grads_of(params)):
        assert opt.step(grads).applied
    opt.unfreeze("b")
    opt.step({"a": np.ones((2, 2))})
    with pytest.raises(ValueError, match="parameter 'b' is read-only"):
        opt.step(grads_of(params))
    assert params["b"].tobytes() == before
    params["b"].flags.writeable = True
    opt.step(grads_of(params))
    assert (opt.state["a"].t, opt.state["b"].t) == (8, 4)


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_are_warm_beside_subclasses_and_after_a_change(engine):
    """Whoever looks at all weights in each step must not take steps for new that are not."""
    from optimkit.counting import counters

    for kind in KINDS:
        params, opt = start(engine, kind)
        for changed in (False, True):
            if changed:
                params["a"].resize(2, 2, refcheck=False)
            opt.step(grads_of(params))
            checked = counters.gradients_checked
            opt.step(grads_of(params))
            assert counters.gradients_checked == checked


def test_an_optimizer_over_read_only_buffers_is_unpickled():
    """joblib's `mmap_mode="r"`, and pickle 5 out of band: it is there to be looked at; a step says what is wrong."""
    params, opt = start("numpy-eager")
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(opt, protocol=5, buffer_callback=buffers.append)
    again = pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers])
    assert again["a"].data.tobytes() == params["a"].tobytes()
    assert again.state["a"]["m"].tobytes() == opt.state["a"]["m"].tobytes()
    with pytest.raises(ValueError, match="parameter 'a' is read-only; pass a writable array"):
        again.step(grads_of(params))
    assert again.count == opt.count
    for name in params:
        again[name].data = np.array(again[name].data)
    again.step(grads_of(params))
    opt.step(grads_of(params))
    assert all(again[name].data.tobytes() == params[name].tobytes() for name in params)


class Counting(optimkit.Optimizer):
    """A slot for each parameter, and one for all."""

    lr: optimkit.Scalar = 0.1

    def slots(self):
        return {"m": optimkit.zeros, "p": optimkit.zeros.per("parameter"), "o": optimkit.zeros.per("optimizer")}

    def update(self, w, g, s, h, xp):
        return h.lr * g, {"m": g, "p": s.p + 1.0, "o": s.o + 1.0}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_live_view_can_not_take_the_slot_along(engine):
    """What is handed out is a view: it can be typed or locked, not resized, and the slot stays what it was."""
    params = {"a": np.ones((2, 2)), "b": np.ones(4)}
    opt = Counting(params, engine=engine.removeprefix("numpy-"))
    for _ in range(3):
        opt.step({"a": np.ones((2, 2)), "b": np.ones(4)})
    state = opt.state
    for get in (lambda: state["a"]["m"], lambda: state["b"]["m"], lambda: state["a"]["p"], lambda: state.shared["o"]):
        seen, before = get(), get().tobytes()
        with pytest.raises(ValueError, match="cannot resize this array"):
            seen.resize(1 << 22, refcheck=False)
        seen.flags.writeable = False
        assert (get().flags.writeable, get().tobytes()) == (True, before)
    opt.step({"a": np.ones((2, 2)), "b": np.ones(4)})
    assert opt.state["a"]["p"] == opt.state.shared["o"] == 4.0


def test_a_cupy_array_of_another_shape_is_seen(optimkit_backend):
    """CuPy's arrays can be given another shape in place, torch's tensors other memory."""
    backend = optimkit_backend
    if backend.library not in ("cupy", "torch") or backend.functional:
        pytest.skip("arrays that are changed in place as CuPy's and torch's are")
    w = backend.make(np.arange(6.0).reshape(2, 3), "float32")
    params = {"w": w, "v": backend.make(np.ones(3), "float32")}
    opt = optimkit.Adam(params, lr=0.1, engine=backend.engine)

    def step(shape):
        return opt.step({"w": backend.make(np.ones(shape), "float32"), "v": backend.make(np.ones(3), "float32")})

    step((2, 3))
    if backend.library == "cupy":
        w.shape = (3, 2)
    else:
        w.resize_(3, 2)
    before = backend.to_numpy(params["v"]).tobytes()
    message = r"parameter 'w' was a .* of shape \(2, 3\), float32 .*and became a .* of shape \(3, 2\)"
    for shape in ((2, 3), (3, 2)):
        with pytest.raises(ValueError, match=message):
            step(shape)
    assert backend.to_numpy(params["v"]).tobytes() == before
    if backend.library == "cupy":
        w.shape = (2, 3)
    else:
        w.resize_(2, 3)
    step((2, 3))
    assert opt.count == 2


def test_a_square_tensor_transposed_in_place_is_another_memory_order():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    results = []
    for in_place in (True, False):
        params = {"w": torch.arange(4.0).reshape(2, 2)}
        opt = optimkit.Adam(params, lr=0.1)
        for number in range(4):
            if number == 2 and in_place:
                params["w"].t_()
            elif number == 2:
                params["w"] = params["w"].t()
            opt.step({"w": torch.arange(4.0).reshape(2, 2) + number})
        results.append((params["w"].tolist(), opt.state["w"]["m"].tolist()))
    assert results[0] == results[1]
