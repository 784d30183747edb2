"""Records of scoring jobs: a folder for each service.

Several services of one account share `batches.records`. A service is known by its prefixes and its
API keys; one with others has a folder of its own there, and neither lists nor serves what is in
this one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from ageray.serve.allowed_paths import resolve_allowed
from ageray.serve.errors import ApiError
from ageray.serve.schemas import Batch
from ageray.serve.settings import Batches


def owner(settings: Batches, keys: Sequence[bytes]) -> str:
    """The name of a service's folder: a hash of its prefixes and of the digests of its keys, in any
    order.
    """
    identity = [
        sorted(prefix.rstrip("/") for prefix in settings.inputs),
        sorted(prefix.rstrip("/") for prefix in settings.outputs),
        sorted(key.hex() for key in keys),
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def open_folder(settings: Batches, owner: str) -> Path:
    """The service's folder, which is made if there is none.

    Records of version 0.1 lie in `batches.records` itself. Those of jobs that have ended or wait,
    and lie below the prefixes, become this service's.
    """
    root = Path(settings.records).expanduser()
    folder = root / owner
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, batch in read(root).items():
        if batch.state != "running" and _is_below(batch, settings):
            for file in (*root.glob(f"{name}.[!j]*"), root / f"{name}.json"):
                with suppress(FileNotFoundError):  # another service was first
                    file.rename(folder / file.name)
    return folder


def read(folder: Path) -> dict[str, Batch]:
    """The jobs recorded in `folder`, without records that another version wrote."""
    batches = {}
    for file in sorted(folder.glob("*.json")):
        with suppress(OSError, ValidationError):
            batch = Batch.model_validate_json(file.read_text())
            batches[batch.id] = batch
    return batches


def _is_below(batch: Batch, settings: Batches) -> bool:
    try:
        resolve_allowed(batch.input, settings.inputs, "input", itself=True)
        resolve_allowed(batch.out, settings.outputs, "out")
    except ApiError:
        return False
    return True
