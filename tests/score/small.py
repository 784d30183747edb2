"""Settings of a small scoring run, and its table."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ageray.experiment import Align, Detect, Scale
from ageray.stages import detect
from ageray.stages.detect import find_faces

SCALE = Scale(decode_batch=4, score_batch=4, threads=1, progress=False)
LOCAL = SCALE.model_copy(update={"engine": "local", "local_cpus": 1})
ALIGN, DETECT = Align(size=64), Detect()


def table(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(part) for part in sorted(out.glob("*.parquet"))]).sort_by("key")


def listed(*uris: object) -> pa.Table:
    return pa.table({"image": pa.array([str(uri) for uri in uris], pa.string())})


def find(photos: pa.Table, align: Align = ALIGN, search: detect.Search = "auto") -> pa.Table:
    return find_faces(photos, align, DETECT, search, "test")
