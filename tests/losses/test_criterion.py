"""The weighted sum of loss terms: what it calls with what, what it gives back, what it refuses."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest
import torch
from torch import Tensor

from ageray.errors import UserError
from ageray.experiment.loss import (
    ClusterScatter,
    Contrastive,
    CrossEntropy,
    GenderContrastive,
    Loss,
    Neighborhood,
    OrCnn,
    Triplet,
)
from ageray.losses.criterion import _REMEDIES, FIELDS, TERMS, Criterion, check_finite
from ageray.losses.cross_entropy import cross_entropy
from ageray.losses.neighborhood import neighborhood
from ageray.losses.or_cnn import or_cnn

OUTPUTS = frozenset({"embedding", "logits"})
BOTH = Loss(
    cross_entropy=CrossEntropy(weight=0.4, label_smoothing=0.1),
    neighborhood=Neighborhood(weight=2.5, sigma=3, normalize=True),
)


def tensors() -> dict[str, Tensor]:
    """In an order that no term's signature has, with names that no term asks for."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 136, generator=generator, requires_grad=True)
    bins, age = torch.arange(-15.0, 121.0), torch.tensor([3.0, 20.5, 41.0, 66.6, 90.0])
    return {
        "points": torch.zeros(5, 5, 2),
        "bins": bins,
        "embedding": torch.zeros(5, 8),
        "age": age,
        "logits": logits,
        "teacher": torch.softmax(torch.randn(5, 136, generator=generator), -1),
    }


def test_sum_of_weighted_terms_and_each_term_unweighted() -> None:
    batch = tensors()
    total, terms = Criterion(BOTH, OUTPUTS, "baseline")(batch)
    logits, age, bins = batch["logits"], batch["age"], batch["bins"]
    first = cross_entropy(logits, age, bins, label_smoothing=0.1)
    second = neighborhood(logits, age, bins, sigma=3, normalize=True)
    assert list(terms) == ["cross_entropy", "neighborhood"]
    assert torch.equal(terms["cross_entropy"], first)
    assert torch.equal(terms["neighborhood"], second)
    torch.testing.assert_close(total, 0.4 * first + 2.5 * second)


def test_only_the_sum_carries_a_gradient() -> None:
    batch = tensors()
    total, terms = Criterion(BOTH, OUTPUTS, "baseline")(batch)
    assert total.shape == ()
    assert not any(value.requires_grad for value in terms.values())
    (gradient,) = torch.autograd.grad(total, batch["logits"])
    assert bool(gradient.abs().sum() > 0)


def test_a_term_that_is_not_named_is_not_used() -> None:
    total, terms = Criterion(Loss(neighborhood=Neighborhood()), OUTPUTS, "baseline")(tensors())
    assert list(terms) == ["neighborhood"]
    assert float(total.detach()) == float(terms["neighborhood"])


# --- what it refuses ------------------------------------------------------------------------------

ORDINAL = frozenset({"embedding", "ordinal_logits"})
MODEL_OF_CLUSTERS = "set model.name=cluster_cnn and model.head=cluster"


@pytest.mark.parametrize(
    ("loss", "outputs", "missing", "remedy"),
    [
        (
            Loss(neighborhood=Neighborhood()),
            ORDINAL,
            "logits",
            "set model.classifier=softmax (any model but siamese)",
        ),
        (
            Loss(or_cnn=OrCnn()),
            OUTPUTS,
            "ordinal_logits",
            "set model.classifier=or_cnn or coral (any model but siamese)",
        ),
        (
            Loss(gender_contrastive=GenderContrastive()),
            OUTPUTS,
            "gender_embedding",
            "set model.name=siamese and model.gender_features above 0",
        ),
        (Loss(cluster_scatter=ClusterScatter()), OUTPUTS, "features, cluster, centroids", MODEL_OF_CLUSTERS),
        (
            Loss(cluster_scatter=ClusterScatter()),
            OUTPUTS | {"features", "cluster"},
            "centroids",
            MODEL_OF_CLUSTERS,
        ),
        (Loss(triplet=Triplet()), frozenset({"logits"}), "embedding", "use another model"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_term_whose_tensors_the_model_lacks_is_refused_naming_them_and_the_remedy(
    loss: Loss, outputs: frozenset[str], missing: str, remedy: str
) -> None:
    with pytest.raises(UserError) as caught:
        Criterion(loss, outputs, "some")
    (name,) = loss.model_fields_set
    assert str(caught.value) == (
        f"loss.{name}: model 'some' does not give {missing} (it gives {', '.join(sorted(outputs))}); "
        f"{remedy}, or leave this term out"
    )


def test_every_remedy_is_for_a_tensor_that_a_term_takes() -> None:
    tensors: set[str] = set()
    for term in TERMS.values():
        for parameter in inspect.signature(term).parameters.values():
            if parameter.kind is not parameter.KEYWORD_ONLY:
                tensors.add(parameter.name)
    assert set(_REMEDIES) <= tensors - FIELDS


def test_a_loss_without_terms_is_refused_naming_those_there_are() -> None:
    with pytest.raises(
        UserError, match=f"^loss: no term is configured; name at least one of {', '.join(TERMS)}, e.g. loss."
    ):
        Criterion(Loss(), OUTPUTS, "baseline")


# --- the vocabulary -------------------------------------------------------------------------------


def test_the_terms_are_those_of_the_vocabulary() -> None:
    assert list(TERMS) == [name for name in Loss.model_fields if name != "auxiliary"]


@pytest.mark.parametrize("name", list(TERMS))
def test_a_term_is_one_word_and_its_options_are_the_vocabularys(name: str) -> None:
    """Options are the keyword-only parameters, with the configuration's defaults; the others name
    tensors.
    """
    function = TERMS[name]
    assert function.__name__ == name
    assert function.__module__ == f"ageray.losses.{name}"
    (term,) = [kind for kind in get_args(Loss.model_fields[name].annotation) if kind is not type(None)]
    assert term.__name__ == name.title().replace("_", "")
    parameters = inspect.signature(function).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    settings = term().model_dump(exclude={"weight"})
    # the setting says whether the term gets the labels' deviations; the option holds them
    assert ("age_std" in options) == ("label_std" in settings)
    assert options.pop("age_std", None) is None
    assert settings.pop("label_std", False) is False
    assert options == settings
    named = {p.name for p in parameters if p.kind is not p.KEYWORD_ONLY}
    assert named <= FIELDS | {
        "logits",
        "ordinal_logits",
        "embedding",
        "gender_embedding",
        "features",
        "cluster",
        "centroids",
    }


def test_all_terms_together() -> None:
    """With every term but the questions, which no model answers beside a softmax, each gets its own
    tensors and options.
    """
    batch = {**tensors(), "gender": torch.tensor([0, 1, 1, -1, 0]), "cluster": torch.tensor([0, 1, 1, 0, 2])}
    generator = torch.Generator().manual_seed(1)
    for name, shape in {
        "embedding": (5, 8),
        "gender_embedding": (5, 4),
        "features": (5, 6),
        "centroids": (3, 6),
    }.items():
        batch[name] = torch.randn(shape, generator=generator, requires_grad=True)
    settings = Loss.model_validate(
        {name: {"weight": 0.5 + place} for place, name in enumerate(TERMS) if name != "or_cnn"}
    )
    total, values = Criterion(settings, batch.keys(), "all")(batch)
    assert list(values) == [name for name in TERMS if name != "or_cnn"]
    expected = torch.stack(
        [(0.5 + place) * values[name] for place, name in enumerate(TERMS) if name in values]
    ).sum()
    torch.testing.assert_close(total, expected)
    total.backward()  # type: ignore[no-untyped-call]
    assert all(
        bool(torch.isfinite(batch[name].grad).all())
        for name in ("logits", "embedding", "gender_embedding", "centroids")
    )  # type: ignore[arg-type]


# --- faces that count unequally -------------------------------------------------------------------

ALONE = [
    name for name in TERMS if name not in ("triplet", "contrastive", "gender_contrastive", "cluster_scatter")
]


@pytest.mark.parametrize("name", ALONE)
def test_weights_multiply_the_term_of_each_face(name: str) -> None:
    batch = tensors() | {
        "ordinal_logits": torch.randn(5, 135, generator=torch.Generator().manual_seed(2), requires_grad=True)
    }
    criterion = Criterion(Loss.model_validate({name: {}}), batch.keys(), "all")
    weight = torch.tensor([0.5, 0.0, 2.0, 1.5, 1.0])
    faces = {field for field in batch if field != "bins"}
    each = [
        criterion({field: batch[field][k : k + 1] if field in faces else batch[field] for field in batch})[0]
        for k in range(5)
    ]
    expected = (torch.stack(each) * weight).mean()
    total, values = criterion(batch | {"weight": weight})
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(values[name], expected.detach())
    source = batch["ordinal_logits" if name == "or_cnn" else "logits"]
    torch.testing.assert_close(
        torch.autograd.grad(total, source)[0], torch.autograd.grad(expected, source)[0]
    )
    torch.testing.assert_close(criterion(batch | {"weight": torch.ones(5)})[0], criterion(batch)[0])


def test_weights_multiply_sums_and_auxiliary_classifiers_and_leave_pairs_alone() -> None:
    batch, weight = with_auxiliary(2), torch.tensor([0.5, 0.0, 2.0, 1.5, 1.0])
    both = Loss(triplet=Triplet(margin=3.0), cross_entropy=CrossEntropy(reduction="sum"))
    plain, weighed = (
        Criterion(both, AUXILIARY, "dhaa")(each)[1] for each in (batch, batch | {"weight": weight})
    )
    assert torch.equal(plain["triplet"], weighed["triplet"])
    each = [
        cross_entropy(batch["logits"][k : k + 1], batch["age"][k : k + 1], batch["bins"]) for k in range(5)
    ]
    torch.testing.assert_close(weighed["cross_entropy"], (torch.stack(each) * weight).sum().detach())
    assert not torch.equal(plain["aux_cross_entropy"], weighed["aux_cross_entropy"])


def test_terms_on_pairs_of_one_worker() -> None:
    batch = with_auxiliary()
    own = {name: tensor[:3] if name != "bins" else tensor for name, tensor in batch.items()}
    both = Loss(contrastive=Contrastive(), cross_entropy=CrossEntropy())
    whole, local, alone = (
        Criterion(both, AUXILIARY, "dhaa")(*arguments)[1] for arguments in ((batch,), (batch, own), (own,))
    )
    assert torch.equal(local["cross_entropy"], whole["cross_entropy"])
    assert torch.equal(local["contrastive"], alone["contrastive"])


# --- auxiliary classifiers ------------------------------------------------------------------------


def with_auxiliary(count: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    batch = {**tensors(), "aux_logits": torch.randn(5, count, 136, generator=generator, requires_grad=True)}
    return {**batch, "embedding": torch.randn(5, 8, generator=generator, requires_grad=True)}


AUXILIARY = OUTPUTS | {"aux_logits"}


@pytest.mark.parametrize("factor", [1.0, 0.3])
@pytest.mark.parametrize("count", [1, 9])
def test_terms_on_logits_are_repeated_on_each_auxiliary_classifier(factor: float, count: int) -> None:
    batch = with_auxiliary(count)
    total, values = Criterion(BOTH.model_copy(update={"auxiliary": factor}), AUXILIARY, "dhaa")(batch)
    age, bins, expected = batch["age"], batch["bins"], torch.tensor(0.0)
    sums = {"cross_entropy": torch.tensor(0.0), "neighborhood": torch.tensor(0.0)}
    for number in range(count):
        logits = batch["aux_logits"][:, number]
        sums["cross_entropy"] = sums["cross_entropy"] + cross_entropy(logits, age, bins, label_smoothing=0.1)
        sums["neighborhood"] = sums["neighborhood"] + neighborhood(logits, age, bins, sigma=3, normalize=True)
    assert list(values) == ["cross_entropy", "aux_cross_entropy", "neighborhood", "aux_neighborhood"]
    for name, weight in (("cross_entropy", 0.4), ("neighborhood", 2.5)):
        torch.testing.assert_close(values[f"aux_{name}"], sums[name].detach())
        expected = expected + weight * (values[name] + factor * sums[name])
    torch.testing.assert_close(total, expected)
    got = torch.autograd.grad(total, [batch["logits"], batch["aux_logits"]])
    (gradient,) = torch.autograd.grad(expected, batch["aux_logits"])
    torch.testing.assert_close(got[1], gradient)
    (alone,) = torch.autograd.grad(Criterion(BOTH, OUTPUTS, "baseline")(batch)[0], batch["logits"])
    torch.testing.assert_close(got[0], alone)


def test_binary_questions_are_repeated_too() -> None:
    generator = torch.Generator().manual_seed(7)
    batch = {**tensors(), "ordinal_logits": torch.randn(5, 135, generator=generator)}
    batch["aux_ordinal_logits"] = torch.randn(5, 2, 135, generator=generator)
    _, values = Criterion(
        Loss(or_cnn=OrCnn(importance="sqrt_count")), ORDINAL | {"aux_ordinal_logits"}, "dhaa"
    )(batch)
    each = [
        or_cnn(batch["aux_ordinal_logits"][:, i], batch["age"], batch["bins"], importance="sqrt_count")
        for i in range(2)
    ]
    torch.testing.assert_close(values["aux_or_cnn"], each[0] + each[1])


def test_without_a_factor_auxiliary_classifiers_are_left_out() -> None:
    batch = with_auxiliary()
    total, values = Criterion(BOTH.model_copy(update={"auxiliary": 0.0}), AUXILIARY, "dhaa")(batch)
    assert list(values) == ["cross_entropy", "neighborhood"]
    torch.testing.assert_close(total, Criterion(BOTH, OUTPUTS, "baseline")(batch)[0])
    (gradient,) = torch.autograd.grad(total, batch["aux_logits"], allow_unused=True)
    assert gradient is None


def test_terms_that_take_no_classifier_are_not_repeated() -> None:
    batch = with_auxiliary()
    both = Loss(triplet=Triplet(margin=3.0), contrastive=Contrastive(), cross_entropy=CrossEntropy())
    total, values = Criterion(both, AUXILIARY, "dhaa")(batch)
    assert list(values) == ["cross_entropy", "aux_cross_entropy", "triplet", "contrastive"]
    torch.testing.assert_close(total.detach(), torch.stack(list(values.values())).sum())


# --- losses that are not finite -------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_step(value: float) -> None:
    values = {
        "loss": torch.tensor(value),
        "cross_entropy": torch.tensor(1.0),
        "neighborhood": torch.tensor(value),
    }
    with pytest.raises(FloatingPointError, match=r"^step 17: loss term loss, neighborhood is not finite; "):
        check_finite(values, 17)


def test_finite_losses_pass() -> None:
    check_finite({"loss": torch.tensor(0.0), "neighborhood": torch.tensor(3e38)}, 1)
