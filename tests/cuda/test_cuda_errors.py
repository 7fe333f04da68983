"""Bad input on a device, drivers that are missing or too old, kernels that don't compile, caches that lie."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import optimkit
from optimkit.counting import counters
from optimkit.engines import disk as cache
from optimkit.engines.cuda import compile as cuda_compile
from optimkit.engines.cuda import diagnosis
from optimkit.engines.cuda import text as cuda_text

without_device = pytest.mark.without_device


def test_a_numpy_gradient_for_a_cupy_weight(cupy: Any) -> None:
    w = cupy.ones(3)
    opt = optimkit.Adam({"psi": w})
    with pytest.raises(TypeError, match=r"gradient of 'psi' is a numpy array.*its weight a cupy array; convert it to cupy"):
        opt.step({"psi": np.ones(3)})
    assert (w.get() == 1.0).all()
    assert opt.state["psi"].t == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda cupy: cupy.ones((3, 1)), r"gradient of 'w' has shape \(3, 1\), its weight \(3,\)"),
        (lambda cupy: cupy.ones(3, cupy.int32), r"gradient of 'w' is int32"),
        (lambda cupy: cupy.ones(3, cupy.complex64), r"gradient of 'w' is complex64"),
        (lambda cupy: cupy.ones(3, cupy.float16), r"gradient of 'w' is float16"),
    ],
    ids=["shape", "integer", "complex", "half"],
)
def test_gradients_that_do_not_fit(cupy: Any, bad: Any, message: str) -> None:
    w, other = cupy.ones(3), cupy.ones(2)
    opt = optimkit.Adam({"other": other, "w": w})
    with pytest.raises((TypeError, ValueError), match=message):
        opt.step({"other": cupy.ones(2), "w": bad(cupy)})
    assert (other.get() == 1.0).all()


def test_the_first_compile_of_a_process_is_a_line_of_the_logger(
    cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cuda_compile, "_loaded", OrderedDict())
    cache.say_compiling.cache_clear()
    with caplog.at_level("INFO", "optimkit"):
        for options in ({}, {"momentum": 0.9}):
            optimkit.SGD(cupy.ones(3), lr=0.1, **options).step(cupy.ones(3))
    ((logger, _, line),) = caplog.record_tuples
    assert logger == "optimkit"
    assert line.endswith(str(tmp_path))


def test_weights_that_overlap_or_repeat(cupy: Any) -> None:
    w = cupy.ones(10)
    with pytest.raises(ValueError, match=r"'a' and 'b' are the same array"):
        optimkit.SGD({"a": w, "b": w}, lr=0.1)
    with pytest.raises(ValueError, match=r"'a' and 'b' overlap in memory"):
        optimkit.SGD({"a": w[:6], "b": w[4:]}, lr=0.1)
    with pytest.raises(ValueError, match=r"'a' is broadcast"):
        optimkit.SGD({"a": cupy.broadcast_to(cupy.ones(1), (4,))}, lr=0.1)
    optimkit.SGD({"a": w[:5], "b": w[5:]}, lr=0.1).step({"a": cupy.ones(5), "b": cupy.ones(5)})
    assert np.allclose(w.get(), 0.9)


@pytest.mark.parametrize("engine", ["llvm", "cuda"])
def test_engines_that_can_not_run_these_arrays(cupy: Any, engine: str) -> None:
    w = cupy.ones(3) if engine == "llvm" else np.ones(3)
    with pytest.raises(ValueError, match=rf"engine = '{engine}' runs"):
        optimkit.SGD(w, lr=0.1, engine=engine).step(w)


def test_host_and_device_in_one_optimizer(cupy: Any) -> None:
    host, device = np.ones(3), cupy.ones(3)
    opt = optimkit.Adam([host, device], lr=0.1)
    opt.step([np.ones(3), cupy.ones(3)])
    assert host.tobytes() == device.get().tobytes()
    clipped = optimkit.Adam([host, device], transforms=[optimkit.transforms.ClipByGlobalNorm(1.0)])
    with pytest.raises(ValueError, match=r"some parameters are on the host and some on a device.*one optimizer for each"):
        clipped.step([np.ones(3), cupy.ones(3)])
    assert host.tobytes() == device.get().tobytes()


def test_a_kernel_that_does_not_compile_shows_its_text_and_the_log(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cuda_text.TABLE, "sign", "no_such_function({0})")

    class Sign(optimkit.Optimizer):
        lr: optimkit.Scalar = 0.1

        def update(self, w: Any, g: Any, s: Any, h: Any, xp: Any) -> Any:
            return h.lr * xp.sign(g), {}

    w = cupy.ones(3)
    opt = Sign({"w": w})
    with pytest.raises(cuda_compile.KernelError) as error:
        opt.step({"w": cupy.ones(3)})
    assert "NVRTC did not compile this kernel" in str(error.value)
    assert "no_such_function(g)" in str(error.value).partition("Its log:")[0]
    assert 'identifier "no_such_function" is undefined' in str(error.value).partition("Its log:")[2]
    assert (w.get() == 1.0).all()
    monkeypatch.undo()
    opt.step({"w": cupy.ones(3)})
    assert np.allclose(w.get(), 0.9)


def test_a_device_that_is_gone(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    w = cupy.ones(3)
    monkeypatch.setattr("cupy.cuda.runtime.getDeviceCount", lambda: 0)
    with pytest.raises(ValueError, match=r"the parameters are on .*Device 0.*which is gone: there are 0 devices"):
        optimkit.SGD(w, lr=0.1).step(cupy.ones(3))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of kernels, and none in memory."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cuda_compile, "_loaded", OrderedDict())
    assert cache.folder().path == tmp_path
    return tmp_path


def step_once(cupy: Any) -> float:
    w = cupy.ones(3)
    optimkit.SGD(w, lr=0.5).step(cupy.ones(3))
    return float(w[0])


@pytest.mark.parametrize("damage", [b"", b"short", bytes(32) + b"not a kernel"], ids=["empty", "short", "checksum"])
def test_a_damaged_cache_is_compiled_again(cupy: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes) -> None:
    before = counters.compiles
    assert step_once(cupy) == 0.5
    (file,) = folder.glob("*.cuda")
    good = file.read_bytes()
    monkeypatch.setattr(cuda_compile, "_loaded", OrderedDict())
    assert step_once(cupy) == 0.5
    assert counters.compiles == before + 1, "the file was not used"
    file.write_bytes(damage)
    monkeypatch.setattr(cuda_compile, "_loaded", OrderedDict())
    assert step_once(cupy) == 0.5
    assert counters.compiles == before + 2
    assert file.read_bytes() == good


def test_a_binary_that_the_driver_refuses(cupy: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cuda_compile._compile
    monkeypatch.setattr(cuda_compile, "_compile", lambda text, key: (real(text, key), b"not a binary of any device")[1])
    with pytest.raises(cuda_compile.KernelError, match=r"the NVIDIA driver .* refuses what NVRTC .* compiled"):
        step_once(cupy)


def test_a_device_that_is_too_old(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_compile, "_architecture", lambda device: "61")
    monkeypatch.setattr(cuda_compile, "_loaded", OrderedDict())
    cuda_compile._target.cache_clear()
    w = cupy.ones(3)
    with pytest.raises(cuda_compile.KernelError, match=r"device 0 has compute capability 6\.1, .* need 7\.0 .*engine='eager'"):
        optimkit.SGD(w, lr=0.5).step(cupy.ones(3))
    optimkit.SGD(w, lr=0.5, engine="eager").step(cupy.ones(3))
    assert (w.get() == 0.5).all()


def fake_cupy(driver: int, error: str = "", devices: int = 1) -> Any:
    class CUDARuntimeError(RuntimeError):
        pass

    def count() -> int:
        if error:
            raise CUDARuntimeError(error)
        return devices

    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: 13000,
        getDeviceCount=count,
    )
    return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))


@without_device
@pytest.mark.parametrize(
    ("cupy", "message"),
    [
        (None, "cupy can't be imported"),
        (fake_cupy(0), "there is no NVIDIA driver"),
        (
            fake_cupy(12020, "cudaErrorInsufficientDriver: too old"),
            "knows CUDA 12.2, and this CuPy is built for CUDA 13: update",
        ),
        (fake_cupy(13000, "cudaErrorNoDevice: none"), "no CUDA device answers: cudaErrorNoDevice"),
        (fake_cupy(13000, devices=0), "there is no CUDA device"),
        (fake_cupy(13000), ""),
    ],
    ids=["no cupy", "no driver", "old driver", "no device", "zero devices", "fine"],
)
def test_what_is_missing(cupy: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    found = diagnosis.available()
    assert message in found
    assert bool(message) == bool(found)


def misaligned(cupy: Any, shape: tuple[int, ...], dtype: Any, offset: int = 4) -> Any:
    """A view of bytes that begins in the middle of an element."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return cupy.full(size + 64, 63, cupy.uint8)[offset : offset + size].view(dtype).reshape(shape)


@pytest.mark.parametrize("engine", [None, "eager"])
def test_views_that_are_not_aligned_are_refused_before_a_kernel_sees_them(cupy: Any, engine: str | None) -> None:
    with pytest.raises(ValueError, match=r"'w' is not aligned in memory: it begins 4 bytes after .* 8-byte.*x\.copy\(\)"):
        optimkit.SGD({"w": misaligned(cupy, (8,), cupy.float64)}, lr=1.0, engine=engine)
    w = cupy.ones(8)
    opt = optimkit.SGD({"w": w}, lr=1.0, engine=engine)
    with pytest.raises(ValueError, match=r"gradient of 'w' is not aligned.* 4 bytes after"):
        opt.step({"w": misaligned(cupy, (8,), cupy.float64)})
    odd = cupy.ndarray((8,), cupy.float64, cupy.zeros(200, cupy.uint8).data, strides=(12,))
    with pytest.raises(ValueError, match=r"its strides \(12,\) are no multiples of its 8-byte"):
        opt.step({"w": odd})
    opt.step({"w": misaligned(cupy, (8,), cupy.float32)})  # another dtype: these are aligned
    assert (w.get() != 1.0).all()


def test_a_gradient_that_moves_to_where_it_is_not_aligned_is_refused(cupy: Any) -> None:
    """The same class, dtype, shape and strides as before: only the address is another one."""
    w = cupy.ones(8)
    opt = optimkit.SGD({"w": w, "v": cupy.ones(3)}, lr=1.0)
    opt.step({"w": misaligned(cupy, (8,), cupy.float64, 8), "v": cupy.ones(3)})
    opt.step({"w": misaligned(cupy, (8,), cupy.float64, 16)})
    before = w.get()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"gradient of 'w' is not aligned.* 2 bytes after"):
            opt.step({"w": misaligned(cupy, (8,), cupy.float64, 10)})
    assert (w.get() == before).all()
    opt.step({"w": cupy.ones(8)})
    assert (w.get() == before - 1.0).all()
    with pytest.raises(ValueError, match=r"'w' is not aligned"):
        opt["w"].data = misaligned(cupy, (8,), cupy.float64)
