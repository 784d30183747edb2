"""Configuration files and overrides: what they become, and the exact words about every kind of
mistake."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ageray import config, experiment
from ageray.config import messages
from ageray.config.nodes import Keys
from ageray.errors import UserError
from ageray.experiment import Experiment

TOP = ", ".join(Experiment.model_fields)
TERMS = ", ".join(experiment.Loss.model_fields)
MODELS = list(messages.choice(messages.at(messages.schema(Experiment), ("model",)))[1])  # type: ignore[index]


NEIGHBORHOOD = ", ".join(experiment.loss.Neighborhood.model_fields)
DATA = ", ".join(experiment.Data.model_fields)


def either(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def mistake(*words: str, **files: str) -> str:
    """The message for files of these names (without .yaml) and contents, and overrides."""
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        config.load([f"{name}.yaml" for name in files], words)
    return str(caught.value)


# --- what loads -----------------------------------------------------------------------------------


def test_files_and_overrides_make_one_experiment() -> None:
    Path("what.yaml").write_text("model: {name: cluster_cnn, ages: [-5, 110]}\nloss:\n  neighborhood: {}\n")
    Path("on.yaml").write_text("data: {name: no, shards: none}\n")
    got = config.load(
        ["what.yaml", "on.yaml"], ["train.stages.0.optimizer.lr=1e-3", "loss.neighborhood.sigma=3"]
    )
    optimizer = experiment.Optimizer(lr=1e-3)
    assert got == Experiment(
        model=experiment.model.ClusterCnn(name="cluster_cnn", ages=(-5, 110)),
        loss=experiment.Loss(neighborhood=experiment.loss.Neighborhood(sigma=3)),
        train=experiment.Train(stages=(experiment.Stage(optimizer=optimizer),)),
        data=experiment.Data(name="no", shards="none"),
    )
    assert config.load([]) == Experiment()


@pytest.mark.parametrize(
    ("words", "keys", "value"),
    [
        (["train.batch_size=8", "train.batch_size=9"], "train.batch_size", 9),
        (["train={batch_size: 8, clip: 1}"], "train.clip", 1.0),
        (["train={batch_size: 8, clip: 1}", "train.clip=null"], "train.clip", 0.0),
        (["data.shards=s3://b/a=b?c"], "data.shards", "s3://b/a=b?c"),
        (["data.shards=x", "data.shards=null"], "data.shards", None),
        (["data.name=''"], "data.name", ""),
        (["data.name='2024'"], "data.name", "2024"),
        (["scale.gpu=false"], "scale.gpu", False),
        (["loss.neighborhood.sigma=3", "loss.neighborhood=null"], "loss.neighborhood", None),
        (["loss.neighborhood=null", "loss.neighborhood.sigma=3"], "loss.neighborhood.sigma", 3.0),
        (["loss.neighborhood.sigma=null"], "loss.neighborhood", None),
        (["data=null"], "data", experiment.Data()),
        (["train.stages.0.name=a", "train.stages.1.name=b"], "train.stages.1.name", "b"),
        (["train.stages.1.name=b"], "train.stages.0", experiment.Stage()),
        (["train.stages.1.name=b", "train.stages.0=null"], "train.stages.0.name", "b"),
        # a stage added on the command line starts from the one before it
        (
            ["train.stages.0.optimizer.lr=0.25", "train.stages.1.epochs=2"],
            "train.stages.1.optimizer.lr",
            0.25,
        ),
        (["train.stages.0.shards=a", "train.stages.1.epochs=2"], "train.stages.1.shards", None),
        (
            ["train.stages.0.epochs=7", "train.stages.1.name=b", "train.stages.0.epochs=9"],
            "train.stages.1.epochs",
            7,
        ),
        (["train.stages.0.schedule.milestones.1=0.9"], "train.stages.0.schedule.milestones", (0.5, 0.9)),
        (["model.name=cluster_cnn", "model.ages.1=90"], "model.ages", (0, 90)),
        (
            ["model={name: cluster_cnn, head: plain}", "model.head=null", "model.name=baseline"],
            "model.name",
            "baseline",
        ),
    ],
)
def test_overrides(words: list[str], keys: str, value: Any) -> None:
    got: Any = config.load([], words)
    for key in keys.split("."):
        got = got[int(key)] if key.isdecimal() else getattr(got, key)
    assert got == value
    assert type(got) is type(value)


def test_an_element_of_a_default_that_differs_between_models(monkeypatch: pytest.MonkeyPatch) -> None:
    at, other = messages.at, {"type": "array", "items": {"type": "integer"}, "default": [5, 50]}

    def with_another(root: messages.Schema, keys: Keys) -> list[messages.Schema]:
        return [*at(root, keys), other] if keys == ("model", "ages") else at(root, keys)

    monkeypatch.setattr(messages, "at", with_another)
    expected = (
        "argument 'model.ages.1=90': model.ages: nothing is written there; "
        "give the whole list, model.ages=[...]"
    )
    assert mistake("model.name=cluster_cnn", "model.ages.1=90") == expected


def test_overrides_win_over_files_and_files_over_the_base() -> None:
    Path("a.yaml").write_text("data: {name: file}\nprotocol: {name: all}\n")
    base = config.load([], ["data.shards=old", "protocol.val=0.3", "train.clip=5", "scale.workers=3"])
    got = config.load(["a.yaml"], ["data.name=word", "train.seed=7"], base=base)
    assert got.data == experiment.Data(name="word")
    assert got.protocol == experiment.Protocol(name="all")
    assert got.train == base.train.model_copy(update={"seed": 7})
    assert got.scale == base.scale
    assert config.load([], base=base) == base


def test_shards_of_the_command_line_replace_the_sets_of_the_base() -> None:
    """A model that was trained on several sets is evaluated on other faces."""
    base = config.load([], ["data.sets=[{name: a, shards: one}, {name: b, shards: two}]"])
    got = config.load([], ["data.shards=mine"], base=base)
    assert (got.data.shards, got.data.sets) == ("mine", ())
    assert len(config.load([], ["train.seed=1"], base=base).data.sets) == 2


def test_a_problem_with_the_base() -> None:
    base = config.load([], ["model.name=cluster_cnn", "protocol.val=0.3"])
    with pytest.raises(UserError) as caught:
        config.load([], ["model.name=baseline", "protocol.test=0.8"], base=base)
    kinds = {
        name: messages.names([member])
        for name, member in messages.choice(messages.at(messages.schema(Experiment), ("model",)))[1].items()
    }  # type: ignore[index]
    own = [key for key in kinds["cluster_cnn"] if key not in kinds["baseline"]]
    assert {"head", "clusters"} <= set(own)
    assert str(caught.value).splitlines()[1:] == [
        *(
            f"  the given experiment: model.{key}: no such key with name 'baseline' (argument "
            f"'model.name=baseline'), but with "
            f"{' or '.join(repr(name) for name, keys in kinds.items() if key in keys)}: take it "
            f"out, or add model.{key}=null "
            f"(known: {', '.join(experiment.Baseline.model_fields)})"
            for key in own
        ),
        "  argument 'protocol.test=0.8': protocol: val + test must leave faces to train on; got 0.3 + 0.8",
    ]


def test_a_byte_order_mark_and_windows_lines_are_read() -> None:
    Path("a.yaml").write_bytes(b"\xef\xbb\xbfdata:\r\n  name: x\r\n")
    assert config.load(["a.yaml"]).data.name == "x"


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "loss:\n  neighborhood:\n    sigmma: 3\n",
            f"a.yaml:3: loss.neighborhood.sigmma: unknown key; did you mean 'sigma'? (known: {NEIGHBORHOOD})",
        ),
        (
            "loss:\n  nieghborhood: {}",
            f"a.yaml:2: loss.nieghborhood: unknown key; did you mean 'neighborhood'? (known: {TERMS})",
        ),
        ("los: {}", f"a.yaml:1: los: unknown key; did you mean 'loss'? (known: {TOP})"),
        ("xyzzy: {}", f"a.yaml:1: xyzzy: unknown key (known: {TOP})"),
        ("5: {}", f"a.yaml:1: 5: unknown key (known: {TOP})"),
        (
            "model:\n  name: clster_cnn",
            f"a.yaml:2: model.name: 'clster_cnn' is not allowed; did you mean 'cluster_cnn'? "
            f"(allowed: {either(MODELS)})",
        ),
        ("model:\n  name: 5", f"a.yaml:2: model.name: 5 is not allowed (allowed: {either(MODELS)})"),
        ("\nmodel:\n  ages: [0, 9]", f"a.yaml:2: model.name: required (allowed: {either(MODELS)})"),
        (
            "model: {name: cluster_cnn,\n  heed: plain}",
            f"a.yaml:2: model.heed: unknown key; did you mean 'head'? (known: "
            f"{', '.join(experiment.model.ClusterCnn.model_fields)})",
        ),
        (
            "model:\n  name: baseline\n  baseline: 3",
            f"a.yaml:3: model.baseline: unknown key (known: {', '.join(experiment.Baseline.model_fields)})",
        ),
        (
            "model: {name: baseline,\n  ages: [5, 3]}",
            "a.yaml:1: model: ages must ascend, [first, last]; got [5, 3]",
        ),
        (
            "model:\n  name: baseline\n  ages: [0,\n    x]",
            "a.yaml:4: model.ages.1: 'x' is not allowed (allowed: a whole number)",
        ),
        ("model: {name: baseline, ages: [0]}", "a.yaml:1: model.ages.1: required (allowed: a whole number)"),
        (
            "model: {name: baseline, ages: [0, 1, 2]}",
            "a.yaml:1: model.ages: [0, 1, 2] is not allowed (allowed: a list of 2: a whole number, "
            "a whole number)",
        ),
        ("model: [baseline]", 'a.yaml:1: model: ["baseline"] is not allowed (allowed: a mapping)'),
        ("data: 3", "a.yaml:1: data: 3 is not allowed (allowed: a mapping)"),
        (
            "loss: {neighborhood: true}",
            "a.yaml:1: loss.neighborhood: true is not allowed (allowed: a mapping or null)",
        ),
        (
            "train: {batch_size: 0}",
            "a.yaml:1: train.batch_size: 0 is not allowed (allowed: a whole number, at least 1)",
        ),
        (
            "train: {batch_size: 1.5}",
            "a.yaml:1: train.batch_size: 1.5 is not allowed (allowed: a whole number, at least 1)",
        ),
        (
            "train: {batch_size: '8'}",
            "a.yaml:1: train.batch_size: '8' is not allowed (allowed: a whole number, at least 1)",
        ),
        (
            "train: {batch_size: true}",
            "a.yaml:1: train.batch_size: true is not allowed (allowed: a whole number, at least 1)",
        ),
        (
            "train: {batch_size: null}",
            "a.yaml:1: train.batch_size: null is not allowed (allowed: a whole number, at least 1)",
        ),
        (
            "train: {ema: 1}",
            "a.yaml:1: train.ema: 1 is not allowed (allowed: a number, at least 0 and below 1)",
        ),
        (
            "train: {clip: 1e999}",
            "a.yaml:1: train.clip: Infinity is not allowed (allowed: a number, at least 0)",
        ),
        (
            "train: {clip: .nan}",
            "a.yaml:1: train.clip: '.nan' is not allowed (allowed: a number, at least 0)",
        ),
        (
            "train: {calibrate: yes}",
            "a.yaml:1: train.calibrate: 'yes' is not allowed (allowed: true or false)",
        ),
        (
            "train: {precision: bf61}",
            f"a.yaml:1: train.precision: 'bf61' is not allowed; did you mean 'bf16'? (allowed: "
            f"{either(list(get_args(experiment.Train.model_fields['precision'].annotation)))})",
        ),
        (
            "train:\n  stages: []",
            "a.yaml:2: train.stages: [] is not allowed (allowed: a list of at least 1, each a mapping)",
        ),
        ("train:\n  stages:\n    - 3", "a.yaml:3: train.stages.0: 3 is not allowed (allowed: a mapping)"),
        (
            "train:\n  stages:\n  -\n    epochs: 1\n  - {epochs: 1,\n     schedule: {milestones: "
            "[0.5,\n       7]}}",
            "a.yaml:7: train.stages.1.schedule.milestones.1: 7 is not allowed (allowed: a number, "
            "at least 0 and at most 1)",
        ),
        (
            "scale: {gpu: atuo}",
            "a.yaml:1: scale.gpu: 'atuo' is not allowed; did you mean 'auto'? (allowed: true, false or auto)",
        ),
        (
            "scale: {runs: 2024}",
            "a.yaml:1: scale.runs: 2024 is not allowed; as text it needs quotes: '2024' (allowed: text)",
        ),
        (
            "data: {source: 1e3}",
            "a.yaml:1: data.source: 1000.0 is not allowed; as text it needs quotes: '1000.0' "
            "(allowed: text or null)",
        ),
        (
            "data: {shards: [" + "a" * 99 + "]}",
            f'a.yaml:1: data.shards: ["{"a" * 55}... is not allowed (allowed: text or null)',
        ),
        (
            "\nprotocol: {val: .6, test: .5}",
            "a.yaml:2: protocol: val + test must leave faces to train on; got 0.6 + 0.5",
        ),
        ("", f"a.yaml: is empty; write a mapping of {TOP}"),
        ("# nothing\n", f"a.yaml: is empty; write a mapping of {TOP}"),
        ("\n- model", f'a.yaml:2: ["model"] is not allowed; write a mapping of {TOP}'),
        (
            "data: {name: x",
            "a.yaml:1: not valid YAML: while parsing a flow mapping: expected ',' or '}', but got "
            "'<stream end>'",
        ),
        ("data: {}\ndata: {}", "a.yaml:2: data: key given twice (the first is in line 1)"),
    ],
)
def test_mistakes_in_a_file(text: str, message: str) -> None:
    assert mistake(a=text) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss.neighborhood.sigmma=3"], f"loss.neighborhood.sigmma: unknown key; did you mean "
                                         f"'sigma'? (known: {NEIGHBORHOOD})"),
        (["los.neighborhood.sigma=3"], f"los: unknown key; did you mean 'loss'? (known: {TOP})"),
        (["los.neighborhood.sigma=null"], f"los: unknown key; did you mean 'loss'? (known: {TOP})"),
        (["loss.neighborhod=null"], f"loss.neighborhod: unknown key; did you mean 'neighborhood'? "
                                    f"(known: {TERMS})"),
        (["train.batch_size=many"], "train.batch_size: 'many' is not allowed (allowed: a whole "
                                    "number, at least 1)"),
        (["train.batch_size=8", "train.batch_size.x=3"], "train.batch_size.x: no such key; "
                                                         "train.batch_size holds 8"),
        (["train.stages.3.epochs=1"], "train.stages.3: no such element; train.stages is a list of "
                                      "1, counted from 0"),
        (["train.stages=[{}, {}]", "train.stages.2=null"], "train.stages.2: no such element; "
                                                           "train.stages is a list of 2, counted from 0"),
        (["train.stages.last.epochs=1"], "train.stages.last: no such element; train.stages is a "
                                         "list of 1, counted from 0"),
        (["loss.0.weight=3"], f"loss.0: unknown key (known: {TERMS})"),
        (["data.shards="], "data.shards: has no value; write null to take the key away, '' for empty text"),
        (["data.shards=@x"], "not valid YAML: while scanning for the next token: found character "
                             "'@' that cannot start any token"),
        (["train={clip: 1, clip: 2}"], "train.clip: key given twice"),
        (["train"], "is not key=value"),
        (["data..name=x"], f"data.: unknown key (known: {DATA})"),
        (["model.ages=[1, 2]"], f"model.name: required (allowed: {either(MODELS)})"),
        (["protocol={val: .5}", "protocol.test=0.5"], "protocol: val + test must leave faces to "
                                                      "train on; got 0.5 + 0.5"),
    ],
)  # fmt: skip
def test_mistakes_in_arguments(words: list[str], message: str) -> None:
    assert mistake(*words) == f"argument {words[-1]!r}: {message}"


def test_every_problem_is_told_at_once_in_the_order_of_the_sources() -> None:
    what = "model:\n  name: baseline\n  head: plain\nloss:\n  crossentropy: {}\nalign: {size: 1}\n"
    on = "protocol:\n  val: 0.5\n  val: 0.6\n  test:\nalign: {}\n"
    lines = mistake("align.fill=300", "train.stages.9=1", "modell=x", what=what, on=on).splitlines()
    assert lines[0] == "9 problems:"
    assert [line.split(": ")[:2] for line in lines[1:]] == [
        ["  what.yaml:3", "model.head"],
        ["  what.yaml:5", "loss.crossentropy"],
        ["  what.yaml:6", "align.size"],
        ["  on.yaml:3", "protocol.val"],
        ["  on.yaml:4", "protocol.test"],
        ["  on.yaml:5", "align"],
        ["  argument 'align.fill=300'", "align.fill"],
        ["  argument 'train.stages.9=1'", "train.stages.9"],
        ["  argument 'modell=x'", "modell"],
    ]
    assert lines[6] == "  on.yaml:5: align: is already in what.yaml:6; a top-level key belongs in one file"


def test_keys_of_another_model() -> None:
    file = "model:\n  name: cluster_cnn\n  head: plain\n"
    assert mistake("model.name=baseline", a=file) == (
        "a.yaml:3: model.head: no such key with name 'baseline' (argument 'model.name=baseline'), "
        "but with 'cluster_cnn': "
        f"take it out, or add model.head=null (known: {', '.join(experiment.Baseline.model_fields)})"
    )
    assert config.load(["a.yaml"], ["model.name=baseline", "model.head=null"]).model == experiment.Baseline()


def test_files_that_cannot_be_read() -> None:
    Path("utkface.yaml").write_text("data: {}")
    Path("latin.yaml").write_bytes(b"data:\n  name: caf\xe9\n")
    Path("folder.yaml").mkdir()
    with pytest.raises(UserError) as caught:
        config.load(["utkfce.yaml", "no/such.yaml", "latin.yaml", "folder.yaml"], ["nonsense"])
    assert str(caught.value).splitlines() == [
        "4 problems:",
        "  utkfce.yaml: no such file; did you mean 'utkface.yaml'?",
        "  no/such.yaml: no such file",
        "  latin.yaml:2: not UTF-8 text; save the file as UTF-8",
        "  folder.yaml: cannot be read: Is a directory",
    ]


def test_arguments_are_split() -> None:
    words = ["a/b.yaml", "data.source=x.yaml", "c.yml", "train.batch-size=3", "runs/a=b/config.yaml"]
    assert config.parse_arguments(words) == (
        ["a/b.yaml", "c.yml", "runs/a=b/config.yaml"],
        ["data.source=x.yaml", "train.batch-size=3"],
    )
    forms = "neither a .yaml file, a name such as recipe:default, nor key=value"
    with pytest.raises(UserError, match=rf"^'a.json', '--x=3', '=3', 'a/b=c': {forms}$"):
        config.parse_arguments(["a.json", "k=v", "--x=3", "=3", "a/b=c"])


# --- out and back in ------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.text() | st.tuples(st.sampled_from(TOP.split(", ")), st.text()).map(": ".join), st.text())
def test_any_text_loads_or_is_the_users_mistake(text: str, word: str) -> None:
    for read in (
        partial(config.loads, text, "a.yaml"),
        partial(config.load, [], [word]),
        partial(config.load, [], [f"data.name={word}"]),
    ):
        try:
            message = config.dump(read())
        except UserError as error:
            message = str(error)
            first, *rest = message.split("\n")
            well_formed = not rest or first == f"{len(rest)} problems:"
        else:
            well_formed = message.startswith("model:")
        assert well_formed, message


def test_the_messages_for_a_text_name_it() -> None:
    with pytest.raises(UserError, match=r"^s3://b/config.yaml:1: dta: unknown key; did you mean 'data'\?"):
        config.loads("dta: {}", "s3://b/config.yaml")
    with pytest.raises(UserError, match=r"^s3://b/config.yaml: is empty"):
        config.loads("", "s3://b/config.yaml")


def test_the_digest_is_of_what_not_of_where() -> None:
    one = config.load([], ["train.clip=1"])
    assert len(config.digest(one)) == 8
    assert int(config.digest(one), 16) >= 0
    assert config.digest(
        config.load([], ["train.clip=1.0", "scale.workers=7", "scale.runs=s3://x"])
    ) == config.digest(one)
    others = [
        config.load([], ["train.clip=1", word])
        for word in ("train.clip=2", "data.shards=x", "protocol.seed=1")
    ]
    assert len({config.digest(other) for other in [one, *others]}) == 4


def test_a_folder_of_an_earlier_version_is_read_with_its_old_keys() -> None:
    text = config.dump(config.load([], ["scale.parallel_trainings=3"]))
    before = text.replace("parallel_trainings", "fold_workers")
    assert config.loads(before, "config.yaml") == config.loads(text, "config.yaml")
    assert "unknown key" in mistake("scale.fold_workers=3")


def test_settings_added_later_do_not_rename_a_run() -> None:
    """The digest names run folders. This one was computed before the settings existed."""
    text = "model: {name: baseline}\nloss: {neighborhood: {sigma: 3}}\n"
    assert config.digest(config.loads(text, "old.yaml")) == "68db60b4"
    additions = (
        "train: {wise_ft: [0.5]}",
        "train: {stages: [{optimizer: {frozen_blocks: 2}}]}",
        "train: {stages: [{optimizer: {nesterov: false}}]}",
        "train: {stages: [{steps: 9}]}",
        "train: {thinned_ages: [20, 50]}",
        "protocol: {name: cacd, tests: val}",
    )
    for addition in additions:
        changed = config.loads(text + addition, "new.yaml")
        assert config.digest(changed) != "68db60b4"
