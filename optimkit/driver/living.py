"""The optimizers that live: links are shared between them, and locks of theirs are made anew in a forked child."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

from optimkit.driver.steps.underway import Underway

living: weakref.WeakSet[Any] = weakref.WeakSet()  # their runs


def _renew_locks() -> None:
    """A thread that held a lock when the process was forked is not there in the child."""
    for run in list(living):
        run.lock, run.stepping = threading.RLock(), Underway()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
