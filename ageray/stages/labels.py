"""TODO."""

from __future__ import annotations

import pyarrow as pa

CHUNK_OF_PHOTO_SCHEMA = pa.schema(
    [
        pa.field("lot", pa.int64(), nullable=False),
        pa.field("photo", pa.int32(), nullable=False),
        pa.field("photos", pa.int32(), nullable=False),
        pa.field("last", pa.bool_(), nullable=False),
        pa.field("weight", pa.int64(), nullable=False),
    ]
)
"""What travels with a photo: its lot's number, its own number there, how many the lot has, whether no lot follows in the
stretch, and the photo's share of the work (1 or, in a tar, bytes)."""

CHUNK_OF_ROW_SCHEMA = CHUNK_OF_PHOTO_SCHEMA.append(pa.field("siblings", pa.int32(), nullable=False))
"""What travels with a row of scores: that of its photo, and how many rows the photo has."""
