"""Names of a package that load their module when they are first used, as PEP 562 has it: an import loads what it needs.

    __getattr__, __dir__ = on_first_use(__name__, {"Adam": "optimkit.optimizers.adam"})
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def on_first_use(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package, from the names that it has and the modules that hold them.

    A module of the package is its own place. What was looked up once is a plain attribute from then on.
    """
    own = vars(sys.modules[package])

    def __getattr__(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        module = import_module(places[name])
        own[name] = module if module.__name__ == f"{package}.{name}" else getattr(module, name)
        return own[name]

    def __dir__() -> list[str]:
        return sorted({*own, *places})

    return __getattr__, __dir__
