"""One model on labelled faces of one's own: a new bundle with a calibration that fits them.

Takes a model (zoo:NAME, a bundle or a run folder) and an experiment with data and protocol; writes
a bundle and gives the figures before and after.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ageray import bundle, storage
from ageray.bundle import Bundle
from ageray.calibrate.predictions import predictions
from ageray.calibration import FEW, FEW_PEOPLE, FEWEST, Calibration, OwnFaces, left_out_answers, refit
from ageray.data import protocols, splits
from ageray.data.labelled_faces import labelled_faces
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.machine.progress import Show, show_nothing
from ageray.metrics import Bootstrap, Mean, covered, with_intervals
from ageray.train.files import RunFiles

OWN_FACES = "own_faces"
"""The key of the card with what was fitted, and with the figures before and after."""

_OF_THE_SHIPPED = ("figures", "hard_faces", "validation")
"""Keys of the card that hold for the calibration before. `made_of` names the model that has
them."""

Report = dict[str, Any]


def calibrate(model: str, experiment: Experiment, out: str, show: Show = show_nothing) -> Report:
    """Fits the calibration of `model` to the faces of `experiment.data.shards`, writes the bundle
    `out` and returns the report, which is the card's `own_faces`.

    Under `protocol.name=all` every face is fitted, and the figures are those of each person by a
    fit without that person. Under any other protocol the faces of its test part are not fitted;
    the report has their figures too, under `test`. Faces that trained the model are left out.
    show: receives the progress. Needs a connected cluster. Raises UserError if there are too few
    faces, or `out` has a bundle.
    """
    loaded = bundle.load(model)
    if storage.exists(storage.join(out, bundle.CARD)):
        raise UserError(f"--out {out}: there is a bundle already; name another folder")
    shards = experiment.data.shards
    if shards is None:
        raise UserError(
            "data.shards is not set; name the folder that jobs.prepare wrote, e.g. data.shards=shards/mine"
        )
    labelled = labelled_faces(shards)
    fitted_keys, tested_keys, notes = _parts(labelled, experiment)
    rows = _with_subjects(predictions(model, loaded, experiment, labelled.num_rows, show), labelled)
    trained_N, usable_N = _among(rows, _trained_keys(model)), _usable(rows)
    own = _own_faces(rows, usable_N & ~trained_N & _among(rows, fitted_keys))
    tested = _own_faces(rows, usable_N & ~trained_N & _among(rows, tested_keys))
    if len(own) < FEWEST:
        raise UserError(
            f"data.shards={shards}: {len(own)} labelled faces can be used; a calibration needs {FEWEST}, "
            f"and {FEW} of {FEW_PEOPLE} people or more to be relied on; label more photos"
        )
    before = loaded.calibration
    after = refit(before, own)
    report: Report = {
        "data": experiment.data.name,
        **_size(own),
        "unusable": int((~usable_N).sum()),
        "trained": int(trained_N.sum()),
        "line": _line(before, after),
        "before": _figures(own, own.answers(before)),
        "after": _figures(own, left_out_answers(before, own)),
        "notes": [*notes, *_notes(loaded, own, experiment)],
    }
    if len(tested):
        figures = {"before": _figures(tested, tested.answers(before))}
        figures["after"] = _figures(tested, tested.answers(after))
        report["test"] = _size(tested) | figures
    _write(loaded, out, after, report)
    return report


def _parts(labelled: pa.Table, experiment: Experiment) -> tuple[list[str], list[str], list[str]]:
    """The keys to fit, the keys to test, and the split's notes."""
    if experiment.protocol.name == "all":
        return labelled.column("key").to_pylist(), [], []
    split = protocols.split(labelled, experiment.protocol)
    return split.parts["train"] + split.parts["val"], split.parts["test"], split.notes


def _trained_keys(model: str) -> list[str]:
    """The faces that trained a run; none for a model that does not name them."""
    run_split = RunFiles(storage.absolute(model)).split
    if model.startswith("zoo:") or not storage.exists(run_split):
        return []
    return splits.load(run_split)["train"]


def _with_subjects(rows: pa.Table, labelled: pa.Table) -> pa.Table:
    """The predictions with the column `subject` of the labels."""
    places = pc.index_in(rows.column("key"), value_set=labelled.column("key"))
    return rows.append_column("subject", labelled.column("subject").take(places))


def _usable(rows: pa.Table) -> NDArray[np.bool_]:
    """Whether a face has an age that scoring would give: (N,)."""
    fine = pc.equal(rows.column("error"), "")
    return np.asarray(pc.and_(fine, pc.invert(pc.fill_null(rows.column("refused"), False))))


def _among(rows: pa.Table, keys: list[str]) -> NDArray[np.bool_]:
    return np.asarray(pc.is_in(rows.column("key"), value_set=pa.array(keys, pa.string())))


def _own_faces(rows: pa.Table, chosen_N: NDArray[np.bool_]) -> OwnFaces:
    chosen = rows.filter(pa.array(chosen_N))
    return OwnFaces(
        chosen.column("age").to_numpy().astype(np.float64),
        np.array(chosen.column("decoded").to_pylist(), np.float64).reshape(-1, 3),
        chosen.column("widening").to_numpy().astype(np.float64),
        chosen.column("subject").to_pylist(),
    )


def _size(own: OwnFaces) -> dict[str, int]:
    return {"faces": len(own), "people": int(own.people().max()) + 1}


def _line(before: Calibration, after: Calibration) -> dict[str, float]:
    """The line from the age before to the age after."""
    slope = after.scale / before.scale
    return {"slope": round(slope, 4), "years": round(after.shift - slope * before.shift, 4)}


def _figures(own: OwnFaces, answers: tuple[Any, Any, Any]) -> dict[str, Any]:
    """MAE, bias, coverage and width of the interval, each with its 95 % bootstrap interval over
    people."""
    age_N, low_N, high_N = answers
    means = {
        "mae": Mean.over(np.abs(age_N - own.true)),
        "bias": Mean.over(age_N - own.true),
        "coverage": Mean.over(covered(own.true, low_N, high_N)),
        "width": Mean.over(high_N - low_N),
    }
    return dict(with_intervals(means, Bootstrap(len(own), own.subject)))


def _notes(loaded: Bundle, own: OwnFaces, experiment: Experiment) -> list[str]:
    """What a user must know to trust the result."""
    notes, people = [], _size(own)["people"]
    if len(own) < FEW:
        notes.append(
            f"{len(own)} faces are few: both sides of the interval got one factor; "
            f"from {FEW} faces on each side gets its own"
        )
    if people < FEW_PEOPLE:
        notes.append(
            f"{people} people are few: the interval's coverage of other people is uncertain by more than "
            f"6 points; label photos of {FEW_PEOPLE} people or more"
        )
    if all(subject is None for subject in own.subject):
        notes.append(
            "no subject is known: each face counts as another person, and figures are too good "
            "if somebody is on several photos"
        )
    if loaded.card.get("training", {}).get("data") == experiment.data.name:
        notes.append(
            f"the model was trained on '{experiment.data.name}': on faces that trained it, its errors "
            "are too small and so is the interval"
        )
    return notes


def _write(loaded: Bundle, out: str, after: Calibration, report: Report) -> None:
    """The bundle `loaded` with another calibration. Its figures are left out, because they hold
    for the calibration before."""
    card = {name: value for name, value in loaded.card.items() if name not in _OF_THE_SHIPPED}
    card["made_of"] = [
        {"name": loaded.card.get("name", loaded.card.get("model")), "identity": loaded.identity}
    ]
    card["calibration"] = replace(after, sets=loaded.calibration.sets).to_card()
    card[OWN_FACES] = report
    bundle.copy(loaded, out, card)
