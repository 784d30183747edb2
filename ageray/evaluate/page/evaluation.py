"""The page of an evaluation: what the split leaks first, then the figures, then the faces. Shape letters: N faces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ageray import metrics, storage
from ageray.evaluate.page import embedding, plots, tables
from ageray.report.cells import Cell, Table, minus, percent, years
from ageray.report.page import PAGE, describe_model, render
from ageray.report.pictures import face_pictures

Ages = NDArray[np.float64]

WORST = 24
"""Faces with the largest errors that are shown."""

_LISTED = 50  # faces that cannot be used
_FINDINGS = ("leak:", "labels:")  # what lines of an audit begin with that must not be overlooked


def evaluation_report(
    folder: str, report: dict[str, Any], predictions: pa.Table, embedded: pa.Table | None = None
) -> None:
    """Writes `report.html` into the folder of an evaluation.

    report: what goes into report.json: `ageray.metrics.full_report` with `model`, `data`, `protocol`, `notes`, `warnings`, `unusable`, `card`,
    `audit` and, where the model has them, `classifiers`, `gallery` and `gender`.
    predictions: one row a face, with `key`, `age`, `error`, `predicted`, `low` and `high`, years.
    embedded: `key`, `age` and `embedding` of some of the faces, or None.
    The worst faces' pictures come from the shards named in `report["data"]`; where these are gone, the faces are listed without.
    """
    fine = predictions.filter(
        pc.and_(pc.equal(predictions.column("error"), ""), pc.is_finite(predictions.column("predicted")))
    )
    html = render(
        "evaluation.html",
        title=f"{report['model']['name']} on {report['data']['name']}",
        facts=_facts(report),
        tiles=_tiles(report),
        report=report,
        audit=_audit(report),
        floors=tables.floors(report),
        accuracy={"table": tables.overall(report), **_accuracy_figures(report, fine)},
        by_age=_by_age(report),
        by_label=list(tables.by_label(report)),
        intervals=_intervals(report),
        refusal=_refusal(report, fine),
        challenge=_challenge(report),
        classifiers=plots.classifiers(report["classifiers"]) if report.get("classifiers") else None,
        embedding=_embedding(embedded),
        gallery=_gallery(report),
        worst=_worst(report["data"].get("shards"), fine),
        unusable=list(report["unusable"].items())[:_LISTED],
        card=describe_model(report["card"]) if report.get("card") else None,
        method=_method(report),
    )
    storage.write_text(storage.join(folder, PAGE), html)


# --- header ---------------------------------------------------------------------------------------------------------


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    model, data = report["model"], report["data"]
    facts = [
        (
            "Model",
            f"{model['name']}: {model['network']}"
            + (f", {model['identity']}" if model.get("identity") else ""),
        ),
        ("Data", f"{data['name']}" + (f", shards in {data['shards']}" if data.get("shards") else "")),
        ("Protocol", _protocol(report["protocol"])),
    ]
    return facts + ([("Finished", str(report["finished"]))] if report.get("finished") else [])


def _protocol(protocol: dict[str, Any]) -> str:
    """Its name and the settings that matter for what was tested."""
    said = [str(protocol["name"])]
    if protocol.get("folds_run"):
        said.append(f"all of {protocol['folds_run']} folds")
    elif protocol.get("folds"):
        said.append(f"fold {protocol['fold']} of {protocol['folds']}, counted from 0")
    elif protocol["name"] in ("subject_exclusive", "random"):
        said.append(f"{protocol['test']:.0%} for the test")
    elif protocol["name"] in ("lopo", "s1_s2_s3"):
        said.append(f"fold {protocol['fold']}")
    if protocol.get("file"):
        said.append(f"parts from {protocol['file']}")
    if protocol["name"] not in ("all", "cacd", "fixed") and protocol.get("seed") is not None:
        said.append(f"seed {protocol['seed']}")
    return ", ".join(said)


def _tiles(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    found, bootstrap = report["estimates"]["overall"], report["bootstrap"]
    curve = {row["years"]: row["share"] for row in found["cs"]}
    mae, within, bias = years(found["mae"]), percent(curve[5]), years(found["bias"], signed=True)
    coverage, width = percent(found["coverage"]), years(found["width"], digits=1)
    units = f"{bootstrap['units']:,} subjects" if bootstrap["unit"] == "subject" else "subjects not known"
    return [
        ("MAE (years)", mae.text, _known_to(mae, bootstrap)),
        ("Error of at most 5 years", within.text, _known_to(within, bootstrap)),
        ("Bias (years)", bias.text, _known_to(bias, bootstrap)),
        (
            f"{report['interval']['level']:.0%} interval holds",
            coverage.text,
            f"{width.text} years wide on average",
        ),
        ("Faces", f"{report['images']:,}", units),
    ]


def _known_to(cell: Cell, bootstrap: dict[str, Any]) -> str:
    return (
        f"{bootstrap['level']:.0%} interval {cell.interval}" if cell.interval else "too few for an interval"
    )


# --- sections -------------------------------------------------------------------------------------------------------


def _audit(report: dict[str, Any]) -> dict[str, Any]:
    audit = report["audit"]
    lines = audit["lines"]
    said = {
        "against": audit["against"],
        "findings": [line for line in lines if line.startswith(_FINDINGS)],
        "lines": [line for line in lines if not line.startswith(_FINDINGS)],
    }
    if audit["against"] is None:
        return said | {"leaks": None, "conflicts": None, "twins": None, "ages": None, "parts": []}
    return said | {
        "leaks": tables.leaks(audit),
        "conflicts": tables.conflicts(audit),
        "twins": tables.twins(audit),
        "ages": plots.age_shares(audit["ages"]),
        "parts": list(tables.make_up(audit)),
    }


def _accuracy_figures(report: dict[str, Any], fine: pa.Table) -> dict[str, Any]:
    true_N, predicted_N = _columns(fine, "age", "predicted")
    curve, constant = report["estimates"]["overall"]["cs"], report["constant"]
    floor = constant["training_median"] or constant["own_median"]
    always = metrics.cumulative_scores(
        true_N, np.full_like(true_N, floor["age"]), [row["years"] for row in curve]
    )
    against, cloud = plots.predicted_against_true(true_N, predicted_N)
    drawn = {"against": against, "cloud": cloud, "errors": plots.errors(predicted_N - true_N)}
    return {"cs": plots.cs_curve(curve, always), "constant": floor["age"], **drawn}


def _by_age(report: dict[str, Any]) -> dict[str, Any]:
    bands = report["estimates"]["by_age"]
    return {"table": tables.by_age(report), "mae": plots.mae_by_age(bands), "bias": plots.bias_by_age(bands)}


def _intervals(report: dict[str, Any]) -> dict[str, Any]:
    estimates = report["estimates"]
    return {
        "calibration": plots.calibration(estimates["calibration"]) if estimates["calibration"] else None,
        "coverage": plots.coverage_by_age(estimates["by_age"], report["interval"]["level"]),
    }


def _refusal(report: dict[str, Any], fine: pa.Table) -> dict[str, Any]:
    found = report["estimates"]["risk_coverage"]
    true_N, predicted_N = _columns(fine, "age", "predicted")
    # an interval as wide as the error is: the order of an oracle
    best = metrics.risk_coverage(true_N, predicted_N, np.zeros_like(true_N), np.abs(predicted_N - true_N))
    rows = [
        ("Area under the curve (years)", years(found["aurc"])),
        ("With the best order, that of the errors", years(found["aurc_best"])),
        ("Without any order", years(found["aurc_without_order"])),
    ]
    return {"figure": plots.refusal(found["curve"], best["curve"]), "table": Table(("", "AURC"), rows)}


def _challenge(report: dict[str, Any]) -> dict[str, Any]:
    by_label = list(tables.challenge_by_label(report))
    return {
        "overall": tables.challenge(report),
        "by_age": tables.challenge_by_age(report),
        "by_label": by_label,
    }


def _embedding(embedded: pa.Table | None) -> dict[str, Any] | None:
    if embedded is None or embedded.num_rows < 3:
        return None
    rows = np.linspace(0, embedded.num_rows - 1, min(embedded.num_rows, embedding.MOST_FACES)).astype(int)
    chosen = embedded.take(rows)
    vectors_ND = np.asarray(chosen.column("embedding").to_pylist(), np.float64)
    place_N2, how = embedding.in_the_plane(vectors_ND)
    (age_N,) = _columns(chosen, "age")
    return {"figure": plots.embedding_map(place_N2, age_N), "how": how, "faces": len(rows)}


def _gallery(report: dict[str, Any]) -> Table | None:
    rows: list[tuple[str, str | Cell]] = []
    if (found := report.get("gallery")) is not None:
        rows += [
            ("Faces in the gallery", f"{found['faces']:,}"),
            ("Neighbours that ages came from", f"{found['neighbours']:,.0f}"),
            ("Of them of the face's own subject", percent(found["same_subject_share"])),
            ("Neighbours left out as such", f"{found['same_subject_excluded']:,.0f}"),
            ("Faces without a neighbour: their age is a guess", f"{found['without_neighbours']:,}"),
        ]
    if (found := report.get("gender")) is not None:
        rows.append(
            (
                f"Gender told rightly by the nearest faces ({found['by']}), of {found['faces']:,} faces",
                percent(found["accuracy"]),
            )
        )
    return Table(("", ""), rows) if rows else None


def _worst(shards: str | None, fine: pa.Table) -> list[dict[str, str]]:
    true_N, predicted_N, low_N, high_N = _columns(fine, "age", "predicted", "low", "high")
    keys = fine.column("key").to_pylist()
    order = np.lexsort((np.asarray(keys), -np.abs(predicted_N - true_N)))[:WORST]
    pictures = face_pictures(shards, {keys[row] for row in order})
    return [
        {
            "key": keys[row],
            "source": pictures.get(keys[row], ""),
            "true": f"{true_N[row]:g}",
            "predicted": minus(f"{predicted_N[row]:.1f}"),
            "range": minus(f"{low_N[row]:.0f} to {high_N[row]:.0f}"),
            "error": minus(f"{predicted_N[row] - true_N[row]:+.1f}"),
        }
        for row in order
    ]


def _method(report: dict[str, Any]) -> list[tuple[str, str]]:
    made = report["bootstrap"]
    drawn = f"{made['resamples']:,} resamples of {made['units']:,} {made['unit']}s (seed {made['seed']})"
    return [
        ("Ages", "Years. Predictions are not rounded; CS(T) counts an error of exactly T."),
        (
            "Interval of a face",
            f"{report['interval']['level']:.0%}: the calibrated prediction's low and high ends, both included.",
        ),
        (
            "Intervals of figures",
            f"{made['level']:.0%}, {drawn}: {made['method']}. None over fewer than {made['fewest_units']} {made['unit']}s.",
        ),
        (
            "Faces without a prediction",
            f"{report['missing']:,}, left out of every figure but the epsilon-error, which counts each as 1.",
        ),
    ]


def _columns(table: pa.Table, *names: str) -> Sequence[Ages]:
    return [table.column(name).to_numpy().astype(np.float64) for name in names]
