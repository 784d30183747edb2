"""`data`: a set of faces."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ageray.experiment.protocol import Protocol
from ageray.experiment.strict import Positive, Share, Strict


class Detect(Strict):
    """The face detector (YuNet); the same settings at preparation and at scoring, or crops
    differ."""

    threshold: Share = 0.6
    """Lowest score of a face. At 0.8 false faces are rare; 0.6 finds more faces."""
    max_side: Annotated[int, Field(ge=64)] = 640
    """Longest side of the photo for the detector, in pixels; larger photos are shrunk. Points are
    in pixels of the photo.
    """
    pad: Annotated[float, Field(ge=0, le=1)] = 0.25
    """If no face is found, look again with a border of this share of the side. Faces that fill the
    picture need it.
    """


class Filters(Strict):
    """Which faces of a source to prepare. The others are listed as `filtered`."""

    min_age: Annotated[float, Field(ge=0, le=123)] = 0
    """Least age in years, of any set. Faces of unknown age stay."""
    max_age: Annotated[float, Field(ge=0, le=123)] = 123
    """Greatest age in years, of any set."""
    min_face_score: float | Literal["any"] = 1.0
    """Lowest `face_score` of the set's own detector. `any` takes every photo, even one without a
    detected face. IMDB-WIKI only: no other set has such scores."""
    single_face: bool = True
    """Leave out photos with a `second_face_score`: the label may belong to another person.
    IMDB-WIKI only.
    """
    max_second_score: float | None = None
    """With `single_face`, photos whose `second_face_score` is at most this stay; null leaves out
    every photo with a second face. DHAA removes only a part of them and keeps about 300,000
    photos. IMDB-WIKI only."""

    @model_validator(mode="after")
    def _leaves_ages(self) -> Self:
        if self.min_age > self.max_age:
            raise ValueError(f"min_age must not be above max_age; got {self.min_age:g} and {self.max_age:g}")
        return self


Layout = Literal[
    "auto",
    "utkface",
    "fgnet",
    "morph",
    "cacd",
    "afad",
    "agedb",
    "chalearn_lap",
    "imdb_wiki",
    "megaage_asian",
    "adience",
    "manifest",
    "folder",
]


class FaceSet(Strict):
    """One of several sets of faces that a run trains on together."""

    name: str
    """Shown in messages and on the card."""
    shards: str
    """Folder of face shards that `ageray prepare` wrote; local path or url."""
    weight: Positive = 1.0
    """How often each of its training faces comes in an epoch, on average."""
    age_std: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation, in years, of the labels that have no `age_std` in the shards: about 2 if
    only the year of birth and the decade of the photo are known. Read by the losses that have
    `age_std`."""
    protocol: Protocol = Protocol()
    """Which of its faces train, which validate and which test."""


class Data(Strict):
    """A set of faces: where it comes from and where its shards are."""

    name: str = "faces"
    """Goes into the `dataset` column and the keys."""
    layout: Layout = "auto"
    """How the source holds labels: in file names (`utkface`, `fgnet`, `agedb`) or folders (`afad`),
    in the lists that the set comes with (`morph`, `cacd`, `chalearn_lap`, `imdb_wiki`,
    `megaage_asian`, `adience`), in a CSV or Parquet table (`manifest`), or not at all (`folder`).
    `auto` recognises the layout."""
    source: str | None = None
    """Folder or manifest that `ageray prepare` reads; local path or url."""
    shards: str | None = None
    """Folder of face shards: written by `ageray prepare`, read by the others; local path or url."""
    sets: tuple[FaceSet, ...] = ()
    """Several sets to train on at once, in place of `shards` and `protocol`. Each has its own
    shards, weight and protocol. `ageray train` only."""
    filters: Filters = Filters()
    """Which of the source's faces to prepare."""
    landmarks: Literal["auto", "source", "detect"] = "auto"
    """`source` takes the set's own points and fails where there are none, `detect` always runs
    YuNet, `auto` uses the source's where given.
    """
    detect: Detect = Detect()
    """Detector settings."""
    near_duplicates: Literal["keep", "drop"] = "keep"
    """Whether to prepare photos that show nearly the same picture as another: 64-bit perceptual
    hashes at a Hamming distance below 6 (DHAA, section 3.1), confirmed by thumbnails. `drop` keeps
    one of them if their ages agree and none if not, as with identical files; each is listed."""
    shard_mib: Positive = 256
    """Target size of one shard file in MiB."""

    @model_validator(mode="after")
    def _either_shards_or_sets(self) -> Self:
        if self.sets and self.shards is not None:
            raise ValueError(f"shards={self.shards} and sets exclude each other; take one of them away")
        names = [each.name for each in self.sets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sets: the name '{twice[0]}' is there twice; give each set a name of its own")
        return self
