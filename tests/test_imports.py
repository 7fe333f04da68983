"""The house: imports go one way, from top to bottom; `import optimkit` loads NumPy and nothing heavy.

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

# From top to bottom. A room imports from those below it, and from itself.
ROOMS = [
    "__main__",
    "cli",
    "bench",
    "info",
    "diagnosis",
    "testing",
    "__init__",  # the public names: what stands above uses them, nothing below may
    "optimizers",
    "lr_scheduler",
    "transforms",
    "schedules",
    "driver",
    "params",
    "rule",
    "definition",
    "numbers",
    "engines",
    "fusion",
    "arrays",
]
HEAVY = ["cupy", "numba", "llvmlite", "torch", "jax", "scipy", "matplotlib", "array_api_strict", "sklearn", "pytest", "tqdm"]


def room_of(path):
    return path.relative_to(HOME).parts[0].removesuffix(".py")


def imported(path):
    """(line, room) of every import of the package in a file, those inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "optimkit"]
            yield from ((node.lineno, [*name.split("."), "__init__"][1]) for name in names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            parts = (node.module or "").split(".")
            if parts == ["optimkit"]:
                rooms = {room_of(each) for each in HOME.iterdir()}
                yield from ((node.lineno, alias.name if alias.name in rooms else "__init__") for alias in node.names)
            elif parts[0] == "optimkit":
                yield node.lineno, parts[1]


FILES = sorted(HOME.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOME)))
def test_imports_go_down(path):
    room = room_of(path)
    assert room in ROOMS, f"{room} is a new room: say in ROOMS where it stands"
    for line, other in imported(path):
        assert other in ROOMS, f"{path}:{line} imports the unknown {other}"
        below = ROOMS.index(other) > ROOMS.index(room)
        assert other == room or below, f"{path}:{line}: {room} imports {other}, which stands above it"


# Formulas name no engine and no driver's part: all that they may import.
FORMULAS = {
    "optimizers": {"optimizers", "transforms", "driver", "rule", "numbers"},
    "transforms": {"transforms", "rule", "numbers"},
    "schedules": {"schedules", "numbers", "fusion"},
}


@pytest.mark.parametrize("room", FORMULAS)
def test_formulas_import_what_formulas_are_made_of(room):
    for path in FILES:
        if room_of(path) == room:
            others = {other for _, other in imported(path)}
            assert others <= FORMULAS[room], f"{path} imports {others - FORMULAS[room]}"


def test_the_walk_sees_imports():
    """The engines' choice imports engines inside of functions, `testing` imports from below by both forms."""
    found = {other for path in FILES if room_of(path) == "testing" for _, other in imported(path)}
    assert {"arrays", "driver", "engines", "fusion", "numbers", "optimizers", "rule"} <= found
    assert not [room for room in ROOMS if not any(room_of(path) == room for path in FILES)], "ROOMS names what is not there"


def modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("room", ["fusion", "optimizers", "transforms", "schedules", "numbers", "definition", "rule", "params"])
def test_what_knows_no_array_library_imports_none(room):
    own = {name for path in FILES if room_of(path) == room for name in modules(path)}
    assert own <= {*sys.stdlib_module_names, "optimkit"}


def test_engines_and_fusion_never_name_an_optimizer():
    names = set(optimkit.optimizers.__all__)
    for path in FILES:
        if room_of(path) in ("engines", "fusion", "driver"):
            tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
            found = {token.string for token in tokens if token.type == tokenize.NAME} & names
            assert not found, f"{path} names {found}"


def python(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert not done.returncode, done.stderr
    return done.stdout.split()


def test_importing_optimkit_loads_nothing_heavy():
    loaded = python("import sys, optimkit; print(*{name.split('.')[0] for name in sys.modules})")
    assert "numpy" in loaded
    assert not set(loaded) & set(HEAVY)


def test_using_it_on_numpy_loads_numba_alone():
    code = "import numpy as np, optimkit, sys; w = np.ones(2); optimkit.Adam(w).step(np.ones(2)); print(*sys.modules)"
    loaded = {name.split(".")[0] for name in python(code)}
    assert not loaded & set(HEAVY) - {"numba", "llvmlite", "scipy"}  # numba looks for scipy's BLAS


def test_the_eager_engine_needs_no_numba():
    code = (
        "import sys; sys.modules['numba'] = None; import numpy as np, optimkit; w = np.ones(2);"
        "optimkit.Adam(w, engine='eager').step(np.ones(2)); print(w[0])"
    )
    assert float(python(code)[0]) < 1
