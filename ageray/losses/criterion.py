"""The weighted sum of loss terms, bound to a model's tensors by parameter name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from ageray import experiment
from ageray.errors import UserError
from ageray.losses.cross_entropy import cross_entropy
from ageray.losses.neighborhood import neighborhood

TERMS: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "neighborhood": neighborhood}
FIELDS = frozenset({"age", "bins"})
"""What a training batch gives beside the model's tensors."""


class Criterion:
    """Calls each configured term with the tensors that its required parameters name, weighs and sums."""

    def __init__(self, config: experiment.Loss, outputs: Collection[str], model: str) -> None:
        """outputs: names of the model's tensors. Raises UserError if no term is configured, or a term needs a tensor the model lacks."""
        self._terms: list[tuple[str, float, Callable[..., Tensor], list[str], dict[str, Any]]] = []
        for name in type(config).model_fields:
            term = getattr(config, name)
            if term is None:
                continue
            required = [p.name for p in inspect.signature(TERMS[name]).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
            missing = [field for field in required if field not in FIELDS and field not in outputs]
            if missing:
                raise UserError(
                    f"loss.{name}: model '{model}' does not give {', '.join(missing)} (it gives {', '.join(sorted(outputs))}); "
                    f"use another term or another model"
                )
            options = term.model_dump(exclude={"weight"})
            self._terms.append((name, term.weight, TERMS[name], required, options))
        if not self._terms:
            raise UserError(f"loss: no term is configured; name at least one of {', '.join(TERMS)}, e.g. loss.neighborhood.sigma=5")

    def __call__(self, tensors: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum (a scalar with gradient), and every unweighted term (detached)."""
        total: Tensor | None = None
        values: dict[str, Tensor] = {}
        for name, weight, function, required, options in self._terms:
            value = function(*(tensors[field] for field in required), **options)
            values[name] = value.detach()
            total = weight * value if total is None else total + weight * value
        assert total is not None
        return total, values


def check_finite(values: dict[str, Tensor], step: int) -> None:
    """Raises FloatingPointError naming the terms that are not finite and the step. Reads the values, so it waits for the device."""
    bad = [name for name, value in values.items() if not bool(torch.isfinite(value))]
    if bad:
        raise FloatingPointError(f"step {step}: loss term {', '.join(bad)} is not finite; lower the learning rate, or set train.clip")
