"""Ages from faces, at scale, on Ray.

    import ageray

    model = ageray.load()
    for face in model.ages("photo.jpg"):
        print(face.age, face.interval, face.box)

`load`, `Model`, `score`, `evaluate`, `Client` and `UserError` are imported when they are first
used, so `import ageray` takes milliseconds: torch and Ray are imported by what needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ageray.api.calls import evaluate, score
    from ageray.api.client import Client, ServiceError
    from ageray.api.model import Model, load
    from ageray.errors import UserError

__version__ = "0.2.0"

__all__ = ["Client", "Model", "ServiceError", "UserError", "__version__", "evaluate", "load", "score"]

_HOMES = {
    "Client": "ageray.api.client",
    "ServiceError": "ageray.api.client",
    "Model": "ageray.api.model",
    "UserError": "ageray.errors",
    "load": "ageray.api.model",
}


def __getattr__(name: str) -> Any:
    """An attribute that is imported when it is first used."""
    if name in ("evaluate", "score"):  # packages that can be called
        return import_module(f"ageray.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'ageray' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
