"""The project itself: what the README promises, what is required, where the version stands, and what is in which file."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import optimkit

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "optimkit"
FILES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()


# ---- the README and the settings


@pytest.mark.parametrize(
    "command",
    [
        'python -m pip install ".[examples]" && python examples/digits.py',
        'python -m pip install ".[test]" && python -m pytest',
    ],
)
def test_the_readme_holds_its_commands_literally(command):
    assert command in README.splitlines()


def test_the_first_screen_has_no_architecture():
    first = README[: README.index("## ")]
    assert len(first.splitlines()) < 60
    assert first.index("import numpy as np") < first.index("import cupy as np") < first.index("| ") < first.index("(Optimizer)")


def test_two_libraries_are_required_and_the_rest_are_extras():
    assert PROJECT["dependencies"] == ["numpy>=2.0", "array-api-compat>=1.12,<2"]
    assert PROJECT["requires-python"] == ">=3.11"
    extras = PROJECT["optional-dependencies"]
    assert {"cpu", "cuda12x", "cuda13x", "cuda12x-ctk", "cuda13x-ctk", "examples", "test", "docs"} <= set(extras)
    for cuda in ("12", "13"):
        assert extras[f"cuda{cuda}x"] == [f"cupy-cuda{cuda}x>=14"]
        assert extras[f"cuda{cuda}x-ctk"] == [f"cupy-cuda{cuda}x[ctk]>=14"]
    named = [requirement for own in extras.values() for requirement in own]
    assert not [each for each in named if re.match(r"cupy(?!-cuda)", each)], "plain cupy is a source build"


def test_every_extra_that_the_pages_name_exists():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *FILES, ROOT / "examples" / "digits.py"]
    lists = [own for page in pages for own in re.findall(r"(?:\"\.|optimkit)\[([\w,-]+)\]", page.read_text())]
    named = {extra for own in lists for extra in own.split(",")}
    assert {"examples", "test", "cuda13x"} <= named
    assert named <= set(PROJECT["optional-dependencies"])


def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["dynamic"]
    holders = [path for path in FILES if re.search(r"^__version__\b", path.read_text(), re.M)]
    assert holders == [PACKAGE / "__init__.py"]
    assert f"## [{optimkit.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_installed_version_is_that_of_the_package():
    try:
        installed = importlib.metadata.version("optimkit")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("optimkit runs from the checkout here, it is not installed")
    assert installed == optimkit.__version__


def test_the_package_is_typed_and_its_public_names_exist():
    assert (PACKAGE / "py.typed").exists()
    assert len(set(optimkit.__all__)) == len(optimkit.__all__)
    assert all(hasattr(optimkit, name) for name in optimkit.__all__)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.module not in ("__future__", "typing", "optimkit.names")
        for alias in node.names
    }
    assert set(optimkit.__all__) == imported


# ---- files


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout of git here")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]


def test_no_tracked_file_names_a_folder_of_some_machine():
    folder = re.compile(r"(?<![\w.$}*-])/(?:" + "|".join(["work", "opt", "tmp", "root", "home", "Users", "mnt"]) + r")/\w")
    found = []
    for path in tracked():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}:{number}" for number, line in enumerate(lines, 1) if folder.search(line)]
    assert not found


def test_files_are_short_and_start_with_their_idea():
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 350, path.relative_to(ROOT)
        assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{path.relative_to(ROOT)} does not say what it is for"
