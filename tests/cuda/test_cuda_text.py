"""What the text of the CUDA kernels says about speed and races; no device is needed to read it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import optimkit
from optimkit import transforms
from optimkit.arrays import DTYPES
from optimkit.engines.cuda.job import BY_VALUE, WRITE_CHUNKS, job_dtype, write_chunk
from optimkit.engines.cuda.text import module_text
from optimkit.fusion.stages import number_totals, total_rounds
from optimkit.rules.programs import plan_of, program_of

pytestmark = pytest.mark.without_device
CLIP = [transforms.ClipByGlobalNorm(1.0)]


def text_of(optimizer: Any, skip: bool = False, device_count: bool = False) -> str:
    chain, dtype = optimizer._run.chain(), DTYPES["float32"]
    known = program_of(chain, dtype, False, skip, skip or device_count)
    plan = plan_of(*known, total_rounds([known[1]]))
    return module_text(plan, dtype, number_totals([plan]), (), skip or device_count, skip)


def kernel(text: str, name: str) -> str:
    start = text.index(f"\n{name}(const __grid_constant__ Job job) {{")
    return text[start : text.index("\n}\n", start)]


TEXTS = {
    "plain": text_of(optimkit.Adam()),
    "clip": text_of(optimkit.Adam(transforms=CLIP)),
    "skip": text_of(optimkit.Adam(transforms=CLIP), skip=True),
    "capturable": text_of(optimkit.Adam(), device_count=True),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_strides_are_constants(text: str) -> None:
    """A stride that is known only when a thread runs costs each of them a division of 64 bits, for the number of rounds."""
    assert "blockDim" not in text.replace("p += blockDim.x", "")
    assert "i += 256 * lanes" in kernel(text, "write_stage")


@pytest.mark.parametrize("text", [TEXTS["clip"], TEXTS["skip"], TEXTS["capturable"]])
def test_the_counter_of_the_last_block_wraps_by_itself(text: str) -> None:
    """A plain store of 0 could undo what a block of another launch has counted."""
    assert "atomicInc(counter, blocks - 1) == blocks - 1" in text
    assert not re.search(r"\*counter\s*=", text)
    assert text.count("__threadfence();") == 2
    assert "if (last) __threadfence();" in text


def test_the_writing_pass_goes_backwards_after_one_that_reads() -> None:
    assert "job.chunks[gridDim.x - 1 - blockIdx.x]" in kernel(TEXTS["clip"], "write_stage")
    assert "job.chunks[blockIdx.x]" in kernel(TEXTS["plain"], "write_stage")
    assert "job.read_chunks[blockIdx.x]" in kernel(TEXTS["clip"], "read_stage_0")


def test_equal_totals_are_formed_once_and_what_follows_is_kept_by_row() -> None:
    """The norm for `nonfinite="skip"` and that for clipping are one; no block walks over all parameters."""
    text = TEXTS["skip"]
    start = text.index("void round_2(const Job& job)")
    finishing = text[start : text.index("\n}\n", start)]
    assert finishing.count("total_of(") == 1
    assert "row < job.row_count" in finishing
    assert "job.members" not in finishing
    assert finishing.count("job.by_row[") == 2
    reading = kernel(text, "read_stage_0")
    assert reading.count("job.contributions[") == 2  # of a parameter that takes part, and of one that does not


def test_counts_are_decided_in_the_pass_that_reads() -> None:
    """The writing pass has no last block then: its blocks write what was decided, whoever comes first."""
    writing = kernel(TEXTS["skip"], "write_stage")
    assert "comes_last" not in writing
    assert "job.counts[p] = job.next_counts[p];" in writing
    assert "job.next_counts[p] = job.counts[p] + 1;" in kernel(TEXTS["skip"], "read_stage_0")
    assert "comes_last" in kernel(TEXTS["capturable"], "write_stage"), "there is no pass that reads before"


@pytest.mark.parametrize(
    ("sizes", "chunk"),
    [([20_000_000], 4096), ([4_400_000], 4096), ([3_000_000], 2048), ([100_000], 1024), ([2000] * 1100, 4096), ([0], 1024)],
)
def test_chunks_are_small_where_there_are_few(sizes: list[int], chunk: int) -> None:
    assert write_chunk(np.array(sizes), 132) == chunk
    assert chunk in WRITE_CHUNKS


def test_arguments_fit_a_launch() -> None:
    """4 KB before CUDA 12.1, 32,764 bytes since."""
    assert job_dtype(0).itemsize <= 4096
    assert job_dtype(BY_VALUE[-1]).itemsize <= 32_764
