"""Validation and galleries: batches of faces in, their predicted ages or their embeddings out.

Of several workers each brings its own faces; all workers get all rows in the order of the column
`row`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ageray import distributed
from ageray.faces.canvases import to_tensors
from ageray.models.decode import decode
from ageray.models.gallery import Gallery
from ageray.models.inference import gallery_rows, posterior
from ageray.train.state import Columns, State

_VALIDATION_COLUMNS = ("canvas", "points", "box", "features", "subject")

_GALLERY_COLUMNS = (*_VALIDATION_COLUMNS, "age", "gender")

Table = dict[str, Tensor]


@torch.no_grad()
def build_gallery(state: State, batches: Iterable[Columns], most: int | None = None) -> Gallery | None:
    """The gallery (`decode.method: gallery`) of the faces of `batches`, without augmentation.

    most: take only so many faces. The embeddings are those of `state.eval_network`. None if there
    is no face. Raises FloatingPointError if an embedding is not finite.
    """
    network, bf16 = state.eval_network.eval(), state.config.train.precision == "bf16"
    tables: list[Table] = []
    for columns in _first(batches, most):
        batch = _to_device(state, columns, _GALLERY_COLUMNS)
        tables.append(gallery_rows(network, batch, state.config, bf16) | _row_numbers(columns))
    parts = []
    for table in _all_in_order(tables):
        parts.append({name: tensor.to(state.device) for name, tensor in table.items()})
    if not parts:
        return None
    gallery = Gallery.of(parts)
    if not gallery.finite:
        raise FloatingPointError(
            f"step {state.step}: embeddings are not finite; lower the learning rate, or set train.clip"
        )
    return gallery


class Validated(NamedTuple):
    """True and predicted ages (N,), in years, and the number of each face's set (`data.sets`)."""

    true: NDArray[np.float32]
    predicted: NDArray[np.float32]
    set: NDArray[np.int64]


@torch.inference_mode()
def validate(state: State, batches: Iterable[Columns], gallery: Gallery | None = None) -> Validated:
    """True and predicted ages of every face of `batches`; a column `set` (B,) numbers the sets.

    Ages are decoded as the predictor does, without augmentation or calibration. gallery: for
    `decode.method: gallery`; with a column `subject`, neighbours of the same subject are left out
    if the settings say so. Raises FloatingPointError if an age is not finite.
    """
    network, config = state.eval_network.eval(), state.config
    bf16 = config.train.precision == "bf16"
    own: list[Table] = []
    for columns in batches:
        batch = _to_device(state, columns, _VALIDATION_COLUMNS)
        ages = decode(posterior(network, batch, config, bf16, gallery), config.model).float().cpu()
        true = torch.from_numpy(np.array(columns["age"], np.float32))
        numbers = torch.from_numpy(np.array(columns.get("set", np.zeros(len(true), np.int64))))
        own.append({"true": true, "predicted": ages, "set": numbers} | _row_numbers(columns))
    no_faces: Table = {
        "true": torch.zeros(0),
        "predicted": torch.zeros(0),
        "set": torch.zeros(0, dtype=torch.int64),
    }
    whole = _joined([no_faces, *_all_in_order(own)])
    true_N, predicted_N = whole["true"].numpy(), whole["predicted"].numpy()
    if not np.isfinite(predicted_N).all():
        raise FloatingPointError(
            f"step {state.step}: predicted ages are not finite; lower the learning rate, or set train.clip"
        )
    return Validated(true_N, predicted_N, whole["set"].numpy())


def _to_device(state: State, columns: Columns, names: tuple[str, ...]) -> dict[str, Tensor]:
    arrays = {}
    for name in names:
        if name in columns:
            arrays[name] = columns[name]
    return to_tensors(arrays, state.device)


def _row_numbers(columns: Columns) -> Table:
    return {"row": torch.from_numpy(np.array(columns["row"]))} if "row" in columns else {}


def _all_in_order(own: list[Table]) -> list[Table]:
    """The tables of all workers. With a column `row`: one table, sorted by it, without it."""
    if own and "row" in own[0]:
        joined = _joined(own)
        own = [{name: tensor.cpu() for name, tensor in joined.items()}]
    tables: list[Table] = []
    for part in distributed.all_gather_object(own):
        tables += part
    if not tables or "row" not in tables[0]:
        return tables
    whole = _joined(tables)
    order = whole.pop("row").argsort(stable=True)
    return [{name: tensor[order] for name, tensor in whole.items()}]


def _joined(tables: list[Table]) -> Table:
    whole = {}
    for name in tables[0]:
        whole[name] = torch.cat([table[name] for table in tables])
    return whole


def _first(batches: Iterable[Columns], most: int | None) -> Iterator[Columns]:
    """The first `most` faces (None: all); no batch after them is read."""
    remaining = most
    for columns in batches:
        yield {name: values[:remaining] for name, values in columns.items()}
        if remaining is not None:
            remaining -= len(columns["age"])
            if remaining <= 0:
                return
