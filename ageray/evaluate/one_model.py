"""One model on a labelled set: predictions, audit, figures, page.

Takes a model (zoo:NAME, a bundle or a run folder) and an experiment with data and protocol; writes
an evaluation folder and gives the report.
"""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ageray import bundle, config, storage
from ageray.bundle import Bundle
from ageray.data import protocols, splits
from ageray.data.labelled_faces import labelled_faces
from ageray.data.splits import train_digest
from ageray.errors import UserError
from ageray.evaluate import results, split_audit
from ageray.evaluate.files import EvaluationFiles
from ageray.evaluate.page.evaluation import evaluation_report
from ageray.evaluate.predictions import predictions
from ageray.experiment import Experiment
from ageray.machine.progress import Show, show_nothing


def evaluate(
    model: str,
    experiment: Experiment,
    out: str,
    trained_on: str | None = None,
    show: Show = show_nothing,
) -> dict[str, Any]:
    """Predicts the test part of `experiment.data` under `experiment.protocol`; returns the report.

    Writes report.html, report.json, predictions.parquet and split.parquet to the folder `out`.
    Alignment is the bundle's. So is decoding, unless `experiment.model.decode` or
    `experiment.train.calibrate` differ from it. `trained_on`: shards that the model was trained on,
    for the audit; by default those that its settings name. Needs a connected cluster.
    show: receives the progress. Raises UserError if there are no shards or no test face.
    """
    own = bundle.load(model)
    loaded = own.decoding(experiment.model.decode, experiment.train.calibrate)
    shards = experiment.data.shards
    if shards is None:
        raise UserError(
            "data.shards is not set; name the folder that ageray prepare wrote, e.g. data.shards=shards/fgnet"
        )
    faces = labelled_faces(shards)
    split = protocols.split(faces, experiment.protocol)
    if not split.parts["test"]:
        raise UserError(
            f"protocol.name={experiment.protocol.name}: leaves no face to test; "
            f"raise protocol.test, or set protocol.name=all"
        )
    training = split_audit.training_side(model, loaded, experiment, faces, split.parts, trained_on)
    files = EvaluationFiles.at(out)
    storage.make_folder(files.folder)
    splits.save(files.split, split.parts)
    predicted = predictions(model, loaded, experiment, files.split, split.parts["test"], show)
    rows = results.with_labels(predicted.rows, faces)
    _check_usable(rows, shards)
    report = results.build(
        rows,
        model=_model(model, loaded),
        data=experiment.data,
        protocol=experiment.protocol.model_dump(),
        notes=split.notes,
        warnings=[
            *_decoding(own, loaded),
            *_unlabelled(shards, faces.num_rows),
            *_leak(loaded, experiment, split.parts),
        ],
        audit=split_audit.audited(training, faces, split.parts["test"], shards),
    )
    write(files, rows, report, predicted.embedded)
    return report


def write(files: EvaluationFiles, rows: pa.Table, report: dict[str, Any], embedded: pa.Table | None) -> None:
    """Writes predictions, page and, last, report.json."""
    sink = io.BytesIO()
    pq.write_table(rows, sink)
    storage.write_bytes(files.predictions, sink.getvalue())
    evaluation_report(files.folder, report, rows, embedded)
    storage.write_text(files.report, json.dumps(report, indent=1) + "\n")


def _model(name: str, loaded: Bundle) -> results.Model:
    decode, training = loaded.experiment.model.decode, loaded.card.get("training", {})
    return results.Model(
        name=name,
        network=loaded.experiment.model.name,
        identity=loaded.identity,
        training_median=training.get("train_ages", {}).get("median"),
        classifiers=loaded.network().classifier_names,
        gallery=loaded.card["gallery"] if decode.method == "gallery" else None,
        exclude_subject=decode.gallery.exclude_subject,
        card=loaded.card,
        correlation=loaded.calibration.correlation,
    )


def _check_usable(rows: pa.Table, shards: str) -> None:
    """Raises UserError if no test face has a prediction."""
    unusable = results.unusable(rows)
    if len(unusable) == rows.num_rows:
        raise UserError(
            f"data.shards={shards}: no test face can be used; "
            f"the first of {rows.num_rows}: {next(iter(unusable.values()))}"
        )


def _unlabelled(shards: str, labelled: int) -> list[str]:
    """A warning if some rows of the shards have no age."""
    rows = 0
    for file in storage.list_files(shards, (".parquet",)):
        filesystem, path = storage.filesystem(file)
        rows += pq.read_metadata(path, filesystem=filesystem).num_rows
    if rows == labelled:
        return []
    return [f"{rows - labelled} of {rows} faces have no age and are left out"]


def _decoding(own: Bundle, loaded: Bundle) -> list[str]:
    """Warnings if the model is decoded in another way than it was calibrated for."""
    warnings = []
    before, now = (each.experiment.model.decode.model_dump(mode="json") for each in (own, loaded))
    changes = config.differences(before, now)
    calibrated = "calibration" in loaded.card
    if changes:
        text = "the calibration was fitted before that" if calibrated else "ages are not calibrated"
        warnings.append(f"decoded with {', '.join(changes)}; {text}")
    if "calibration" in own.card and not calibrated:
        warnings.append("train.calibrate=false: ages are those of the decoding, intervals the posterior's")
    return warnings


def _leak(loaded: Bundle, experiment: Experiment, parts: dict[str, list[str]]) -> list[str]:
    """A warning if the model may have been trained on faces that are tested."""
    training = loaded.card.get("training", {})
    name = experiment.data.name
    if training.get("data") != name:
        return []
    if experiment.protocol.name == "all":
        return [
            f"the model was trained on '{name}': with protocol.name=all its training faces are tested too"
        ]
    if training.get("train_digest") not in (None, train_digest(parts["train"])):
        return [
            "this split is not the one the model was trained on (other shards, protocol, shares, fold or "
            "seed): test faces may have been trained on"
        ]
    return []
