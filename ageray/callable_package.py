"""Packages that can be called: `ageray.score(...)` and `ageray.evaluate(...)` have the names of the
packages that do the work, so the packages pass the call on to `ageray.api.calls`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_CALLS = "ageray.api.calls"


class CallablePackage(ModuleType):
    """A package whose call is the function of the same name in `ageray.api.calls`."""

    def __call__(self, *words: Any, **options: Any) -> Any:
        """Calls the function. It is imported only now, because it needs what lies above."""
        function = getattr(importlib.import_module(_CALLS), self.__name__.rpartition(".")[2])
        return function(*words, **options)


def make_callable(name: str) -> None:
    """Lets the package `name`, which is being imported, be called."""
    sys.modules[name].__class__ = CallablePackage
