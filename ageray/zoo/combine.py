"""One bundle of several: an ensemble, or the mean of the weights of several trainings.

    python -m ageray.zoo.combine ensemble FOLDER MODEL MODEL ... [--decode median] [--weight 2 1]
    python -m ageray.zoo.combine soup     FOLDER MODEL MODEL ... [--weight 2 1]

FOLDER is the bundle to write; MODEL is `zoo:NAME`, a bundle or a run folder. The result is not
calibrated: calibrate it on validation faces, as a trained model is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ageray import bundle, storage
from ageray.bundle import Bundle
from ageray.errors import UserError
from ageray.experiment import Align, Experiment
from ageray.experiment.model import Decode, Ensemble, Member
from ageray.models.average import soup as mean_weights
from ageray.models.build import build

_FRAMING = ("mode", "coverage", "eyes_scale", "fill")
"""The settings of `align` that members of an ensemble share; size and standardize are each one's
own."""


def ensemble(
    folder: str, models: Sequence[str], decode: Decode | None = None, weights: Sequence[float] | None = None
) -> None:
    """Writes the bundle of an ensemble of `models` to `folder`.

    A face is aligned once, at the largest of the members' sizes, and resized for the others. Its
    ages span those of all members. decode: None takes the first member's. weights: each member's
    share of the mean; None gives all the same. Raises UserError if a model cannot be a member.
    """
    sources, shares = _sources(models, weights)
    align = _common_align(sources)
    members, state, first = [], {}, sources[0].experiment
    for place, (source, share) in enumerate(zip(sources, shares, strict=True)):
        members.append(_member(source, share, align.size))
        for name, tensor in source.network().state_dict().items():
            state[f"members.{place}.{name}"] = tensor
    ages = [member.model.ages for member in members]
    model = Ensemble(
        name="ensemble",
        members=tuple(members),
        ages=(min(pair[0] for pair in ages), max(pair[1] for pair in ages)),
        decode=decode or first.model.decode,
    )
    experiment = first.model_copy(update={"model": model, "align": align})
    _write(folder, experiment, state, _card("ensemble", sources, shares))


def soup(folder: str, models: Sequence[str], weights: Sequence[float] | None = None) -> None:
    """Writes the bundle whose weights are the mean of those of `models`, of one configuration,
    to `folder`.

    weights: each model's share of the mean; None gives all the same. Raises UserError if the
    models are not of one network.
    """
    sources, shares = _sources(models, weights)
    first = sources[0].experiment
    for source in sources[1:]:
        alike = source.experiment.model.name == first.model.name and source.experiment.align == first.align
        if not alike or source.experiment.model.ages != first.model.ages:
            raise UserError(
                f"{source.uri}: differs from {sources[0].uri} in model.name, model.ages or align; "
                "a soup is of trainings of one configuration"
            )
    if any(source.faces is not None for source in sources):
        raise UserError(
            f"{models[0]}: ages come from a gallery, which fits one network's weights; train one anew"
        )
    state = mean_weights([source.network().state_dict() for source in sources], shares)
    _write(folder, first, state, _card("soup", sources, shares))


def _sources(models: Sequence[str], weights: Sequence[float] | None) -> tuple[list[Bundle], list[float]]:
    shares = [1.0] * len(models) if weights is None else list(weights)
    if len(models) < 2:
        raise UserError(f"{' '.join(models)}: one model is nothing to combine; name two or more")
    if len(shares) != len(models) or min(shares) <= 0:
        raise UserError(f"--weight {shares}: give one number above 0 for each of the {len(models)} models")
    return [bundle.load(model) for model in models], shares


def _common_align(sources: Sequence[Bundle]) -> Align:
    """The first member's alignment at the largest size, not standardised: members do that
    themselves."""
    first = sources[0].experiment.align
    for source in sources[1:]:
        align = source.experiment.align
        for name in _FRAMING:
            if getattr(align, name) != getattr(first, name):
                raise UserError(
                    f"{source.uri}: align.{name}={getattr(align, name)}, but {sources[0].uri} has "
                    f"{getattr(first, name)}; members of an ensemble see the same crop"
                )
    size = max(source.experiment.align.size for source in sources)
    return first.model_copy(update={"size": size, "standardize": False})


def _member(source: Bundle, share: float, size: int) -> Member:
    experiment = source.experiment
    if isinstance(experiment.model, Ensemble):
        raise UserError(f"{source.uri}: is an ensemble itself; name its members instead")
    if source.faces is not None:
        raise UserError(f"{source.uri}: takes ages from a gallery; an ensemble averages classifiers")
    own = experiment.align.size
    return Member(
        model=experiment.model.model_copy(update={"weights": "none"}),
        size=0 if own == size else own,
        standardize=experiment.align.standardize,
        weight=share,
    )


def _card(kind: str, sources: Sequence[Bundle], shares: Sequence[float]) -> dict[str, Any]:
    """What the bundle was made of; `terms` are those of all sources together."""
    parts: list[dict[str, Any]] = []
    terms: list[str] = []
    for source, share in zip(sources, shares, strict=True):
        name = source.card.get("name", source.card.get("model"))
        parts.append({"name": name, "identity": source.identity, "weight": share})
        text = source.card.get("terms")
        if text is not None and str(text) not in terms:
            terms.append(str(text))
    card: dict[str, Any] = {"model": kind, "made_of": parts}
    return card | ({"terms": " ".join(terms)} if terms else {})


def _write(folder: str, experiment: Experiment, state: dict[str, Tensor], card: dict[str, Any]) -> None:
    if storage.exists(storage.join(folder, bundle.CARD)):
        raise UserError(f"{folder}: there is a bundle already; name another folder")
    network = build(experiment.model, pretrained=False)
    network.load_state_dict(state)
    bundle.save(folder, network, experiment, card)


def main(words: Sequence[str]) -> None:
    """The command line. Raises UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m ageray.zoo.combine",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("kind", choices=["ensemble", "soup"])
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--weight", nargs="+", type=float, help="share of each model (default: the same)")
    parser.add_argument("--decode", choices=["expectation", "median", "argmax"], help="of an ensemble")
    given = parser.parse_args(words)
    if given.kind == "soup":
        soup(given.folder, given.models, given.weight)
        return
    decode = None if given.decode is None else Decode(method=given.decode)
    ensemble(given.folder, given.models, decode, given.weight)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
