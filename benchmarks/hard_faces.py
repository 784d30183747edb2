"""Hard faces: photos of known age degraded on purpose, and the errors of a model on them.

python benchmarks/hard_faces.py MODEL NAME=SHARDS[@SPLIT.parquet#PART] ... [--faces 300] [--kinds
blur,gray] [--out DIR]

Each photo is degraded (`ageray.faces.degrade`: 20 and 40 pixels a face, blur, gray, faded scan,
JPEG 20 and 8, noise, dark, mask, dark glasses, turned), then goes the whole way of a photo in
`ageray score`: detector, alignment, network, calibration. Printed and written to
DIR/hard_faces.json: faces found, faces refused, and of the others MAE, bias, coverage and width of
the 90 % interval, quality. SHARDS is a folder of face shards; of SPLIT (key, part) only PART is
used. Shards must hold landmarks: a degradation needs to know where the face is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ageray import bundle, storage
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.faces.canvases import Canvases, canvas_side, face_canvases
from ageray.faces.degrade import KINDS, degrade
from ageray.faces.detect import YuNet, subject_of
from ageray.faces.images import ImageError, decode
from ageray.predictor import Predictor

_BATCH = 32
_LABELS = ("subject", "gender", "group")


@dataclass(frozen=True)
class Source:
    """A set of the command line: its name, its shards, and the part of a split that is used (all,
    where it is empty)."""

    name: str
    shards: str
    split: str = ""
    part: str = ""

    @classmethod
    def parse(cls, word: str) -> Source:
        """NAME=SHARDS[@SPLIT#PART]. Raises UserError for anything else."""
        name, equals, rest = word.partition("=")
        shards, at, split = rest.partition("@")
        split, sharp, part = split.partition("#")
        if not (name and equals and shards) or bool(at) != bool(sharp and part):
            raise UserError(f"{word}: not a set; write NAME=SHARDS or NAME=SHARDS@SPLIT.parquet#PART")
        return cls(name, shards, split, part)

    def rows(self, most: int = 0) -> list[dict[str, Any]]:
        """The faces with an age and landmarks, ordered by a hash of their keys; only the first
        `most` if that is not 0.
        """
        chosen = set()
        if self.split:
            for row in pq.read_table(self.split).to_pylist():
                if row["part"] == self.part:
                    chosen.add(row["key"])
        rows = []
        for file in storage.list_files(self.shards, (".parquet",)):
            filesystem, path = storage.filesystem(file)
            for row in pq.read_table(path, filesystem=filesystem).to_pylist():
                usable = row["age"] is not None and row["landmarks"] is not None
                if usable and (not self.split or row["key"] in chosen):
                    rows.append(row)
        if not rows:
            raise UserError(
                f"{self.name}: no face with an age and landmarks; look at {self.shards} and {self.part}"
            )
        rows.sort(key=lambda row: hashlib.blake2b(row["key"].encode(), digest_size=8).digest())
        return rows[: most or None]


@dataclass(frozen=True)
class Raw:
    """The predictions for N faces before calibration, and their labels. `shown`: the number of
    photos; in N of them a face was found.
    """

    key: NDArray[Any]
    true: NDArray[Any]
    subject: NDArray[Any]
    gender: NDArray[Any]
    group: NDArray[Any]
    decoded: NDArray[Any]
    posterior: NDArray[Any]
    measures: NDArray[Any]
    distance: NDArray[Any]
    shown: NDArray[Any]

    def save(self, file: Path) -> None:
        """Writes a .npz file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **vars(self))

    @classmethod
    def load(cls, file: Path) -> Raw:
        """Reads a .npz file."""
        return cls(**np.load(file))


Batch = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]


def canvases(
    rows: Sequence[dict[str, Any]], kind: str, experiment: Experiment
) -> tuple[list[dict[str, Any]], Batch]:
    """The rows whose face is found, and their canvases, points and boxes as `Predictor.predict`
    takes them.
    """
    detector = YuNet(experiment.data.detect)
    side = canvas_side(experiment.align)
    # an empty array first, so that no face at all gives arrays too
    pixels = [np.zeros((0, side, side, 3), np.uint8)]
    points, box = [np.zeros((0, 5, 2), np.float32)], [np.zeros((0, 4), np.float32)]
    shown = []
    for row in rows:
        canvas = _canvas(row, kind, experiment, detector)
        if canvas is not None:
            shown.append(row)
            pixels.append(canvas.pixels)
            points.append(canvas.points)
            box.append(canvas.box)
    return shown, (np.concatenate(pixels), np.concatenate(points), np.concatenate(box))


def predict(predictor: Predictor, rows: Sequence[dict[str, Any]], kind: str = "none") -> Raw:
    """Through detector (for `none`: the shard's own landmarks), alignment and network."""
    labels: dict[str, list[Any]] = {name: [] for name in ("key", "age", *_LABELS)}
    parts = []
    for start in range(0, max(len(rows), 1), _BATCH):
        shown, batch = canvases(rows[start : start + _BATCH], kind, predictor.bundle.experiment)
        for row in shown:
            for name, column in labels.items():
                column.append("" if row[name] is None else row[name])
        ages = predictor.predict(*batch)
        count = len(ages.age)
        measures = np.zeros((count, 0)) if ages.measures is None else ages.measures
        distance = np.zeros(count) if ages.distance is None else ages.distance
        parts.append((ages.decoded, ages.posterior, measures, distance))
    decoded, posterior, measures, distance = (np.concatenate(column) for column in zip(*parts, strict=True))
    named = {name: np.array(labels[name], str) for name in ("key", *_LABELS)}
    true = np.array(labels["age"], np.float64)
    numbers = {"decoded": decoded, "posterior": posterior, "measures": measures, "distance": distance}
    return Raw(true=true, shown=np.array(len(rows)), **named, **numbers)


def _canvas(row: dict[str, Any], kind: str, experiment: Experiment, detector: YuNet) -> Canvases | None:
    """None where no face is found or it cannot be aligned."""
    points = np.array(row["landmarks"], np.float32).reshape(5, 2)
    box = np.array(row["box"] or [np.nan] * 4, np.float32)
    data = row["image"]
    try:
        if kind != "none":
            pixels = degrade(decode(data).pixels, points, kind, zlib.crc32(row["key"].encode()))
            bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
            data = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
            photo = decode(data, experiment.data.detect.max_side)
            faces = detector.detect(photo)
            if not faces:
                return None
            face = subject_of(faces, photo.width, photo.height)
            points, box = face.points, face.box
        return face_canvases(data, points[None], box[None], experiment.align)
    except ImageError:
        return None


def table(predictor: Predictor, raws: dict[tuple[str, str], Raw]) -> Iterator[dict[str, Any]]:
    """A row for each kind and set of `raws`, by the calibration on the predictor's card."""
    for (kind, name), raw in raws.items():
        ages = predictor.recalibrated(raw.decoded, raw.posterior, raw.measures, raw.distance)
        answered = ~ages.refused
        row: dict[str, Any] = {"kind": kind, "set": name, "photos": int(raw.shown)}
        row |= {"found": len(raw.true) / max(int(raw.shown), 1), "refused": float(ages.refused.mean())}
        if answered.any():
            true, age = raw.true[answered], ages.age[answered]
            low, high = ages.low[answered], ages.high[answered]
            row |= {"mae": float(np.abs(age - true).mean()), "bias": float((age - true).mean())}
            row |= {
                "coverage": float(((true >= low) & (true <= high)).mean()),
                "width": float((high - low).mean()),
            }
            if ages.quality is not None:
                row["quality"] = float(ages.quality[answered].mean())
        for column, value in row.items():
            if isinstance(value, float):
                row[column] = round(value, 3)
        yield row


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the table."""
    head = f"{'kind':14}{'set':12}{'photos':>7}{'found':>7}{'refused':>9}"
    print(f"{head}{'MAE':>7}{'bias':>7}{'covers':>8}{'width':>7}{'quality':>9}")
    for row in rows:
        cells = [f"{row['kind']:14}{row['set']:12}{row['photos']:7}{row['found']:7.2f}{row['refused']:9.3f}"]
        for name, form in (
            ("mae", "7.2f"),
            ("bias", "+7.2f"),
            ("coverage", "8.3f"),
            ("width", "7.1f"),
            ("quality", "9.2f"),
        ):
            if name in row:
                cells.append(format(row[name], form))
            else:
                cells.append(" " * int(form.strip("+").split(".")[0]))
        print("".join(cells))


def main() -> None:
    """Prints the table and writes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("sets", nargs="+", metavar="NAME=SHARDS[@SPLIT#PART]")
    parser.add_argument("--faces", type=int, default=300, help="of each set")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", metavar="DIR")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    predictor = Predictor(bundle.load(given.model), threads=given.threads)
    raws = {}
    for word in given.sets:
        source = Source.parse(word)
        rows = source.rows(given.faces)
        for kind in given.kinds.split(","):
            raws[kind, source.name] = predict(predictor, rows, kind)
    lines = list(table(predictor, raws))
    show(lines)
    if given.out:
        storage.make_folder(given.out)
        storage.write_text(storage.join(given.out, "hard_faces.json"), json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
