"""What a pass over many photos or faces reports while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Show = Callable[[dict[str, Any]], None]
"""Receives records: `what` is done, such as "photos looked at"; how many are `done`, of `total`."""


def show_nothing(record: dict[str, Any]) -> None:
    """For a caller that shows no progress."""
