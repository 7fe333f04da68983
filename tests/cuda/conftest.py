"""Tests of the CUDA engine: skipped, with the reason, where CuPy finds no device.

`traffic` counts what the device did. Only an emulated driver can count that; on a GPU the tests that need it
are skipped, and `optimkit.engines.protocol.counters` remain.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimkit.engines.cuda import diagnosis

HERE = Path(__file__).parent


def _copy(xp: Any, x: Any) -> Any:
    return xp.array(x)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "without_device: a test of the CUDA engine that needs no device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip everything here that needs a device, with the reason."""
    mine = [item for item in items if HERE in item.path.parents and item.get_closest_marker("without_device") is None]
    problem = diagnosis.available() if mine else ""
    if problem:
        for item in mine:
            item.add_marker(pytest.mark.skip(reason=f"no CUDA device: {problem}"))


@pytest.fixture
def cupy() -> Any:
    return pytest.importorskip("cupy", reason="cupy is not installed")


@pytest.fixture
def two_devices(cupy: Any) -> None:
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two CUDA devices")


@pytest.fixture
def new_stream(cupy: Any) -> Callable[[], Any]:
    """Makes a stream of its own, to which what was submitted to the current one so far comes first."""

    def make() -> Any:
        stream = cupy.cuda.Stream(non_blocking=True)
        stream.wait_event(cupy.cuda.get_current_stream().record())
        return stream

    return make


def _counters() -> Any:
    """The functions of an emulated driver that count; None on a real one."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        library.cudasim_stats_json.restype = ctypes.c_size_t
        return library
    except (OSError, AttributeError):
        return None


@pytest.fixture
def traffic() -> Callable[[], AbstractContextManager[dict[str, Any]]]:
    """`with traffic() as count:` fills `count` with launches, bytes, copies, allocations and synchronisations."""
    library = _counters()
    if library is None:
        pytest.skip("bytes and synchronisations are counted on an emulated device only")

    @contextlib.contextmanager
    def counting() -> Iterator[dict[str, Any]]:
        library.cudasim_stats_reset()
        found: dict[str, Any] = {}
        yield found
        buffer = ctypes.create_string_buffer(1 << 22)
        library.cudasim_stats_json(buffer, ctypes.c_size_t(len(buffer)))
        found.update(json.loads(buffer.value))

    return counting


class Twins:
    """An optimizer on NumPy arrays and one on CuPy arrays that must stay equal to the bit.

    Parameters
    ----------
    make : callable
        Builds an optimizer from a list of arrays.
    weights : list of NumPy arrays
        Copied for both.
    layout : callable
        `layout(xp, x)`: x in some memory layout, in the library xp.
    """

    def __init__(self, make: Callable[[Any], Any], weights: list[Any], layout: Callable[[Any, Any], Any] = _copy) -> None:
        import cupy

        self.layout = layout
        self.host_arrays = [layout(np, x) for x in weights]
        self.device_arrays = [layout(cupy, cupy.asarray(x)) for x in weights]
        self.host, self.device = make(self.host_arrays), make(self.device_arrays)

    def step(self, grads: list[Any], layout: Callable[[Any, Any], Any] = _copy, **options: Any) -> tuple[Any, Any]:
        """One step of both with gradients of these values; the gradient arrays of the last step are kept."""
        import cupy

        self.host_grads = [None if g is None else layout(np, g) for g in grads]
        self.device_grads = [None if g is None else layout(cupy, cupy.asarray(g)) for g in grads]
        return self.host.step(self.host_grads, **options), self.device.step(self.device_grads, **options)

    def check(self) -> None:
        """Weights, slots, counts and gradients are the same bits."""
        for host, device in zip(self.host_arrays, self.device_arrays, strict=True):
            assert_same_bits(host, device.get())
        for host, device in zip(self.host_grads, self.device_grads, strict=True):
            if host is not None:
                assert_same_bits(host, device.get())
        for name, slots in self.host.state.items():
            other = self.device.state[name]
            assert slots.t == other.t, name
            assert set(slots) == set(other)
            for slot, value in slots.items():
                assert_same_bits(np.asarray(value), other[slot].get())
        assert self.host.state.shared.keys() == self.device.state.shared.keys()
        for slot, value in self.host.state.shared.items():
            assert_same_bits(np.asarray(value), self.device.state.shared[slot].get())


def assert_same_bits(expected: Any, found: Any) -> None:
    """The same bits; a NaN is a NaN, whose sign and payload no library promises."""
    assert expected.dtype == found.dtype
    assert expected.shape == found.shape
    words = {4: np.uint32, 8: np.uint64}[expected.dtype.itemsize]
    a, b = np.ascontiguousarray(expected).view(words), np.ascontiguousarray(found).view(words)
    different = np.argwhere((a != b) & ~(np.isnan(expected) & np.isnan(found)))
    if len(different):
        place = tuple(different[0])
        raise AssertionError(f"{len(different)} of {a.size} differ, first at {place}: {expected[place]!r} and {found[place]!r}")


@pytest.fixture
def twins() -> type[Twins]:
    return Twins
