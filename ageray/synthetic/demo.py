"""The drawn photos that `ageray score --demo` scores."""

from __future__ import annotations

import io

from PIL import Image

from ageray import storage
from ageray.errors import UserError
from ageray.synthetic import faces

_DEMO_PHOTOS = 8


def draw_demo(folder: str) -> str:
    """Draws 8 photos into a local folder and returns the folder.

    If scikit-image is installed, its photo of an astronaut is added. Raises UserError for a remote
    folder.
    """
    if storage.is_remote(folder):
        raise UserError(f"{folder}: photos are drawn into local folders only; give a local one")
    faces.write_photos(folder, _DEMO_PHOTOS)
    try:
        from skimage.data import astronaut
    except ImportError:
        return folder
    photo = io.BytesIO()
    Image.fromarray(astronaut()).save(photo, "JPEG", quality=95)  # type: ignore[no-untyped-call]
    storage.write_bytes(storage.join(folder, "astronaut.jpg"), photo.getvalue())
    return folder
