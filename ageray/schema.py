"""Arrow schemas of the two tables that everything exchanges, and their checks.

faces: one row a face, image bytes as they came. scores: one row a face found (or one a photo that gave none, with `error` set).
Points are x, y in pixels of the upright photo (EXIF orientation applied), the centre of the first pixel at (0, 0); their order is viewer-left
eye, viewer-right eye, nose tip, viewer-left and viewer-right mouth corner. Boxes are x0, y0, x1, y1.
"""

from __future__ import annotations

import pyarrow as pa

POINTS = pa.list_(pa.float32(), 10)
BOX = pa.list_(pa.float32(), 4)

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
    ]
)

POSTERIOR = pa.field("posterior", pa.list_(pa.float32()))

NO_FACE = "no face found"
"""The `error` of a photo in which the detector found nothing; `face` is -1 there."""


def check(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """`table` with exactly the columns of `schema`, in its order and types.

    A nullable column that is missing is filled with nulls. Raises ValueError naming the column that is missing, cannot be cast or holds
    nulls where none may be; `name` says which table is meant (a path, for instance).
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
