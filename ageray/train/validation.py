"""Validation in plain torch: the ages of faces as the predictor would decode them, and the gallery for it. Ray is not needed here."""

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

_JUDGED = ("canvas", "points", "box", "features", "subject")

_GALLERY = (*_JUDGED, "age", "gender")


@torch.no_grad()
def build_gallery(state: State, batches: Iterable[Columns], most: int | None = None) -> Gallery | None:
    """The gallery (`decode.method: gallery`) of the faces of `batches`, or of the first `most`, as the judged network embeds them without
    augmentation; None if there is no face. Of several workers each embeds its own faces and all get all, in the order of the column `row`.
    Raises FloatingPointError if an embedding is not finite."""
    network, bf16 = state.judged.eval(), state.config.train.precision == "bf16"
    found: list[dict[str, Tensor]] = []
    for columns in _first(batches, most):
        batch = to_tensors({name: columns[name] for name in _GALLERY if name in columns}, state.device)
        found.append(gallery_rows(network, batch, state.config, bf16) | _rows(columns))
    found = _in_order(found)
    if not found:
        return None
    made = Gallery.of({name: tensor.to(state.device) for name, tensor in rows.items()} for rows in found)
    if not made.finite:
        raise FloatingPointError(
            f"step {state.step}: embeddings are not finite; lower the learning rate, or set train.clip"
        )
    return made


def _rows(columns: Columns) -> dict[str, Tensor]:
    return {"row": torch.from_numpy(np.array(columns["row"]))} if "row" in columns else {}


def _in_order(own: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What the workers found, batch by batch, as one table of all faces in the order of `row`; alone and without `row`, as it is."""
    if not own or "row" not in own[0]:
        found = own
    else:
        found = [{name: torch.cat([rows[name].cpu() for rows in own]) for name in own[0]}]
    everything = [table for tables in distributed.all_gather_object(found) for table in tables]
    if not everything or "row" not in everything[0]:
        return everything
    whole = {name: torch.cat([table[name] for table in everything]) for name in everything[0]}
    order = whole.pop("row").argsort(stable=True)
    return [{name: tensor[order] for name, tensor in whole.items()}]


def _first(batches: Iterable[Columns], most: int | None) -> Iterator[Columns]:
    """The batches up to the face number `most`; no further one is read."""
    left = most
    for columns in batches:
        yield {name: values[:left] for name, values in columns.items()}
        if left is not None:
            left -= len(columns["age"])
            if left <= 0:
                return


class Validated(NamedTuple):
    """True and predicted age (N,) in years of validation faces, and the number of the set that each belongs to (`data.sets`; else 0)."""

    true: NDArray[np.float32]
    predicted: NDArray[np.float32]
    set: NDArray[np.int64]


@torch.inference_mode()
def validate(state: State, batches: Iterable[Columns], gallery: Gallery | None = None) -> Validated:
    """Ages of every face of `batches`, without augmentation or calibration, as the predictor would decode them; of several workers, of the
    faces of all, in the order of the column `row`.

    A column `set` (B,) numbers the sets of the faces. gallery: for `decode.method: gallery`. With a column `subject`, neighbours of a face's own subject are left out where the settings say so.
    """
    network, config = state.judged.eval(), state.config
    found: list[dict[str, Tensor]] = []
    for columns in batches:
        batch = to_tensors({name: columns[name] for name in _JUDGED if name in columns}, state.device)
        ages = decode(
            posterior(network, batch, config, config.train.precision == "bf16", gallery), config.model
        )
        known = torch.from_numpy(np.array(columns["age"], np.float32))
        number = torch.from_numpy(np.array(columns.get("set", np.zeros(len(known), np.int64))))
        found.append({"true": known, "said": ages.float().cpu(), "set": number} | _rows(columns))
    found = _in_order(found)
    true, said = (
        torch.cat([torch.zeros(0), *(table[name] for table in found)]).numpy() for name in ("true", "said")
    )
    number_N = torch.cat([torch.zeros(0, dtype=torch.int64), *(table["set"] for table in found)]).numpy()
    if not np.isfinite(said).all():
        raise FloatingPointError(
            f"step {state.step}: predicted ages are not finite; lower the learning rate, or set train.clip"
        )
    return Validated(true, said, number_N)
