"""The page of one model: what the split leaks first, then the figures, then the faces.

Takes the report and the predictions, writes report.html. `_SECTIONS` lists the sections in order;
their text is in `evaluation.html`, their tables and plots in `tables` and `plots`.
Shape letters: N faces, D size of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ageray import metrics, storage
from ageray.evaluate.files import EvaluationFiles
from ageray.evaluate.page import embedding, plots, tables
from ageray.report.cells import Cell, minus, percent, years
from ageray.report.page import describe_model, render
from ageray.report.pictures import face_pictures

Ages = NDArray[np.float64]

WORST = 24
"""Number of faces with the largest errors that are shown."""

_LISTED = 50  # faces that cannot be used
_FINDINGS = ("leak:", "labels:")  # lines of an audit that begin so are warnings
_SECTIONS = (
    ("audit", "Audit"),
    ("accuracy", "Accuracy"),
    ("ages", "By age"),
    ("people", "By gender and group"),
    ("intervals", "Intervals"),
    ("risk_coverage", "Risk-coverage"),
    ("challenge", "Age checks"),
    ("photos", "Several photos"),
    ("classifiers", "Classifiers"),
    ("embedding", "Embedding"),
    ("gallery", "Gallery"),
    ("worst", "Worst faces"),
    ("unusable", "Not usable"),
    ("model", "Model"),
    ("method", "Method"),
)
"""Id and link of each section, in the page's order. A section without content is left out."""


def evaluation_report(
    folder: str, report: dict[str, Any], predictions: pa.Table, embedded: pa.Table | None = None
) -> None:
    """Writes `report.html` into the folder of an evaluation.

    report: what goes into report.json, see `ageray.evaluate.results.build`.
    predictions: a row per face, with `key`, `age`, `error`, `predicted`, `low` and `high`, years.
    embedded: `key`, `age` and `embedding` of some of the faces, or None.
    The pictures of the worst faces come from the shards that the report names; without these shards
    the faces are listed without pictures.
    """
    usable = pc.and_(pc.equal(predictions.column("error"), ""), pc.is_finite(predictions.column("predicted")))
    fine = predictions.filter(usable)
    sections = {
        "audit": _audit(report),
        "accuracy": _accuracy(report, fine),
        "ages": _ages(report),
        "people": list(tables.by_label(report)),
        "intervals": _intervals(report),
        "risk_coverage": _risk_coverage(report, fine),
        "challenge": _challenge(report),
        "photos": tables.people(report),
        "classifiers": _classifiers(report),
        "embedding": _embedding(embedded),
        "gallery": tables.gallery(report),
        "worst": _worst(report["data"].get("shards"), fine),
        "unusable": _unusable(report),
        "model": _model(report),
        "method": _method(report),
    }
    html = render(
        "evaluation.html",
        folder=Path(__file__).parent,
        title=f"{report['model']['name']} on {report['data']['name']}",
        facts=_facts(report),
        tiles=_tiles(report),
        navigation=[(name, link) for name, link in _SECTIONS if sections[name]],
        warnings=report["warnings"],
        notes=report["notes"],
        **sections,
    )
    storage.write_text(EvaluationFiles(folder).page, html)


# --- header ---------------------------------------------------------------------------------------


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    model, data = report["model"], report["data"]
    model_text, data_text = f"{model['name']}: {model['network']}", str(data["name"])
    if model.get("identity"):
        model_text += f", {model['identity']}"
    if data.get("shards"):
        data_text += f", shards in {data['shards']}"
    facts = [("Model", model_text), ("Data", data_text), ("Protocol", _protocol(report["protocol"]))]
    if report.get("finished"):
        facts.append(("Finished", str(report["finished"])))
    return facts


def _protocol(protocol: dict[str, Any]) -> str:
    """The protocol's name, and the settings that decide what is tested."""
    name = str(protocol["name"])
    parts = [name]
    if protocol.get("folds_run"):
        parts.append(f"all of {protocol['folds_run']} folds")
    elif protocol.get("folds"):
        parts.append(f"fold {protocol['fold']} of {protocol['folds']}, counted from 0")
    elif name in ("subject_exclusive", "random"):
        parts.append(f"{protocol['test']:.0%} for the test")
    elif name in ("lopo", "s1_s2_s3"):
        parts.append(f"fold {protocol['fold']}")
    if protocol.get("file"):
        parts.append(f"parts from {protocol['file']}")
    if name not in ("all", "cacd", "fixed") and protocol.get("seed") is not None:
        parts.append(f"seed {protocol['seed']}")
    return ", ".join(parts)


def _tiles(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and small print of the figures at the top."""
    overall, bootstrap = report["estimates"]["overall"], report["bootstrap"]
    shares = {row["years"]: row["share"] for row in overall["cs"]}
    mae, within, bias = years(overall["mae"]), percent(shares[5]), years(overall["bias"], signed=True)
    coverage, width = percent(overall["coverage"]), years(overall["width"], digits=1)
    units = "subjects not known"
    if bootstrap["unit"] == "subject":
        units = f"{bootstrap['units']:,} subjects"
    covers = f"{report['interval']['level']:.0%} interval covers"
    return [
        ("MAE (years)", mae.text, _interval(mae, bootstrap)),
        ("Error of at most 5 years", within.text, _interval(within, bootstrap)),
        ("Bias (years)", bias.text, _interval(bias, bootstrap)),
        (covers, coverage.text, f"{width.text} years wide on average"),
        ("Faces", f"{report['images']:,}", units),
    ]


def _interval(cell: Cell, bootstrap: dict[str, Any]) -> str:
    if not cell.interval:
        return "too few for an interval"
    return f"{bootstrap['level']:.0%} interval {cell.interval}"


# --- sections -------------------------------------------------------------------------------------


def _audit(report: dict[str, Any]) -> dict[str, Any]:
    audit = report["audit"]
    section: dict[str, Any] = {"against": audit["against"], "findings": [], "lines": []}
    for line in audit["lines"]:
        kind = "findings" if line.startswith(_FINDINGS) else "lines"
        section[kind].append(line)
    section |= {"floors": tables.floors(report), "leaks": None, "conflicts": None}
    section |= {"near_duplicates": None, "ages": None, "parts": []}
    if audit["against"] is not None:
        section["leaks"] = tables.leaks(audit)
        section["conflicts"] = tables.conflicts(audit)
        section["near_duplicates"] = tables.near_duplicates(audit)
        section["ages"] = plots.age_shares(audit["ages"])
        section["parts"] = list(tables.make_up(audit))
    return section


def _accuracy(report: dict[str, Any], fine: pa.Table) -> dict[str, Any]:
    true_N, predicted_N = _columns(fine, "age", "predicted")
    curve, constant = report["estimates"]["overall"]["cs"], report["constant"]
    floor = constant["training_median"] or constant["own_median"]
    limits = [row["years"] for row in curve]
    floor_curve = metrics.cumulative_scores(true_N, np.full_like(true_N, floor["age"]), limits)
    against, caption = plots.predicted_against_true(true_N, predicted_N)
    return {
        "table": tables.overall(report),
        "level": f"{report['bootstrap']['level']:.0%}",
        "against": against,
        "against_caption": caption,
        "cs": plots.cs_curve(curve, floor_curve),
        "floor": f"{floor['age']:g}",
        "errors": plots.errors(predicted_N - true_N),
    }


def _ages(report: dict[str, Any]) -> dict[str, Any]:
    bands = report["estimates"]["by_age"]
    return {"table": tables.by_age(report), "mae": plots.mae_by_age(bands), "bias": plots.bias_by_age(bands)}


def _intervals(report: dict[str, Any]) -> dict[str, Any]:
    estimates, level = report["estimates"], report["interval"]["level"]
    curve = estimates["calibration"]
    return {
        "calibration": plots.calibration(curve) if curve else None,
        "coverage": plots.coverage_by_age(estimates["by_age"], level),
    }


def _risk_coverage(report: dict[str, Any], fine: pa.Table) -> dict[str, Any]:
    curve = report["estimates"]["risk_coverage"]["curve"]
    true_N, predicted_N = _columns(fine, "age", "predicted")
    # with intervals as wide as the error, the order is the best one
    best = metrics.risk_coverage(true_N, predicted_N, np.zeros_like(true_N), np.abs(predicted_N - true_N))
    return {"figure": plots.risk_coverage(curve, best["curve"]), "table": tables.risk_coverage(report)}


def _challenge(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "overall": tables.challenge(report),
        "by_age": tables.challenge_by_age(report),
        "by_label": list(tables.challenge_by_label(report)),
        "checks": list(tables.age_checks(report)),
        "young": _young(report),
    }


def _young(report: dict[str, Any]) -> str | None:
    """NIST's mean absolute error of young adults, for a reader."""
    young = report["estimates"].get("young_adults")
    if young is None or young["mae"]["value"] is None:
        return None
    return f"MAE over ages {young['ages'][0]} to {young['ages'][1]}: {years(young['mae']).text} years"


def _classifiers(report: dict[str, Any]) -> Any:
    rows = report.get("classifiers")
    return plots.classifiers(rows) if rows else None


def _embedding(embedded: pa.Table | None) -> dict[str, Any] | None:
    if embedded is None or embedded.num_rows < 3:
        return None
    rows = np.linspace(0, embedded.num_rows - 1, min(embedded.num_rows, embedding.MOST_FACES)).astype(int)
    chosen = embedded.take(rows)
    vectors_ND = np.asarray(chosen.column("embedding").to_pylist(), np.float64)
    place_N2, caption = embedding.in_the_plane(vectors_ND)
    (age_N,) = _columns(chosen, "age")
    return {"figure": plots.embedding_map(place_N2, age_N), "caption": caption, "faces": f"{len(rows):,}"}


def _worst(shards: str | None, fine: pa.Table) -> list[dict[str, str]]:
    """The faces with the largest errors: `key`, `source` of the picture, and the ages as text."""
    true_N, predicted_N, low_N, high_N = _columns(fine, "age", "predicted", "low", "high")
    keys = fine.column("key").to_pylist()
    order = np.lexsort((np.asarray(keys), -np.abs(predicted_N - true_N)))[:WORST]
    pictures = face_pictures(shards, {keys[row] for row in order})
    faces = []
    for row in order:
        faces.append(
            {
                "key": keys[row],
                "source": pictures.get(keys[row], ""),
                "true": f"{true_N[row]:g}",
                "predicted": minus(f"{predicted_N[row]:.1f}"),
                "range": minus(f"{low_N[row]:.0f} to {high_N[row]:.0f}"),
                "error": minus(f"{predicted_N[row] - true_N[row]:+.1f}"),
            }
        )
    return faces


def _unusable(report: dict[str, Any]) -> dict[str, Any]:
    faces = list(report["unusable"].items())
    return {"faces": faces[:_LISTED], "total": len(faces)}


def _model(report: dict[str, Any]) -> dict[str, Any] | None:
    card = report.get("card")
    return describe_model(card) if card else None


def _method(report: dict[str, Any]) -> list[tuple[str, str]]:
    bootstrap, level = report["bootstrap"], report["interval"]["level"]
    unit = bootstrap["unit"]
    return [
        ("Ages", "Years. Predictions are not rounded; CS(T) counts an error of exactly T."),
        (
            "Interval of a face",
            f"{level:.0%}: from the low to the high end of the calibrated prediction, ends included.",
        ),
        (
            "Intervals of figures",
            f"{bootstrap['level']:.0%}, {bootstrap['resamples']:,} resamples of {bootstrap['units']:,} "
            f"{unit}s (seed {bootstrap['seed']}): {bootstrap['method']}. "
            f"None over fewer than {bootstrap['fewest_units']} {unit}s.",
        ),
        (
            "Faces without a prediction",
            f"{report['missing']:,}, left out of every figure but the epsilon-error, which counts each as 1.",
        ),
    ]


def _columns(table: pa.Table, *names: str) -> Sequence[Ages]:
    return [table.column(name).to_numpy().astype(np.float64) for name in names]
