"""The teacher of `loss.distillation`: another network whose posteriors a training learns too.

Shape letters: N faces of a part, B faces of a batch, K age bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from ageray import bundle, distributed, storage
from ageray.errors import DamagedError, UserError
from ageray.experiment import Experiment
from ageray.faces.canvases import to_tensors
from ageray.models.build import build
from ageray.models.inference import posterior
from ageray.models.network import AgeNetwork

_COLUMNS = ("canvas", "points", "box")
_NAME = "posterior"
_CLASSIFIERS = frozenset({"logits", "ordinal_logits", "number"})
"""The tensors of a training network of which, in eval mode, a posterior is made."""


@dataclass(frozen=True)
class Teacher:
    """network: in eval mode, without gradients. experiment: its own, with its views."""

    network: AgeNetwork
    experiment: Experiment


def load(config: Experiment, device: torch.device) -> Teacher | None:
    """The teacher that `train.teacher` names, on `device`; None without one.

    Of a model with a gallery and a classifier, the classifier teaches. Raises UserError if the loss
    has no use for it or misses it, if it has other age bins or another alignment, or no classifier.
    """
    name, term = config.train.teacher, config.loss.distillation
    if name is None and term is None:
        return None
    if name is None:
        raise UserError("loss.distillation: has no teacher; set train.teacher, to start or to a model")
    if term is None:
        raise UserError(
            f"train.teacher={name}: no loss listens to it; set loss.distillation, or take the teacher away"
        )
    experiment = config
    if name == "start":
        network = build(config.model, seed=config.train.seed)
    else:
        loaded = bundle.load(name)
        experiment = loaded.experiment
        own, other = list(config.model.ages), list(experiment.model.ages)
        if other != own:
            raise UserError(
                f"train.teacher={name}: has model.ages={other}, this model {own}; they must be the same"
            )
        placement = config.align.placement  # where faces are aligned does not change them
        if experiment.align.model_copy(update={"placement": placement}) != config.align:
            raise UserError(
                f"train.teacher={name}: its align differs from this model's; the same faces must fit both"
            )
        network = loaded.network()
    if not network.outputs & _CLASSIFIERS:
        raise UserError(
            f"train.teacher={name}: model '{experiment.model.name}' gives no posterior; name a model "
            "with a classifier"
        )
    if experiment.model.decode.method == "gallery":
        decode = experiment.model.decode.model_copy(update={"method": "expectation"})
        model = experiment.model.model_copy(update={"decode": decode})
        experiment = experiment.model_copy(update={"model": model})
    return Teacher(network.to(device).eval().requires_grad_(False), experiment)


@torch.inference_mode()
def posteriors(
    teacher: Teacher,
    batches: Iterable[dict[str, Any]],
    count: int,
    device: torch.device,
    report: Callable[[int], None] | None = None,
) -> NDArray[np.float16]:
    """The teacher's posterior of each of `count` faces as they are, over its own views: (N, K).

    batches: this worker's share of the faces, with the columns `row` and `error`; all workers get
    all rows. A face that cannot be used has zeros. report: called after each batch with the faces
    that this worker has shown.
    """
    rows, own, shown = [], [], 0
    precise = teacher.experiment.train.precision != "bf16"
    for columns in batches:
        usable = columns["error"] == ""
        if not usable.any():
            continue
        batch = to_tensors({name: columns[name][usable] for name in _COLUMNS}, device)
        each_BK = posterior(teacher.network, batch, teacher.experiment, autocast=not precise)
        own.append(each_BK.half().cpu().numpy())
        rows.append(columns["row"][usable])
        shown += len(usable)
        if report is not None:
            report(shown)
    first, last = teacher.experiment.model.ages
    all_NK = np.zeros((count, last - first + 1), np.float16)
    for part_rows, part in distributed.all_gather_object((rows, own)):
        for numbers, values in zip(part_rows, part, strict=True):
            all_NK[numbers] = values
    return all_NK


def read(path: str, count: int) -> NDArray[np.float16] | None:
    """The posteriors (N, K) that `write` left for these faces; None if there are none."""
    if not storage.exists(path):
        return None
    try:
        kept = load_safetensors(storage.read_checked(path))[_NAME]
    except DamagedError:
        return None
    return kept if len(kept) == count else None


def write(path: str, posterior_NK: NDArray[np.float16]) -> None:
    """Keeps the posteriors, so that a run that goes on does not ask the teacher again."""
    storage.write_checked(path, save_safetensors({_NAME: posterior_NK}))
