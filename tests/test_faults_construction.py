"""Faults at construction: the rows of the list of faults from 1 to 11b that are not about numbers or definitions.

Those are in `test_numbers` and `test_definitions`.

A refused array leaves everything as it was; the message names the parameter and what to pass instead.
"""

from __future__ import annotations

import warnings

import array_api_strict as strict
import numpy as np
import pytest

import optimkit
from optimkit import SGD, Adam, Param

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")


def ones(*shape):
    return np.ones(shape, np.float32)


def steps(array, gradient=None):
    """Whether an array can be trained: one step of it must be that of a plain copy."""
    plain = np.array(array)
    gradient = np.full(plain.shape, 2, plain.dtype) if gradient is None else gradient
    SGD({"w": array}, lr=0.25).step({"w": gradient})
    np.testing.assert_array_equal(np.asarray(array), plain - plain.dtype.type(0.25) * np.asarray(gradient, plain.dtype))


@pytest.mark.parametrize("make", [lambda w: {"a": w, "b": w}, lambda w: [{"params": {"a": w}}, {"params": {"b": w}, "lr": 1}]])
def test_row_1_the_same_array_twice(make):
    w = ones(3)
    with pytest.raises(ValueError, match=r"parameters 'a' and 'b' are the same array; pass it once"):
        SGD(make(w), lr=0.1)
    with pytest.raises(ValueError, match=r"'0' and '1' are the same array"):
        SGD([Param(w), Param(w)], lr=0.1)


def test_row_2_overlapping_views():
    buffer = ones(4, 6)
    for a, b in [(buffer[:2], buffer[1:]), (buffer, buffer[::2]), (buffer[:, 1:4], buffer[1:3, ::2]), (buffer[:], buffer.T)]:
        with pytest.raises(ValueError, match=r"parameters 'a' and 'b' overlap in memory"):
            SGD({"a": a, "b": b}, lr=0.1)


@needs_torch
def test_row_2_overlapping_tensors():
    tensor = torch.ones(6)
    with pytest.raises(ValueError, match=r"'a' and 'b' are the same array"):
        SGD({"a": tensor, "b": tensor}, lr=0.1)
    with pytest.raises(ValueError, match=r"'a' and 'b' overlap"):
        SGD({"a": tensor, "b": tensor.view(2, 3)}, lr=0.1)
    with pytest.raises(ValueError, match=r"'a' and 'b' overlap"):
        SGD({"a": tensor.numpy(), "b": tensor}, lr=0.1)


def test_row_2_disjoint_views_of_one_buffer_are_fine():
    buffer = ones(6, 8)
    params = {"even": buffer[::2, :4], "odd": buffer[1::2, :4], "columns": buffer[:, 4::2], "others": buffer[:, 5::2]}
    SGD(params, lr=1.0).step({name: ones(*view.shape) for name, view in params.items()})
    assert not buffer.any()


@pytest.mark.parametrize("collection", [set, frozenset, lambda p: dict.fromkeys(p).keys()], ids=["set", "frozenset", "keys"])
def test_row_3_collections_without_an_order(collection):
    with pytest.raises(TypeError, match=r"has no order; pass a dict, list or tuple of arrays"):
        SGD(collection([Param(ones(2)), Param(ones(3))]), lr=0.1)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, r"no parameters: the container is empty, or an iterator that was already used up"),
        ({}, ValueError, r"no parameters"),
        ({"a": {}, "b": []}, ValueError, r"no parameters"),
        (iter([]), ValueError, r"no parameters"),
        ("weights", TypeError, r"a str is no parameter; pass a dict, list or tuple"),
        (b"w", TypeError, r"a bytes is no parameter"),
        (3.0, TypeError, r"a float is no parameter"),
        ({"a": None}, TypeError, r"parameters at 'a': a NoneType is no parameter"),
        ({"a": {"b": [1.0]}}, TypeError, r"parameters at 'a.b.0': a float is no parameter"),
        (Adam, TypeError, r"a type is no parameter"),
        (object(), TypeError, r"an? object is no parameter; pass arrays, Params, dicts, lists"),
    ],
)
def test_row_4_what_is_no_container(params, error, message):
    with pytest.raises(error, match=message):
        SGD(params, lr=0.1)


def test_row_4_no_container_of_gradients():
    opt = SGD({"w": ones(1)}, lr=0.1)
    for grads in ("w", {ones(1).size}, 3.0, ones(1)):
        with pytest.raises(TypeError, match=r"mirror the parameters|is no parameter"):
            opt.step(grads)
    with pytest.raises(TypeError, match=r"step\(\) found no gradients.*Pass them, opt.step\(grads\)"):
        SGD({"w": ones(1)}, lr=0.1).step()


def test_row_7_weights_that_cannot_be_written():
    frozen = ones(3)
    frozen.flags.writeable = False
    strided = np.lib.stride_tricks.as_strided(ones(3), (3, 4), (4, 0))
    window = np.lib.stride_tricks.sliding_window_view(ones(5), 3, writeable=True)
    for weight, message in [
        (frozen, r"parameter 'w' is read-only; pass a writable array \(np.array\(x\) copies\)"),
        (np.broadcast_to(ones(1), (3,)), r"parameter 'w' is read-only"),
        (strided, r"'w' is broadcast \(a stride is 0\); pass a copy"),
        (window, r"'w' has elements that overlap in memory; pass a copy"),
        *([] if torch is None else [(torch.ones(1).expand(3), r"'w' is broadcast")]),
    ]:
        with pytest.raises(ValueError, match=message):
            SGD({"a": ones(2), "w": weight}, lr=0.1)


@pytest.mark.parametrize(
    "dtype", ["int64", "uint8", "bool", "O", "longdouble", "U3", "datetime64[s]", [("a", "f4")], "complex64", "float16"]
)
def test_row_8_dtypes_that_cannot_be_trained(dtype):
    with pytest.raises(TypeError, match=r"parameter 'w' is .*pass one of float32, float64") as caught:
        SGD({"w": np.zeros(2, dtype)}, lr=0.1)
    later = np.dtype(dtype).name in ("complex64", "float16")
    assert ("not supported yet" in str(caught.value)) == later


def test_row_8_byte_order_matrices_masks_and_scalars():
    packed = np.zeros(2, [("flag", "u1"), ("w", "f4")])["w"]
    for weight, message in [
        (np.zeros(2, ">f4"), r"parameter 'w' is float32 in another byte order; pass x.astype\(x.dtype.newbyteorder\('='\)\)"),
        (np.ma.zeros(2), r"'w' is a MaskedArray; pass a plain array"),
        (np.float64(1.0), r"'w' is a NumPy scalar .*pass np.asarray\(x\), shape \(\)"),
        (packed, r"'w' is not aligned in memory.*pass a copy"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            SGD({"w": weight}, lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.matrix(np.zeros((2, 2)))
    with pytest.raises(TypeError, match=r"'w' is a matrix"):
        SGD({"w": matrix}, lr=0.1)


class Loud(np.ndarray):
    """A subclass whose functions are its own: engines must not call them."""

    def __array_ufunc__(self, *args, **kwargs):
        raise AssertionError("a function of the subclass was called")


@pytest.mark.parametrize("engine", ["eager", "llvm"])
def test_row_8_zero_dimensions_memmaps_and_subclasses_are_fine(tmp_path, engine):
    steps(np.array(3.0, np.float32))
    steps(np.array(3.0), np.float64(2.0))  # functions of NumPy give scalars for 0-d arrays
    mapped = np.memmap(tmp_path / "w", np.float32, "w+", shape=(5,))
    steps(mapped)
    mapped.flush()
    assert np.fromfile(tmp_path / "w", np.float32).tolist() == [-0.5] * 5
    loud = ones(3).view(Loud)
    Adam({"w": loud}, lr=0.5, engine=engine).step({"w": ones(3).view(Loud)})
    assert np.asarray(loud).tolist() == pytest.approx([0.5] * 3)
    with pytest.raises(ValueError, match=r"read-only"):
        SGD(np.memmap(tmp_path / "w", np.float32, "r"), lr=0.1)


@needs_torch
def test_row_9_mixed_namespaces():
    with pytest.raises(TypeError, match=r"gradient of 'data' is a torch array.*its weight a numpy array; convert it to numpy"):
        Param(ones(2), torch.ones(2))
    opt = SGD({"a": ones(2), "b": torch.ones(2), "c": strict.ones(2)}, lr=1.0)
    opt.step({"a": ones(2), "b": torch.ones(2), "c": strict.ones(2)})
    assert [float(opt[name].data[0]) for name in "abc"] == [0, 0, 0]
    with pytest.raises(TypeError, match=r"gradient of 'b'"):
        opt.step({"a": ones(2), "b": ones(2)})
    assert opt["a"].data[0] == 0, "an error in one gradient must leave all others alone"


def test_row_10_immutable_arrays():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    with pytest.raises(TypeError, match=r"'w' is a JAX array, which is immutable; use the functional form: state = "):
        SGD({"w": jax.numpy.ones(2)}, lr=0.1)
    rule = SGD(lr=0.5)
    params, _ = rule.apply({"w": jax.numpy.ones(2)}, {"w": jax.numpy.ones(2)}, rule.init({"w": jax.numpy.ones(2)}))
    assert params["w"].tolist() == [0.5, 0.5]


@needs_torch
def test_row_44_tensors():
    leaf = torch.ones(3, requires_grad=True)
    opt = SGD({"w": leaf}, lr=0.5)
    for _ in range(2):
        (leaf**2).sum().backward()
        version = leaf._version
        opt.step(zero_grad=True)
        assert leaf._version > version, "autograd must see that the tensor was changed"
    assert leaf.tolist() == [0, 0, 0]
    loss = (leaf**2).sum()
    opt.step({"w": torch.ones(3)})
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        loss.backward()


@needs_torch
def test_row_44_subclasses_of_tensors():
    class Tensor(torch.Tensor):
        """A subclass of ones own, as some frameworks have them."""

    tensor = torch.ones(2).as_subclass(Tensor)
    SGD({"w": tensor}, lr=0.5).step({"w": torch.ones(2)})
    assert tensor.tolist() == [0.5, 0.5]


@needs_torch
def test_row_44_tensors_that_cannot_be_trained(tmp_path):
    np.zeros(2000, np.float32).tofile(tmp_path / "w")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mapped = torch.from_numpy(np.memmap(tmp_path / "w", np.float32, "r"))
    for tensor, message in [
        (2 * torch.ones(2, requires_grad=True), r"'w' is a non-leaf tensor; pass the leaf it was computed from"),
        (torch.ones(2, dtype=torch.complex64).conj(), r"'w' is complex64"),
        (torch.ones(2, dtype=torch.complex64).conj().imag, r"'w' has its conjugate or negative bit set; pass x.resolve_conj"),
        (torch.ones(2, 2).to_sparse(), r"'w' is a torch.sparse_coo tensor; pass a dense one"),
        (torch.ones(2, device="meta"), r"'w' is a tensor on the meta device"),
        (mapped, r"'w' is a tensor over a read-only mapping of a file; pass a copy \(x.clone\(\)\)"),
        (torch.ones(2, dtype=torch.bfloat16), r"'w' is bfloat16; half precision"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            SGD({"w": tensor}, lr=0.1)
    opt = SGD({"w": torch.ones(2)}, lr=0.1)
    for gradient, message in [
        (torch.ones(2, dtype=torch.complex64).conj().imag, r"gradient of 'w' has its conjugate or negative bit set"),
        (torch.ones(2).to_sparse(), r"gradient of 'w' is a torch.sparse_coo tensor"),
    ]:
        with pytest.raises(TypeError, match=message):
            opt.step({"w": gradient})


def test_engines_that_cannot_run_an_array_say_so():
    opt = SGD({"w": strict.ones(2)}, lr=0.1, engine="llvm")
    with pytest.raises(ValueError, match=r"engine = 'llvm' runs NumPy arrays and torch CPU tensors, not array_api_strict"):
        opt.step({"w": strict.ones(2)})


def test_odd_names():
    long = "n" * 5000
    params = {long: ones(1), "": ones(1), 7: ones(1), ("t", 1): ones(1), "a b/ü*": ones(1)}
    opt = SGD(params, lr=1.0)
    assert opt.names == [long, "0", "7", "('t', 1)", "a b/ü*"]
    opt.step(dict(zip(params, [ones(1)] * 5, strict=True)))
    assert all(w[0] == 0 for w in params.values())
    with pytest.raises(ValueError, match=r"two parameters are called 'a.b'; name them apart"):
        SGD({"a.b": ones(1), "a": {"b": ones(1)}}, lr=1.0)


def test_a_refused_construction_changes_nothing():
    p = Param(ones(2))
    with pytest.raises(ValueError, match=r"same array"):
        optimkit.Adam({"x": p, "y": Param(p.data)})
    assert p.name is None
