"""Calibrates a bundle on several sets and writes its card: all figures by one command, the same for
every model that ships.

python benchmarks/card.py MODEL --facts FACTS.yaml --out BUNDLE --training
NAME=SHARDS@SPLIT.parquet#train ... --calibrate NAME=SHARDS@SPLIT.parquet#val ... --test
NAME=SHARDS@SPLIT.parquet#test ... [--unseen NAME=SHARDS ...] [--faces 1500] [--hard 150] [--cache
DIR]

Steps: the features of --training faces (1,000 of each set) give the distance behind `unusual`.
--calibrate faces, and degraded copies of some of them (--hard of each set), fit line, intervals,
quality and age checks. --test and --unseen sets give the figures, degraded --calibrate faces the
table of hard faces. FACTS holds the text of the card: see `ageray.card.build_card`. The network's
predictions are cached in --cache, so that an interrupted command goes on.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import cv2
import hard_faces
import numpy as np
import torch
import yaml
from hard_faces import Raw, Source
from numpy.typing import NDArray

from ageray import bundle
from ageray.calibration import Calibration, CalibrationSet, fit_mixture
from ageray.card import Predicted, build_card
from ageray.errors import UserError
from ageray.faces.degrade import KINDS
from ageray.faces.quality import MEASURES
from ageray.models.decode import bins
from ageray.models.distance import RANK, FeatureDistance
from ageray.predictor import Predictor

_TAUGHT = tuple(kind for kind in KINDS if kind != "none")
"""Degradations whose copies teach `quality`."""


def main() -> None:
    """Writes the bundle."""
    given = _parser().parse_args()
    cv2.setNumThreads(1)
    facts = yaml.safe_load(Path(given.facts).read_text())
    out = Path(given.out)
    loaded = bundle.load(given.model)
    shutil.copytree(bundle.resolve(given.model), out, dirs_exist_ok=True)
    card = dict(loaded.card)
    for name in ("calibration", "features", "figures"):
        card.pop(name, None)
    cache = Path(given.cache or f"{out}.cache") / loaded.identity
    distance = _distance(Predictor(loaded, threads=given.threads), given, cache / "features.npy")
    card = bundle.add_distance(str(out), card, distance)
    bundle.write_card(str(out), card)
    predictor = Predictor(bundle.load(str(out)), threads=given.threads)
    raws = _predict(predictor, given, cache)
    calibration = _fit(raws, given, predictor)
    bundle.write_card(str(out), {**card, "calibration": calibration.to_card()})
    predictor = Predictor(bundle.load(str(out)), threads=given.threads)
    hard = list(hard_faces.table(predictor, _hard(raws, given)))
    tested = []
    for source in given.test:
        tested.append(_predicted(predictor, raws["test", source.name], source.name, True))
    for source in given.unseen:
        tested.append(_predicted(predictor, raws["unseen", source.name], source.name, False))
    median = card.get("training", {}).get("train_ages", {}).get("median")
    final = build_card(
        {**card, "calibration": calibration.to_card()}, facts, tested, hard, median, calibration.correlation
    )
    bundle.write_card(str(out), final)
    hard_faces.show(hard)
    for name, row in final["figures"].items():
        interval = f"covers {row['interval_coverage']:.3f}, width {row['interval_mean_width']:.1f}"
        print(f"{name}: MAE {row['mae']:.2f}, bias {row['bias']:+.2f}, {interval}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--facts", required=True)
    parser.add_argument("--out", required=True)
    for name in ("training", "calibrate", "test"):
        parser.add_argument(
            f"--{name}", nargs="+", required=True, type=Source.parse, metavar="NAME=SHARDS[@SPLIT#PART]"
        )
    parser.add_argument(
        "--unseen", nargs="*", default=[], type=Source.parse, metavar="NAME=SHARDS[@SPLIT#PART]"
    )
    parser.add_argument(
        "--line",
        choices=("fit", "none"),
        default="fit",
        help="none: ages are the decoded ones, where a line gains nothing in the mean over sets and decades",
    )
    parser.add_argument("--faces", type=int, default=0, help="of each set at most; 0: all")
    parser.add_argument("--features", type=int, default=1000, help="faces of each --training set")
    parser.add_argument("--hard", type=int, default=150, help="degraded copies of each kind and set")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cache", metavar="DIR", help="BUNDLE.cache by default")
    return parser


def _distance(predictor: Predictor, given: argparse.Namespace, file: Path) -> FeatureDistance:
    """The distance measure fitted to features of training faces, equally many of each set."""
    if not predictor.has_embedding:
        raise UserError(f"{given.model}: its network has no embedding, so that nothing can be unusual to it")
    if not file.exists():
        parts = []
        for source in given.training:
            rows = source.rows(given.features)
            for start in range(0, len(rows), 32):
                chosen = rows[start : start + 32]
                batch = hard_faces.canvases(chosen, "none", predictor.bundle.experiment)[1]
                parts.append(predictor.embeddings(*batch))
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.concatenate(parts))
    return FeatureDistance.of(torch.from_numpy(np.load(file)), RANK)


def _predict(predictor: Predictor, given: argparse.Namespace, cache: Path) -> dict[tuple[str, str], Raw]:
    """The raw predictions for every set and for the degraded copies, by role or kind and set."""
    raws = {}
    for role in ("calibrate", "test", "unseen"):
        for source in getattr(given, role):
            raws[role, source.name] = _cached(
                predictor, cache / f"{role}-{source.name}.npz", source, given.faces
            )
    for source in given.calibrate:
        for kind in _TAUGHT:
            file = cache / f"{kind}-{source.name}.npz"
            raws[kind, source.name] = _cached(predictor, file, source, given.hard, kind)
    return raws


def _cached(predictor: Predictor, file: Path, source: Source, most: int, kind: str = "none") -> Raw:
    if not file.exists():
        hard_faces.predict(predictor, source.rows(most), kind).save(file)
        print(file.stem, flush=True)
    return Raw.load(file)


def _fit(raws: dict[tuple[str, str], Raw], given: argparse.Namespace, predictor: Predictor) -> Calibration:
    sets = []
    for source in given.calibrate:
        parts = [raws["calibrate", source.name]]
        for kind in _TAUGHT:
            parts.append(raws[kind, source.name])
        columns = {}
        for name in ("true", "decoded", "posterior", "measures", "distance", "subject"):
            columns[name] = np.concatenate([getattr(part, name) for part in parts])
        subject = _labels(columns.pop("subject"))
        degraded = np.arange(len(columns["true"])) >= len(parts[0].true)
        sets.append(CalibrationSet(source.name, **columns, degraded=degraded, subject=subject))
    line = (1.0, 0.0) if given.line == "none" else None
    return fit_mixture(sets, bins(predictor.bundle.experiment.model).numpy(), MEASURES, line=line)


def _hard(raws: dict[tuple[str, str], Raw], given: argparse.Namespace) -> dict[tuple[str, str], Raw]:
    """The rows of the table: each kind on each calibration set, first as the photos are."""
    rows = {}
    for source in given.calibrate:
        rows["none", source.name] = raws["calibrate", source.name]
    for kind in _TAUGHT:
        for source in given.calibrate:
            rows[kind, source.name] = raws[kind, source.name]
    return rows


def _predicted(predictor: Predictor, raw: Raw, name: str, seen: bool) -> Predicted:
    """The calibrated predictions on the set `name`. seen: other parts of it were trained on."""
    ages = predictor.recalibrated(raw.decoded, raw.posterior, raw.measures, raw.distance)
    return Predicted(
        name,
        raw.true,
        ages.age,
        ages.low,
        ages.high,
        ages.over,
        gender=_labels(raw.gender),
        group=_labels(raw.group),
        subject=_labels(raw.subject),
        refused=ages.refused,
        seen=seen,
    )


def _labels(column: NDArray[Any]) -> list[str | None] | None:
    """A column of labels (N,), None instead of ''; None if no face has a label."""
    labels = [str(value) or None for value in column]
    if not any(labels):
        return None
    return labels


if __name__ == "__main__":
    main()
