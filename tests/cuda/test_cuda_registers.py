"""No kernel spills registers, on any architecture; read off the assembler, so that no GPU is needed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.without_device


@pytest.fixture(scope="module")
def registers() -> ModuleType:
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"NVRTC can't be reached through cupy: {error}")
    spec = importlib.util.spec_from_file_location("registers", Path(__file__).with_name("registers.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["registers"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("rule", ["Adam", "RMSProp", "AdamW, clip, skip"])
def test_no_spills(registers: ModuleType, rule: str) -> None:
    rows = registers.measure([rule], ["float32", "float64"] if "clip" in rule else ["float32"])
    assert {row.architecture for row in rows} == {75, 80, 90, 100, 120}
    assert all(0 < row.registers <= 128 for row in rows), "two blocks of 256 threads must fit"
    assert [row for row in rows if row.spills] == []


def test_the_log_is_read(registers: ModuleType) -> None:
    log = """\
ptxas info    : Compiling entry function 'write_stage' for 'sm_90'
ptxas info    : Function properties for write_stage
ptxas         .     16 bytes stack frame, 16 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 16 bytes cumulative stack size
"""
    assert registers.parse(log) == [("write_stage", 64, 16, 44)]
