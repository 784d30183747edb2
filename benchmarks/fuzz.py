"""Damaged and hostile bytes against everything that reads bytes of others, for as long as it may.

    python benchmarks/fuzz.py --minutes 60 [--seed 0] [--keep FOLDER]

Each round takes a small sound file, damages it (flipped bits, cut and repeated pieces, extreme
lengths, pieces of another file) and gives it to its reader. A reader may refuse a file by its own
error. Any other exception, and any file that needs more than 3 s of CPU, is printed and, with
--keep, stored. Exit 1 if there was one.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from ageray import bundle, config
from ageray.data import splits
from ageray.errors import UserError
from ageray.faces.images import ImageError, decode, upright_size
from ageray.score import chunks, read, tars
from ageray.score.checkpoint import ScoreCheckpoint
from ageray.score.files import ScoreFiles
from ageray.score.inputs import Inputs
from ageray.serve.errors import ApiError
from ageray.serve.uploads import parse_json
from ageray.storage import lease as leases
from ageray.storage.lease import Lease
from ageray.train import checkpoint as states

SECONDS = 3.0  # of CPU for a small file

_FORMATS = {
    "jpeg": ("JPEG", {"quality": 80}),
    "progressive": ("JPEG", {"quality": 80, "progressive": True}),
    "png": ("PNG", {}),
    "tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff jpeg": ("TIFF", {"compression": "jpeg"}),
    "webp": ("WEBP", {}),
    "webp lossless": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "avif": ("AVIF", {}),
}
_EXTREMES = (b"\x00", b"\xff", b"\x7f\xff", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x80\x00\x00\x00")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        seeds, readers = sound_files(), all_readers(Path(folder))
        end = time.monotonic() + 60 * arguments.minutes
        outcomes = Counter[str]()
        slowest = dict.fromkeys(seeds, 0.0)
        problems = 0
        while time.monotonic() < end:
            name = draw.choice(sorted(seeds))
            data = damaged(seeds[name], draw.choice(sorted(seeds.values())), draw)
            outcome, seconds = attempt(readers.get(name, read_photo), data)
            slowest[name] = max(slowest[name], seconds)
            outcomes[f"{name}: {outcome}" if outcome in ("read", "refused") else "PROBLEM"] += 1
            if outcome not in ("read", "refused") or seconds > SECONDS:
                problems += 1
                print(f"{name}: {outcome}, {seconds:.2f} s CPU, {len(data)} bytes", flush=True)
                if arguments.keep:
                    arguments.keep.mkdir(parents=True, exist_ok=True)
                    (arguments.keep / f"{name.replace(' ', '-')}-{problems:04d}").write_bytes(data)
    for line, count in sorted(outcomes.items()):
        print(f"{count:>9,} {line}")
    print(f"{sum(outcomes.values()):,} files, {problems} problems; slowest, in seconds of CPU:")
    print(", ".join(f"{name} {seconds:.2f}" for name, seconds in slowest.items()))
    sys.exit(problems > 0)


def sound_files() -> dict[str, bytes]:
    """A small file of each kind."""
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {}
    for name, (kind, options) in _FORMATS.items():
        content = io.BytesIO()
        image.save(content, kind, exif=exif, **options) if kind != "BMP" else image.save(content, kind)
        files[name] = content.getvalue()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(files["jpeg"])
            tar.addfile(info, io.BytesIO(files["jpeg"]))
    table = io.BytesIO()
    pq.write_table(pa.table({"key": ["a", "b"], "image": [files["jpeg"], b"x"]}), table)
    paths, split = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"image": ["/a.jpg", "/b.jpg"], "age": [3, 4]}), paths)
    pq.write_table(pa.table({"key": ["a", "b"], "part": ["train", "test"]}), split)
    piece = io.BytesIO()
    columns = {field.name: pa.array([1], pa.int64()).cast(field.type) for field in chunks.CHUNK_OF_ROW_SCHEMA}
    rows = {"face": [0], "age": [30.0], "error": pa.array([None], pa.string()), **columns}
    pq.write_table(pa.table(rows), piece)
    files |= {
        "tar": archive.getvalue(),
        "table": table.getvalue(),
        "piece": piece.getvalue(),
        "manifest": b'image,age\n/a/b.jpg,3\n"c,d.jpg",4\n',
        "list of paths": paths.getvalue(),
        "inventory": json.dumps(
            {
                "destinationBucket": "arn:aws:s3:::b",
                "fileFormat": "CSV",
                "fileSchema": "Bucket, Key",
                "files": [{"key": "inventory.csv"}],
            }
        ).encode(),
        "file of an inventory": b'"b","a%20b/c.jpg"\n"b","d.jpg"\n',
        "split": split.getvalue(),
        "split as CSV": b"key,part\na,train\nb,test\n",
        "settings": _bundle_file("config.yaml"),
        "card": _bundle_file("card.json"),
        "state": _state(),
        "plan": json.dumps({"input": {"uri": "x"}, "model": "y", "detect": "auto"}).encode(),
        "progress": b'{"state": "running", "seconds": 3.5, "beat": 2}',
        "lease": b'{"id": "x", "beat": 1, "process": 1, "host": "another"}',
        "json": b'{"images": [{"name": "a.jpg", "data": "QUJD"}, "QUJD"]}',
    }
    return files


def _bundle_file(name: str) -> bytes:
    return (Path(bundle.resolve("zoo:fast")) / name).read_bytes()


def _state() -> bytes:
    """The checkpoint of a training run."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/state.pt"
        writer = states.AsyncCheckpointer(uri)
        writer.save({"step": 3, "weights": {"a": torch.arange(40.0), "b": torch.zeros(3, 4)}})
        writer.wait()
        return Path(uri).read_bytes()


def all_readers(folder: Path) -> dict[str, Callable[[bytes], object]]:
    """The reader of each kind that is no photo."""
    files = ScoreFiles(str(folder / "out"))
    unfinished = Path(files.unfinished)
    unfinished.mkdir(parents=True)
    leases._EXPIRY = leases._LOOK = 0.01
    sound = sound_files()

    def write(path: Path, data: bytes) -> str:
        path.write_bytes(data)
        return str(path)

    def checkpoint(name: str, data: bytes) -> object:
        unfinished.mkdir(exist_ok=True)
        write(unfinished / "plan.json", sound["plan"])
        path = unfinished / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, data)
        saved = ScoreCheckpoint(files)
        plan = saved.plan
        saved.open(plan or {})
        path.unlink(missing_ok=True)
        return saved.counts

    def lease(data: bytes) -> object:
        write(folder / "lease-000001.json", data)
        try:
            with Lease(str(folder)) as own:
                return own
        finally:
            (folder / "lease-000001.json").unlink(missing_ok=True)

    def inventory(manifest: bytes, rows: bytes) -> object:
        for name in ("2026-01-01", "data"):
            (folder / "inventory" / name).mkdir(parents=True, exist_ok=True)
        write(folder / "inventory" / "data" / "inventory.csv", rows)
        return list(
            Inputs.open(write(folder / "inventory" / "2026-01-01" / "manifest.json", manifest)).uris()
        )

    def card(data: bytes) -> object:
        copy = folder / "bundle"
        if not copy.exists():
            shutil.copytree(bundle.resolve("zoo:fast"), copy)
        write(copy / "card.json", data)
        return bundle.load(str(copy))

    return {
        "tar": lambda data: list(tars.photos(write(folder / "a.tar", data))),
        "table": lambda data: rows_of_table(write(folder / "a.parquet", data)),
        "manifest": lambda data: list(Inputs.open(write(folder / "a.csv", data)).uris()),
        "list of paths": lambda data: rows_of_table(write(folder / "b.parquet", data)),
        "inventory": lambda data: inventory(data, sound["file of an inventory"]),
        "file of an inventory": lambda data: inventory(sound["inventory"], data),
        "split": lambda data: splits.load(write(folder / "split.parquet", data)),
        "split as CSV": lambda data: splits.load(write(folder / "split.csv", data)),
        "settings": lambda data: config.loads(data.decode(errors="replace"), "config.yaml"),
        "card": card,
        "state": lambda data: states.load(write(folder / "state.pt", data)),
        "piece": lambda data: checkpoint(f"pieces/{'0' * 32}.parquet", data),
        "plan": lambda data: checkpoint("plan.json", data),
        "progress": lambda data: checkpoint("progress.json", data),
        "lease": lease,
        "json": lambda data: parse_json(data, 500),
    }


def rows_of_table(uri: str) -> object:
    """The photos of a Parquet file, or the paths in it, as scoring reads them."""
    inputs = Inputs.open(uri)
    if inputs.lists_files:
        return list(inputs.uris())
    rows = []
    for segment in read.scan(inputs).segments:
        rows += read.read_segments(read.segment_table(segment), inputs.columns)
    return rows


def read_photo(data: bytes) -> object:
    """A photo as scoring and the service read it."""
    upright_size(data)
    return decode(data, 640)


def damaged(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """The file with one to six damages."""
    content = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        if not content:
            break
        place, length = draw.randrange(len(content)), draw.choice((1, 2, 4, 16, 64, 512))
        match draw.randrange(6):
            case 0:
                content[place] ^= 1 << draw.randrange(8)
            case 1:
                content[place : place + length] = b""
            case 2:
                content[place:place] = content[place : place + length] * draw.choice((1, 3, 50))
            case 3:
                value = draw.choice(_EXTREMES)
                content[place : place + len(value)] = value
            case 4:
                start = draw.randrange(max(1, len(other)))
                content[place : place + length] = other[start : start + length]
            case _:
                content[place : place + length] = draw.randbytes(length)
    return bytes(content)


def attempt(reader: Callable[[bytes], object], data: bytes) -> tuple[str, float]:
    """What came of it, and the seconds of CPU."""
    started = time.process_time()
    try:
        reader(data)
        outcome = "read"
    except (UserError, ImageError, ApiError):
        outcome = "refused"
    except Exception as error:
        outcome = f"{type(error).__name__}: {str(error)[:200]}"
    return outcome, time.process_time() - started


if __name__ == "__main__":
    main()
