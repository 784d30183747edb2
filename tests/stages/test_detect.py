"""The first stage by itself: every column that it does not know is carried from a photo to its
rows.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from ageray.experiment import Align, Detect
from ageray.faces import images
from ageray.faces.detect import detector
from ageray.stages import detect
from ageray.stages.columns import DETECTED_SCHEMA, SIBLINGS
from ageray.stages.detect import find_faces
from ageray.synthetic import faces

ALIGN, DETECT = Align(size=64), Detect()


def test_further_columns_are_carried_to_every_row_of_a_photo(tmp_path: Path) -> None:
    faces.write_photos(tmp_path, 2)
    (tmp_path / "empty.jpg").write_bytes(b"")
    files = [str(tmp_path / name) for name in ("photo-00000.jpg", "empty.jpg", "photo-00001.jpg")]
    further = {"camera": pa.array(["a", "b", "c"]), "year": pa.array([1, 2, 3], pa.int16())}
    rows = find_faces(pa.table({"image": files, **further}), ALIGN, DETECT, "auto", "carry")
    added = [pa.field("camera", pa.string()), pa.field("year", pa.int16()), SIBLINGS]
    assert rows.schema.equals(pa.schema([*DETECTED_SCHEMA, *added]))
    counts = {file: rows.column("image").to_pylist().count(file) for file in files}
    assert counts[files[0]] > 1  # so that a row and its photo differ in number
    for row in rows.to_pylist():
        photo = files.index(row["image"])
        assert (row["camera"], row["year"]) == ("abc"[photo], photo + 1)
        assert row["siblings"] == counts[row["image"]]


def test_without_further_columns_nothing_is_added(tmp_path: Path) -> None:
    faces.write_photos(tmp_path, 1)
    photos = pa.table({"image": [str(tmp_path / "photo-00000.jpg")]})
    assert find_faces(photos, ALIGN, DETECT, "auto", "bare").schema.equals(DETECTED_SCHEMA)


def test_a_file_too_large_for_a_photo_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 2**20)
    (tmp_path / "large.jpg").write_bytes(b"0" * (2**20 + 1))
    photos = pa.table({"image": [str(tmp_path / "large.jpg")]})
    [row] = find_faces(photos, ALIGN, DETECT, "auto", "large").to_pylist()
    assert row["error"] == "cannot read: over 1 MiB"


def test_a_thread_has_one_detector_for_the_same_settings_and_shares_it_with_no_other() -> None:
    assert detector(DETECT) is detector(Detect())
    assert detector(DETECT) is not detector(Detect(threshold=0.9))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(detector, DETECT).result() is not detector(DETECT)


def test_a_task_gives_its_faces_in_tables_of_whole_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory depends on the faces of a photo, not on those of all photos of the task."""
    faces.write_photos(tmp_path, 4)
    photos = pa.table({"image": sorted(map(str, tmp_path.iterdir())), "year": [1, 2, 3, 4]})
    whole = find_faces(photos, ALIGN, DETECT, "auto", "whole")
    monkeypatch.setattr(detect, "_CANVAS_BYTES", 1)
    for run in ("small", None):
        tables = list(detect.face_batches(photos, ALIGN, DETECT, "auto", run))
        assert [len(set(table.column("image").to_pylist())) for table in tables] == [1, 1, 1, 1]
        assert pa.concat_tables(tables).equals(whole)
