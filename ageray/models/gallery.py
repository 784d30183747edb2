"""Ages by the nearest training faces (Jeong et al. 2018, section 2.5): a gallery of embeddings with their ages, searched by L1 distance.

Shape letters: B faces asked about, N faces of the gallery, M neighbours, D size of the embedding, G of the embedding for gender, K age bins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from ageray.errors import UserError

_PAIRS = 1 << 22
"""Distances held at once: some 100 MB with their keys."""
_NUMBERS = 1 << 25
"""Gallery numbers held at once as float32, 128 MB: wide embeddings come in shorter pieces."""
_INFINITY = 0x7F800000  # float32's bits
_NOBODY = (_INFINITY << 32) | 0xFFFFFFFF
"""The key of no face at all."""


@dataclass(frozen=True)
class Neighbours:
    """The M nearest faces of each of B: `index` (B, M) in the gallery, `distance` (B, M), nearest first.

    Where there are fewer than M, the rest has distance infinity and index 0. `own` (B,): how many of the M nearest of the *whole* gallery are of
    the face's own subject; they are left out of `index`, or in it, as was asked for.
    """

    index: Tensor
    distance: Tensor
    own: Tensor

    @property
    def present(self) -> Tensor:
        """Which of the M there are: bool (B, M)."""
        return ~torch.isinf(self.distance)


@dataclass(frozen=True)
class Gallery:
    """N faces, all on one device: `embedding` (N, D) and, where the model has one, `gender_embedding` (N, G), float16 (float32 where that cannot
    hold them); `age` (N,) float32 years; `gender` (N,) int8, 0 male, 1 female, -1 unknown; `subject` (N,) int64, 0 unknown (`subject_number`)."""

    embedding: Tensor
    age: Tensor
    gender: Tensor
    subject: Tensor
    gender_embedding: Tensor | None = None

    @classmethod
    def of(cls, rows: Iterable[dict[str, Tensor]]) -> Gallery:
        """The gallery of batches of rows, each with these tensors by name (`gender` and `subject` may be missing: unknown), in their order.
        There must be one at least."""
        columns: dict[str, list[Tensor]] = {}
        for row in rows:
            unknown = torch.zeros(len(row["age"]), dtype=torch.int64, device=row["age"].device)
            for name, tensor in {"subject": unknown, "gender": unknown - 1, **row}.items():
                columns.setdefault(name, []).append(tensor)
        whole = {name: torch.cat(parts) for name, parts in columns.items()}
        kinds = {"age": torch.float32, "gender": torch.int8, "subject": torch.int64}
        return cls(**{name: tensor.to(kinds.get(name, tensor.dtype)) for name, tensor in whole.items()})

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Gallery:
        """The gallery of what `tensors` gave. Raises ValueError if a name is missing or strange, or the tensors do not go together."""
        names = {field.name for field in fields(cls)}
        missing, strange = names - {"gender_embedding"} - tensors.keys(), tensors.keys() - names
        if missing or strange:
            raise ValueError(f"it lacks {sorted(missing)}" if missing else f"it holds {sorted(strange)}")
        made = cls(**tensors)
        for name, tensor in tensors.items():
            wide = 2 if "embedding" in name else 1
            if tensor.ndim != wide or len(tensor) != len(made) or len(tensor) == 0:
                raise ValueError(f"{name} has shape {list(tensor.shape)} for {len(made)} faces")
        return made

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, where it is."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def to(self, device: torch.device) -> Gallery:
        """The same faces on another device."""
        return Gallery(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def __len__(self) -> int:
        return len(self.age)

    @property
    def finite(self) -> bool:
        """Whether every embedding is a number. Waits for the device."""
        return all(
            bool(tensor.isfinite().all()) for name, tensor in self.tensors().items() if "embedding" in name
        )

    def nearest(
        self,
        query_BD: Tensor,
        count: int,
        subject_B: Tensor | None = None,
        exclude: bool = True,
        by: str = "embedding",
        gender: bool = False,
    ) -> Neighbours:
        """The `count` faces whose embedding is nearest in L1 (Eq. 1); of two equally near the earlier in the gallery.

        subject_B: (B,) numbers, 0 unknown. exclude: leave out faces of the same known subject. by: which embedding. gender: only faces whose
        gender is known. The gallery is read in pieces, so that memory does not grow with it; the pieces do not change the result.
        """
        bank_ND = self._bank(by, query_BD.shape[-1])
        query_BD = query_BD.float()
        piece = max(1, min(_PAIRS // max(1, len(query_BD)), _NUMBERS // bank_ND.shape[-1]))
        kept_BM = torch.full((len(query_BD), count), _NOBODY, dtype=torch.int64, device=query_BD.device)
        whole_BM = kept_BM
        for start in range(0, len(self), piece):
            here = slice(start, start + piece)
            key_BN = _keys(torch.cdist(query_BD, bank_ND[here].float(), p=1), start)
            if gender:
                key_BN = key_BN.masked_fill(self.gender[here] < 0, _NOBODY)
            if subject_B is not None and exclude:
                whole_BM = _smallest(whole_BM, key_BN)
                key_BN = key_BN.masked_fill(self._own(subject_B, self.subject[here]), _NOBODY)
            kept_BM = _smallest(kept_BM, key_BN)
        own_B = self._own_among(whole_BM if exclude else kept_BM, subject_B)
        return Neighbours(*_parts(kept_BM), own_B)

    def _bank(self, by: str, size: int) -> Tensor:
        bank: Tensor = getattr(self, by)
        if bank.shape[-1] != size:
            raise UserError(
                f"the gallery's {by} has {bank.shape[-1]} numbers a face and the network gives {size}; copy both from one bundle"
            )
        return bank

    @staticmethod
    def _own(subject_B: Tensor, subject_N: Tensor) -> Tensor:
        """Pairs of one known subject: bool (B, N)."""
        return (subject_B[:, None] == subject_N) & (subject_B > 0)[:, None]

    def _own_among(self, key_BM: Tensor, subject_B: Tensor | None) -> Tensor:
        if subject_B is None:
            return key_BM.new_zeros(len(key_BM))
        index_BM, distance_BM = _parts(key_BM)
        own_BM = (self.subject[index_BM] == subject_B[:, None]) & (subject_B > 0)[:, None]
        return (own_BM & ~torch.isinf(distance_BM)).sum(-1)

    def posterior(self, neighbours: Neighbours, bins_K: Tensor) -> Tensor:
        """The histogram of the neighbours' ages over the bins, (B, K) float32, summing to 1.

        Each neighbour counts 1/M, or 1 over how many there are, and is shared out between the two bins about its age so that the mean is kept:
        the expectation is the neighbours' mean age, the paper's prediction. An age beyond the bins counts in the outermost. A face without any
        neighbour (all are of its own subject) gets the same probability for every bin: nothing is known of it.
        """
        age_BM = self.age[neighbours.index].clamp(bins_K[0], bins_K[-1])
        near_BMK = (1 - (age_BM[..., None] - bins_K).abs()).clamp_min(0)  # bins are a year apart
        return _mean(near_BMK, neighbours.present, 1 / len(bins_K))

    def female(self, neighbours: Neighbours) -> Tensor:
        """The share of women among the neighbours, (B,) float32; 0.5 where there are none. The neighbours must be of known gender."""
        return _mean(self.gender[neighbours.index].float()[..., None], neighbours.present, 0.5).squeeze(-1)

    @cached_property
    def gender_by(self) -> str | None:
        """The embedding that tells gender: that for gender where there is one, else the one for age; None if no face's gender is known."""
        if not bool((self.gender >= 0).any()):
            return None
        return "embedding" if self.gender_embedding is None else "gender_embedding"

    @cached_property
    def all_genders_known(self) -> bool:
        """Whether no face's gender is unknown."""
        return bool((self.gender >= 0).all())


def _mean(values_BMX: Tensor, present_BM: Tensor, nothing: float) -> Tensor:
    """The mean over the neighbours there are, (B, X); `nothing` where there are none."""
    count_B1 = present_BM.sum(-1, keepdim=True)
    mean_BX = (values_BMX * present_BM[..., None]).sum(1) / count_B1.clamp_min(1)
    return mean_BX.masked_fill(count_B1 == 0, nothing)


def _keys(distance_BN: Tensor, start: int) -> Tensor:
    """One int64 a pair that sorts by distance, then by place in the gallery: a non-negative float's bits ascend as it does. All keys of a face
    differ, so that no choice is left to the sorting."""
    place_N = torch.arange(start, start + distance_BN.shape[-1], device=distance_BN.device)
    return (distance_BN.contiguous().view(torch.int32).long() << 32) | place_N


def _smallest(kept_BM: Tensor, key_BN: Tensor) -> Tensor:
    """The M smallest of both, ascending."""
    return torch.cat([kept_BM, key_BN], -1).topk(kept_BM.shape[-1], largest=False, sorted=True).values


def _parts(key_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Index and distance; index 0 for nobody."""
    distance_BM = (key_BM >> 32).int().view(torch.float32)
    return (key_BM & 0xFFFFFFFF).masked_fill(torch.isinf(distance_BM), 0), distance_BM


def compact(embedding_ND: Tensor) -> Tensor:
    """As float16 where it can hold every number."""
    fits = bool(embedding_ND.abs().max() < torch.finfo(torch.float16).max) if len(embedding_ND) else True
    return embedding_ND.half() if fits else embedding_ND.float()
