"""The house: imports go one way, from top to bottom, file by file; all of optimkit loads NumPy and nothing heavy.

Whoever adds a room (a folder or a module beside them) says here where it stands.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import optimkit

HOME = Path(optimkit.__file__).parent

# From top to bottom. A file imports from rooms below its own, and within its room from files that do not lead back to it.
ROOMS = [
    "__main__",
    "cli",
    "bench",
    "info",
    "testing",
    "__init__",  # the public names: what stands above uses them, nothing below may
    "optimizers",
    "lr_scheduler",
    "transforms",
    "schedules",
    "driver/optimizer",  # the face
    "driver/membership",
    "driver/rates",
    "driver/hyperparameters",
    "driver/step",
    "driver/explain",
    "driver/functional",
    "driver/state",
    "driver/members/changes",
    "driver/members/replace",
    "driver/values",
    "driver/run",
    "driver/orders",
    "driver/living",
    "driver/steps",
    "driver/members",  # the watch over containers
    "driver/gradients",
    "driver/entries",
    "driver",
    "rules",
    "containers",
    "engines",
    "fusion",
    "arrays",
    "counting",
    "names",
]
HEAVY = ["cupy", "numba", "llvmlite", "torch", "jax", "scipy", "matplotlib", "array_api_strict", "sklearn", "pytest", "tqdm"]
FILES = sorted(HOME.rglob("*.py"))


def name_of(path):
    """A file without its ending: "driver/step"; of a folder's own file that of the folder."""
    name = path.relative_to(HOME).with_suffix("").as_posix()
    return name.removesuffix("/__init__") if name != "__init__" else name


def room_of(name):
    """The room of a file: the longest name in ROOMS that its own begins with."""
    found = [room for room in ROOMS if name == room or name.startswith(room + "/")]
    assert found, f"{name} is a new room: say in ROOMS where it stands"
    return max(found, key=len)


def imported(path, names):
    """(line, file) of every import of the package in a file, those inside of functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "optimkit":
                    yield node.lineno, "/".join(alias.name.split(".")[1:]) or "__init__"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            parts = (node.module or "").split(".")
            if parts[0] == "optimkit":
                base = "/".join(parts[1:])
                for alias in node.names:
                    whole = f"{base}/{alias.name}".removeprefix("/")
                    yield node.lineno, whole if whole in names else base or "__init__"


NAMES = {name_of(path) for path in FILES}
IMPORTS = {name_of(path): sorted(set(imported(path, NAMES))) for path in FILES}


@pytest.mark.parametrize("name", IMPORTS)
def test_imports_go_down(name):
    room = room_of(name)
    for line, other in IMPORTS[name]:
        assert other in NAMES, f"{name}:{line} imports the unknown {other}"
        below = ROOMS.index(room_of(other)) > ROOMS.index(room)
        assert room_of(other) == room or below, f"{name}:{line}: {room} imports {other}, which stands above it"


def circle(graph):
    """Files that import each other in a circle; empty where there is none."""
    done = set()

    def visit(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        found = next((each for other in graph[name] if (each := visit(other, [*path, name]))), [])
        done.add(name)
        return found

    return next((each for name in graph if (each := visit(name, []))), [])


def test_no_file_leads_back_to_itself():
    graph = {name: {other for _, other in found} for name, found in IMPORTS.items()}
    assert not circle(graph), " -> ".join(circle(graph))
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


# Formulas name no engine and no driver's part: all that they may import.
FORMULAS = {
    "optimizers": {"optimizers", "transforms", "driver", "rules", "names"},
    "transforms": {"transforms", "rules", "names"},
    "schedules": {"schedules", "rules", "fusion"},
}


@pytest.mark.parametrize("room", FORMULAS)
def test_formulas_import_what_formulas_are_made_of(room):
    for name, found in IMPORTS.items():
        if room_of(name) == room:
            others = {other.split("/")[0] for _, other in found}
            assert others <= FORMULAS[room], f"{name} imports {others - FORMULAS[room]}"


def test_the_walk_sees_imports():
    """The choice of engines imports inside of functions, `testing` from below by both forms."""
    found = {other for name, each in IMPORTS.items() if room_of(name) == "testing" for _, other in each}
    assert {"arrays", "engines/choose", "engines/canonical", "driver/optimizer", "optimizers/sgd"} <= found
    assert "engines/cuda/runner" in {other for _, other in IMPORTS["engines/choose"]}
    assert {room_of(name) for name in NAMES} == set(ROOMS), "ROOMS names what is not there"


def modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("room", ["fusion", "optimizers", "transforms", "schedules", "rules"])
def test_what_knows_no_array_library_imports_none(room):
    own = {name for path in FILES if room_of(name_of(path)) == room for name in modules(path)}
    assert own <= {*sys.stdlib_module_names, "optimkit"}


def test_engines_and_fusion_never_name_an_optimizer():
    names = set(optimkit.optimizers.__all__)
    for path in FILES:
        if name_of(path).split("/")[0] in ("engines", "fusion", "driver", "rules", "containers"):
            tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
            found = {token.string for token in tokens if token.type == tokenize.NAME} & names
            assert not found, f"{path} names {found}"


def python(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert not done.returncode, done.stderr
    return done.stdout.split()


def test_importing_optimkit_loads_nothing_heavy():
    loaded = python("import sys; from optimkit import *; print(*{name.split('.')[0] for name in sys.modules})")
    assert "numpy" in loaded
    assert not set(loaded) & set(HEAVY)


def test_using_it_on_numpy_loads_llvmlite_alone():
    code = (
        "import numpy as np, optimkit, sys; w = {'W': np.ones((3, 2)).T, 'b': np.ones(2)};"
        "opt = optimkit.AdamW(w, transforms=[optimkit.transforms.ClipByGlobalNorm(1.0)]);"
        "opt.step(w | {'b': np.ones(2)}); opt.step({'W': np.ones((2, 3))}); print(*sys.modules)"
    )
    modules = python(code)
    assert {name.split(".")[0] for name in modules} & set(HEAVY) == {"llvmlite"}
    assert "array_api_compat.numpy" not in modules  # takes as long as NumPy


def test_the_eager_engine_needs_no_llvmlite():
    code = (
        "import sys; sys.modules['llvmlite'] = None; import numpy as np, optimkit; w = np.ones(2);"
        "optimkit.Adam(w, engine='eager').step(np.ones(2)); print(w[0])"
    )
    assert float(python(code)[0]) < 1
