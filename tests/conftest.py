"""What all tests share: the backends as a fixture, deterministic hypothesis, and threads as they were."""

from __future__ import annotations

import signal

import hypothesis
import pytest

import optimkit
from optimkit.testing.fixtures import optimkit_backend

__all__ = ["optimkit_backend"]

hypothesis.settings.register_profile("optimkit", derandomize=True, deadline=None, database=None, max_examples=40)
hypothesis.settings.load_profile("optimkit")


@pytest.fixture(autouse=True, scope="session")
def interrupts_are_not_ignored():
    """Some runners start their commands with SIGINT ignored; a test of Ctrl-C would then test nothing."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def same_threads_after():
    before = optimkit.get_num_threads()
    yield
    optimkit.set_num_threads(before)
