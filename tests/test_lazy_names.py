"""Public names load their module when they are first used, and are then as if they had been there from the start."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import pickle
import pydoc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import optimkit
from optimkit.names import on_first_use

PACKAGES = ["optimkit", "optimkit.optimizers", "optimkit.transforms"]


def python(code, given=b""):
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, input=given, capture_output=True, timeout=120, check=False)
    assert not done.returncode, done.stderr.decode()
    return done.stdout.decode().split()


def loaded_by(code):
    """The modules of a new process after some code."""
    return set(python(f"{code}\nimport sys\nprint(*sys.modules)"))


def rooms(modules):
    """The first names below the package: "driver", "optimizers"."""
    return {name.split(".")[1] for name in modules if name.startswith("optimkit.")}


def tree_of(package):
    return ast.parse(Path(importlib.import_module(package).__file__).read_text())


def table(package):
    """The table of a package, as it is written: name to module."""
    calls = [node for node in ast.walk(tree_of(package)) if isinstance(node, ast.Call)]
    (found,) = [ast.literal_eval(call.args[1]) for call in calls if getattr(call.func, "id", "") == "on_first_use"]
    return found


def for_type_checkers(package):
    """What type checkers are told: name to module, where a module of the package is its own place."""
    (block,) = [node for node in tree_of(package).body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    found = {}
    for node in block.body:
        for alias in node.names:
            assert alias.asname is None
            assert alias.name not in found
            found[alias.name] = f"{package}.{alias.name}" if node.module == package else node.module
    return found


# ---- the tables


@pytest.mark.parametrize("package", PACKAGES)
def test_the_table_names_what_type_checkers_see_and_what_is_public(package):
    assert table(package) == for_type_checkers(package)
    assert set(table(package)) == set(importlib.import_module(package).__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_what_its_module_has(package):
    here = importlib.import_module(package)
    for name, place in table(package).items():
        module = importlib.import_module(place)
        expected = module if place == f"{package}.{name}" else getattr(module, name)
        assert getattr(here, name) is expected
        assert vars(here)[name] is expected, "the first use leaves a plain attribute"
        assert getattr(here, name) is getattr(here, name)


@pytest.mark.parametrize("package", PACKAGES)
def test_all_names_are_listed_before_they_are_used(package):
    listed = python(f"import {package} as here; print(*dir(here))")
    assert set(importlib.import_module(package).__all__) <= set(listed)
    assert listed == sorted(set(listed))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_star_import_brings_all_of_them(package):
    got = python(f"from {package} import *; import {package} as here; print(*[n for n in here.__all__ if n in globals()])")
    assert got == importlib.import_module(package).__all__


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_named(package):
    here = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Adan'") as caught:
        _ = here.Adan
    assert (caught.value.name, caught.value.obj) == ("Adan", here)
    assert not hasattr(here, "__wrapped__")
    with pytest.raises(ImportError, match="cannot import name 'Adan'"):
        exec(f"from {package} import Adan")


def test_a_name_that_its_module_lacks_is_an_error_and_not_kept(monkeypatch):
    module = type(sys)("holder")
    monkeypatch.setitem(sys.modules, "holder", module)
    module.__getattr__, module.__dir__ = on_first_use("holder", {"absent": "math", "pi": "math"})
    with pytest.raises(AttributeError, match="module 'math' has no attribute 'absent'"):
        _ = module.absent
    assert module.pi == 3.141592653589793
    assert "absent" not in vars(module)
    assert {"absent", "pi"} <= set(dir(module))


# ---- what comes with what


def test_the_import_alone_loads_no_room():
    loaded = loaded_by("import optimkit")
    assert rooms(loaded) == {"names"}
    assert "numpy" not in loaded


def test_small_names_leave_the_large_rooms_out():
    links = loaded_by("import optimkit; optimkit.L2, optimkit.zeros, optimkit.norm")
    assert not rooms(links) & {"optimizers", "driver", "engines"}
    assert rooms(loaded_by("import optimkit; optimkit.counters")) == {"names", "counting"}
    assert not rooms(loaded_by("import optimkit; optimkit.Param")) & {"optimizers", "transforms", "driver", "rules", "fusion"}


def test_an_optimizer_brings_no_other_family():
    loaded = loaded_by("import optimkit; optimkit.Adam")
    assert {name for name in loaded if name.startswith("optimkit.optimizers.")} == {"optimkit.optimizers.adam"}
    assert {name for name in loaded if name.startswith("optimkit.transforms.")} == {"optimkit.transforms.decay"}
    assert not rooms(loaded) & {"schedules", "lr_scheduler", "testing", "info", "cli", "bench"}


def test_an_optimizer_of_numpy_arrays_is_built_without_the_rest_of_numpy():
    """The namespace of the array API for NumPy loads all of NumPy, its tests too; masked arrays are a large module."""
    code = "import numpy as np, optimkit; opt = optimkit.Adam({'w': np.zeros(3)}, lr=1e-3)"
    assert not loaded_by(code) & {"array_api_compat.numpy", "numpy.ma", "numpy.testing", "numpy.f2py", "numpy.random"}
    assert optimkit.Param(np.zeros(3)).namespace.__name__ == "array_api_compat.numpy"


# ---- as if they had been there from the start


def test_threads_that_ask_at_the_same_time_get_the_same():
    code = """
import sys, threading
sys.setswitchinterval(1e-6)
import optimkit
names, count = optimkit.__all__, 8
found, ready = [None] * count, threading.Barrier(count)
def use(place):
    ready.wait()
    order = names[place * 5 % len(names):] + names[:place * 5 % len(names)]
    found[place] = {name: getattr(optimkit, name) for name in order}
threads = [threading.Thread(target=use, args=(place,)) for place in range(count)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(all(each is not None and all(each[name] is found[0][name] for name in names) for each in found))
"""
    assert python(code) == ["True"]


def test_a_pickle_opens_where_nothing_was_loaded():
    opt = optimkit.AdamW({"w": np.ones(2)}, lr=0.1, penalty=optimkit.L2(0.5))
    opt.step({"w": np.ones(2)})
    code = "import pickle, sys; opt = pickle.load(sys.stdin.buffer); print(type(opt).__module__, opt.count, opt.lr)"
    assert python(code, pickle.dumps(opt)) == ["optimkit.optimizers.adam", "1", "0.1"]


@pytest.mark.parametrize("name", sorted(set(optimkit.__all__) - {"lr_scheduler", "optimizers", "schedules", "transforms"}))
def test_every_name_is_copied_and_pickled(name):
    value = getattr(optimkit, name)
    for other in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert other is value or (type(other) is type(value) and other == value)


@pytest.mark.parametrize("package", PACKAGES)
def test_help_and_inspect_see_all_names(package):
    here = importlib.import_module(package)
    members = dict(inspect.getmembers(here))
    assert set(here.__all__) <= set(members)
    text = python(f"import pydoc, {package}; print(pydoc.render_doc({package}, renderer=pydoc.plaintext))")
    assert {name for name in here.__all__ if inspect.isclass(members[name])} <= {word.partition("(")[0] for word in text}
    assert list(inspect.signature(optimkit.Adam).parameters)[:3] == ["params", "lr", "betas"]
    assert pydoc.locate("optimkit.transforms.ClipByValue") is optimkit.transforms.ClipByValue
