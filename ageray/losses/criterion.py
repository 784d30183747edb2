"""The weighted sum of loss terms, bound to a model's tensors by parameter name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ageray.errors import UserError
from ageray.experiment import Loss
from ageray.losses.cluster_scatter import cluster_scatter
from ageray.losses.contrastive import contrastive
from ageray.losses.cross_entropy import cross_entropy
from ageray.losses.crps import crps
from ageray.losses.distillation import distillation
from ageray.losses.dldl_v2 import dldl_v2
from ageray.losses.gender_contrastive import gender_contrastive
from ageray.losses.mean_variance import mean_variance
from ageray.losses.neighborhood import neighborhood
from ageray.losses.or_cnn import or_cnn
from ageray.losses.regression import number_error, regression
from ageray.losses.sord import sord
from ageray.losses.triplet import triplet

TERMS: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "neighborhood": neighborhood,
    "triplet": triplet,
    "contrastive": contrastive,
    "gender_contrastive": gender_contrastive,
    "cluster_scatter": cluster_scatter,
    "regression": regression,
    "dldl_v2": dldl_v2,
    "distillation": distillation,
    "crps": crps,
    "mean_variance": mean_variance,
    "sord": sord,
    "or_cnn": or_cnn,
}
_OF_A_NUMBER = {"regression": number_error}
"""The terms of a model that gives `number`, one regressed age, in place of `logits`."""
FIELDS = frozenset({"age", "age_std", "bins", "gender", "teacher"})
"""The tensors of a training batch besides the model's: `age` (B,) years; `bins` (K,) years;
`gender` (B,), 0 male, 1 female, -1 unknown; `age_std` (B,) years, the labels' standard deviation,
if they have one; `teacher` (B, K), the teacher's posterior, with `train.teacher`."""
PAIRED = frozenset({"triplet", "contrastive", "gender_contrastive"})
"""Terms on pairs and triplets of faces."""
_JOINT = PAIRED | {"cluster_scatter"}  # terms that are no means over single faces
_WEIGHT = "weight"
AUXILIARY = "aux_"
"""Prefix of the tensors of A auxiliary classifiers, stacked along dimension 1: `aux_logits`
(B, A, K)."""
_CLUSTERED = "set model.name=cluster_cnn and model.head=cluster"
_REMEDIES = {
    "logits": "set model.classifier=softmax (any model but siamese)",
    "ordinal_logits": "set model.classifier=or_cnn or coral (any model but siamese)",
    "gender_embedding": "set model.name=siamese and model.gender_features above 0",
    "features": _CLUSTERED,
    "cluster": _CLUSTERED,
    "centroids": _CLUSTERED,
}
"""For each tensor the settings with which a model gives it."""


@dataclass(frozen=True)
class _Bound:
    """A term with the names of the tensors it takes and its options. `stacked` names the tensors of
    auxiliary classifiers, `optional` those that it takes if the batch has them."""

    name: str
    weight: float
    function: Callable[..., Tensor]
    required: list[str]
    stacked: list[str]
    options: dict[str, Any]
    optional: list[str]

    def value(self, tensors: dict[str, Tensor]) -> Tensor:
        if _WEIGHT in tensors and self.name not in _JOINT:
            return self._weighed(tensors)
        more = {field: tensors[field] for field in self.optional if field in tensors}
        return self.function(*(tensors[field] for field in self.required), **self.options, **more)

    def _weighed(self, tensors: dict[str, Tensor]) -> Tensor:
        """The term of each face as of a batch of one, times the face's weight."""
        more = [field for field in self.optional if field in tensors]
        rows = [*(field for field in self.required if field != "bins"), *more]

        def one(*face: Tensor) -> Tensor:
            values = dict(zip(rows, face, strict=True)) | {"bins": tensors["bins"]}
            optional = {field: values[field] for field in more}
            return self.function(*(values[field] for field in self.required), **self.options, **optional)

        value_B = torch.vmap(one)(*(tensors[field].unsqueeze(1) for field in rows)) * tensors[_WEIGHT]
        return value_B.sum() if self.options.get("reduction") == "sum" else value_B.mean()

    def auxiliary(self, tensors: dict[str, Tensor]) -> Tensor:
        """The sum of the term over the auxiliary classifiers."""
        stacks = [tensors[AUXILIARY + field].unbind(1) for field in self.stacked]
        values = []
        for outputs in zip(*stacks, strict=True):
            values.append(self.value({**tensors, **dict(zip(self.stacked, outputs, strict=True))}))
        return torch.stack(values).sum()


class Criterion:
    """Calls each configured term with the tensors that its required parameters name; sums the
    results with the terms' weights.

    If the model has auxiliary classifiers (it gives `aux_logits`), every term on `logits` is also
    applied to each of them. That sum is multiplied by `loss.auxiliary` as well (DHAA, Eq. 4).
    """

    def __init__(self, config: Loss, outputs: Collection[str], model: str) -> None:
        """outputs: names of the model's tensors. model: its name, for messages.

        Raises UserError if no term is configured, or if a term needs a tensor that the model does
        not give.
        """
        self._auxiliary = config.auxiliary
        self._terms: list[_Bound] = []
        for name, function in TERMS.items():
            term = getattr(config, name)
            if term is None:
                continue
            if "number" in outputs:
                function = _OF_A_NUMBER.get(name, function)
            required = [
                p.name
                for p in inspect.signature(function).parameters.values()
                if p.kind is p.POSITIONAL_OR_KEYWORD
            ]
            missing = [field for field in required if field not in FIELDS and field not in outputs]
            if missing:
                raise _missing_tensors(name, missing, outputs, model)
            stacked = [field for field in required if AUXILIARY + field in outputs]
            options = term.model_dump(exclude={"weight", "label_std"})
            optional = ["age_std"] if getattr(term, "label_std", False) else []
            self._terms.append(_Bound(name, term.weight, function, required, stacked, options, optional))
        if not self._terms:
            raise UserError(
                f"loss: no term is configured; name at least one of {', '.join(TERMS)}, "
                "e.g. loss.neighborhood.sigma=5"
            )

    def __call__(
        self, tensors: dict[str, Tensor], own: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum (a scalar with gradient), and each term's value without its weight.

        The values are detached. Those of auxiliary classifiers have the prefix `aux_`.

        tensors: by name. `weight` (B,), if present, multiplies each face's part in the terms that
        are means over faces. own: the tensors of this worker's part of the batch; if given, the
        terms of `PAIRED` are computed from them.
        """
        weighted: list[Tensor] = []
        values: dict[str, Tensor] = {}
        for term in self._terms:
            value = term.value(own if own is not None and term.name in PAIRED else tensors)
            values[term.name] = value.detach()
            weighted.append(term.weight * value)
            if term.stacked and self._auxiliary:
                value = term.auxiliary(tensors)
                values[AUXILIARY + term.name] = value.detach()
                weighted.append(self._auxiliary * term.weight * value)
        return torch.stack(weighted).sum(), values


def _missing_tensors(term: str, missing: list[str], outputs: Collection[str], model: str) -> UserError:
    """The error for a term that needs tensors which the model does not give."""
    remedies = list(dict.fromkeys(_REMEDIES[field] for field in missing if field in _REMEDIES))
    return UserError(
        f"loss.{term}: model '{model}' does not give {', '.join(missing)} "
        f"(it gives {', '.join(sorted(outputs))}); "
        f"{'; '.join(remedies) or 'use another model'}, or leave this term out"
    )


def check_finite(values: dict[str, Tensor], step: int) -> None:
    """Raises FloatingPointError with the step and the terms that are not finite.

    It reads the values, so it waits for the device.
    """
    bad = [name for name, value in values.items() if not bool(torch.isfinite(value))]
    if bad:
        raise FloatingPointError(
            f"step {step}: loss term {', '.join(bad)} is not finite; "
            "lower the learning rate, or set train.clip"
        )
