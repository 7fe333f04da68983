"""README and docs: every Python block runs, and what they show as its output is what it prints.

The blocks of a page run in order and share their names. A text block right after a Python block is
its output, compared exactly. ```python needs=cupy runs where there is a device for it. Outputs are
written anew by `python tests/test_docs.py`, which prints the pages that changed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON, TEXT = r"^```python(?: needs=(?P<needs>\w+))?\n(?P<code>.*?)^```\n", r"^```text\n(?P<output>.*?)^```\n"
BLOCK = re.compile(rf"{PYTHON}(?:\n?{TEXT})?", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\((?!https?:)(?P<path>[^)#]*)(?:#(?P<anchor>[^)]*))?\)")
SHOWN = "...\n"  # a line that stands for any number of lines


@dataclass(frozen=True)
class Block:
    """A Python block of a page: where it stands, what it needs, and the output shown below it."""

    line: int
    code: str
    needs: str | None
    output: str | None
    span: tuple[int, int]


def blocks_of(text: str) -> list[Block]:
    return [
        Block(1 + text.count("\n", 0, each.start("code")), each["code"], each["needs"], each["output"], each.span("output"))
        for each in BLOCK.finditer(text)
    ]


def why_not(library: str) -> str:
    """Why blocks that need a library can't run here; empty if they can."""
    try:
        xp = importlib.import_module(library)
        if library == "cupy":
            xp.zeros(1)
    except Exception as error:
        return f"{library}: {' '.join(str(error).split())}"
    return ""


@contextlib.contextmanager
def module_of(page: Path) -> Iterator[dict[str, Any]]:
    """The names of a page: those of a module, where classes of the page find theirs."""
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module
    try:
        yield vars(module)
    finally:
        del sys.modules[module.__name__]


def run(block: Block, page: Path, names: dict[str, Any]) -> str:
    """What a block prints; lines in tracebacks are those of the page."""
    printed = io.StringIO()
    code = compile("\n" * (block.line - 1) + block.code, page.name, "exec", dont_inherit=True)
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


def agrees(printed: str, shown: str) -> bool:
    parts = [re.escape(part) for part in shown.split(SHOWN)]
    return re.fullmatch("(?:.*\n)*?".join(parts), printed) is not None


def check(page: Path, needs: str | None) -> int:
    """Run the blocks of a page that need nothing, or a library that is there; how many there were."""
    blocks = [block for block in blocks_of(page.read_text()) if block.needs in (None, needs)]
    with module_of(page) as names:
        for block in blocks:
            printed = run(block, page, names)
            shown = block.output or ""
            assert agrees(printed, shown), f"{page.name}:{block.line} prints\n{printed}\nand shows\n{shown}"
    return len(blocks)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run_and_print_what_is_shown(page):
    assert check(page, None) or _with_needs(page), f"{page.name} has no Python block"


def _with_needs(*pages: Path) -> list[tuple[Path, str]]:
    found = {(page, block.needs) for page in pages for block in blocks_of(page.read_text()) if block.needs}
    return sorted(found, key=str)


@pytest.mark.parametrize(("page", "needs"), _with_needs(*PAGES), ids=lambda value: getattr(value, "stem", value))
def test_blocks_for_other_libraries(page, needs):
    if problem := why_not(needs):
        pytest.skip(f"the {needs} blocks of {page.name} did not run: {problem}")
    check(page, needs)


def test_every_python_block_is_found():
    for page in PAGES:
        text = page.read_text()
        assert len(blocks_of(text)) == len(re.findall(r"^```python", text, re.M)), page.name
        assert len(re.findall(r"^```", text, re.M)) % 2 == 0, f"{page.name} has a fence that is not closed"


def test_the_first_loop_trains():
    """The first block of the README, and the same after the switch to CuPy where there is a device."""
    loop = blocks_of((ROOT / "README.md").read_text())[0]
    lines = [line for line in loop.code.splitlines() if line]
    assert len(lines) == 8
    for line in ("import numpy as np", "import cupy as np"):
        if "cupy" in line and why_not("cupy"):
            continue
        names: dict[str, Any] = {}
        exec(line, names)
        names["np"].random.seed(0)
        exec("\n".join(lines[1:]), names)
        assert [round(float(w), 2) + 0.0 for w in [*names["params"]["W"], *names["params"]["b"]]] == [1.0, -2.0, 0.0, 0.5]


FILE = r"`([\w/.-]+\.(?:py|md|json))`"


def test_files_that_the_docs_name_exist():
    """Those in italics are files that a widening would add."""
    for page in PAGES:
        text = page.read_text()
        planned = set(re.findall(rf"\*{FILE}\*", text)) if page.stem == "contributing" else set()
        for name in re.findall(FILE, text):
            places = [ROOT / name, ROOT / "optimkit" / name, *(ROOT / "optimkit").glob(f"*/{name}")]
            assert any(place.exists() for place in places) != (name in planned), f"{page.name} names {name}"


def test_a_widening_touches_ten_files_at_most():
    text = (ROOT / "docs/contributing.md").read_text()
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", text[text.index("## What a widening would touch") :], re.M)
    found = {what: re.findall(FILE, files) for what, files in rows}
    widenings = [what for what, files in found.items() if files]
    assert len(widenings) == 6
    for what in widenings:
        assert len(found[what]) == len(set(found[what])) <= 10, f"{what}: {len(found[what])} files"
        assert all((ROOT / "optimkit" / name).parent.exists() or name.startswith("distributed/") for name in found[what])


def _anchors(page: Path) -> set[str]:
    """The anchors that a page's headings have on the web."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    heads = re.findall(r"^#+ (.*)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for match in LINK.finditer(prose):
        target = (page.parent / match["path"]) if match["path"] else page
        assert target.exists(), f"{page.name} links to {match['path']}"
        if match["anchor"]:
            assert match["anchor"] in _anchors(target), f"{page.name} links to {match['path']}#{match['anchor']}"


def write_outputs(page: Path) -> bool:
    """Write what the blocks print below them, where output is shown; whether the page changed."""
    text = page.read_text()
    pieces, end = [], 0
    with module_of(page) as names:
        for block in blocks_of(text):
            if block.needs is not None:
                continue
            printed = run(block, page, names)
            if block.output is not None and not agrees(printed, block.output):
                pieces += [text[end : block.span[0]], printed]
                end = block.span[1]
    new = "".join([*pieces, text[end:]])
    page.write_text(new)
    return new != text


if __name__ == "__main__":
    for page in PAGES:
        if write_outputs(page):
            print(f"{page.relative_to(ROOT)} changed")
