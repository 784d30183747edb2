"""Chooses `model.decode.levels` on validation faces: at which share of the posterior the ages of
the young and of the old are read.

python benchmarks/levels.py MODEL NAME=SHARDS@SPLIT.parquet#val ... [--even NAME ...] [--limit 2]
[--oldest 4] [--cache DIR]

Below 15 years the share is 0.5 - YOUNG, from 25 to 45 it is 0.5, above 60 it is 0.5 + OLD. All
pairs are measured on posteriors that are computed once. Of those with a bias of less than --limit
years in every decade to the 60s of the sets --even, and less than --oldest in the 70s, the one with
the least MAE (mean over the sets) is chosen; if there is none, the one that exceeds the limits
least. Printed: all pairs; the chosen one against the median, with 95 % intervals paired over faces;
and the setting.
"""

from __future__ import annotations

import argparse
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import hard_faces
import numpy as np
import torch
from hard_faces import Raw, Source
from numpy.typing import NDArray

from ageray import bundle
from ageray.errors import UserError
from ageray.experiment.model import Decode
from ageray.models.decode import decode
from ageray.predictor import Predictor

_STEPS = (0.0, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15)
_RAMPS = (15, 25, 45, 60)  # years: both tails of the usual range of a photo collection
_LEAST_FACES = 30  # of a decade that counts: the bias of fewer is uncertain by years
_RESAMPLES = 1000

Floats = NDArray[np.float64]


def levels(young: float, old: float) -> list[dict[str, float]]:
    """The setting: a share for each end of the two ramps."""
    shares = (0.5 - young, 0.5, 0.5, 0.5 + old)
    return [{"age": age, "share": round(share, 3)} for age, share in zip(_RAMPS, shares, strict=True)]


def errors(raw: Raw, ages: tuple[int, int], young: float, old: float) -> Floats:
    """Decoded minus true ages (N,), in years."""
    config = argparse.Namespace(
        ages=ages, decode=Decode.model_validate({"method": "median", "levels": levels(young, old)})
    )
    posterior = torch.from_numpy(np.asarray(raw.posterior, np.float32))
    decoded = decode(posterior, config)  # type: ignore[arg-type]  # it reads these two alone
    return decoded.clamp_min(0).double().numpy() - np.asarray(raw.true, np.float64)


def by_decade(true: Floats, values: Floats) -> dict[int, float]:
    """The mean of `values` (N,) in each decade of true age that has faces enough."""
    means = {}
    for decade in np.unique(true // 10).astype(int).tolist():
        chosen = true // 10 == decade
        if chosen.sum() >= _LEAST_FACES:
            means[decade] = float(values[chosen].mean())
    return means


def excess(biases: list[dict[int, float]], limit: float, oldest: float) -> float:
    """By how many years the worst decade exceeds its limit; at most 0 if none does."""
    worst = -np.inf
    for bias in biases:
        for decade, value in bias.items():
            if decade <= 7:
                worst = max(worst, abs(value) - (oldest if decade == 7 else limit))
    return float(worst)


def main() -> None:
    """Prints the table and the setting."""
    given = _parser().parse_args()
    for name in given.even or ():
        if name not in [source.name for source in given.sets]:
            raise UserError(f"--even {name}: no such set; name one of those that are given")
    cv2.setNumThreads(1)
    loaded = bundle.load(given.model)
    predictor = Predictor(loaded, threads=given.threads)
    raws: dict[str, Raw] = {}
    for source in given.sets:
        faces = zlib.crc32(f"{source.shards}@{source.split}#{source.part}".encode())
        file = Path(given.cache or "levels.cache") / loaded.identity / f"{source.name}-{faces:08x}.npz"
        if not file.exists():
            hard_faces.predict(predictor, source.rows()).save(file)
        raws[source.name] = Raw.load(file)
    ages, rows = loaded.experiment.model.ages, []
    print("young   old  " + "".join(f"{name:>10}" for name in raws) + "      mean   decades  excess")
    for young, old in product(_STEPS, _STEPS):
        row = _measured(raws, ages, young, old, given)
        rows.append(row)
        figures = "".join(f"{value:10.3f}" for value in [*row["mae"], row["mean"], row["decades"]])
        print(f"{young:5.3f} {old:5.3f}  {figures}  {row['excess']:+6.2f}")
    within = [row for row in rows if row["excess"] < 0]
    best = min(within, key=lambda row: row["mean"]) if within else min(rows, key=lambda row: row["excess"])
    _show(raws, ages, best, given)


def _measured(
    raws: dict[str, Raw], ages: tuple[int, int], young: float, old: float, given: argparse.Namespace
) -> dict[str, Any]:
    mae, decades, biases = [], [], []
    for name, raw in raws.items():
        error, true = errors(raw, ages, young, old), np.asarray(raw.true, np.float64)
        mae.append(float(np.abs(error).mean()))
        decades.append(float(np.mean(list(by_decade(true, np.abs(error)).values()))))
        if name in (given.even or list(raws)):
            biases.append(by_decade(true, error))
    worst = excess(biases, given.limit, given.oldest)
    figures = {"mae": mae, "mean": float(np.mean(mae)), "decades": float(np.mean(decades))}
    return figures | {"young": young, "old": old, "excess": worst}


def _show(
    raws: dict[str, Raw], ages: tuple[int, int], best: dict[str, Any], given: argparse.Namespace
) -> None:
    """The chosen pair against the median, set by set, and the setting."""
    rng = np.random.default_rng(0)
    for name, raw in raws.items():
        true = np.asarray(raw.true, np.float64)
        before, after = errors(raw, ages, 0, 0), errors(raw, ages, best["young"], best["old"])
        change = np.abs(after) - np.abs(before)
        means = [change[rng.integers(0, len(change), len(change))].mean() for _ in range(_RESAMPLES)]
        low, high = np.percentile(means, [2.5, 97.5])
        print(f"{name}: MAE {np.abs(after).mean():.2f}, {change.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
        for label, error in (("median", before), ("chosen", after)):
            bias = " ".join(f"{decade}0s {value:+.1f}" for decade, value in by_decade(true, error).items())
            print(f"  bias, {label}: {bias}")
    if best["excess"] >= 0:
        print(f"no pair keeps within {given.limit} and {given.oldest} years; this one is nearest")
    words = ", ".join(
        f"{{age: {each['age']}, share: {each['share']}}}" for each in levels(best["young"], best["old"])
    )
    print(f"model.decode.levels=[{words}]")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("sets", nargs="+", type=Source.parse, metavar="NAME=SHARDS[@SPLIT#PART]")
    parser.add_argument(
        "--even", nargs="+", metavar="NAME", help="sets whose biases are limited; all by default"
    )
    parser.add_argument("--limit", type=float, default=2.0, help="years of bias, to the 60s")
    parser.add_argument("--oldest", type=float, default=4.0, help="years of bias in the 70s")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cache", metavar="DIR", help="levels.cache by default")
    return parser


if __name__ == "__main__":
    main()
