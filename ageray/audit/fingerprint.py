"""Fingerprints: small values that tell whether two image files show the same picture.

Takes the bytes of an image file, gives a `Fingerprint` of about 330 bytes.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image

from ageray.faces import images

SIDE = 16
"""Side of the thumbnail, in pixels."""

_DECODED = 128  # pixels; the hash uses 32x32 pixels, so large photos need not be decoded in full


class Fingerprint(NamedTuple):
    """What identifies a picture.

    digest      SHA-256 of the bytes, hexadecimal
    phash       64-bit perceptual hash: equal or nearly equal after re-encoding and resizing
    thumbnail   the 16x16 gray values, row by row; they confirm what the hash suggests
                (see `ageray.audit.near_duplicates`)
    """

    digest: str
    phash: int
    thumbnail: bytes


def fingerprints(data: bytes) -> Fingerprint:
    """The fingerprint of an image file, decoded upright.

    `phash` is the pHash with which DHAA removes duplicates (Tan et al., Section 3.1): the signs of
    the 8x8 lowest frequencies of the DCT of 32x32 gray pixels, relative to their median. Mirror
    images and other crops of a photo count as other pictures. Large photos are shrunk while they
    are decoded, and all are shrunk by area before hashing: different sizes of one photo then agree
    better. Raises ImageError (`ageray.faces.images`) if the bytes are not an image.
    """
    gray = Image.fromarray(images.decode(data, max_side=_DECODED).pixels).convert("L")
    bits = imagehash.phash(gray).hash
    return Fingerprint(
        digest=hashlib.sha256(data).hexdigest(),
        phash=int.from_bytes(np.packbits(bits).tobytes(), "big"),
        thumbnail=np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX)).tobytes(),
    )
