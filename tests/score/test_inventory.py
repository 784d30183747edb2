"""S3 Inventory as S3 writes it: gzipped CSV without a header and with encoded keys, or Parquet."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ageray.errors import UserError
from ageray.score import inventory
from ageray.score.inputs import Inputs

ROWS = [  # key, is it the latest version, is it deleted
    ("2026/a b+c.jpg", True, False),
    ("2026/é%.JPEG", True, False),
    ("2026/old.jpg", False, False),
    ("2026/gone.jpg", True, True),
    ("2026/.hidden.jpg", True, False),
    ("2026/notes.txt", True, False),
    ("2026/", True, False),
]
URIS = ["s3://photos/2026/a b+c.jpg", "s3://photos/2026/é%.JPEG"]


def write_inventory(folder: Path, form: str, versions: bool = True) -> Path:
    """An inventory of two files, as it lies after a copy to a disk; its manifest."""
    data = folder / "photos" / "daily" / "data"
    data.mkdir(parents=True)
    names = []
    for number, rows in enumerate((ROWS[:3], ROWS[3:])):
        if form == "CSV":
            names.append(f"{number}.csv.gz")
            lines = []
            for key, latest, deleted in rows:
                encoded = key.replace("%", "%25").replace("+", "%2B").replace(" ", "+").replace("é", "%C3%A9")
                flags = f',"{str(latest).lower()}","{str(deleted).lower()}"' * versions
                lines.append(f'"photos","{encoded}"{flags},"12"\n')
            (data / names[-1]).write_bytes(gzip.compress("".join(lines).encode()))
            continue
        names.append(f"{number}.parquet")
        columns = {
            "bucket": ["photos"] * len(rows),
            "key": [row[0] for row in rows],
            "size": [12] * len(rows),
        }
        if versions:
            columns |= {"is_latest": [row[1] for row in rows], "is_delete_marker": [row[2] for row in rows]}
        pq.write_table(pa.table(columns), data / names[-1])
    manifest = folder / "photos" / "daily" / "2026-11-30T01-00Z" / "manifest.json"
    manifest.parent.mkdir()
    fields = "Bucket, Key, IsLatest, IsDeleteMarker, Size" if versions else "Bucket, Key, Size"
    files = [{"key": f"photos/daily/data/{name}", "size": 1} for name in names]
    content = {"sourceBucket": "photos", "destinationBucket": "arn:aws:s3:::lists", "files": files}
    manifest.write_text(json.dumps(content | {"fileFormat": form, "fileSchema": fields}))
    return manifest


@pytest.mark.parametrize("form", ["CSV", "Parquet"])
def test_photos_of_an_inventory(form: str, tmp_path: Path) -> None:
    inputs = Inputs.open(str(write_inventory(tmp_path, form)))
    assert inputs.kind == "manifest"
    [uris] = inputs.uris()
    assert uris.column("image").to_pylist() == URIS


@pytest.mark.parametrize("form", ["CSV", "Parquet"])
def test_a_bucket_without_versions(form: str, tmp_path: Path) -> None:
    [uris] = Inputs.open(str(write_inventory(tmp_path, form, versions=False))).uris()
    keys = ["2026/a b+c.jpg", "2026/é%.JPEG", "2026/old.jpg", "2026/gone.jpg"]
    assert uris.column("image").to_pylist() == [f"s3://photos/{key}" for key in keys]


def test_where_its_files_are() -> None:
    manifest = "s3://lists/photos/daily/2026-11-30T01-00Z/manifest.json"
    file = inventory._location(manifest, "arn:aws:s3:::lists", "photos/daily/data/1.csv.gz")
    assert file == "s3://lists/photos/daily/data/1.csv.gz"


def test_mistakes(tmp_path: Path) -> None:
    manifest = write_inventory(tmp_path, "CSV")
    content = json.loads(manifest.read_text())
    for change, message in {
        json.dumps(
            content | {"fileFormat": "ORC"}
        ): "its files are ORC; let S3 write the inventory as Parquet",
        json.dumps(content | {"files": [{}]}): "is no manifest of an S3 Inventory; give one",
        json.dumps(content | {"fileSchema": "Bucket, Size, A, B, C"}): "an inventory needs Bucket and Key",
        "[1]": "is no manifest of an S3 Inventory",
        "{": "is no manifest of an S3 Inventory",
    }.items():
        manifest.write_text(change)
        with pytest.raises(UserError, match=message):
            list(Inputs.open(str(manifest)).uris())
