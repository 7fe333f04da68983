"""What all tests share: the backends as a fixture, deterministic hypothesis, and threads as they were."""

from __future__ import annotations

import hypothesis
import pytest

import optimkit
from optimkit.testing.fixtures import optimkit_backend

__all__ = ["optimkit_backend"]

hypothesis.settings.register_profile("optimkit", derandomize=True, deadline=None, database=None, max_examples=40)
hypothesis.settings.load_profile("optimkit")


@pytest.fixture(autouse=True)
def same_threads_after():
    before = optimkit.get_num_threads()
    yield
    optimkit.set_num_threads(before)
