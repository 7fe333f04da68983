"""The example: it trains to 97 percent with every optimizer, on every library that is there, and draws what it did."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import optimkit

SCRIPT = Path(__file__).parent.parent / "examples" / "digits.py"
pytest.importorskip("sklearn", reason='the example needs ".[examples]": scikit-learn is not installed')


def run(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *args], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def digits():
    """The script as a module, in this process: no second import of llvmlite and scikit-learn."""
    spec = importlib.util.spec_from_file_location("digits", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_smoke_run_passes_its_own_check():
    done = run("--check", "--no-plot")
    assert done.returncode == 0, done.stderr
    assert "Adam on numpy" in done.stdout
    assert not done.stderr  # no progress bar in a pipe, no warnings


def test_the_check_fails_below_97_percent():
    done = run("--check", "--no-plot", "--epochs", "1")
    assert done.returncode != 0
    assert "is below 97%" in done.stderr


def train(digits, monkeypatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["digits.py", *args])
    digits.main()


@pytest.mark.parametrize("name", optimkit.optimizers.__all__)
def test_every_optimizer_reaches_97_percent(digits, monkeypatch, capsys, name):
    train(digits, monkeypatch, "--optimizer", name.lower(), "--check", "--no-plot")
    assert f"{name} on numpy" in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["torch", "cupy"])
def test_other_libraries_reach_97_percent(digits, monkeypatch, capsys, backend):
    try:
        digits.load_backend(backend)
    except SystemExit as problem:
        pytest.skip(str(problem))
    epochs = {"cupy": ["--epochs", "20"]}.get(backend, [])
    train(digits, monkeypatch, "--backend", backend, "--check", "--no-plot", *epochs)
    assert f"Adam on {backend}" in capsys.readouterr().out


def test_a_library_that_is_missing_is_named_in_one_line(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", None)
    with pytest.raises(SystemExit, match=r"--backend cupy needs CuPy and an NVIDIA GPU with its driver, but: .+"):
        digits.load_backend("cupy")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lr", "-1"], "--lr -1.0: it must be a number from 0"),
        (["--lr", "nan"], "--lr nan: it must be a number from 0"),
        (["--batch", "0"], "--epochs 60 --batch 0: both must be at least 1"),
        (["--plot", "not/there/run.png"], "--plot not/there/run.png: there is no such folder"),
        (["--optimizer", "adam2"], "invalid choice: 'adam2'"),
    ],
)
def test_wrong_options_are_told_before_anything_runs(digits, monkeypatch, capsys, args, message):
    with pytest.raises(SystemExit) as ended:
        train(digits, monkeypatch, *args)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_losses_and_rates_are_drawn(digits, monkeypatch, tmp_path, capsys):
    path = tmp_path / "run.png"
    train(digits, monkeypatch, "--epochs", "2", "--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert f"drawn in {path}" in capsys.readouterr().out


def test_the_gradients_of_the_example_are_those_of_its_loss(digits):
    import numpy as np

    rng = np.random.default_rng(0)
    params = {name: w.astype(np.float64) for name, w in digits.init(np, rng).items()}
    x, y = rng.standard_normal((5, digits.SIZES[0])), np.eye(10)[rng.integers(0, 10, 5)]
    grads = digits.gradients(params, x, y)
    for name, w in params.items():
        place, h = tuple(rng.integers(0, n) for n in w.shape), 1e-6
        w[place] += h
        above, _ = digits.evaluate(params, x, y)
        w[place] -= 2 * h
        below, _ = digits.evaluate(params, x, y)
        w[place] += h
        assert grads[name][place] == pytest.approx((above - below) / (2 * h), abs=1e-7)
