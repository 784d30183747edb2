"""`ageray.score(...)` and `ageray.evaluate(...)`: the commands as functions."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from ageray import storage
from ageray.errors import UserError
from ageray.evaluate.settings import evaluation_settings
from ageray.machine.progress import show_nothing
from ageray.score.settings import scoring_settings

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from ageray.stages.columns import Search


@dataclass(frozen=True)
class Scores:
    """A complete scores folder."""

    out: str
    summary: dict[str, Any]
    """The content of `_summary.json`."""

    def to_arrow(self) -> pa.Table:
        """The rows of all faces, in the order of the photos (`ageray.schema.SCORES`)."""
        return self._read("part-")

    def to_pandas(self) -> pd.DataFrame:
        """The rows of all faces as a DataFrame."""
        return self.to_arrow().to_pandas()

    def errors(self) -> pa.Table:
        """The rows of photos without a face and of faces without an age; `error` says why."""
        return self._read("errors")

    def _read(self, start: str) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from ageray import schema

        form = self.summary["plan"].get("format", "parquet")
        if form != "parquet":
            raise UserError(f"{self.out}: its tables are .{form}; read those, or score without format")
        tables = []
        for file in sorted(storage.list_files(self.out, (".parquet",))):
            if file.rpartition("/")[2].startswith(start):
                tables.append(pq.read_table(io.BytesIO(storage.read_bytes(file))))
        return pa.concat_tables(tables) if tables else schema.SCORES.empty_table()


def score(
    inputs: Any,
    out: str,
    *,
    model: str = "zoo:default",
    settings: Sequence[str] = (),
    detect: Search = "auto",
    **options: Any,
) -> Scores:
    """What `ageray score` does: the ages of all faces in a collection of photos.

    inputs: INPUT of the command: a folder, a manifest, tables, face shards; local or a url; or
    several of one kind. out: the folder to write, or a file `.csv`, `.jsonl`, `.parquet`, whose
    folder is `NAME.scores`. model: `zoo:NAME`, a bundle or a run folder. settings: files and
    `key=value` of scale, storage and data.detect. detect: `auto`, `always` or `never`. options:
    `posterior`, `fresh`, `on_progress`, `format`; see `ageray.score.run.score`.

    An interrupted run resumes; a complete result is returned as it is. Runs on the cluster of
    RAY_ADDRESS, else on this machine. Raises UserError for the user's mistakes.
    """
    experiment = scoring_settings(model, settings)
    _use_storage(experiment.storage.endpoint_url)

    from ageray.score import export, run

    locations = [str(inputs)] if isinstance(inputs, str | PathLike) else list(map(str, inputs))
    target = export.target(str(out), locations)
    summary = run.score(
        locations,
        target.folder,
        model,
        experiment.scale,
        detect=experiment.data.detect,
        search=detect,
        **options,
    )
    if target.file:
        export.one_file(target)
    return Scores(target.folder, summary)


def evaluate(
    models: str | Sequence[str],
    out: str,
    *,
    settings: Sequence[str] = (),
    trained_on: str | None = None,
    on_progress: Callable[[dict[str, Any]], None] = show_nothing,
) -> dict[str, Any]:
    """What `ageray evaluate` does with one model or several on one labelled set.

    models: MODEL, or several, which are compared face by face. out: the folder to write. settings:
    files, names such as `data:fgnet` and `key=value` of data, protocol and scale; by default the
    set and the protocol of the model's training. trained_on: shards that the model was trained on,
    for the audit. on_progress: receives records of `what` is done, `done` and `total`.

    Returns the content of `report.json`: figures with intervals. Raises UserError for the user's
    mistakes.
    """
    names = [models] if isinstance(models, str) else list(models)
    experiments = [evaluation_settings(name, settings) for name in names]
    _use_storage(experiments[0].storage.endpoint_url)

    from ageray.evaluate.run import evaluate_models

    return evaluate_models(names, experiments, out, trained_on, on_progress)


def _use_storage(url: str | None) -> None:
    if url is not None:
        storage.use_endpoint(url)
