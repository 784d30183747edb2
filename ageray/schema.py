"""Arrow schemas of the two tables that all commands exchange, and the words of the column `gender`.

faces: one row a face, with the bytes of its image file. scores: one row a detected face, or one row
with `error` for a photo without a face.

Points are x, y in pixels of the upright photo (EXIF orientation applied); the centre of the first
pixel is (0, 0). Their order: viewer-left eye, viewer-right eye, nose tip, viewer-left and
viewer-right mouth corner. Boxes are x0, y0, x1, y1.
"""

from __future__ import annotations

import pyarrow as pa

POINTS = pa.list_(pa.float32(), 10)
BOX = pa.list_(pa.float32(), 4)

BOX_ORDER = "x0 y0 x1 y1; pixels of the upright photo"
POINTS_ORDER = (
    "x y of viewer-left eye, viewer-right eye, nose tip, viewer-left mouth corner, viewer-right mouth "
    "corner; pixels of the upright photo"
)
"""What the numbers of a box and of landmarks are, for the metadata of files."""

FACES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("landmarks", POINTS),
        pa.field("box", BOX),
        pa.field("age", pa.float32()),
        pa.field("age_std", pa.float32()),
        pa.field("subject", pa.string()),
        pa.field("gender", pa.string()),
        pa.field("group", pa.string()),
        pa.field("dataset", pa.string(), nullable=False),
    ]
)

MARK, SHARDS = b"ageray", b"face shards"
"""The metadata by which a face shard is known."""

SCORES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("face", pa.int16(), nullable=False),
        pa.field("box", BOX),
        pa.field("landmarks", POINTS),
        pa.field("detection", pa.float32()),
        pa.field("age", pa.float32()),
        pa.field("age_low", pa.float32()),
        pa.field("age_high", pa.float32()),
        pa.field("error", pa.string()),
        pa.field("quality", pa.float32()),
        pa.field("unusual", pa.float32()),
        pa.field("over_18", pa.float32()),
        pa.field("over_25", pa.float32()),
    ]
)

OF_THE_MODEL = ("age", "age_low", "age_high", "quality", "unusual", "over_18", "over_25")
"""Columns of SCORES that the model fills; the others come from the detector."""

POSTERIOR = pa.field("posterior", pa.list_(pa.float32()))

UNAVAILABLE = "unavailable"
"""The kind of `error` of a photo whose store did not answer. The next run tries it again."""

NO_FACE = "no face found"
"""The `error` of a photo without a detected face; its `face` is -1."""

GENDERS = ("male", "female")
_GENDER_OF_WORD = dict.fromkeys(("male", "m", "man", "boy"), "male") | dict.fromkeys(
    ("female", "f", "w", "woman", "girl"), "female"
)


def gender(word: str | None) -> str | None:
    """`male` or `female` for a word that data sets use (any case); None for every other word."""
    return _GENDER_OF_WORD.get((word or "").strip().lower())


UNSURE = "unsure"
"""First word of the `error` of a face whose age would be a guess. Its age and interval are null."""


def check(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """`table` with exactly the columns of `schema`, in its order and types.

    A missing nullable column is filled with nulls. Raises ValueError that names the table by `name`
    (its path) and the column that is missing, cannot be cast, or has nulls although it must not.
    """
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            if not field.nullable:
                raise ValueError(
                    f"{name}: column '{field.name}' is missing; it has {', '.join(table.column_names)}"
                )
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        try:
            column = column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"{name}: column '{field.name}' is {column.type}, not {field.type}: {error}"
            ) from None
        if not field.nullable and column.null_count:
            raise ValueError(
                f"{name}: column '{field.name}' has {column.null_count} empty values; every row needs one"
            )
        columns.append(column)
    return pa.table(columns, schema=schema)
