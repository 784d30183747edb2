"""Ages by the nearest training faces: against naive loops, whatever the pieces, ties, own subjects,
too few faces, and gender.

Shape letters: B faces asked about, N faces of the gallery, M neighbours, D size of the embedding, K
age bins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ageray.errors import UserError
from ageray.experiment import Align, Experiment, Loss
from ageray.faces.canvases import face_canvases, to_tensors
from ageray.models import gallery as module
from ageray.models import inference
from ageray.models.decode import decode
from ageray.models.gallery import Gallery, Neighbours
from ageray.models.inference import Prediction, gallery_rows, predict
from ageray.synthetic import faces as synthetic_faces
from ageray.train.loop import Columns, train_one_epoch
from ageray.train.state import new_state
from ageray.train.validation import build_gallery, validate

BINS = torch.arange(0.0, 101)
ALIGN = Align(size=32)
CPU = torch.device("cpu")


def drawn(count: int, size: int = 5, seed: int = 0, levels: int = 0, subjects: int = 0) -> Gallery:
    """A random gallery; `levels` puts embeddings on a grid so coarse that distances tie, and exact
    in every precision.
    """
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, (count, size)) if levels else rng.normal(0, 3, (count, size))
    return Gallery(
        torch.from_numpy(values.astype(np.float16)),
        torch.from_numpy(rng.uniform(0, 90, count).astype(np.float32)),
        torch.from_numpy(rng.integers(-1, 2, count).astype(np.int8)),
        torch.from_numpy(rng.integers(0, subjects + 1, count)),
    )


def queries(count: int, size: int = 5, seed: int = 9, levels: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    values = (
        rng.integers(0, levels, (count, size))
        if levels
        else rng.normal(0, 3, (count, size)).astype(np.float32)
    )
    return torch.from_numpy(values).float()


def naive(
    gallery: Gallery,
    query: list[float],
    count: int,
    subject: int = 0,
    exclude: bool = True,
    gender: bool = False,
) -> list[int]:
    """Sorts all distances, taken in float64 one number at a time."""
    pairs = []
    for place in range(len(gallery)):
        if exclude and subject > 0 and int(gallery.subject[place]) == subject:
            continue
        if gender and int(gallery.gender[place]) < 0:
            continue
        distance = sum(
            abs(float(one) - float(other))
            for one, other in zip(query, gallery.embedding[place].tolist(), strict=True)
        )
        pairs.append((distance, place))
    return [place for _, place in sorted(pairs)[:count]]


def indices(neighbours: Neighbours) -> list[list[int]]:
    return [row[present].tolist() for row, present in zip(neighbours.index, neighbours.present, strict=True)]


# --- neighbours -----------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("gender", [False, True])
def test_neighbours_equal_a_naive_loop(levels: int, gender: bool) -> None:
    gallery, query = drawn(120, levels=levels), queries(9, levels=levels)
    neighbours = gallery.nearest(query, 7, gender=gender)
    assert indices(neighbours) == [naive(gallery, row, 7, gender=gender) for row in query.tolist()]
    expected = (query.double()[:, None] - gallery.embedding.double()[neighbours.index]).abs().sum(-1)
    torch.testing.assert_close(neighbours.distance.double(), expected, rtol=1e-5, atol=1e-5)
    assert bool((neighbours.distance.diff(dim=-1) >= 0).all())


def test_the_distance_is_l1_and_not_euclidean() -> None:
    embedding = torch.tensor([[2.0, 2, 2, 2], [0, 0, 0, 7]]).half()  # L1 8 and 7, L2 4 and 7
    gallery = Gallery(
        embedding, torch.tensor([1.0, 2]), torch.zeros(2, dtype=torch.int8), torch.zeros(2, dtype=torch.int64)
    )
    neighbours = gallery.nearest(torch.zeros(1, 4), 1)
    assert (neighbours.index.item(), neighbours.distance.item()) == (1, 7)


@pytest.mark.parametrize("pairs", [1, 7, 40, 41, 1000])
@pytest.mark.parametrize("exclude", [False, True])
def test_pieces_do_not_change_the_result(pairs: int, exclude: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one gallery face at a time to all at once; with pieces shorter than M; ties across their
    borders.
    """
    gallery, query = drawn(40, levels=2, subjects=5), queries(1, levels=2).expand(6, 5)
    subject = torch.arange(6)
    whole = gallery.nearest(query, 11, subject, exclude)
    monkeypatch.setattr(module, "_PAIRS", pairs * 6)
    parts = gallery.nearest(query, 11, subject, exclude)
    for name in ("index", "distance", "own"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name
    monkeypatch.setattr(module, "_NUMBERS", 5 * pairs)
    monkeypatch.setattr(module, "_PAIRS", 1 << 22)
    assert torch.equal(gallery.nearest(query, 11, subject, exclude).index, whole.index)


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 30),
    levels=st.integers(1, 4),
    most=st.integers(1, 12),
    exclude=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_of_equally_near_faces_the_earlier_ones_are_taken(
    seed: int, count: int, levels: int, most: int, exclude: bool
) -> None:
    gallery, query = drawn(count, 2, seed, levels, subjects=3), queries(4, 2, seed, levels)
    subject = torch.arange(4)
    neighbours = gallery.nearest(query, most, subject, exclude)
    assert indices(neighbours) == [
        naive(gallery, row, most, k, exclude) for k, row in enumerate(query.tolist())
    ]
    for k, row in enumerate(query.tolist()):
        nearest = naive(gallery, row, most, exclude=False)
        assert int(neighbours.own[k]) == sum(k > 0 and int(gallery.subject[place]) == k for place in nearest)


def test_the_batch_does_not_change_a_faces_neighbours() -> None:
    gallery, query = drawn(200, levels=3, subjects=4), queries(8, levels=3)
    subject = torch.arange(8) % 5
    together = gallery.nearest(query, 9, subject)
    alone = [gallery.nearest(query[[k]], 9, subject[[k]]) for k in range(8)]
    assert torch.equal(torch.cat([one.index for one in alone]), together.index)
    assert torch.equal(torch.cat([one.own for one in alone]), together.own)
    assert gallery.nearest(query[:0], 9, subject[:0]).index.shape == (0, 9)


def test_wide_embeddings_beyond_float16_keep_their_precision() -> None:
    values = torch.tensor([[1e6, 0.0], [1e6 + 1, 0], [3e5, 0]])
    gallery = Gallery.of([{"embedding": module.compact(values), "age": torch.tensor([1.0, 2, 3])}])
    assert gallery.embedding.dtype == torch.float32
    assert gallery.nearest(torch.tensor([[1e6 + 1, 0]]), 2).index.tolist() == [[1, 0]]
    assert module.compact(values / 100).dtype == torch.float16


def test_another_networks_gallery_is_told() -> None:
    with pytest.raises(
        UserError,
        match=r"^the gallery's embedding has 5 numbers a face and the network gives 4; "
        r"copy both from one bundle$",
    ):
        drawn(3).nearest(torch.zeros(1, 4), 1)


# --- own subjects and too few faces ---------------------------------------------------------------


def test_the_own_subject_is_left_out_and_counted() -> None:
    embedding = torch.arange(6.0)[:, None].half()
    gallery = Gallery(
        embedding, torch.arange(6.0), torch.zeros(6, dtype=torch.int8), torch.tensor([7, 7, 0, 8, 0, 7])
    )
    query, subject = torch.zeros(3, 1), torch.tensor([7, 0, 9])
    excluded, used = gallery.nearest(query, 3, subject), gallery.nearest(query, 3, subject, exclude=False)
    assert indices(excluded) == [[2, 3, 4], [0, 1, 2], [0, 1, 2]]
    assert indices(used) == [[0, 1, 2]] * 3
    # two of the three nearest are of subject 7; an unknown subject (0) is nobody's own
    assert excluded.own.tolist() == used.own.tolist() == [2, 0, 0]
    assert gallery.nearest(query, 3).own.tolist() == [0, 0, 0]


def test_fewer_faces_than_wanted_are_averaged_as_they_are() -> None:
    gallery = drawn(3)
    neighbours = gallery.nearest(queries(2), 20)
    assert neighbours.present.sum(-1).tolist() == [3, 3]
    shares = gallery.posterior(neighbours, BINS)
    assert (shares @ BINS).tolist() == pytest.approx([float(gallery.age.mean())] * 2, abs=1e-3)
    assert gallery.female(neighbours).tolist() == pytest.approx([float(gallery.gender.float().mean())] * 2)


def test_a_face_without_neighbours_is_any_age_and_either_gender() -> None:
    gallery = drawn(4, subjects=1)
    gallery.subject.fill_(1)
    neighbours = gallery.nearest(queries(2), 3, torch.tensor([1, 0]))
    assert neighbours.present.sum(-1).tolist() == [0, 3]
    assert neighbours.own.tolist() == [3, 0]
    shares = gallery.posterior(neighbours, BINS)
    torch.testing.assert_close(shares[0], torch.full((101,), 1 / 101))
    assert float(gallery.female(neighbours)[0]) == 0.5


# --- posterior ------------------------------------------------------------------------------------


def near(ages: list[float]) -> tuple[Gallery, Neighbours]:
    """A gallery of faces at these ages, all of them neighbours of one."""
    gallery = drawn(len(ages))
    gallery.age.copy_(torch.tensor(ages))
    return gallery, gallery.nearest(queries(1), len(ages))


@given(ages=st.lists(st.floats(0, 100, width=32), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_the_expectation_is_the_neighbours_mean_age(ages: list[float]) -> None:
    gallery, neighbours = near(ages)
    shares = gallery.posterior(neighbours, BINS)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    assert bool((shares >= 0).all())
    assert float(shares @ BINS) == pytest.approx(np.mean(ages), abs=2e-4)


def test_the_posterior_equals_a_naive_loop() -> None:
    gallery, query = drawn(60), queries(5)
    neighbours = gallery.nearest(query, 6)
    for row, shares in zip(query.tolist(), gallery.posterior(neighbours, BINS).tolist(), strict=True):
        expected = [0.0] * 101
        for place in naive(gallery, row, 6):
            age = float(gallery.age[place])
            expected[int(age)] += (1 - age % 1) / 6
            expected[int(age) + 1] += age % 1 / 6
        assert shares == pytest.approx(expected, abs=1e-5)


def test_whole_ages_are_a_plain_histogram() -> None:
    gallery, neighbours = near([20, 20, 21, 60])
    assert {
        int(k): float(share) for k, share in enumerate(gallery.posterior(neighbours, BINS)[0]) if share
    } == {
        20: 0.5,
        21: 0.25,
        60: 0.25,
    }


def test_ages_beyond_the_bins_count_in_the_outermost() -> None:
    gallery, neighbours = near([-3, 104.5, 50, 50])
    shares = gallery.posterior(neighbours, BINS)[0]
    assert (float(shares[0]), float(shares[100]), float(shares[50])) == (0.25, 0.25, 0.5)
    wide = torch.arange(-15.0, 121)
    assert float(gallery.posterior(neighbours, wide) @ wide) == pytest.approx(
        (-3 + 104.5 + 100) / 4, abs=1e-4
    )


def test_women_among_the_neighbours() -> None:
    gallery = drawn(6)
    gallery.gender.copy_(torch.tensor([1, -1, 0, 1, 1, -1]))
    neighbours = gallery.nearest(queries(3), 6, gender=True)
    assert neighbours.present.sum(-1).tolist() == [4, 4, 4]
    assert gallery.female(neighbours).tolist() == [0.75] * 3


def test_gender_by_its_own_embedding_where_there_is_one() -> None:
    gallery = drawn(10)
    assert gallery.gender_by == "embedding"
    assert not gallery.all_genders_known
    gendered = Gallery(**gallery.tensors(), gender_embedding=torch.randn(10, 3))
    assert gendered.gender_by == "gender_embedding"
    ignorant = Gallery(**{**gendered.tensors(), "gender": torch.full((10,), -1, dtype=torch.int8)})
    assert ignorant.gender_by is None


# --- made of batches ------------------------------------------------------------------------------


def test_a_gallery_of_batches_keeps_their_order_and_types() -> None:
    rows = [
        {
            "embedding": torch.full((2, 3), float(k)),
            "age": torch.tensor([k, k + 0.5]),
            "gender": torch.tensor([k, -1]),
            "subject": torch.tensor([0, 2**50 + k]),
        }
        for k in range(2)
    ]
    gallery = Gallery.of(rows)
    assert len(gallery) == 4
    assert gallery.age.tolist() == [0, 0.5, 1, 1.5]
    assert gallery.gender.tolist() == [0, -1, 1, -1]
    assert gallery.subject.tolist() == [0, 2**50, 0, 2**50 + 1]
    types = {name: tensor.dtype for name, tensor in gallery.tensors().items()}
    assert types == {
        "embedding": torch.float32,
        "age": torch.float32,
        "gender": torch.int8,
        "subject": torch.int64,
    }
    nameless = Gallery.of([{name: row[name] for name in ("embedding", "age")} for row in rows])
    assert (nameless.gender.tolist(), nameless.subject.tolist()) == ([-1] * 4, [0] * 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": None}, "lacks .*age"),
        ({"photo": torch.zeros(3)}, "holds .*photo"),
        ({"age": torch.zeros(2)}, "faces"),
        ({"embedding": torch.zeros(3)}, "embedding has shape"),
        (
            {
                name: torch.zeros((0, 5) if name == "embedding" else 0)
                for name in ("embedding", "age", "gender", "subject")
            },
            "for 0 faces",
        ),
    ],
)
def test_tensors_that_are_no_gallery(change: dict[str, Any], message: str) -> None:
    tensors = {
        name: tensor for name, tensor in {**drawn(3).tensors(), **change}.items() if tensor is not None
    }
    with pytest.raises(ValueError, match=message):
        Gallery.from_tensors(tensors)


# --- decoding, validation and training with one ---------------------------------------------------


def columns_of(count: int, seed: int = 0) -> Columns:
    faces = list(synthetic_faces.faces(count, seed, size=72))
    pieces = [face_canvases(face.jpeg(), face.points[None], face.box[None], ALIGN) for face in faces]
    return {
        **{
            name: np.concatenate([getattr(piece, attribute) for piece in pieces])
            for name, attribute in COLUMNS.items()
        },
        "age": np.array([face.age for face in faces], np.float32),
        "gender": np.arange(count) % 2,
        "subject": 1 + np.arange(count) // 3,
    }


COLUMNS = {"canvas": "pixels", "points": "points", "box": "box"}


@pytest.fixture(scope="module")
def faces() -> Columns:
    """Eighteen faces, three of each subject."""
    return columns_of(18)


def batches(columns: Columns, size: int) -> list[Columns]:
    return [
        {name: values[start : start + size] for name, values in columns.items()}
        for start in range(0, len(columns["age"]), size)
    ]


def experiment(**decoding: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "model": {
                "name": "siamese",
                "backbone": "bvlc_googlenet",
                "decode": {"gallery": {"neighbours": 4, **decoding.pop("gallery", {})}, **decoding},
            },
            "loss": {"contrastive": {}, "gender_contrastive": {}},
            "align": ALIGN,
            "train": {"precision": "float32", "stages": [{"optimizer": {"name": "adam", "lr": 1e-4}}]},
        }
    )


def embedded(network: torch.nn.Module, faces: Columns, name: str = "embedding") -> list[list[float]]:
    """What the network says of the faces, float32; a gallery holds it rounded."""
    batch = {key: torch.from_numpy(faces[key]) for key in COLUMNS}
    batch["canvas"] = batch["canvas"].permute(0, 3, 1, 2)
    with torch.no_grad():
        rows: list[list[float]] = inference._outputs(network, inference._view(batch, experiment()), False)[
            name
        ].tolist()
    return rows


def test_validation_with_a_gallery_equals_neighbours_by_hand(faces: Columns) -> None:
    state = new_state(experiment(), CPU)
    gallery = build_gallery(state, batches(faces, 5))
    assert gallery is not None
    assert len(gallery) == 18
    assert gallery.age.tolist() == faces["age"].tolist()
    assert gallery.gender_embedding is not None
    assert gallery.gender_embedding.shape == (18, 10)
    true, predicted, _ = validate(state, batches(faces, 7), gallery)
    assert true.tolist() == faces["age"].tolist()
    for k, query in enumerate(embedded(state.network, faces)):
        expected = faces["age"][naive(gallery, query, 4, int(faces["subject"][k]))].mean()
        assert predicted[k] == pytest.approx(expected, abs=0.02)
    assert float(predicted.std()) > 1


def test_validation_uses_the_own_subject_where_it_is_told_to(faces: Columns) -> None:
    ages = {}
    for exclude in (True, False):
        state = new_state(experiment(gallery={"neighbours": 1, "exclude_subject": exclude}), CPU)
        ages[exclude] = validate(state, batches(faces, 9), build_gallery(state, batches(faces, 9)))[1]
    assert ages[False] == pytest.approx(faces["age"], abs=0.02)  # each face is its own nearest
    assert float(np.abs(ages[True] - faces["age"]).min()) > 0.1


@pytest.mark.parametrize(("most", "expected"), [(1, 1), (5, 5), (8, 8), (18, 18), (99, 18), (None, 18)])
def test_a_gallery_of_the_first_faces_reads_no_further(
    most: int | None, expected: int, faces: Columns
) -> None:
    read: list[int] = []

    def stream() -> Any:
        for batch in batches(faces, 5):
            read.append(len(batch["age"]))
            yield batch

    state = new_state(experiment(), CPU)
    gallery = build_gallery(state, stream(), most)
    assert gallery is not None
    assert gallery.age.tolist() == faces["age"][:expected].tolist()
    assert sum(read) - read[-1] < expected <= sum(read)
    assert build_gallery(state, []) is None


def test_a_gallery_and_its_validation_change_nothing_in_the_run(faces: Columns) -> None:
    """Weights, batch statistics, the optimiser and all random states: an interrupted run could not
    tell.
    """
    states = []
    for judged in (True, False):
        state = new_state(experiment(), CPU)
        state.start_stage(0, 4)
        for _ in range(2):
            train_one_epoch(state, batches(faces, 9))
            if judged:
                validate(state, batches(faces, 6), build_gallery(state, batches(faces, 6)))
        states.append(state)
    one, other = (state.state_dict() for state in states)
    assert all(torch.equal(tensor, other["network"][name]) for name, tensor in one["network"].items())
    assert torch.equal(one["generator"], other["generator"])
    assert torch.equal(one["torch"], other["torch"])


def test_embeddings_that_are_not_finite_stop_the_run(faces: Columns) -> None:
    state = new_state(experiment(), CPU)
    gallery = build_gallery(state, batches(faces, 9))
    with torch.no_grad():
        state.network.get_parameter("embedding.bias")[0] = float("nan")
    with pytest.raises(
        FloatingPointError, match=r"^step 0: embeddings are not finite; lower the learning rate"
    ):
        build_gallery(state, batches(faces, 9))
    with pytest.raises(FloatingPointError, match=r"^step 0: predicted ages are not finite"):
        validate(state, batches(faces, 9), gallery)


class StubNetwork(torch.nn.Module):
    """Answers with the face's mean over its left half, and, for gender, over its whole; classifies
    too.
    """

    def __init__(self, *outputs: str) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        face = batch["face"]
        outputs = {
            "embedding": face[..., : face.shape[-1] // 2].mean((1, 2, 3))[:, None],
            "gender_embedding": face.mean((1, 2, 3))[:, None],
            "logits": torch.zeros(len(face), 101),
        }
        return {name: outputs[name] for name in self.outputs}


def predictions_of(
    network: torch.nn.Module, faces: Columns, gallery: Gallery, decoding: dict[str, Any], subject: bool = True
) -> Prediction:
    model = {"name": "baseline", "decode": {"method": "gallery", "gallery": {"neighbours": 4}, **decoding}}
    config = Experiment.model_validate({"model": model, "align": ALIGN})
    batch = {
        name: torch.from_numpy(faces[name])
        for name in ("canvas", "points", "box", *(["subject"] if subject else []))
    }
    return predict(network, {**batch, "canvas": batch["canvas"].permute(0, 3, 1, 2)}, config, False, gallery)


def built_gallery(network: torch.nn.Module, faces: Columns) -> Gallery:
    state = new_state(experiment(), CPU)
    state.network = network  # type: ignore[assignment]
    gallery = build_gallery(state, batches(faces, 9))
    assert gallery is not None
    return gallery


def test_a_model_with_a_classifier_can_decode_by_its_gallery(faces: Columns) -> None:
    network = StubNetwork("logits", "embedding")
    gallery = built_gallery(network, faces)
    prediction = predictions_of(network, faces, gallery, {"flip": False})
    ages = decode(prediction.posterior, experiment().model)
    queried = zip(embedded(network, faces), faces["subject"].tolist(), strict=True)
    expected = [faces["age"][naive(gallery, query, 4, subject)].mean() for query, subject in queried]
    assert ages.tolist() == pytest.approx(expected, abs=0.02)
    assert prediction.neighbours is not None
    assert prediction.neighbours.tolist() == [4] * 18
    assert prediction.own is not None
    assert bool((prediction.own >= 1).all())  # itself at least


def test_gender_is_told_by_the_embedding_there_is(faces: Columns) -> None:
    one, two = StubNetwork("embedding"), StubNetwork("embedding", "gender_embedding")
    for network, by in ((one, "embedding"), (two, "gender_embedding")):
        gallery = built_gallery(network, faces)
        prediction = predictions_of(network, faces, gallery, {"flip": False})
        bank = Gallery(getattr(gallery, by), gallery.age, gallery.gender, gallery.subject)
        queried = zip(embedded(network, faces, by), faces["subject"].tolist(), strict=True)
        expected = [
            float(gallery.gender[naive(bank, query, 4, subject)].float().mean()) for query, subject in queried
        ]
        assert prediction.female is not None
        assert prediction.female.tolist() == pytest.approx(expected)
    unknown = Gallery(**{**gallery.tensors(), "gender": torch.full((18,), -1, dtype=torch.int8)})
    assert predictions_of(two, faces, unknown, {"flip": False}).female is None


def test_without_its_loss_the_layer_for_gender_is_not_asked(faces: Columns) -> None:
    """`loss.gender_contrastive=null` leaves that layer as it began: the embedding for age tells
    gender."""
    network = StubNetwork("embedding", "gender_embedding")
    for loss, expected in (
        ({"contrastive": {}}, "embedding"),
        ({"contrastive": {}, "gender_contrastive": {}}, "gender_embedding"),
    ):
        settings = experiment().model_copy(update={"loss": Loss.model_validate(loss)})
        batch = to_tensors({name: faces[name] for name in (*COLUMNS, "age", "gender", "subject")}, CPU)
        gallery = Gallery.of([gallery_rows(network.eval(), batch, settings, False)])
        assert gallery.gender_by == expected


def test_validation_does_not_look_for_genders(faces: Columns, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = list[str]()
    nearest = Gallery.nearest

    def counted(self: Gallery, *args: Any, by: str = "embedding", **more: Any) -> Neighbours:
        searches.append(by)
        return nearest(self, *args, by=by, **more)

    monkeypatch.setattr(Gallery, "nearest", counted)
    state = new_state(experiment(), CPU)
    gallery = build_gallery(state, batches(faces, 9))
    validate(state, batches(faces, 9), gallery)
    assert set(searches) == {"embedding"}


@pytest.mark.parametrize("levels", [2, 5])
def test_a_tie_at_the_last_place_goes_to_the_earlier_face(levels: int) -> None:
    """Selection by distance alone would leave open which of equal distances are taken."""
    gallery, query = drawn(400, size=3, levels=levels), queries(20, size=3, levels=levels)
    for count in (1, 7, 50):
        near = gallery.nearest(query, count)
        for row, asked in enumerate(query.tolist()):
            assert near.index[row].tolist() == naive(gallery, asked, count, 0)


def test_flip_averaging_is_the_mean_over_face_and_mirror_image(faces: Columns) -> None:
    network = StubNetwork("embedding")
    gallery = built_gallery(network, faces)
    plain, both = (
        predictions_of(network, faces, gallery, {"flip": flip}, subject=False) for flip in (False, True)
    )

    class Mirrored(StubNetwork):
        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return super().forward({"face": batch["face"].flip(-1)})

    mirrored = predictions_of(Mirrored("embedding"), faces, gallery, {"flip": False}, subject=False)
    torch.testing.assert_close(both.posterior, (plain.posterior + mirrored.posterior) / 2)
    assert not torch.equal(plain.posterior, mirrored.posterior)
    assert both.female is not None
    assert plain.female is not None
    assert mirrored.female is not None
    torch.testing.assert_close(both.female, (plain.female + mirrored.female) / 2)


def test_a_face_that_is_not_a_number_has_no_age(faces: Columns) -> None:
    gallery = built_gallery(StubNetwork("embedding"), faces)
    spoilt = {**faces, "points": faces["points"].copy()}
    spoilt["points"][3] = np.nan
    posterior = predictions_of(StubNetwork("embedding"), spoilt, gallery, {"flip": False}).posterior
    assert [k for k in range(18) if not bool(torch.isfinite(posterior[k]).all())] == [3]
