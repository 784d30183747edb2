"""The audit: planted leaks of each kind are found, a clean split is called clean."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from ageray.audit import audit, fingerprints, near_duplicates
from ageray.audit.near_duplicates import Fingerprints
from ageray.faces.images import ImageError
from ageray.synthetic import faces as synthetic_faces

TRAIN, TEST = range(30), range(30, 42)


@pytest.fixture(scope="module")
def drawn() -> list[dict[str, object]]:
    """42 faces of 42 people as rows of the faces table."""
    faces = enumerate(synthetic_faces.faces(42, seed=1, size=160))
    return [
        {
            "key": f"face-{k:02d}",
            "image": face.jpeg(),
            "age": float(round(face.age)),
            "subject": face.subject,
            "gender": "male",
            "group": None,
        }
        for k, face in faces
    ]


def table(rows: list[dict[str, object]], *, thumbnails: bool = True) -> pa.Table:
    """Rows with their fingerprints in place of the images."""
    fingerprinted = []
    for row in rows:
        findings = fingerprints(row["image"])  # type: ignore[arg-type]
        light = {name: value for name, value in row.items() if name != "image"}
        fingerprinted.append(
            {
                **light,
                "digest": findings.digest,
                "phash": findings.phash,
                "thumbnail": findings.thumbnail if thumbnails else None,
            }
        )
    columns = {
        name: pa.array([row[name] for row in fingerprinted], pa.uint64() if name == "phash" else None)
        for name in fingerprinted[0]
    }
    return pa.table(columns)


def sides(
    drawn: list[dict[str, object]], **planted: object
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Training and test rows; `planted` overwrites columns of the last test row."""
    test = [dict(drawn[k]) for k in TEST]
    test[-1] |= planted
    return [dict(drawn[k]) for k in TRAIN], test


def picture(row: dict[str, object]) -> Image.Image:
    return Image.open(io.BytesIO(row["image"]))  # type: ignore[arg-type]


def coded(image: Image.Image, kind: str = "JPEG", **options: int) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def test_a_clean_split_is_called_clean(drawn: list[dict[str, object]]) -> None:
    train, test = sides(drawn)
    findings = audit(table(train), table(test))
    assert findings.images == {"train": 30, "test": 12}
    assert findings.subjects == {
        "train": 30,
        "unknown_train": 0,
        "test": 12,
        "unknown_test": 0,
        "shared": 0,
        "share": 0.0,
    }
    assert findings.byte_identical == {"across": 0, "share": 0.0, "train": 0, "test": 0}
    assert findings.near_identical == {
        "across": 0,
        "share": 0.0,
        "train": 0,
        "test": 0,
        "confirmed": True,
        "examples": [],
    }
    assert findings.leaked == {"images": 0, "share": 0.0}
    assert findings.conflicts["identical"] == {"groups": 0, "images": 0, "examples": []}
    assert findings.conflicts["near"] == {"pairs": 0, "differ": 0, "mean_difference": None, "examples": []}
    assert not [line for line in findings.lines() if line.startswith(("leak:", "labels:"))]
    assert json.loads(json.dumps(findings.to_dict()))["images"] == {"train": 30, "test": 12}


def test_a_person_on_both_sides_is_found(drawn: list[dict[str, object]]) -> None:
    train, test = sides(drawn, subject=drawn[4]["subject"])
    findings = audit(table(train), table(test))
    assert (findings.subjects["shared"], findings.subjects["share"]) == (1, 1 / 12)
    assert findings.leaked["images"] == 1
    assert "leak: 1 test images (8.3%) show a person who is in the training set" in findings.lines()
    assert findings.near_identical["across"] == 0


def test_a_byte_identical_image_is_found(drawn: list[dict[str, object]]) -> None:
    train, test = sides(drawn, image=drawn[4]["image"], age=drawn[4]["age"])
    findings = audit(table(train), table(test))
    assert (
        findings.byte_identical["across"],
        findings.near_identical["across"],
        findings.leaked["images"],
    ) == (
        1,
        1,
        1,
    )
    assert findings.near_identical["examples"] == [("face-41", "face-04")]
    assert findings.conflicts["identical"]["groups"] == 0
    assert "leak: 1 test images (8.3%) are byte-identical to a training image" in findings.lines()


@pytest.mark.parametrize("change", ["recoded", "smaller", "larger", "png", "brighter", "turned"])
def test_a_near_identical_image_is_found(drawn: list[dict[str, object]], change: str) -> None:
    image = picture(drawn[4])
    if change == "turned":  # sideways pixels that EXIF sets upright
        exif = Image.Exif()
        exif[0x0112] = 6
        sink = io.BytesIO()
        image.transpose(Image.Transpose.ROTATE_90).save(sink, "JPEG", exif=exif)
        copy = sink.getvalue()
    else:
        copy = {
            "recoded": lambda: coded(image, quality=40),
            "smaller": lambda: coded(image.resize((97, 97))),
            "larger": lambda: coded(image.resize((700, 700))),
            "png": lambda: coded(image, "PNG"),
            "brighter": lambda: coded(ImageEnhance.Brightness(image).enhance(1.15)),
        }[change]()
    train, test = sides(drawn, image=copy, age=drawn[4]["age"])
    findings = audit(table(train), table(test))
    assert (findings.byte_identical["across"], findings.near_identical["across"]) == (0, 1)
    assert findings.near_identical["examples"] == [("face-41", "face-04")]
    assert findings.conflicts["near"]["differ"] == 0
    assert findings.leaked == {"images": 1, "share": 1 / 12}


def test_copies_within_a_side_are_counted_apart(drawn: list[dict[str, object]]) -> None:
    train, test = sides(drawn)
    train[3]["image"], train[9]["image"] = train[0]["image"], coded(picture(train[1]), quality=50)
    findings = audit(table(train), table(test))
    assert (
        findings.byte_identical["train"],
        findings.byte_identical["test"],
        findings.byte_identical["across"],
    ) == (
        2,
        0,
        0,
    )
    assert (
        findings.near_identical["train"],
        findings.near_identical["test"],
        findings.near_identical["across"],
    ) == (
        4,
        0,
        0,
    )


def test_labels_that_contradict_each_other_are_found(drawn: list[dict[str, object]]) -> None:
    train, test = sides(drawn, image=drawn[4]["image"], age=41.0)
    train[4]["age"] = 30.0
    train[7] |= {"image": coded(picture(train[8]), quality=50), "age": 20.0}
    train[8]["age"] = 23.0
    findings = audit(table(train), table(test))
    assert findings.conflicts["identical"] == {
        "groups": 1,
        "images": 2,
        "examples": [("face-04", 30.0, "face-41", 41.0)],
    }
    near = findings.conflicts["near"]
    assert (near["pairs"], near["differ"], near["mean_difference"]) == (2, 2, pytest.approx((11 + 3) / 2))
    assert sorted(near["examples"]) == [
        ("face-04", 30.0, "face-41", 41.0),
        ("face-07", 20.0, "face-08", 23.0),
    ]
    assert "labels: 2 byte-identical images in 1 groups have different ages" in findings.lines()
    assert (
        "labels: 2 of 2 near-identical pairs have different ages, by 7.0 years on average" in findings.lines()
    )


def test_oracle_and_floor_worked_by_hand() -> None:
    train = pa.table(
        {"key": list("abcde"), "age": [10.0, 20, 40, 60, None], "subject": ["p", "p", "q", None, "r"]}
    )
    test = pa.table(
        {"key": list("vwxyz"), "age": [18.0, 44, 35, 10, None], "subject": ["p", "q", "new", None, "p"]}
    )
    findings = audit(train, test)
    # median of 10, 20, 40, 60 is 30; the subjects' means are p 15 and q 40
    assert findings.constant == {"median": 30.0, "mae": pytest.approx((12 + 14 + 5 + 20) / 4)}
    assert findings.oracle == {"mae": pytest.approx((3 + 4 + 5 + 20) / 4)}
    assert (findings.subjects["shared"], findings.subjects["share"]) == (3, 0.6)
    assert findings.ages == {
        "train": {"10-19": 1, "20-29": 1, "40-49": 1, "60-69": 1, "unknown": 1},
        "test": findings.ages["test"],
    }
    assert "leak: knowing only who it is (the subject's mean training age) has MAE 8.00" in findings.lines()


def test_the_same_number_in_another_dataset_is_another_person() -> None:
    train = pa.table({"key": ["a"], "subject": ["001"], "dataset": ["fgnet"]})
    for dataset, shared in (("fgnet", 1), ("morph", 0)):
        test = pa.table({"key": ["b"], "subject": ["001"], "dataset": [dataset]})
        assert audit(train, test).subjects["shared"] == shared


def test_what_a_table_does_not_tell_is_null_and_said() -> None:
    findings = audit(pa.table({"key": ["a", "b"]}), pa.table({"key": ["c"]}))
    assert (
        findings.subjects["shared"],
        findings.byte_identical["across"],
        findings.near_identical["across"],
    ) == (
        None,
        None,
        None,
    )
    assert (findings.leaked["images"], findings.oracle["mae"], findings.constant["mae"]) == (None, None, None)
    assert "subjects are not known: the same person may be on both sides of the split" in findings.lines()
    assert "no fingerprints: near-identical images were not looked for" in findings.lines()
    assert findings.genders == {"train": {"unknown": 2}, "test": {"unknown": 1}}


def test_images_that_have_no_fingerprint_are_passed_over(drawn: list[dict[str, object]]) -> None:
    train, test = sides(drawn, image=drawn[4]["image"])
    left, right = table(train), table(test)
    for name in ("digest", "phash", "thumbnail"):
        column = left.column(name).to_pylist()
        column[0] = None
        left = left.set_column(
            left.schema.get_field_index(name), name, pa.array(column, left.schema.field(name).type)
        )
    findings = audit(left, right)
    assert (findings.byte_identical["across"], findings.near_identical["across"]) == (1, 1)
    assert findings.near_identical["examples"] == [("face-41", "face-04")]


@pytest.mark.parametrize("bad", [pa.table({"key": pa.array([], pa.string())}), pa.table({"age": [3.0]})])
def test_a_table_without_rows_or_keys_is_an_error(bad: pa.Table) -> None:
    with pytest.raises(ValueError, match="test: an audit needs rows with a key"):
        audit(pa.table({"key": ["a"]}), bad)


def test_histograms_of_groups(drawn: list[dict[str, object]]) -> None:
    train, test = sides(drawn, group="b", gender="female")
    findings = audit(table(train), table(test))
    assert findings.groups == {"train": {"unknown": 30}, "test": {"b": 1, "unknown": 11}}
    assert findings.genders == {"train": {"male": 30}, "test": {"female": 1, "male": 11}}


# --- fingerprints ---------------------------------------------------------------------------------


def test_a_fingerprint_is_that_of_the_library() -> None:
    import hashlib

    import imagehash

    data = synthetic_faces.draw_face(3, 40, size=200).jpeg()
    findings = fingerprints(data)
    assert findings.digest == hashlib.sha256(data).hexdigest()
    assert f"{findings.phash:016x}" == str(imagehash.phash(Image.open(io.BytesIO(data)).convert("RGB")))
    assert len(findings.thumbnail) == 256
    assert fingerprints(data) == findings


def test_bytes_that_are_no_picture_are_an_error() -> None:
    with pytest.raises(ImageError, match="not an image"):
        fingerprints(b"no picture")


# --- the search -----------------------------------------------------------------------------------


def plain(searched: list[int], among: list[int], same: bool = False) -> list[int]:
    """The nearest with fewer than 6 different bits, the first of equally near ones; -1 without."""
    findings = []
    for row, one in enumerate(searched):
        near = [((one ^ other).bit_count(), at) for at, other in enumerate(among) if not (same and at == row)]
        distance, at = min(near, default=(64, -1))
        findings.append(at if distance < 6 else -1)
    return findings


HASHES = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6)
FLIPS = st.lists(
    st.tuples(st.integers(0, 5), st.sets(st.integers(0, 63), max_size=8)), min_size=1, max_size=25
)


@given(HASHES, FLIPS, st.integers(0, 24))
@settings(max_examples=150, deadline=None)
def test_the_search_equals_comparing_all_with_all(
    origins: list[int], flips: list[tuple[int, set[int]]], cut: int
) -> None:
    hashes = [origins[which % len(origins)] ^ sum(1 << bit for bit in bits) for which, bits in flips]
    pictures = Fingerprints(np.array(hashes, np.uint64))
    distance = [
        (one ^ hashes[at]).bit_count() if at >= 0 else 64
        for one, at in zip(hashes, near_duplicates.nearest_within(pictures).tolist(), strict=True)
    ]
    expected = [
        (one ^ hashes[at]).bit_count() if at >= 0 else 64
        for one, at in zip(hashes, plain(hashes, hashes, True), strict=True)
    ]
    assert distance == expected
    assert all(at != row for row, at in enumerate(near_duplicates.nearest_within(pictures).tolist()))
    mine, others = hashes[:cut], hashes[cut:]
    findings = near_duplicates.nearest_in(
        *(Fingerprints(np.array(part, np.uint64)) for part in (mine, others))
    ).tolist()
    assert [at >= 0 for at in findings] == [at >= 0 for at in plain(mine, others)]
    for one, at, best in zip(mine, findings, plain(mine, others), strict=True):
        assert at < 0 or (one ^ others[at]).bit_count() == (one ^ others[best]).bit_count()


def test_long_blocks_are_cut_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**20, 400, dtype=np.uint64)  # most share their upper bands
    whole = near_duplicates.nearest_within(Fingerprints(hashes)).tolist()
    monkeypatch.setattr(near_duplicates, "_CELLS", 500)
    assert near_duplicates.nearest_within(Fingerprints(hashes)).tolist() == whole
    assert (np.array(whole) >= 0).sum() == sum(
        at >= 0 for at in plain(hashes.tolist(), hashes.tolist(), True)
    )


def test_thumbnails_tell_two_pictures_with_one_hash_apart() -> None:
    """With hashes alone all four are one picture. A flat picture is like other flat ones only."""
    rng = np.random.default_rng(1)
    thumbnails = rng.integers(0, 256, (4, 256), dtype=np.uint8)
    thumbnails[1] = np.clip(thumbnails[0].astype(int) // 2 + 40, 0, 255)
    thumbnails[3] = 200
    same = np.full(4, 77, np.uint64)
    assert (near_duplicates.nearest_within(Fingerprints(same)) >= 0).all()
    assert near_duplicates.nearest_within(Fingerprints(same, thumbnails)).tolist() == [1, 0, -1, -1]
    flat = np.full((1, 256), 30, np.uint8)
    assert near_duplicates.nearest_in(
        Fingerprints(same[:1], flat), Fingerprints(same, thumbnails)
    ).tolist() == [3]


def test_many_copies_of_one_picture_are_compared_once() -> None:
    """100,000 blank images would make 10^10 pairs."""
    pictures = Fingerprints(np.zeros(100_000, np.uint64))
    findings = near_duplicates.nearest_within(pictures)
    assert findings[0] == 1
    assert (findings[1:] == 0).all()
