"""Tables that kernels read: each word has a name, which the Python that fills it and the text that reads it share.

>>> columns = Columns("size", "row")
>>> columns.row, len(columns), columns.text(str.upper, used="n = word(entry, ROW)")
(1, 2, 'ROW = 1')
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence


class Columns:
    """The names of the words of a job, or of a row of a table, in their order."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.__dict__.update({name: place for place, name in enumerate(names)})

    def __getattr__(self, name: str) -> int:
        raise AttributeError(f"no word is called {name}; there are {', '.join(self.__dict__.get('names', ()))}")

    def __len__(self) -> int:
        return len(self.names)

    def text(self, spelled: Callable[[str], str], used: str) -> str:
        """The statement that makes names known in a kernel written in Python: those that its text uses; "" for none."""
        named = {spelled(name): place for place, name in enumerate(self.names)}
        known = {name: place for name, place in named.items() if re.search(rf"\b{name}\b", used)}
        return f"{', '.join(known)} = {', '.join(map(str, known.values()))}" if known else ""


class Entry(Columns):
    """The columns of a parameter's entry: what is told of the parameter, then of each of its arrays.

    Parameters
    ----------
    fixed : sequence of str
        What is told of the parameter.
    names : mapping
        The arrays by key, with their names in the kernel's text: each has a column for its address.
    strided : sequence
        Keys of arrays that may lie in memory otherwise than dense, in the compute dtype: each has a column for
        the address of its layout, and a bit in the flags.
    first_bit : int
        The first bit of the flags that is free for them.
    """

    def __init__(
        self, fixed: Sequence[str], names: Mapping[Hashable, str], strided: Sequence[Hashable], first_bit: int
    ) -> None:
        layouts = [f"{names[key]}_layout" for key in strided]
        super().__init__(*fixed, *layouts, *(f"{name}_at" for name in names.values()))
        self.first_address = len(fixed) + len(layouts)
        self.address = {key: self.first_address + place for place, key in enumerate(names)}
        self.layout = {key: len(fixed) + place for place, key in enumerate(strided)}
        self.bit = {key: first_bit << place for place, key in enumerate(strided)}
