"""Reads lists that are MATLAB files: the fields of a struct, and serial dates."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ageray import storage
from ageray.errors import UserError

_HDF5 = b"MATLAB 7.3 MAT-file"


def fields(uri: str, struct: str, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Fields of a struct of equally long vectors, each flat: numbers unchanged, cells of text as
    `str`.

    An empty cell is empty text. Raises UserError if the file lacks the struct or one of the fields,
    or if it is of MATLAB's version 7.3, which is HDF5.
    """
    if storage.read_bytes(uri, len(_HDF5)) == _HDF5:
        raise UserError(
            f"{uri}: is a MATLAB 7.3 file (HDF5), which would need h5py; save it again in MATLAB with -v7"
        )
    from scipy.io import loadmat  # the import takes a second, and few sets need it

    try:
        content = loadmat(io.BytesIO(storage.read_bytes(uri)), variable_names=[struct])
    except Exception as error:  # loadmat raises whatever its parsers raise
        raise UserError(f"{uri}: cannot be read as a MATLAB file ({error}); download it again") from None
    present = (content[struct].dtype.names or ()) if struct in content else ()
    if not set(names) <= set(present):
        raise UserError(
            f"{uri}: has no struct '{struct}' with the fields {', '.join(names)}; "
            "check that it is the set's own file"
        )
    record = content[struct].ravel()[0]
    columns = {name: _flat(record[name]) for name in names}
    if len(set(map(len, columns.values()))) > 1:
        sizes = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise UserError(f"{uri}: the fields of '{struct}' differ in length ({sizes}); download it again")
    return columns


def day(datenum: float) -> date:
    """The day of a MATLAB serial date number (1 is 1 January of the year 0).

    Raises ValueError for a day before the year 1, which Python has not, or after the year 9999.
    """
    if not math.isfinite(datenum) or not 367 <= datenum < date.max.toordinal() + 367:
        raise ValueError(f"{datenum:g} is no date from the year 1 on")
    return date.fromordinal(int(datenum) - 366)


def _flat(field: NDArray[Any]) -> NDArray[Any]:
    if field.dtype != object:
        return field.ravel()
    return np.array(list(map(_text, field.ravel())), dtype=object)


def _text(cell: Any) -> str:
    values = np.asarray(cell).ravel()
    return str(values[0]) if values.size else ""
