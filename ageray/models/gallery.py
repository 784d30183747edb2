"""Ages by the nearest training faces (Jeong et al. 2018, section 2.5).

A gallery has embeddings of faces with their ages. It is searched by L1 distance.

Shape letters: B query faces, N faces of the gallery, M neighbours, D size of the embedding, G size
of the embedding for gender, K age bins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from ageray.errors import UserError

_PAIRS = 1 << 22
"""Distances in memory at once: 16 MB, and as much where some are left out."""
_NUMBERS = 1 << 25
"""Numbers of the gallery in memory at once as float32: 128 MB."""
_INFINITY = 0x7F800000  # float32's bits
_NOBODY = (_INFINITY << 32) | 0xFFFFFFFF
"""The key that stands for no face."""


@dataclass(frozen=True)
class Neighbours:
    """The M nearest faces of each of B: `index` (B, M) in the gallery, `distance` (B, M), nearest
    first.

    If there are fewer than M, the other entries have distance infinity and index 0. `own` (B,) is
    the number of the M nearest in the *whole* gallery that show the face's own subject. `exclude`
    of `Gallery.nearest` decides whether `index` has them.
    """

    index: Tensor
    distance: Tensor
    own: Tensor

    @property
    def present(self) -> Tensor:
        """Which of the M entries are faces: bool (B, M)."""
        return ~torch.isinf(self.distance)


@dataclass(frozen=True)
class Gallery:
    """N faces, all on one device.

    `embedding` (N, D) and, if the model has one, `gender_embedding` (N, G) are float16, or float32
    if a number is too large for float16. `age` (N,) is float32 years. `gender` (N,) is int8: 0
    male, 1 female, -1 unknown. `subject` (N,) is int64: 0 unknown (`subject_number`).
    """

    embedding: Tensor
    age: Tensor
    gender: Tensor
    subject: Tensor
    gender_embedding: Tensor | None = None

    @classmethod
    def of(cls, rows: Iterable[dict[str, Tensor]]) -> Gallery:
        """The gallery of batches of rows, in their order.

        Each batch has the tensors of a gallery by name. Without `gender` or `subject` they are
        unknown. At least one batch is necessary.
        """
        columns: dict[str, list[Tensor]] = {}
        for row in rows:
            unknown = torch.zeros(len(row["age"]), dtype=torch.int64, device=row["age"].device)
            for name, tensor in {"subject": unknown, "gender": unknown - 1, **row}.items():
                columns.setdefault(name, []).append(tensor)
        whole = {name: torch.cat(parts) for name, parts in columns.items()}
        dtypes = {"age": torch.float32, "gender": torch.int8, "subject": torch.int64}
        return cls(**{name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in whole.items()})

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Gallery:
        """The gallery of the tensors that `tensors` returned.

        Raises ValueError if a name is missing or unknown, or if shapes do not match.
        """
        names = {field.name for field in fields(cls)}
        missing, unknown = names - {"gender_embedding"} - tensors.keys(), tensors.keys() - names
        if missing:
            raise ValueError(f"it lacks {sorted(missing)}")
        if unknown:
            raise ValueError(f"it holds {sorted(unknown)}")
        gallery = cls(**tensors)
        for name, tensor in tensors.items():
            dimensions = 2 if "embedding" in name else 1
            if tensor.ndim != dimensions or len(tensor) != len(gallery) or len(tensor) == 0:
                raise ValueError(f"{name} has shape {list(tensor.shape)} for {len(gallery)} faces")
        return gallery

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, on their device."""
        tensors = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor is not None:
                tensors[field.name] = tensor
        return tensors

    def to(self, device: torch.device) -> Gallery:
        """The same faces on another device."""
        return Gallery(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def __len__(self) -> int:
        return len(self.age)

    @property
    def finite(self) -> bool:
        """Whether all numbers of the embeddings are finite. Waits for the device."""
        embeddings = [tensor for name, tensor in self.tensors().items() if "embedding" in name]
        return all(bool(tensor.isfinite().all()) for tensor in embeddings)

    def nearest(
        self,
        query_BD: Tensor,
        count: int,
        subject_B: Tensor | None = None,
        exclude: bool = True,
        by: str = "embedding",
        gender: bool = False,
    ) -> Neighbours:
        """The `count` faces whose embedding is nearest in L1 (Eq. 1).

        Of two equally near faces the earlier one in the gallery comes first.

        subject_B: (B,) numbers of subjects, 0 unknown. exclude: leave out faces of the same known
        subject. by: the name of the embedding. gender: take only faces of known gender. The gallery
        is searched in pieces, so that memory does not grow with it. The result does not depend on
        the pieces.
        """
        bank_ND = self._bank(by, query_BD.shape[-1])
        query_BD = query_BD.float()
        piece = max(1, min(_PAIRS // max(1, len(query_BD)), _NUMBERS // bank_ND.shape[-1]))
        nearest_BM = torch.full((len(query_BD), count), _NOBODY, dtype=torch.int64, device=query_BD.device)
        whole_BM = nearest_BM
        for start in range(0, len(self), piece):
            rows = slice(start, start + piece)
            distance_BN = torch.cdist(query_BD, bank_ND[rows].float(), p=1)
            if gender:
                distance_BN = distance_BN.masked_fill(self.gender[rows] < 0, torch.inf)
            key_BM = _smallest(distance_BN, start, count)
            if subject_B is not None and exclude:
                whole_BM = _merged(whole_BM, key_BM)
                again_B = self._own_among_keys(key_BM, subject_B).any(-1)  # the others lose no face
                if bool(again_B.any()):
                    own_XN = self._own(subject_B[again_B], self.subject[rows])
                    others_XN = distance_BN[again_B].masked_fill(own_XN, torch.inf)
                    key_BM = key_BM.index_put((again_B,), _smallest(others_XN, start, count))
            nearest_BM = _merged(nearest_BM, key_BM)
        own_B = self._own_among(whole_BM if exclude else nearest_BM, subject_B)
        return Neighbours(*_parts(nearest_BM), own_B)

    def _bank(self, by: str, size: int) -> Tensor:
        bank: Tensor = getattr(self, by)
        if bank.shape[-1] != size:
            raise UserError(
                f"the gallery's {by} has {bank.shape[-1]} numbers a face and the network gives {size}; "
                "copy both from one bundle"
            )
        return bank

    @staticmethod
    def _own(subject_B: Tensor, subject_N: Tensor) -> Tensor:
        """Pairs that show the same known subject: bool (B, N)."""
        return (subject_B[:, None] == subject_N) & (subject_B > 0)[:, None]

    def _own_among(self, key_BM: Tensor, subject_B: Tensor | None) -> Tensor:
        """How many of M keys are faces of the query's own subject: (B,)."""
        if subject_B is None:
            return key_BM.new_zeros(len(key_BM))
        return self._own_among_keys(key_BM, subject_B).sum(-1)

    def _own_among_keys(self, key_BM: Tensor, subject_B: Tensor) -> Tensor:
        """Which of M keys are faces of the query's own known subject: bool (B, M)."""
        index_BM, distance_BM = _parts(key_BM)
        own_BM = (self.subject[index_BM] == subject_B[:, None]) & (subject_B > 0)[:, None]
        return own_BM & ~torch.isinf(distance_BM)

    def posterior(self, neighbours: Neighbours, bins_K: Tensor) -> Tensor:
        """The histogram of the neighbours' ages over the bins: (B, K) float32, of sum 1.

        Each neighbour has the same weight. It is divided between the two bins around its age in
        such a way that the mean does not change: the expectation is the neighbours' mean age, which
        is the paper's prediction. An age outside the bins counts in the outermost bin. If a face
        has no neighbour, because all show its own subject, every bin has the same probability.
        """
        age_BM = self.age[neighbours.index].clamp(bins_K[0], bins_K[-1])
        near_BMK = (1 - (age_BM[..., None] - bins_K).abs()).clamp_min(0)  # bins are a year apart
        return _mean(near_BMK, neighbours.present, 1 / len(bins_K))

    def female(self, neighbours: Neighbours) -> Tensor:
        """The share of women among the neighbours: (B,) float32; 0.5 without neighbours.

        The neighbours' gender must be known.
        """
        return _mean(self.gender[neighbours.index].float()[..., None], neighbours.present, 0.5).squeeze(-1)

    @cached_property
    def gender_by(self) -> str | None:
        """The name of the embedding that gender is estimated from.

        It is the embedding for gender if there is one, else that for age; None if no gender is
        known.
        """
        if not bool((self.gender >= 0).any()):
            return None
        if self.gender_embedding is None:
            return "embedding"
        return "gender_embedding"

    @cached_property
    def all_genders_known(self) -> bool:
        """Whether the gender of every face is known."""
        return bool((self.gender >= 0).all())


def _mean(values_BMX: Tensor, present_BM: Tensor, default: float) -> Tensor:
    """The mean over the present neighbours: (B, X); `default` if there are none."""
    count_B1 = present_BM.sum(-1, keepdim=True)
    mean_BX = (values_BMX * present_BM[..., None]).sum(1) / count_B1.clamp_min(1)
    return mean_BX.masked_fill(count_B1 == 0, default)


def _keys(distance_BX: Tensor, index_BX: Tensor) -> Tensor:
    """An int64 key for each pair, which sorts by distance and then by index in the gallery.

    The bits of non-negative floats have the same order as the floats. All keys of a face differ, so
    the order never depends on the sorting algorithm. A pair at an infinite distance is no face.
    """
    key_BX = (distance_BX.contiguous().view(torch.int32).long() << 32) | index_BX
    return key_BX.masked_fill(torch.isinf(distance_BX), _NOBODY)


def _smallest(distance_BN: Tensor, start: int, count: int) -> Tensor:
    """The keys of the `count` smallest distances (all of fewer), in no order: (B, M).

    Selection by the distances alone is faster than by 64-bit keys. It leaves open which of equal
    distances are chosen, so a face whose next distance equals the last chosen one is selected again
    by its keys.
    """
    size = distance_BN.shape[-1]
    near = distance_BN.topk(min(count + 1, size), largest=False, sorted=True)
    if size <= count:
        return _keys(near.values, near.indices + start)
    key_BM = _keys(near.values[:, :count], near.indices[:, :count] + start)
    open_B = near.values[:, count] == near.values[:, count - 1]
    open_B = open_B & ~torch.isinf(near.values[:, count])
    if bool(open_B.any()):
        index_N = torch.arange(start, start + size, device=distance_BN.device)
        key_XN = _keys(distance_BN[open_B], index_N.expand_as(distance_BN[open_B]))
        key_BM = key_BM.index_put((open_B,), key_XN.topk(count, largest=False).values)
    return key_BM


def _merged(nearest_BM: Tensor, key_BX: Tensor) -> Tensor:
    """The M smallest keys of both tensors, ascending."""
    return torch.cat([nearest_BM, key_BX], -1).topk(nearest_BM.shape[-1], largest=False, sorted=True).values


def _parts(key_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Index and distance of each key: (B, M) each. The key of no face has index 0."""
    distance_BM = (key_BM >> 32).int().view(torch.float32)
    return (key_BM & 0xFFFFFFFF).masked_fill(torch.isinf(distance_BM), 0), distance_BM


def compact(embedding_ND: Tensor) -> Tensor:
    """The embedding as float16, or as float32 if a number is too large for float16."""
    if len(embedding_ND) and not bool(embedding_ND.abs().max() < torch.finfo(torch.float16).max):
        return embedding_ND.float()
    return embedding_ND.half()
