"""The finished folds of a run, on disk: each fold is written whole as it ends.

config.yaml         the settings
folds/0007.parquet  the predictions of fold 7
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ageray import config, storage
from ageray.errors import DamagedError, StoreError, UserError
from ageray.evaluate.files import CONFIG, EvaluationFiles
from ageray.experiment import Experiment

_METADATA_KEY = b"ageray"
_FOLD = re.compile(r"\d{4,}\.parquet(\.sha256)?")


@dataclass(frozen=True)
class FoldStore:
    """The folds of one experiment on one set of faces; every file carries `identity`, which names
    both."""

    files: EvaluationFiles
    identity: str

    @classmethod
    def open(cls, out: str, experiment: Experiment, faces: str, fresh: bool = False) -> FoldStore:
        """Opens the folder `out`, or creates it.

        faces: a digest of the faces. The machine (`scale`) may change between runs. `fresh` deletes
        finished folds. Raises UserError if the folder holds folds of another experiment; it names
        the first setting that differs.
        """
        files = EvaluationFiles.at(out)
        store = cls(files, f"{config.digest(experiment)}-{faces}")
        if fresh:
            _forget(files, out)
        elif storage.exists(files.config):
            _check_same_settings(files, experiment, out)
            return store
        elif storage.exists(files.folds):
            raise UserError(
                f"--out {out}: holds folds without their {CONFIG}; "
                f"give another folder, or --fresh to start anew"
            )
        storage.make_folder(files.folder)
        storage.write_text(files.config, config.dump(experiment))
        return store

    def read(self, number: int) -> pa.Table | None:
        """The table that `write` stored for the fold, None if it is not finished.

        None too for a file whose checksum is another; it is named. Raises UserError if the file is
        no fold's or belongs to other faces.
        """
        uri = self.files.fold(number)
        if not storage.exists(uri):
            return None
        try:
            table = pq.read_table(pa.BufferReader(storage.read_checked(uri)))
            metadata = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        except DamagedError as error:
            print(f"{error}; this fold is trained again", flush=True)
            return None
        except StoreError:
            raise
        except (pa.ArrowException, OSError, KeyError, ValueError):
            raise UserError(
                f"{uri}: not the file of a fold; remove it, and this fold is trained again"
            ) from None
        if metadata["identity"] != self.identity:
            raise UserError(
                f"{uri}: is a fold of other faces (the shards or model.weights have changed since); "
                f"give another folder, or --fresh to start anew"
            )
        return table

    def write(self, number: int, table: pa.Table, about: dict[str, Any]) -> None:
        """Stores a finished fold, whole or not at all. `about` goes into the file's metadata."""
        metadata = json.dumps({**about, "identity": self.identity})
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({_METADATA_KEY: metadata}), sink)
        storage.write_checked(self.files.fold(number), sink.getvalue().to_pybytes())


def _forget(files: EvaluationFiles, out: str) -> None:
    """Removes the finished folds. Raises UserError if other files are among them."""
    names = storage.names_below(files.folds)
    for name in names:
        if not _FOLD.fullmatch(name) and not storage.is_draft(name):
            raise UserError(f"--out {out}: holds folds/{name}, which ageray evaluate did not write")
    storage.remove(files.folds, names)


def _check_same_settings(files: EvaluationFiles, experiment: Experiment, out: str) -> None:
    stored = config.loads(storage.read_text(files.config), files.config)
    before, now = (each.model_dump(mode="json", exclude={"scale"}) for each in (stored, experiment))
    changes = config.differences(before, now)
    if changes:
        raise UserError(
            f"--out {out}: holds folds of other settings ({changes[0]}); "
            f"give another folder, or --fresh to start anew"
        )
