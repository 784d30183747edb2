"""What a run would cost: the listing is exact, the rest follows from a sample."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ageray.commands import score as command
from ageray.errors import UserError
from ageray.score import dry_run
from ageray.score.dry_run import Estimate
from ageray.synthetic import faces


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos with faces, and one that is none."""
    folder = tmp_path_factory.mktemp("photos")
    faces.write_photos(folder, 4)
    (folder / "text.jpg").write_text("no photo")
    return folder


def test_photos_of_a_folder(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(photos.iterdir())
    command.main([str(photos), "--dry-run", "--rate", "core_hour=3.6e6", "--rate", "gpu_photos=1000"])
    output = capsys.readouterr().out
    assert "photos    5 (1 of 5 of a sample cannot be read, 0 show no face)" in output
    assert "in 1 part\n" in output
    assert "GPU hours" in output
    assert "money     about" in output
    assert "requests  about 0 that read" in output  # they are local
    assert sorted(photos.iterdir()) == before


def test_photos_of_tables_and_tars(photos: Path, tmp_path: Path) -> None:
    faces.write_faces_table(tmp_path / "shards", 90, size=64, shards=2)
    table = dry_run.estimate(str(tmp_path / "shards"), "zoo:fast")
    assert (table.photos, table.faces, table.sample, table.unread) == (90, 90, 64, 0)
    size = sum(pq.read_table(file).column("image").nbytes for file in (tmp_path / "shards").iterdir())
    assert table.bytes == pytest.approx(size, rel=0.1)
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for file in sorted(photos.glob("photo-*")):
            archive.add(file, file.name)
    tar = dry_run.estimate(str(tmp_path / "photos.tar"), "zoo:fast")
    assert tar.photos == pytest.approx(4, abs=1)
    assert tar.bytes == (tmp_path / "photos.tar").stat().st_size


def test_the_sum_of_money() -> None:
    plan = Estimate(3_600_000, 4_000_000, 10**12, 3_603_600, 500, 16, 64, 1, 2, 0.02, 0.03)
    assert plan.core_hours == pytest.approx(50)
    text = dry_run.text(plan, {"core_hour": 0.04, "million_gets": 0.4, "million_puts": 5, "gigabyte": 0.01})
    assert "about 50.00 core hours (20.0 ms a photo to decode and detect, 30.0 ms the model)" in text
    assert "money     about 13.44 (cores 2.00, requests 1.44, bytes 10.00)" in text
    text = dry_run.text(plan, {"core_hour": 0.04, "gpu_hour": 2, "gpu_photos": 1000})
    assert "or about 1.00 GPU hours and 20.00 core hours" in text
    assert "money     about 2.80 (cores 0.80, requests 0.00, bytes 0.00, GPUs 2.00)" in text


def test_mistakes(photos: Path) -> None:
    with pytest.raises(UserError, match=r"--rate core=1: give NAME=NUMBER; the names are core_hour"):
        command.main([str(photos), "--dry-run", "--rate", "core=1"])
    with pytest.raises(UserError, match="--rate core_hour=cheap: give"):
        command.main([str(photos), "--dry-run", "--rate", "core_hour=cheap"])
    with pytest.raises(UserError, match="--out: is missing; give the folder to write"):
        command.main([str(photos)])


def test_the_sample_is_spread() -> None:
    assert dry_run._spread(5, 64) == [0, 1, 2, 3, 4]
    numbers = dry_run._spread(1000, 10)
    assert numbers == [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]
