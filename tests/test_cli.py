"""The command line: what `info` tells, also where things are missing, and which options of `bench` are refused."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import optimkit
from optimkit import info
from optimkit.cli import main
from optimkit.engines import disk
from optimkit.engines.cuda import diagnosis
from optimkit.engines.cuda.diagnosis import Cuda, cuda_problem

DEVICE = {
    "number": 0,
    "name": "Some GPU",
    "compute_capability": "9.0",
    "memory": 8 << 30,
    "multiprocessors": 1,
    "emulated": False,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", str(tmp_path / "kernels"))


def told(capsys, *arguments):
    assert main(["info", *arguments]) == 0
    return capsys.readouterr().out


def missing(capsys):
    return {each["what"]: each["remedy"] for each in json.loads(told(capsys, "--json"))["missing"]}


def test_info_tells_versions_engines_and_cache(capsys, tmp_path):
    text = told(capsys)
    for words in (
        optimkit.__version__,
        np.__version__,
        sys.executable,
        "engine eager",
        "engine llvm",
        str(tmp_path / "kernels"),
    ):
        assert words in text
    found = json.loads(told(capsys, "--json"))
    assert found["machine"]["packages"]["numpy"] == np.__version__
    assert found["engines"]["eager"] == ""
    assert found["cache"] == {"folder": str(tmp_path / "kernels"), "usable": True, "problem": "", "files": 0, "bytes": 0}


def test_info_counts_the_kernels(capsys, tmp_path):
    disk.folder().write("a.o", b"12345")
    assert json.loads(told(capsys, "--json"))["cache"]["bytes"] == 5
    assert "1 files" in told(capsys)


def test_info_says_why_a_cache_is_refused(capsys, tmp_path, monkeypatch):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", str(folder))
    assert f"refused: {folder} can be written by others" in told(capsys)
    assert "set OPTIMKIT_CACHE_DIR to a folder of your own" in missing(capsys).values()


@pytest.mark.parametrize(
    ("own", "openmp", "count", "source"),
    [
        ("3", "5", 3, "OPTIMKIT_NUM_THREADS"),
        (None, "5,2", 5, "OMP_NUM_THREADS"),
        (None, None, None, "the cores that this process may use"),
    ],
)
def test_info_tells_where_the_threads_come_from(capsys, monkeypatch, own, openmp, count, source):
    for name, value in (("OPTIMKIT_NUM_THREADS", own), ("OMP_NUM_THREADS", openmp)):
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    found = json.loads(told(capsys, "--json"))
    assert found["threads"] == {"count": count or found["machine"]["cores"], "source": source, "problem": ""}


def test_info_survives_a_wrong_thread_count(capsys, monkeypatch):
    monkeypatch.setenv("OPTIMKIT_NUM_THREADS", "many")
    assert "OPTIMKIT_NUM_THREADS = 'many' must be" in told(capsys)
    assert "unset OPTIMKIT_NUM_THREADS, or set it right" in missing(capsys).values()


def test_info_without_llvmlite_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setattr(info.choose, "llvm_problem", lambda: "no module named llvmlite")
    versions = info.package_version
    monkeypatch.setattr(info, "package_version", lambda name: None if name == "llvmlite" else versions(name))
    assert (
        missing(capsys)["llvmlite is not installed: NumPy arrays run in slices, several times slower"]
        == 'pip install "optimkit[cpu]"'
    )


def test_info_with_an_llvmlite_that_fails_says_why():
    code = "import sys; sys.modules['llvmlite'] = None; from optimkit.cli import main; sys.exit(main(['info', '--json']))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "llvmlite can't be imported" in found["engines"]["llvm"]
    assert found["arrays"]["numpy"] == "eager"


def test_info_survives_what_breaks(capsys, monkeypatch):
    def machine():
        raise OSError("no such thing")

    monkeypatch.setattr(info, "machine", machine)
    assert "machine failed: OSError: no such thing" in told(capsys)


CUPY12, CUPY13 = {"cupy-cuda12x": "14.2.0"}, {"cupy-cuda13x": "14.2.0"}
ONE = [DEVICE]


@pytest.mark.parametrize(
    ("cuda", "what", "remedy"),
    [
        (Cuda(), "no CuPy, and no NVIDIA driver", "nothing to do without an NVIDIA GPU"),
        (Cuda({}, 13000), "CuPy is not installed", 'pip install "optimkit[cuda13x]"'),
        (Cuda({}, 12040), "CuPy is not installed", 'pip install "optimkit[cuda12x]"'),
        (Cuda({}, 14000), "CuPy is not installed", 'pip install "optimkit[cuda13x]"'),
        (Cuda(CUPY13, None, device_error="insufficient"), "there is no NVIDIA driver", "without one, nothing"),
        (
            Cuda(CUPY13, 12040),
            "a driver for CUDA 13, and this one is for CUDA 12.4: too old",
            "driver to 580 or later, or pip uninst",
        ),
        (
            Cuda(CUPY12, 11080),
            "a driver for CUDA 12, and this one is for CUDA 11.8: too old",
            "update the driver to 525 or later",
        ),
        (Cuda(CUPY12 | CUPY13, 13000), "overwrite each other", "pip uninstall cupy-cuda12x cupy-cuda13x, then pip install"),
        (Cuda(CUPY13, 13000, import_error="ImportError: x"), "can't be imported: ImportError: x", "pip uninstall cupy-cuda13x"),
        (Cuda(CUPY13, 13000, 100), "error 100, no device", "nvidia-smi"),
        (Cuda(CUPY13, 13000, 77), "error 77", "nvidia-smi"),
        (Cuda(CUPY13, 13000), "finds no device", "CUDA_VISIBLE_DEVICES"),
        (Cuda(CUPY13, 13000, compiler_error="none", devices=ONE), "(NVRTC) of CUDA 13: none", '"optimkit[cuda13x-ctk]"'),
        (Cuda({"cupy-cuda12x": "13.6.0"}, 12090, devices=ONE), "older than 14", 'pip install -U "optimkit[cuda12x]"'),
    ],
)
def test_what_is_wrong_with_cuda(cuda, what, remedy):
    problem = cuda_problem(cuda)
    assert problem is not None
    assert what in problem.what
    assert remedy in problem.remedy


def test_a_newer_driver_runs_an_older_cupy():
    assert cuda_problem(Cuda(CUPY13, 13020, devices=ONE)) is None
    assert cuda_problem(Cuda(CUPY12, 13020, devices=ONE)) is None


def test_cupy_without_a_driver_is_told_and_not_raised(capsys, monkeypatch):
    def fail():
        raise RuntimeError("cudaErrorInsufficientDriver:\n CUDA driver version is insufficient")

    runtime, compiler = SimpleNamespace(getDeviceCount=fail), SimpleNamespace(getVersion=lambda: (13, 0))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, nvrtc=compiler)))
    monkeypatch.setattr(diagnosis, "package_version", lambda name: "14.2.0" if name == "cupy-cuda13x" else None)
    monkeypatch.setattr(diagnosis, "LIBRARY", "libcuda-that-is-not-there.so")
    assert "cupy-cuda13x 14.2.0 is installed, but there is no NVIDIA driver" in told(capsys)
    assert diagnosis.find_cuda().device_error.startswith("RuntimeError: cudaErrorInsufficientDriver: CUDA driver")
    assert main(["bench", "--backend", "cupy", "--quick"]) == 2
    assert "--backend cupy: cupy-cuda13x 14.2.0 is installed, but there is no NVIDIA driver" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds 0 must be a whole number from 1"),
        (["--rounds", "1.5"], "--rounds 1.5 must be a whole number from 1"),
        (["--threads", "-2"], "--threads -2 must be a whole number from 1"),
        (["--dtype", "float16"], "--dtype float16 must be one of float32, float64"),
        (["--backend", "jax"], "--backend jax must be one of numpy, cupy"),
        (["--only", "adam,lamb"], "--only names lamb; write one or more of sgd, adam, adamw, tail, large"),
        (["--only", " , "], "--only is empty"),
        (["--only", "extras", "--backend", "cupy"], "--only extras is measured on the CPU alone"),
        (["--json", "nowhere/b.json"], "--json nowhere/b.json: there is no folder nowhere"),
        (["--json", "."], "--json . is a folder"),
    ],
)
def test_bench_refuses(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


def test_python_m_optimkit():
    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "optimkit", *arguments], capture_output=True, text=True, check=False)

    assert run("--version").stdout.strip() == f"optimkit {optimkit.__version__}"
    wrong = run("mine")
    assert wrong.returncode == 2
    assert "invalid choice: 'mine'" in wrong.stderr
