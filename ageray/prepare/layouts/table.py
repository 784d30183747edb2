"""Any photos with their labels in one CSV or Parquet table, the manifest."""

from __future__ import annotations

from ageray.prepare import manifest
from ageray.prepare.layouts.source import Source
from ageray.prepare.manifest import Problem


def read_manifest(uri: str, dataset: str) -> Source:
    """A CSV or Parquet manifest; see `manifest.read_file`."""
    problems, notes = list[Problem](), list[Problem]()
    table, rows = manifest.read_file(uri, dataset, problems, notes)
    return Source("manifest", table, rows, problems, notes)
