"""Which parameters a `where` selects: one that selects nothing would do nothing, silently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from optimkit.containers.param import Where, matches
from optimkit.driver.entries.entry import Entry
from optimkit.rules.links import Transform, check_where


def select(entries: Sequence[Entry], where: Where, what: str = "") -> list[Entry]:
    """The parameters that `where` selects; a ValueError where there are none. `what` has it, if that is a link."""
    check_where(where)
    names = {entry.name: None for entry in entries}
    chosen = [entry for entry in entries if matches(where, entry.param, entry.name, names)]
    if not chosen:
        known = ", ".join(names) or "none yet"
        raise ValueError(f"{what}where = {where!r} selects none of the parameters {known}")
    return chosen


_some: ContextVar[bool] = ContextVar("some", default=False)


@contextmanager
def some_parameters() -> Iterator[None]:
    """Inside, optimizers are built with some of the parameters alone, as tests do it: a link may select none of these."""
    token = _some.set(True)
    try:
        yield
    finally:
        _some.reset(token)


def check_links(links: Sequence[Transform], entries: Sequence[Entry]) -> None:
    """Raise ValueError where a link selects none of the parameters."""
    for link in links:
        if link.where is not None and not _some.get():
            select(entries, link.where, f"{type(link).__name__}: ")
