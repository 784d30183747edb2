"""Makes one bundle from several: an ensemble, or the mean of the weights of several trainings. Or
another bundle of the same weights, with other views of a face.

    python -m ageray.zoo.combine ensemble FOLDER MODEL MODEL ... [--decode median] [--weight 2 1]
    python -m ageray.zoo.combine soup     FOLDER MODEL MODEL ... [--weight 2 1]
    python -m ageray.zoo.combine views    FOLDER MODEL KEY=VALUE ...

KEY is align.size, train.precision or below model.decode: model.decode.flip=true
'model.decode.views=[{size: 128}, {size: 160}]'.

FOLDER is the bundle to write; MODEL is `zoo:NAME`, a bundle or a run folder. The result has no
calibration: calibrate it on validation faces, like a trained model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ageray import bundle, config, storage
from ageray.bundle import Bundle
from ageray.errors import UserError
from ageray.experiment import Align, Experiment
from ageray.experiment.model import Decode, Ensemble, Member
from ageray.models.average import soup as mean_weights
from ageray.models.build import build

_OF_VIEWS = ("align.size", "train.precision", "model.decode")
_FRAMING = ("mode", "coverage", "eyes_scale", "fill")
"""The settings of `align` that members of an ensemble share. Each member has its own size and
standardize."""


def ensemble(
    folder: str, models: Sequence[str], decode: Decode | None = None, weights: Sequence[float] | None = None
) -> None:
    """Writes the bundle of an ensemble of `models` to `folder`.

    A face is aligned once, at the largest of the members' sizes, and resized for the others. The
    ensemble's ages span those of all members. decode: None takes the first member's, without its
    levels. weights: each
    member's share of the mean; None gives all the same. Raises UserError if a model cannot be a
    member.
    """
    sources, shares = _sources(models, weights)
    first = sources[0].experiment
    align = _common_align(sources)
    youngest, oldest = first.model.ages
    members, state = [], {}
    for number, (source, share) in enumerate(zip(sources, shares, strict=True)):
        member = _member(source, share, align.size)
        members.append(member)
        youngest = min(youngest, member.model.ages[0])
        oldest = max(oldest, member.model.ages[1])
        for name, tensor in source.network().state_dict().items():
            state[f"members.{number}.{name}"] = tensor
    model = Ensemble(
        name="ensemble",
        members=tuple(members),
        ages=(youngest, oldest),
        # levels were chosen for one member's posteriors
        decode=decode or first.model.decode.model_copy(update={"levels": ()}),
    )
    experiment = first.model_copy(update={"model": model, "align": align})
    _write(folder, experiment, state, _card("ensemble", sources, shares))


def soup(folder: str, models: Sequence[str], weights: Sequence[float] | None = None) -> None:
    """Writes a bundle to `folder` whose weights are the mean of those of `models`.

    The models must be trainings of one configuration. weights: each model's share of the mean; None
    gives all the same. Raises UserError if the models differ in network, ages or alignment, or take
    ages from a gallery.
    """
    sources, shares = _sources(models, weights)
    first = sources[0].experiment
    for source in sources[1:]:
        other = source.experiment
        same_network = (other.model.name, other.model.ages) == (first.model.name, first.model.ages)
        if not same_network or other.align != first.align:
            raise UserError(
                f"{source.uri}: differs from {sources[0].uri} in model.name, model.ages or align; "
                "a soup is of trainings of one configuration"
            )
    for source in sources:
        if source.faces is not None:
            raise UserError(
                f"{models[0]}: ages come from a gallery, which fits one network's weights; train one anew"
            )
    state = mean_weights([source.network().state_dict() for source in sources], shares)
    _write(folder, first, state, _card("soup", sources, shares))


def views(folder: str, model: str, overrides: Sequence[str]) -> None:
    """Writes a bundle to `folder` with the weights of `model`, which scores faces in another way.

    overrides: `KEY=VALUE` of `model.decode`, `align.size` or `train.precision`. Raises UserError
    for another key or a value that does not fit, and for a model that takes ages from a gallery.
    """
    source = bundle.load(model)
    if source.faces is not None:
        raise UserError(f"{model}: takes ages from a gallery, which fits one way of scoring; train one anew")
    for word in overrides:
        key = word.partition("=")[0]
        if key not in _OF_VIEWS and not key.startswith("model.decode."):
            raise UserError(
                f"{word}: changes more than how a face is scored; give align.size, train.precision or "
                "keys below model.decode"
            )
        if key == "align.size" and isinstance(source.experiment.model, Ensemble):
            raise UserError(f"{word}: the members of an ensemble were made for their sizes; leave it out")
    experiment = config.load([], overrides, source.experiment)
    if experiment.model.decode.method == "gallery":
        raise UserError(f"model.decode.method=gallery: {model} has no gallery; name another method")
    _write(folder, experiment, source.network().state_dict(), _card("views", [source], [1.0]))


def _sources(models: Sequence[str], weights: Sequence[float] | None) -> tuple[list[Bundle], list[float]]:
    """The bundles of `models`, and their shares of the mean."""
    shares = [1.0] * len(models)
    if weights is not None:
        shares = list(weights)
    if len(models) < 2:
        raise UserError(f"{' '.join(models)}: one model is nothing to combine; name two or more")
    if len(shares) != len(models) or min(shares) <= 0:
        raise UserError(f"--weight {shares}: give one number above 0 for each of the {len(models)} models")
    return [bundle.load(model) for model in models], shares


def _common_align(sources: Sequence[Bundle]) -> Align:
    """The first member's alignment at the largest size. It does not standardise: each member does
    so itself."""
    first = sources[0].experiment.align
    size = first.size
    for source in sources[1:]:
        align = source.experiment.align
        size = max(size, align.size)
        for name in _FRAMING:
            if getattr(align, name) != getattr(first, name):
                raise UserError(
                    f"{source.uri}: align.{name}={getattr(align, name)}, but {sources[0].uri} has "
                    f"{getattr(first, name)}; members of an ensemble see the same crop"
                )
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
    """The card: the sources with their shares, and the licence terms of all sources together."""
    parts: list[dict[str, Any]] = []
    terms: list[str] = []
    for source, share in zip(sources, shares, strict=True):
        name = source.card.get("name", source.card.get("model"))
        parts.append({"name": name, "identity": source.identity, "weight": share})
        text = source.card.get("terms")
        if text is not None and str(text) not in terms:
            terms.append(str(text))
    card: dict[str, Any] = {"model": kind, "made_of": parts}
    if terms:
        card["terms"] = " ".join(terms)
    return card


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
    parser.add_argument("kind", choices=["ensemble", "soup", "views"])
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="of views: one, then KEY=VALUE")
    parser.add_argument("--weight", nargs="+", type=float, help="share of each model (default: the same)")
    parser.add_argument("--decode", choices=["expectation", "median", "argmax"], help="of an ensemble")
    args = parser.parse_args(words)
    if args.kind == "views":
        if args.weight or args.decode:
            raise UserError(
                "views: takes neither --weight nor --decode; give model.decode.method=median, say"
            )
        views(args.folder, args.models[0], args.models[1:])
        return
    if args.kind == "soup":
        soup(args.folder, args.models, args.weight)
        return
    decode = None if args.decode is None else Decode(method=args.decode)
    ensemble(args.folder, args.models, decode, args.weight)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
