"""What tells whether two files show the same picture, without keeping the pictures."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image

from ageray.faces import images

SIDE = 16
"""Of the thumbnail, in pixels."""

_DECODED = 128  # the hash looks at 32x32 pixels: large photos need not be decoded in full


class Fingerprint(NamedTuple):
    """`digest` is the SHA-256 of the bytes; `phash` 64 bits of the picture, equal or nearly so after re-encoding and resizing; `thumbnail`
    its 16x16 gray values, row by row, which confirm what the hash suggests (see `ageray.audit.near_duplicates`)."""

    digest: str
    phash: int
    thumbnail: bytes


def fingerprints(data: bytes) -> Fingerprint:
    """Of an image file, decoded upright. Mirror images and other crops of a photo count as other pictures.

    `phash` is the pHash by which DHAA removes duplicates (Tan et al., Section 3.1): the signs, against their median, of the 8x8 lowest
    frequencies of the DCT of 32x32 gray pixels. A photo far larger than that is shrunk while it is decoded, and anything larger by area before
    it is hashed: sizes of the same photo then agree better. Raises ImageError (`ageray.faces.images`) if the bytes are no picture.
    """
    gray = Image.fromarray(images.decode(data, max_side=_DECODED).pixels).convert("L")
    bits = imagehash.phash(gray).hash
    small = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX))
    return Fingerprint(
        hashlib.sha256(data).hexdigest(), int.from_bytes(np.packbits(bits).tobytes(), "big"), small.tobytes()
    )
