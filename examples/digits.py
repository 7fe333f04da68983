"""Train a classifier of handwritten digits with a backward pass written by hand.

optimkit needs no autograd and no framework: it takes parameters and gradients as plain arrays, and updates the
parameters in place. Everything else here is the model, a small multilayer perceptron in array-API code. The same
text runs on NumPy, CuPy and torch arrays, because each function asks its argument which library it comes from.
The data are scikit-learn's 1,797 real digits of 8 x 8 pixels; they come with the package, nothing is downloaded.

    python -m pip install ".[examples]"
    python examples/digits.py                                  # NumPy arrays, Adam: about 98% of the test digits right
    python examples/digits.py --optimizer sgd --lr 0.3         # another optimizer, another learning rate
    python examples/digits.py --backend cupy                   # the same program on an NVIDIA GPU
    python examples/digits.py --backend torch --plot run.png   # on torch tensors, without torch's autograd
"""

import argparse
import importlib
import math
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import optimkit

Array = Any  # numpy.ndarray, cupy.ndarray or torch.Tensor
SIZES = (64, 128, 128, 10)  # pixels in, two hidden layers, ten digits out
NOISE = 0.2  # standard deviation of the noise on the training pixels, which lie between 0 and 1
BACKENDS = {"numpy": "NumPy", "cupy": "CuPy and an NVIDIA GPU with its driver", "torch": "PyTorch"}
LEARNING_RATES = {"SGD": 0.5, "Adagrad": 0.05, "Adam": 0.005, "AMSGrad": 0.005, "AdamW": 0.005, "RMSProp": 0.003}


def init(xp: ModuleType, rng: np.random.Generator) -> dict[str, Array]:
    """Parameters in a plain dict, float32: W0, b0, W1, b1, ..., scaled for relu units (He et al., 2015)."""
    params: dict[str, Array] = {}
    for i in range(len(SIZES) - 1):
        w = rng.standard_normal(SIZES[i : i + 2], dtype=np.float32) * np.sqrt(2 / SIZES[i], dtype=np.float32)
        params |= {f"W{i}": xp.asarray(w), f"b{i}": xp.zeros(SIZES[i + 1], dtype=xp.float32)}
    return params


def forward(params: dict[str, Array], x: Array) -> list[Array]:
    """All activations, the input first: h[i+1] = relu(h[i] @ W[i] + b[i]), in the last layer without the relu."""
    xp = array_namespace(x)
    h, last = [x], len(params) // 2 - 1
    for i in range(last + 1):
        z = h[i] @ params[f"W{i}"] + params[f"b{i}"]
        h.append(z if i == last else xp.where(z > 0, z, 0.0))
    return h


def log_softmax(z: Array) -> Array:
    """Logarithms of the class probabilities; the largest score is subtracted first, so that exp cannot overflow."""
    xp = array_namespace(z)
    z = z - xp.max(z, axis=1, keepdims=True)
    return z - xp.log(xp.sum(xp.exp(z), axis=1, keepdims=True))


def gradients(params: dict[str, Array], x: Array, y: Array) -> dict[str, Array]:
    """The backward pass: gradients of the mean cross-entropy, named like `params`; the labels `y` are one-hot."""
    xp = array_namespace(x)
    h = forward(params, x)
    dz = (xp.exp(log_softmax(h[-1])) - y) / x.shape[0]
    grads = {}
    for i in reversed(range(len(h) - 1)):
        grads[f"W{i}"] = h[i].T @ dz
        grads[f"b{i}"] = xp.sum(dz, axis=0)
        if i > 0:
            dz = xp.where(h[i] > 0, dz @ params[f"W{i}"].T, 0.0)
    return grads


def evaluate(params: dict[str, Array], x: Array, y: Array) -> tuple[float, float]:
    """Mean cross-entropy, and the fraction of digits that are classified correctly."""
    xp = array_namespace(x)
    z = forward(params, x)[-1]
    hits = xp.argmax(z, axis=1) == xp.argmax(y, axis=1)
    return float(-xp.sum(y * log_softmax(z)) / x.shape[0]), float(xp.mean(xp.astype(hits, xp.float32)))


def train(xp: ModuleType, args: argparse.Namespace) -> list[tuple[float, float, float, float]]:
    """Train, and return for each epoch the train loss, test loss, test accuracy and learning rate."""
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), np.eye(10, dtype=np.float32)[digits.target]
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=digits.target)
    train_set, test_set = (xp.asarray(x), xp.asarray(y)), (xp.asarray(x_test), xp.asarray(y_test))

    rng = np.random.default_rng(args.seed)
    params = init(xp, rng)
    lr = LEARNING_RATES[args.optimizer] if args.lr is None else args.lr
    opt = getattr(optimkit, args.optimizer)(params, lr=lr)  # for instance optimkit.Adam(params, lr=0.005)
    schedule = optimkit.lr_scheduler.ExponentialLR(opt, gamma=0.05 ** (1 / args.epochs))  # down to 5% in the end

    history = []
    progress = tqdm(range(args.epochs), desc=args.optimizer, unit="epoch", disable=None)  # None: silent in a pipe
    for _ in progress:
        for batch in np.split(rng.permutation(len(x)), range(args.batch, len(x), args.batch)):
            noise = NOISE * rng.standard_normal((len(batch), SIZES[0]), dtype=np.float32)  # never the same digit twice
            grads = gradients(params, xp.asarray(x[batch] + noise), xp.asarray(y[batch]))
            opt.step(grads)  # changes the arrays in params in place
        train_loss, _ = evaluate(params, *train_set)
        test_loss, accuracy = evaluate(params, *test_set)
        history.append((train_loss, test_loss, accuracy, opt.lr))
        schedule.step()
        progress.set_postfix_str(f"train loss {train_loss:.4f}, test accuracy {accuracy:.1%}")
    return history


def plot(history: list[tuple[float, float, float, float]], title: str, path: str) -> None:
    """Losses on the left, learning rate on the right. A Figure without pyplot needs no screen (Agg draws the PNG)."""
    epoch, columns = range(1, len(history) + 1), np.asarray(history)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epoch, columns[:, :2], label=["train", "test"])
    left.set(title="Loss", xlabel="epoch", ylabel="mean cross-entropy", yscale="log")
    left.legend()
    right.plot(epoch, columns[:, 3], color="tab:green")
    right.set(title="Learning rate", xlabel="epoch", ylabel="opt.lr", ylim=(0, None))
    for panel in (left, right):
        panel.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def load_backend(name: str) -> ModuleType:
    """The library as an array-API namespace; if it cannot be used here, one line says what is missing."""
    try:
        xp = importlib.import_module(f"array_api_compat.{name}")
        xp.ones((2, 2)) @ xp.ones((2, 2))  # CuPy can be imported without a GPU: its first product finds out
    except Exception as error:
        sys.exit(f"--backend {name} needs {BACKENDS[name]}, but: {' '.join(str(error).split())}")
    return xp


def main() -> None:
    names = {name.lower(): name for name in LEARNING_RATES}
    parser = argparse.ArgumentParser(description="Train a classifier of handwritten digits with optimkit.")
    parser.add_argument("--backend", choices=BACKENDS, default="numpy", help="whose arrays")
    parser.add_argument("--optimizer", choices=LEARNING_RATES, default="Adam", type=lambda s: names.get(s.lower(), s))
    parser.add_argument("--lr", type=float, help="first learning rate (default: one that suits the optimizer)")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=64, help="digits per step")
    parser.add_argument("--seed", type=int, default=0, help="weights, order, noise; the test digits stay the same")
    parser.add_argument("--plot", metavar="FILE.png", default="digits.png", help="loss and learning rate per epoch")
    parser.add_argument("--no-plot", action="store_true")
    parser.add_argument("--check", action="store_true", help="fail if the test accuracy is below 97 percent")
    args = parser.parse_args()
    if min(args.epochs, args.batch) < 1:
        parser.error(f"--epochs {args.epochs} --batch {args.batch}: both must be at least 1")
    if args.lr is not None and not 0 <= args.lr < math.inf:
        parser.error(f"--lr {args.lr}: it must be a number from 0")
    if not args.no_plot and not Path(args.plot).resolve().parent.is_dir():
        parser.error(f"--plot {args.plot}: there is no such folder")

    xp = load_backend(args.backend)
    start = time.perf_counter()
    with threadpool_limits(1):  # the matrices are small: more threads of NumPy or torch would only wait for each other
        history = train(xp, args)
    loss, _, accuracy, _ = history[-1]
    result = f"{args.optimizer} on {args.backend}: train loss {loss:.4f}, test accuracy {accuracy:.2%}"
    print(f"{result}, {args.epochs} epochs in {time.perf_counter() - start:.1f} s")
    if not args.no_plot:
        plot(history, result, args.plot)
        print(f"Loss and learning rate are drawn in {args.plot}")
    if args.check and accuracy < 0.97:
        sys.exit(f"The test accuracy, {accuracy:.2%}, is below 97%")


if __name__ == "__main__":
    main()
