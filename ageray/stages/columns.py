"""The columns that pass between the stages. Reading inputs and writing results need them too, but
neither a decoder nor a network.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

from ageray import schema

Search = Literal["auto", "always", "never"]
"""Where the detector runs: on photos whose input brings no landmarks, on all, or on none."""

PHOTO_SCHEMA = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("content", pa.binary()),
        pa.field("problem", pa.string()),
        pa.field("key", pa.string()),
        pa.field("landmarks", schema.POINTS),
        pa.field("box", schema.BOX),
    ]
)
"""A photo with its bytes, or the problem why there are none. Only faces of a face shard have `key`,
`landmarks` and `box`."""

CANVAS_SCHEMA = pa.schema(
    [
        pa.field("canvas", pa.binary()),
        pa.field("canvas_points", schema.POINTS),
        pa.field("canvas_box", schema.BOX),
    ]
)
"""A face's canvas (uint8, C x C x 3) with its landmarks and box in canvas pixels; null where
`error` is set.
"""

DETECTED_SCHEMA = pa.schema(
    [*(field for field in schema.SCORES if field.name not in schema.OF_THE_MODEL), *CANVAS_SCHEMA]
)
"""A row of scores without its ages, with the face's canvas."""

SOUGHT_SCHEMA = pa.schema(
    [
        pa.field("content", pa.binary()),
        pa.field("pixels", pa.binary()),
        pa.field("sizes", pa.list_(pa.int32(), 10)),
        pa.field("subject_key", pa.string()),
    ]
)
"""A photo whose faces are still to be found: the encoded photo, its pixels as the detector searches
them (uint8, H x W x 3), their sizes (`ageray.stages.decode`), and the key if it shows one subject.
All are null in other rows."""

DECODED_SCHEMA = pa.schema([*DETECTED_SCHEMA, *SOUGHT_SCHEMA])
"""A row of DETECTED_SCHEMA, or a photo whose faces are still to be found."""

SIBLINGS = pa.field("siblings", pa.int32(), nullable=False)
"""How many rows the photo of a row has."""


def scores_schema(posterior: bool) -> pa.Schema:
    """Schema of the scores table, with or without the posterior."""
    if posterior:
        return schema.SCORES.append(schema.POSTERIOR)
    return schema.SCORES
