"""A deployable model on disk: writing, reading, mistakes; and nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ageray import bundle, calibration, config, storage
from ageray.config import zoo
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.experiment.model import Decode
from ageray.models.build import Classifier, build
from ageray.models.gallery import Gallery

FILES = {"model.safetensors", "config.yaml", "card.json"}
SETTINGS = Experiment.model_validate(
    {
        "model": {"name": "cluster_cnn", "head": "plain", "ages": [0, 40]},
        "align": {"size": 32, "coverage": 1.25},
    }
)


@pytest.fixture(scope="module")
def network() -> Classifier:
    """Random weights, with a kernel that float16 cannot hold."""
    network = build(SETTINGS.model, seed=0)
    with torch.no_grad():
        network.get_parameter("backbone.layers.conv2_3x3_reduce.weight")[0, 0] = 1e6
    return network


@pytest.fixture
def saved(network: Classifier, tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "one" / bundle.IN_RUN
    bundle.save(str(folder), network, SETTINGS, {"name": "tiny", "training": {"data": "drawn"}})
    return folder


def edit_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    bundle.write_card(str(folder), card | changes)


# --- round trip -----------------------------------------------------------------------------------


def test_save_and_load_give_the_same_model(saved: Path, network: Classifier) -> None:
    assert {file.name for file in saved.iterdir()} == FILES
    loaded = bundle.load(str(saved))
    assert loaded.experiment == SETTINGS
    assert loaded.card["name"] == "tiny"
    assert loaded.card["training"] == {"data": "drawn"}
    assert re.fullmatch(r"ageray \d+\.\d+.*", loaded.card["code"])
    assert loaded.card["sha256"] == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    assert loaded.calibration == calibration.Calibration()
    again = loaded.network()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.float32}


def test_matrices_are_stored_as_float16_and_vectors_as_float32(saved: Path, network: Classifier) -> None:
    stored = load_file(saved / "model.safetensors")
    wide = "backbone.layers.conv2_3x3_reduce.weight"
    for name, tensor in network.state_dict().items():
        dtype = torch.float16 if tensor.ndim > 1 and name != wide else torch.float32
        assert stored[name].dtype == dtype, name
        exact = tensor if stored[name].dtype == torch.float32 else tensor.half()
        assert torch.equal(stored[name], exact), name


def test_whole_numbers_keep_their_type(tmp_path: Path) -> None:
    """Batch normalisation counts its batches in int64."""
    settings = Experiment()
    bundle.save(str(tmp_path / "b"), build(settings.model, seed=0), settings, {})
    state = bundle.load(str(tmp_path / "b")).network().state_dict()
    assert state["backbone.network.bn1.num_batches_tracked"].dtype == torch.int64


def test_an_evaluation_may_decode_anew(saved: Path) -> None:
    """`model.decode.*` and `train.calibrate` are no part of the weights."""
    edit_card(saved, calibration=calibration.Calibration(1.2, -5, 2, 100).to_card())
    loaded = bundle.load(str(saved))
    median = Decode(method="median", flip=False)
    changed = loaded.decoding(median)
    assert changed.experiment.model.decode == median
    assert changed.calibration.scale == 1.2
    assert changed.weights is loaded.weights
    plain = loaded.decoding(loaded.experiment.model.decode, calibrate=False)
    assert plain.calibration == calibration.Calibration()
    assert not plain.experiment.train.calibrate
    assert loaded.decoding(loaded.experiment.model.decode) == loaded
    with pytest.raises(UserError, match="model.decode.method=gallery: .* has no gallery.safetensors"):
        loaded.decoding(Decode(method="gallery"))


def test_a_loaded_network_is_ready_to_predict(saved: Path, network: Classifier) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loaded = bundle.load(str(saved)).network()
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_on_another_store(network: Classifier) -> None:
    uri = "memory://bundles/tiny"
    bundle.save(uri, network, SETTINGS, {})
    loaded = bundle.load(uri)
    assert loaded.uri == uri
    assert loaded.experiment == SETTINGS
    assert torch.equal(loaded.network().head.bias, network.head.bias)
    assert {file.rsplit("/", 1)[1] for file in storage.list_files(uri)} == FILES


def test_the_starting_point_is_not_needed_again(network: Classifier, tmp_path: Path) -> None:
    model = SETTINGS.model.model_copy(update={"weights": "/gone/start.safetensors"})
    bundle.save(str(tmp_path / "b"), network, SETTINGS.model_copy(update={"model": model}), {})
    assert torch.equal(bundle.load(str(tmp_path / "b")).network().head.bias, network.head.bias)


# --- a whole bundle or none -----------------------------------------------------------------------


def test_the_card_comes_last(saved: Path) -> None:
    written = {file.name: file.stat().st_mtime_ns for file in saved.iterdir()}
    assert max(written, key=written.__getitem__) == "card.json"


def test_a_bundle_whose_writing_broke_off_is_none(network: Classifier, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        bundle.save(str(tmp_path), network, SETTINGS, {"note": object()})
    assert {file.name for file in tmp_path.iterdir()} == FILES - {"card.json"}
    with pytest.raises(UserError, match="not a model"):
        bundle.load(str(tmp_path))


# --- what is refused ------------------------------------------------------------------------------


def test_weights_that_were_tampered_with(saved: Path) -> None:
    weights = bytearray((saved / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (saved / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError) as caught:
        bundle.load(str(saved))
    digest = hashlib.sha256(weights).hexdigest()[:12]
    assert str(caught.value).startswith(f"{saved}: model.safetensors has sha256 {digest}..., the card says ")
    assert str(caught.value).endswith("copy the bundle again")


def test_a_card_without_a_hash(saved: Path) -> None:
    (saved / "card.json").write_text("{}")
    with pytest.raises(UserError, match="model.safetensors has sha256"):
        bundle.load(str(saved))


@pytest.mark.parametrize("content", ["", "{", "[]", "no card"])
def test_a_card_that_is_none(saved: Path, content: str) -> None:
    (saved / "card.json").write_text(content)
    with pytest.raises(UserError, match=rf"^{re.escape(str(saved))}.*card"):
        bundle.load(str(saved))


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml"])
def test_a_bundle_with_a_file_missing(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(UserError, match=rf"{re.escape(str(saved / name))}: not found"):
        bundle.load(str(saved))


def test_a_configuration_that_is_broken(saved: Path) -> None:
    (saved / "config.yaml").write_text("model: {name: cluster_cn}\n")
    with pytest.raises(UserError, match=rf"{re.escape(str(saved / 'config.yaml'))}.*cluster_cn"):
        bundle.load(str(saved))


def test_weights_that_do_not_fit_their_configuration(saved: Path) -> None:
    other = Experiment.model_validate({"model": {"name": "cluster_cnn", "head": "plain", "ages": [0, 50]}})
    (saved / "config.yaml").write_text(config.dump(other))
    edit_card(saved)  # the card is of these settings
    with pytest.raises(
        UserError, match=r"model\.safetensors does not fit config\.yaml \(.*head\.weight"
    ) as caught:
        bundle.load(str(saved)).network()
    assert "\n" not in str(caught.value)


# --- finding a model ------------------------------------------------------------------------------


def test_a_bundle_goes_by_its_folder_its_run_and_its_name_in_the_zoo(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bundle.resolve(str(saved)) == str(saved)
    assert bundle.resolve(f"{saved}/").rstrip("/") == str(saved)
    assert bundle.resolve(str(saved.parent)) == str(saved)
    assert bundle.load(str(saved.parent)).identity == bundle.load(str(saved)).identity
    storage.copy_tree(str(saved), str(tmp_path / "zoo" / "tiny" / "1"))
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    assert bundle.resolve("zoo:tiny") == bundle.resolve("zoo:tiny@1") == str(tmp_path / "zoo" / "tiny" / "1")
    assert bundle.load("zoo:tiny").identity == bundle.load(str(saved)).identity
    storage.copy_tree(str(saved), str(tmp_path / "zoo" / "other" / "1"))
    with pytest.raises(UserError, match=r"^zoo:tny: no such model in the zoo; it has zoo:other, zoo:tiny$"):
        bundle.resolve("zoo:tny")


def test_versions_of_a_model_of_the_zoo(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    for version in ("9", "10", "2"):
        storage.copy_tree(str(saved), str(tmp_path / "zoo" / "tiny" / version))
    (tmp_path / "zoo" / "tiny" / "11").mkdir()  # without a card: no model
    assert zoo.versions() == {"tiny": [2, 9, 10]}
    assert bundle.resolve("zoo:tiny") == str(tmp_path / "zoo" / "tiny" / "10")
    assert bundle.resolve("zoo:tiny@9") == str(tmp_path / "zoo" / "tiny" / "9")
    expected = "no such version in the zoo; it has zoo:tiny@2, zoo:tiny@9, zoo:tiny@10"
    for version in ("3", "", "../tiny/2", "02"):
        with pytest.raises(UserError) as caught:
            bundle.resolve(f"zoo:tiny@{version}")
        assert str(caught.value) == f"zoo:tiny@{version}: {expected}"


def test_an_empty_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    with pytest.raises(UserError, match="it has none"):
        bundle.resolve("zoo:default")


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "a file", "an unfinished run"])
def test_what_is_no_model(what: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    if what == "a file":
        path.write_text("")
    elif what != "nothing":
        path.mkdir()
    if what == "an unfinished run":
        (path / "config.yaml").write_text(config.dump(SETTINGS))
    with pytest.raises(UserError) as caught:
        bundle.load(str(path))
    assert str(caught.value).startswith(
        f"{path}: not a model; name zoo:default, a bundle (a folder with card.json) or the folder of"
    )


SHIPPED = [f"zoo:{name}@{version}" for name, versions in zoo.versions().items() for version in versions]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_of_the_zoo_is_whole(name: str) -> None:
    loaded = bundle.load(name)
    features = {"features.safetensors"} if "features" in loaded.card else set()
    log = {"log.jsonl"} if name == "zoo:default@3" else set()  # of its training
    assert {file.name for file in Path(bundle.resolve(name)).iterdir()} == FILES | features | log
    side, ages = loaded.experiment.align.size, loaded.experiment.model.ages
    logits = loaded.network()({"face": torch.zeros(1, 3, side, side)})["logits"]
    assert logits.shape[-1] == ages[1] - ages[0] + 1
    assert loaded.calibration.faces >= 30
    assert loaded.card["terms"]
    assert not Path(loaded.experiment.scale.runs).is_absolute()
    assert not str(loaded.experiment.data.shards).startswith("/")


def test_the_shipped_model_is_the_one_that_was_measured() -> None:
    """The figures of docs/benchmarks.md and of its card belong to this identity.

    New files and fields of bundles must not change it.
    """
    assert bundle.load("zoo:default@1").identity == "334d18d5abf39183"
    assert bundle.load("zoo:default@1").gallery() is None


# --- identity -------------------------------------------------------------------------------------


def test_identity_names_weights_settings_and_calibration(
    saved: Path, network: Classifier, tmp_path: Path
) -> None:
    first = bundle.load(str(saved)).identity
    assert re.fullmatch("[0-9a-f]{16}", first)
    edit_card(saved, validation={"mae": 3}, note="figures do not change what a model says")
    assert bundle.load(str(saved)).identity == first
    edit_card(saved, calibration=calibration.Calibration(1.1, -2, 1, 500).to_card())
    calibrated = bundle.load(str(saved))
    assert calibrated.calibration == calibration.Calibration(1.1, -2, 1, 500)
    edit_card(saved, calibration=calibration.Calibration(1.1, -2, 1.5, 500).to_card())
    seen = {first, calibrated.identity, bundle.load(str(saved)).identity}
    align = SETTINGS.align.model_copy(update={"coverage": 1.3})
    bundle.save(str(tmp_path / "framed"), network, SETTINGS.model_copy(update={"align": align}), {})
    bundle.save(str(tmp_path / "trained"), build(SETTINGS.model, seed=1), SETTINGS, {})
    seen |= {bundle.load(str(tmp_path / name)).identity for name in ("framed", "trained")}
    assert len(seen) == 5


def test_identity_is_that_of_a_copy(saved: Path, tmp_path: Path) -> None:
    storage.copy_tree(str(saved), str(tmp_path / "copy"))
    assert bundle.load(str(tmp_path / "copy")).identity == bundle.load(str(saved)).identity


# --- with a gallery -------------------------------------------------------------------------------


NEAREST = Experiment.model_validate(
    {**SETTINGS.model_dump(), "model": {**SETTINGS.model.model_dump(), "decode": {"method": "gallery"}}}
)


def gallery(seed: int = 0, gendered: bool = True) -> Gallery:
    """Three faces."""
    generator = torch.Generator().manual_seed(seed)
    rows = {"embedding": torch.randn(3, 1024, generator=generator), "age": torch.tensor([4.0, 30.5, 61])}
    rows |= {"gender": torch.tensor([0, 1, -1]), "subject": torch.tensor([0, 2**55, 7])}
    if gendered:
        rows["gender_embedding"] = torch.randn(3, 10, generator=generator).half()
    return Gallery.of([rows])


@pytest.fixture
def nearest(network: Classifier, tmp_path: Path) -> Path:
    folder = tmp_path / "nearest"
    bundle.save(str(folder), network, NEAREST, {"name": "near"}, gallery())
    return folder


@pytest.mark.parametrize("gendered", [True, False])
def test_a_gallery_comes_back_as_it_was(gendered: bool, network: Classifier, tmp_path: Path) -> None:
    before = gallery(gendered=gendered)
    bundle.save(str(tmp_path / "b"), network, NEAREST, {}, before)
    assert {file.name for file in (tmp_path / "b").iterdir()} == FILES | {"gallery.safetensors"}
    loaded = bundle.load(str(tmp_path / "b"))
    after = loaded.gallery()
    assert after is not None
    assert after.tensors().keys() == before.tensors().keys()
    for name, tensor in before.tensors().items():
        assert torch.equal(after.tensors()[name], tensor), name
        assert after.tensors()[name].dtype == tensor.dtype
    content = (tmp_path / "b" / "gallery.safetensors").read_bytes()
    by = "gender_embedding" if gendered else "embedding"
    assert loaded.card["gallery"] == {
        "faces": 3,
        "gender_by": by,
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def test_the_card_comes_after_the_gallery(nearest: Path) -> None:
    written = {file.name: file.stat().st_mtime_ns for file in nearest.iterdir()}
    assert max(written, key=written.__getitem__) == "card.json"


def test_a_gallery_is_part_of_the_identity(nearest: Path, network: Classifier, tmp_path: Path) -> None:
    bundle.save(str(tmp_path / "other"), network, NEAREST, {}, gallery(seed=1))
    bundle.save(str(tmp_path / "same"), network, NEAREST, {}, gallery())
    identities = [
        bundle.load(str(folder)).identity for folder in (nearest, tmp_path / "other", tmp_path / "same")
    ]
    assert identities[0] != identities[1]
    assert identities[0] == identities[2]


def test_a_gallery_that_was_tampered_with(nearest: Path) -> None:
    content = bytearray((nearest / "gallery.safetensors").read_bytes())
    content[-3] ^= 1
    (nearest / "gallery.safetensors").write_bytes(content)
    with pytest.raises(
        UserError, match=r"gallery\.safetensors has sha256 .*, the card says .*; copy the bundle again$"
    ):
        bundle.load(str(nearest))


def test_a_gallery_of_another_bundle(nearest: Path, network: Classifier, tmp_path: Path) -> None:
    bundle.save(str(tmp_path / "other"), network, NEAREST, {}, gallery(seed=1))
    (nearest / "gallery.safetensors").write_bytes((tmp_path / "other" / "gallery.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"gallery\.safetensors has sha256"):
        bundle.load(str(nearest))


def test_a_gallery_that_is_missing(nearest: Path) -> None:
    (nearest / "gallery.safetensors").unlink()
    with pytest.raises(UserError, match=rf"{re.escape(str(nearest / 'gallery.safetensors'))}: not found"):
        bundle.load(str(nearest))


def test_a_model_that_needs_a_gallery_and_a_card_that_names_none(nearest: Path) -> None:
    card = json.loads((nearest / "card.json").read_text())
    del card["gallery"]
    bundle.write_card(str(nearest), card)
    with pytest.raises(
        UserError, match=r"model\.decode\.method=gallery needs gallery\.safetensors, and the card names none"
    ) as caught:
        bundle.load(str(nearest))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["no tensors", "a pickle", "other tensors", "tensors that do not fit"])
def test_what_is_no_gallery_though_its_hash_is_right(content: str, nearest: Path, tmp_path: Path) -> None:
    marker = tmp_path / "sprung"
    tensors = dict(gallery().tensors())
    if content == "other tensors":
        tensors = {"head.weight": torch.zeros(3)}
    elif content == "tensors that do not fit":
        tensors["age"] = torch.zeros(2)
    others = {"no tensors": b"nonsense", "a pickle": pickle.dumps(Trap(marker))}
    data = others.get(content, save(tensors))
    (nearest / "gallery.safetensors").write_bytes(data)
    edit_card(nearest, gallery={"faces": 3, "gender_by": None, "sha256": hashlib.sha256(data).hexdigest()})
    with pytest.raises(
        UserError, match=r"gallery\.safetensors is not a gallery \(.*\); copy the bundle again$"
    ) as caught:
        bundle.load(str(nearest)).gallery()
    assert "\n" not in str(caught.value)
    assert not marker.exists()


# --- nothing is unpickled -------------------------------------------------------------------------


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def test_a_planted_pickle_is_ignored(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "sprung"
    for name in ("model.pt", "state.pt", "pytorch_model.bin", "model.pkl", "card.pkl"):
        (saved / name).write_bytes(pickle.dumps(Trap(marker)))
    loaded: dict[str, Tensor] = bundle.load(str(saved)).network().state_dict()
    assert len(loaded) > 100
    assert not marker.exists()


def test_weights_that_are_a_pickle_are_not_opened_as_one(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "sprung"
    weights = pickle.dumps(Trap(marker))
    (saved / "model.safetensors").write_bytes(weights)
    edit_card(saved, sha256=hashlib.sha256(weights).hexdigest())
    with pytest.raises(UserError, match=r"model\.safetensors"):
        bundle.load(str(saved)).network()
    assert not marker.exists()
    pickle.loads(weights)
    assert marker.exists()


# --- for other processes --------------------------------------------------------------------------


def test_workers_get_an_absolute_path_or_a_name_of_the_zoo(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved.parent
    monkeypatch.chdir(run.parent)
    assert bundle.model_for_workers(run.name) == str(saved.resolve())
    assert bundle.model_for_workers(str(saved)) == str(saved.resolve())
    assert bundle.model_for_workers("zoo:default") == "zoo:default"
    with pytest.raises(UserError, match="no such model in the zoo"):
        bundle.model_for_workers("zoo:none")


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.yaml", "card.json"])
def test_another_setting_or_calibration_than_was_saved_is_refused(name: str, saved: Path) -> None:
    edit_card(saved, calibration=calibration.Calibration(1.1, -2, 1, 500).to_card())
    before = (saved / name).read_text()
    old, new = {"config.yaml": ("seed: 0", "seed: 1"), "card.json": ('"shift": -2', '"shift": -6')}[name]
    assert old in before
    (saved / name).write_text(before.replace(old, new, 1))
    with pytest.raises(UserError, match=r"is not what was saved \(identity \w+, the card says \w+\); copy"):
        bundle.load(str(saved))


def test_a_bundle_of_an_earlier_version_states_no_identity(saved: Path) -> None:
    card = json.loads((saved / "card.json").read_text())
    identity = card.pop("identity")
    (saved / "card.json").write_text(json.dumps(card))
    assert bundle.load(str(saved)).identity == identity


@pytest.mark.parametrize("name", ["default/1", "default/2", "fast/1", "accurate/1"])
def test_shipped_models_state_their_identity(name: str) -> None:
    model = f"zoo:{name.replace('/', '@')}"
    loaded = bundle.load(model)
    assert loaded.card["identity"] == loaded.identity
