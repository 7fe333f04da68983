"""Docstrings: every example is run, and every public name has one that says what it is."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import numpy as np
import pytest
from optimizers import public

import optimkit
import optimkit.testing

MODULES = sorted(module.name for module in pkgutil.walk_packages(optimkit.__path__, "optimkit."))
OPTIONAL = ("numba", "llvmlite", "cupy", "torch", "jax")
SPACES = (optimkit, optimkit.transforms, optimkit.schedules, optimkit.lr_scheduler, optimkit.testing)


def load(name):
    if name.endswith("__main__"):
        pytest.skip(f"{name} runs when it is imported")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if any(library in str(error) for library in OPTIONAL):
            pytest.skip(f"{name} can't be imported here: {error}")
        raise


def examples(module):
    """The doctests of a module; a rule defined in one has its annotations as objects, as in a user's notebook."""
    scope = {key: value for key, value in vars(module).items() if key != "annotations"}
    found = doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__, extraglobs={"np": np}, globs=scope)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", ["optimkit", *MODULES])
def test_examples_print_what_they_say(name):
    for test in examples(load(name)):
        report = []
        result = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
        assert result.failed == 0, "".join(report)


def test_the_runner_finds_examples_and_failures():
    assert len(examples(optimkit.testing.check)) == 3
    (test,) = examples(optimkit.optimizers.sgd)
    test.examples[-1].want = "array([0.9, 2.2])\n"
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1


def test_public_names_are_documented():
    for space in SPACES:
        for name in space.__all__:
            thing = getattr(space, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert (thing.__doc__ or "").strip(), f"{space.__name__}.{name} has no docstring"
                assert "(*args, **kwargs)" not in thing.__doc__


@pytest.mark.parametrize("cls", sorted(public(optimkit.Optimizer) | public(optimkit.Transform), key=lambda cls: cls.__name__))
def test_rules_have_parameters_and_an_example(cls):
    """numpydoc sections; each number and structure field has a line, with its range."""
    text = inspect.getdoc(cls)
    assert cls.__dict__.get("__doc__")
    for section in ("Parameters\n-----", "Examples\n-----"):
        assert section in text, f"{cls.__name__} has no section {section.splitlines()[0]}"
    parameters = text.split("Parameters\n")[1].split("\n\n")[0]
    for name in (*cls._numbers, *cls.__annotations__):
        if name not in ("params", "where"):
            assert name in parameters, f"{cls.__name__}: {name} is not among the parameters"


@pytest.mark.parametrize("cls", sorted(public(optimkit.Optimizer), key=lambda cls: cls.__name__), ids=lambda cls: cls.__name__)
def test_optimizers_cite_their_paper(cls):
    assert "References\n-----" in inspect.getdoc(cls)
    assert "http" in inspect.getdoc(cls)
