"""The pytest plugin: the fixture `optimkit_backend`, which runs a test once on each backend.

    def test_mine(optimkit_backend):
        params = {"w": optimkit_backend.make(np.ones(3), "float32")}
        MyOptimizer(params, engine=optimkit_backend.engine).step(...)

pytest finds it by itself where optimkit is installed. A backend that can't be used is skipped, with the
reason (`pytest -rs` prints it). Nothing but optimkit and NumPy is imported before a test asks for more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from optimkit.testing.backends import BACKENDS, Backend


@pytest.fixture(params=list(BACKENDS))  # type: ignore[untyped-decorator]
def optimkit_backend(request: Any) -> Iterator[Backend]:
    """Each of `optimkit.testing.BACKENDS` in turn, under the settings that its library needs."""
    backend = BACKENDS[request.param]
    reason = backend.available()
    if reason:
        pytest.skip(f"{backend}: {reason}")
    with backend.settings():
        yield backend
