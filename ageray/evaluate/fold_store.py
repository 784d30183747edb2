"""The folder of a run over folds: `config.yaml`, the settings, and `folds/0007.parquet`, what fold 7's model said, each written whole as it ends."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ageray import config, storage
from ageray.config.load import difference
from ageray.errors import UserError
from ageray.experiment import Experiment

CONFIG, FOLDS = "config.yaml", "folds"
_MARK = b"ageray"


@dataclass(frozen=True)
class FoldFiles:
    """A folder whose files belong to one experiment on one set of faces; `identity` names both, and is in every file."""

    folder: str
    identity: str

    @classmethod
    def of(cls, out: str, experiment: Experiment, faces: str, fresh: bool = False) -> FoldFiles:
        """Opens `out`, or makes it. faces: a digest of the faces; the machine (`scale`) does not count.

        `fresh` forgets the folds in it. Raises UserError, which names the first setting that differs, if they are another experiment's.
        """
        folder = storage.absolute(out.rstrip("/"))
        files = cls(folder, f"{config.digest(experiment)}-{faces}")
        settings = storage.join(folder, CONFIG)
        if fresh:
            storage.remove_tree(storage.join(folder, FOLDS))
        elif storage.exists(settings):
            there = config.loads(storage.read_text(settings), settings)
            if (differs := difference(there, experiment)) is not None:
                raise UserError(
                    f"--out {out}: holds folds of other settings ({differs}); give another folder, or --fresh to start anew"
                )
            return files
        elif storage.exists(storage.join(folder, FOLDS)):
            raise UserError(
                f"--out {out}: holds folds without their {CONFIG}; give another folder, or --fresh to start anew"
            )
        storage.make_folder(folder)
        storage.write_text(settings, config.dump(experiment))
        return files

    def place(self, number: int) -> str:
        """Where a fold's file is."""
        return storage.join(self.folder, FOLDS, f"{number:04d}.parquet")

    def read(self, number: int) -> pa.Table | None:
        """What `write` wrote of the fold, None if it did not yet. Raises UserError if it was written of other faces."""
        place = self.place(number)
        if not storage.exists(place):
            return None
        try:
            table = pq.read_table(pa.BufferReader(storage.read_bytes(place)))
            mark = json.loads((table.schema.metadata or {})[_MARK])
        except (pa.ArrowException, OSError, KeyError, ValueError):
            raise UserError(
                f"{place}: not the file of a fold; remove it, and this fold is trained again"
            ) from None
        if mark["identity"] != self.identity:
            raise UserError(
                f"{place}: is a fold of other faces (the shards or model.weights have changed since); give another folder, or --fresh to start anew"
            )
        return table

    def write(self, number: int, table: pa.Table, about: dict[str, Any]) -> None:
        """Keeps a finished fold: the file is there whole or not at all. `about` goes into its metadata."""
        mark = json.dumps({**about, "identity": self.identity})
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({_MARK: mark}), sink)
        storage.write_bytes(self.place(number), sink.getvalue().to_pybytes())
