"""`data`: a set of faces."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ageray.experiment.strict import Positive, Share, Strict


class Detect(Strict):
    """The face detector (YuNet); the same settings at preparation and at scoring, or crops differ."""

    threshold: Share = 0.6
    """Least score of a face (0.8: hardly a false face; 0.6 finds more)."""
    max_side: Annotated[int, Field(ge=64)] = 640
    """Photos are shrunk for the detector until their longer side is at most this, in pixels. Points are in pixels of the photo."""
    pad: Annotated[float, Field(ge=0, le=1)] = 0.25
    """If nothing is found, look again with a border of this share of the side: faces that fill the picture need it."""


class Data(Strict):
    """A set of faces: where it comes from and where its shards are."""

    name: str = "faces"
    """Goes into the `dataset` column and the keys."""
    layout: Literal["auto", "utkface", "fgnet", "manifest", "folder"] = "auto"
    """How the source holds labels: in file names (`utkface`, `fgnet`), in a CSV or Parquet table (`manifest`), or not at all (`folder`)."""
    source: str | None = None
    """Folder or manifest that `jobs.prepare` reads; local path or url."""
    shards: str | None = None
    """Folder of face shards: written by `jobs.prepare`, read by the others; local path or url."""
    landmarks: Literal["auto", "source", "detect"] = "auto"
    """`source` takes the set's own points and fails where there are none, `detect` always runs YuNet, `auto` uses the source's where given."""
    detect: Detect = Detect()
    """Detector settings."""
    shard_mib: Positive = 256
    """Target size of one shard file in MiB."""
