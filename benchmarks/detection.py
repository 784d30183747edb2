"""YuNet's five points against FG-NET's hand-placed ones: errors over the distance of the pupils,
photos without a face, speed.

python benchmarks/detection.py [FG-NET's folder]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ageray import storage
from ageray.errors import UserError
from ageray.experiment import Detect
from ageray.faces.detect import YuNet
from ageray.faces.images import Photo, decode
from ageray.prepare import sources

FOLDER = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "fgnet"
NAMES = ("left eye", "right eye", "nose tip", "mouth left", "mouth right")
THRESHOLDS = (0.6, 0.8)
ELSEWHERE = 1.0  # eye distances: a nose further away belongs to another face, or to none


def errors(
    photos: list[Photo], truth_N52: NDArray[np.float32], threshold: float
) -> tuple[NDArray[np.float32], float, float]:
    """Distances (N, 5) of the best face's points from the true ones over the eye distance, NaN
    where no face was found; photos a second and photos a CPU-second."""
    detected_N52 = np.full_like(truth_N52, np.nan)
    net = YuNet(Detect(threshold=threshold))
    wall, busy = time.perf_counter(), time.process_time()
    for place, photo in enumerate(photos):
        faces = net.detect(photo)
        if faces:
            detected_N52[place] = faces[0].points
    speeds = len(photos) / (time.perf_counter() - wall), len(photos) / (time.process_time() - busy)
    eyes_N = np.linalg.norm(truth_N52[:, 1] - truth_N52[:, 0], axis=-1)
    return np.linalg.norm(detected_N52 - truth_N52, axis=-1) / eyes_N[:, None], *speeds


def table(error_N5: NDArray[np.float32]) -> str:
    """Median and 95th percentile of each point, and over all points, of the faces that are the
    right ones.
    """
    missed, elsewhere = np.isnan(error_N5[:, 2]), error_N5[:, 2] > ELSEWHERE
    right_N5 = error_N5[~missed & ~elsewhere]
    columns = [
        *zip(NAMES, right_N5.T, strict=True),
        ("all points", right_N5.ravel()),
        ("mean of five", right_N5.mean(1)),
    ]
    other = f"another place {elsewhere.mean():.2%} ({elsewhere.sum()})"
    lines = [f"  no face {missed.mean():.2%} ({missed.sum()} photos), {other}"]
    for name, values in columns:
        tail = np.percentile(values, 95)
        lines.append(f"  {name:<13} median {np.median(values):.3f}   95 % {tail:.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder",
        nargs="?",
        default=str(FOLDER),
        help="FG-NET: holds images/ and points/ (default: %(default)s)",
    )
    folder = parser.parse_args().folder
    try:
        table_of_photos = sources.read_fgnet(storage.absolute(folder), "fgnet").table
    except UserError as error:
        sys.exit(f"{error}")
    rows = []
    for row in table_of_photos.to_pylist():
        if row["landmarks"] is not None:
            rows.append(row)
    if not rows:
        sys.exit(f"{folder}: holds no FG-NET photos; give the folder with images/ and points/")
    cv2.setNumThreads(1)
    photos = [decode(storage.read_bytes(row["uri"]), Detect().max_side) for row in rows]
    truth_N52 = np.array([row["landmarks"] for row in rows], np.float32).reshape(-1, 5, 2)
    for threshold in THRESHOLDS:
        error_N5, second, busy_second = errors(photos, truth_N52, threshold)
        speed = f"{second:.1f} a second ({busy_second:.1f} a CPU-second, decoding apart)"
        print(f"threshold {threshold}: {len(photos)} photos, {speed}")
        print(table(error_N5))


if __name__ == "__main__":
    main()
