"""Make torch.json: weights that torch's optimizers and rates that torch's schedulers reach.

Run `python tests/trajectories/make_torch.py` with torch installed; it overwrites torch.json beside it.
Every case gives settings in optimkit's words, initial weights, 30 given gradients and the weights torch has after
each of them. A case draws from its own generator (seed and name), so adding one leaves the others as they are.
"""

import json
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch

SEED = 20
STEPS = 30
EPOCHS = 21
SHAPES = {"a": (5,), "b": (2, 3)}


def generator(name):
    return np.random.default_rng([SEED, zlib.crc32(name.encode())])


def draw(name, dtype, scale, missing):
    """Weights of size 1 and gradients whose elements have sizes between 10**scale[0] and 10**scale[1]."""
    rng = generator(name.removesuffix("_float32"))
    params = {k: rng.normal(size=shape).astype(dtype) for k, shape in SHAPES.items()}
    sizes = {k: 10 ** rng.uniform(*scale, size=shape) for k, shape in SHAPES.items()}
    grads = [{k: (sizes[k] * rng.normal(size=s)).astype(dtype) for k, s in SHAPES.items()} for _ in range(STEPS)]
    for k, steps in missing.items():
        for t in steps:
            grads[t][k] = None
    return params, grads


def transform(grads, transforms):
    """Clip as optimkit does: by min(1, max_norm / norm), without torch's 1e-6 in the denominator."""
    grads = {k: g for k, g in grads.items() if g is not None}
    for link in transforms:
        if link["class"] == "ClipByGlobalNorm":
            norm = np.sqrt(sum(np.sum(np.square(g)) for g in grads.values()))
            grads = {k: g * min(1.0, link["args"][0] / norm) for k, g in grads.items()}
        elif link["class"] == "ClipByValue":
            grads = {k: np.clip(g, -link["args"][0], link["args"][0]) for k, g in grads.items()}
    return grads


def torch_form(optimizer, kwargs, maximize, penalty, transforms):
    """Return torch's class and arguments: L2(x) is weight_decay=2*x, and WeightDecay makes Adam an AdamW."""
    kwargs = dict(kwargs, foreach=False)
    if maximize:
        kwargs["maximize"] = True
    if optimizer == "RMSProp":
        optimizer = "RMSprop"
    if optimizer == "AMSGrad":
        optimizer, kwargs["amsgrad"] = "Adam", True
    if penalty:
        kwargs["weight_decay"] = 2 * penalty["args"][0]
    for link in transforms:
        if link["class"] == "WeightDecay":
            assert optimizer == "Adam", "only Adam has a twin with decoupled decay in torch"
            optimizer, kwargs["weight_decay"] = "AdamW", link["args"][0]
    return {"class": optimizer, "kwargs": kwargs}


def run(form, params, grads, transforms, lrs):
    tensors = {k: torch.tensor(w, requires_grad=True) for k, w in params.items()}
    optimizer = getattr(torch.optim, form["class"])(list(tensors.values()), **form["kwargs"])
    weights = []
    for t, raw in enumerate(grads):
        given = transform(raw, transforms)
        for k, p in tensors.items():
            p.grad = torch.tensor(given[k]) if k in given else None
        if lrs:
            optimizer.param_groups[0]["lr"] = lrs[t]
        optimizer.step()
        weights.append({k: p.detach().numpy().copy() for k, p in tensors.items()})
        assert all(np.isfinite(w).all() for w in weights[-1].values())
    return weights


def listed(arrays):
    return {k: None if x is None else x.tolist() for k, x in arrays.items()}


def case(
    optimizer,
    name,
    note,
    *,
    maximize=False,
    l2=None,
    transforms=(),
    dtype="float64",
    scale=(-2, 1),
    missing=None,
    grads=None,
    lrs=None,
    **kwargs,
):
    """Return one entry of "cases"; what is not named here is an argument of optimkit's class."""
    name = "_".join(filter(None, (optimizer.lower(), name)))
    params, drawn = draw(name, dtype, scale, missing or {})
    grads = drawn if grads is None else grads
    penalty = None if l2 is None else {"class": "L2", "args": [l2]}
    transforms = [{"class": c, "args": list(args)} for c, *args in transforms]
    form = torch_form(optimizer, kwargs, maximize, penalty, transforms)
    optional = {"maximize": maximize, "penalty": penalty, "transforms": transforms, "lrs": lrs}
    return {
        "name": name,
        "optimizer": optimizer,
        "kwargs": kwargs,
        **{k: v for k, v in optional.items() if v},
        "torch": form,
        "dtype": dtype,
        "params": listed(params),
        "grads": [listed(g) for g in grads],
        "weights": [listed(w) for w in run(form, params, grads, transforms, lrs)],
        "tolerance_note": note,
    }


def first_gradient_large():
    """A first gradient of 10, then 0.1: it tells the maximum over v from that over the corrected v."""
    factors = np.linspace(1.0, 2.0, 11)
    signs = np.array([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
    row = {"a": factors[:5], "b": (signs * factors[5:]).reshape(2, 3)}
    return [{k: (10.0 if t == 0 else 0.1) * g for k, g in row.items()} for t in range(STEPS)]


def chosen_cases():
    near = (-1, 0)  # gradients of the size of a large eps
    falling = [0.1 * 0.8**t for t in range(STEPS)]
    clip = [("ClipByGlobalNorm", 2.0)]

    sgd = partial(case, "SGD", lr=0.05)
    momentum = partial(sgd, momentum=0.9)
    yield sgd("", "w - lr*g and nothing else.")
    yield momentum("momentum", "The buffer adds g with weight 1, not 1 - momentum.")
    yield momentum("momentum_float32", "The same in float32.", dtype="float32")
    yield momentum("momentum_lr_changes", "lr multiplies the whole buffer, not each g that enters.", lrs=falling)
    yield momentum("nesterov", "The step is g + momentum*b with the new b.", nesterov=True)
    yield momentum("maximize", "The sign of g is turned.", maximize=True)
    yield sgd("l2", "L2(x) adds 2*x*w (torch: weight_decay=2*x).", l2=0.05)
    yield momentum(
        "maximize_l2", "g is turned before the penalty is added: weights still shrink.", maximize=True, l2=0.05
    )
    both = [("ClipByValue", 2.0), ("ClipByGlobalNorm", 3.0)]
    yield sgd("clip_value_then_norm", "Gradient hooks act in the order listed.", transforms=both)

    adagrad = partial(case, "Adagrad", lr=0.1, lr_decay=0.0, eps=1e-10, initial_accumulator_value=0.0)
    thirds = {"b": range(0, STEPS, 3)}
    yield adagrad("", "The sum of squares starts at 0 and never decays.")
    yield adagrad("lr_decay", "The rate at step t is lr/(1 + (t-1)*lr_decay), t from 1.", lr_decay=0.3)
    yield adagrad("missing", "t is each parameter's own count of steps.", lr_decay=0.3, missing=thirds)
    yield adagrad("initial", "It starts the sum of squares, not its root.", initial_accumulator_value=0.7, scale=near)
    yield adagrad("large_eps", "eps is added to the root, not under it.", eps=0.5, scale=near)
    yield adagrad("maximize_l2", "g is turned before the penalty; squares see both.", maximize=True, l2=0.1)

    adam = partial(case, "Adam", lr=0.05, betas=(0.9, 0.999), eps=1e-8)
    large = partial(adam, eps=0.5, scale=near)
    clipped = partial(adam, eps=0.5, scale=(-1, 0.5), transforms=clip)
    gaps = {"a": [0, 7, 8, 20], "b": [3, 4, 5, 15, 29]}
    yield adam("", "Both moments start at 0 and are corrected per paper.")
    yield adam("float32", "The same in float32.", dtype="float32")
    yield large("large_eps", "eps is added to the corrected root: not under it, not before the correction.")
    yield adam("beta1_zero", "beta1 = 0 leaves g as it is.", betas=(0.0, 0.5))
    yield large("beta1_above_beta2", "The betas are not exchanged, in moments or corrections.", betas=(0.95, 0.3))
    yield large("l2", "The penalty enters both moments.", l2=0.1)
    yield large("maximize", "The sign of g is turned.", maximize=True)
    yield large("maximize_l2", "g is turned before the penalty is added.", maximize=True, l2=0.1)
    yield large("missing", "The count of steps, so the correction, is each parameter's own.", missing=gaps)
    yield clipped("clip_norm", "One factor min(1, max/n) for all parameters; some steps are not clipped.")
    yield clipped("clip_norm_l2", "Clipping sees the bare gradient; the penalty comes after it.", l2=0.1)
    yield clipped("clip_norm_missing", "The norm is over the parameters with a gradient in this step.", missing=gaps)
    yield adam("clip_value", "Each element is limited by itself.", eps=0.5, transforms=[("ClipByValue", 0.5)])
    decay = [("WeightDecay", 0.2)]
    yield large("weight_decay", "WeightDecay takes lr*rate*w from the weight before the step.", transforms=decay)

    note = "The maximum is over v before correction; over the corrected v the first gradient would rule for longer."
    shock = {"lr": 0.1, "grads": first_gradient_large()}
    amsgrad = partial(case, "AMSGrad", lr=0.05, betas=(0.9, 0.999), eps=1e-8)
    yield adam("amsgrad", note, amsgrad=True, **shock)
    yield amsgrad("", note, **shock)
    note = "eps is added to the corrected root of the maximum."
    yield amsgrad("large_eps", note, betas=(0.8, 0.9), eps=0.5, scale=near)

    adamw = partial(case, "AdamW", lr=0.05, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.5)
    for rate in (0.0, 0.01, 0.5, 4.0):
        yield adamw(f"decay_{rate:g}", "The decay is lr*weight_decay*w, outside both moments.", weight_decay=rate)
    yield adamw("large_eps", "eps is added to the corrected root.", eps=0.5, scale=near)
    yield adamw("maximize", "maximize turns g; the decay still shrinks.", maximize=True)
    yield adamw("clip_norm", "The decay is not clipped.", eps=0.5, transforms=clip, scale=(-1, 0.5))
    yield adamw("missing", "A parameter without a gradient is not decayed.", missing=gaps)

    rmsprop = partial(case, "RMSProp", lr=0.01, alpha=0.9, eps=1e-8)
    full = partial(rmsprop, momentum=0.8, centered=True)
    yield rmsprop("", "v starts at 0 and is not corrected.")
    yield rmsprop("float32", "The same in float32.", dtype="float32")
    yield rmsprop("momentum", "The buffer adds g/(sqrt(v) + eps) with weight 1.", momentum=0.8)
    yield rmsprop("momentum_lr_changes", "lr multiplies the whole buffer, not what enters.", momentum=0.8, lrs=falling)
    yield rmsprop("centered", "The root is that of v - m^2.", centered=True)
    yield full("centered_momentum", "Both at once.")
    yield rmsprop("large_eps", "eps is added to the root, not under it.", eps=0.5, scale=near)
    yield full("centered_momentum_large_eps", "eps is added to the root of v - m^2.", eps=0.5, scale=near)
    yield rmsprop("maximize_l2", "g is turned before the penalty is added.", eps=0.5, maximize=True, l2=0.1)


def random_cases():
    rng = generator("settings")

    def log(low, high):
        return float(f"{10 ** rng.uniform(np.log10(low), np.log10(high)):.3g}")

    def share(low, high):
        return round(rng.uniform(low, high), 4)

    note = "Random settings: no constant stands where a number should."
    for i in (1, 2, 3):
        common = {"lr": log(1e-3, 0.1), "l2": log(1e-3, 0.1), "maximize": i == 3}
        adam = {**common, "betas": (share(0.3, 0.97), share(0.6, 0.999)), "eps": log(1e-3, 1.0)}
        adagrad = {"lr_decay": log(1e-3, 1.0), "eps": log(1e-3, 1.0), "initial_accumulator_value": log(0.01, 1.0)}
        rmsprop = {"alpha": share(0.5, 0.99), "eps": log(1e-3, 1.0), "momentum": share(0.3, 0.95)}
        yield case("SGD", f"random_{i}", note, **common, momentum=share(0.3, 0.95), nesterov=i == 2)
        yield case("Adagrad", f"random_{i}", note, **common, **adagrad)
        yield case("Adam", f"random_{i}", note, **adam, amsgrad=i == 2)
        yield case("AMSGrad", f"random_{i}", note, **adam)
        yield case("AdamW", f"random_{i}", note, **{**adam, "l2": None}, weight_decay=log(0.01, 5.0))
        yield case("RMSProp", f"random_{i}", note, **common, **rmsprop, centered=i == 2)


def schedule(name, base_lr, *chain):
    """Step the schedulers of a chain one after the other, each once an epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base_lr)
    schedulers = []
    for cls, args in chain:
        given = {"lr_lambda" if k == "f" else k: eval(v) if k == "f" else v for k, v in args.items()}
        schedulers.append(getattr(torch.optim.lr_scheduler, cls)(optimizer, **given))
    lrs = []
    for _ in range(EPOCHS):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return {"name": name, "chain": [{"class": c, "args": args} for c, args in chain], "base_lr": base_lr, "lrs": lrs}


def schedules():
    step = ("StepLR", {"step_size": 4, "gamma": 0.3})
    multistep = ("MultiStepLR", {"milestones": [2, 7, 8, 15], "gamma": 0.1})
    exponential = ("ExponentialLR", {"gamma": 0.9})
    multiplicative = ("MultiplicativeLR", {"f": "lambda epoch: 0.95"})
    yield schedule("step", 0.1, step)
    yield schedule("step_every_epoch", 1.0, ("StepLR", {"step_size": 1, "gamma": 0.5}))
    yield schedule("multistep", 0.1, multistep)
    yield schedule("multistep_repeated", 1.0, ("MultiStepLR", {"milestones": [3, 3, 9], "gamma": 0.5}))
    yield schedule("exponential", 0.1, exponential)
    yield schedule("exponential_grows", 0.01, ("ExponentialLR", {"gamma": 1.1}))
    yield schedule("lambda", 0.1, ("LambdaLR", {"f": "lambda epoch: 0.95 ** epoch"}))
    yield schedule("lambda_warmup", 0.3, ("LambdaLR", {"f": "lambda epoch: min(1.0, (epoch + 1) / 5)"}))
    yield schedule("multiplicative", 0.1, multiplicative)
    yield schedule("multiplicative_varies", 1.0, ("MultiplicativeLR", {"f": "lambda epoch: 1.0 / (1.0 + 0.1 * epoch)"}))
    yield schedule(
        "step_multistep",
        1.0,
        ("StepLR", {"step_size": 1, "gamma": 0.5}),
        ("MultiStepLR", {"milestones": [2], "gamma": 0.1}),
    )
    yield schedule("step_exponential", 0.1, step, exponential)
    yield schedule("exponential_multistep", 0.1, exponential, multistep)
    yield schedule("exponential_multiplicative", 0.1, exponential, multiplicative)
    yield schedule("multiplicative_step", 0.1, multiplicative, step)
    yield schedule("step_step", 1.0, step, ("StepLR", {"step_size": 3, "gamma": 0.5}))
    yield schedule("step_multistep_exponential", 1.0, step, multistep, exponential)


def main():
    cases = [*chosen_cases(), *random_cases()]
    head = {"library": "torch", "version": torch.__version__, "numpy": np.__version__, "script": "make_torch.py"}
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in {**head, "seed": SEED}.items()]
    for key, entries in (("cases", cases), ("schedules", list(schedules()))):
        assert len({entry["name"] for entry in entries}) == len(entries)
        lines.append(f'"{key}": [\n' + ",\n".join(json.dumps(e, allow_nan=False) for e in entries) + "\n]")
    Path(__file__).with_name("torch.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
