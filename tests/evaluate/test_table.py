"""Every file in configs/tables: it reads, plans and adds up on sets of the official layout; a small
table runs, goes on, and shows what it should.

The sets have the official labels and sizes scaled down, and one shared picture. Beside it,
`benchmarks/tables.py` runs the files at the official sizes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from ageray import config
from ageray.commands import evaluate as job
from ageray.config.paper_table import plan_table, read_table
from ageray.errors import UserError
from ageray.evaluate import table as tables
from ageray.evaluate.table import figures, plan, run
from ageray.experiment import Experiment
from tests.evaluate.official_sets import SIZES, fabricated

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs" / "tables").glob("*.yaml"))
SMALL = sorted((ROOT / "configs" / "tables" / "small").glob("*.yaml"))
SETS = (*SIZES, "utkface")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The settings file of each set, with 1,400 faces."""
    folder = tmp_path_factory.mktemp("sets")
    return {name: str(fabricated(folder, name, 1400)) for name in SETS}


# --- the files ------------------------------------------------------------------------------------


def test_every_table_and_figure_of_the_five_papers_has_a_file() -> None:
    assert {file.stem for file in FILES} == {
        *(f"dhaa_table{number}" for number in range(1, 6)),
        *(f"dhaa_figure{number}" for number in (5, 6, 7)),
        *(f"cluster_cnn_table{number}" for number in (2, 3)),
        "deep_embedding_table1",
        *(f"neighborhood_table{number}" for number in (2, 3)),
        *(f"siamese_table{number}" for number in (2, 3, 4, 5)),
        *(f"siamese_figure{number}" for number in (10, 11)),
    }


@pytest.mark.parametrize("file", [*FILES, *SMALL], ids=lambda file: f"{file.parent.stem}-{file.stem}")
def test_a_table_plans_and_adds_up(file: Path, sets: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of every cell are valid, its protocol leaves faces, and a dry run knows its
    cost. Networks are built elsewhere (tests/test_recipes.py)."""
    built = list[Experiment]()
    monkeypatch.setattr(plan, "check_model", built.append)
    table = read_table(str(file))
    if table.sets() == []:
        with pytest.raises(UserError, match="no cell can run; the set is private"):
            plan_table(table, str(file), sets, [], [])
        return
    # FG-NET's batches are as large as in the paper, so the other sets' are smaller here
    words = ["train.stages.0.steps=null", "train.stages.0.epochs=2", "train.balance=none"]
    planned = plan_table(table, str(file), sets, [], words)
    estimates = tables.estimate(planned, lambda record: None, measure=False)
    assert len(estimates) == len(planned.runnable)
    assert all(not cell.missing or cell.column.data is None for cell in planned.cells)
    for each in estimates:
        assert each.parts["train"] > 0
        assert each.parts["test"] > 0
        assert each.cost.trainings in (0, each.folds)
        assert (each.cost.trained > 0) == (each.cost.trainings > 0)
    assert all(experiment.model.weights != "imagenet" for experiment in built)
    for name in table.sets():
        assert f"configs/data/{name}.yaml" in file.read_text()


def test_a_training_that_serves_several_columns_is_counted_once(
    sets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "check_model", lambda experiment: None)
    words = ["train.stages.0.steps=null", "train.stages.0.epochs=2", "train.balance=none"]

    def estimates(name: str) -> list[plan.Estimate]:
        file = str(ROOT / "configs" / "tables" / f"{name}.yaml")
        planned = plan_table(read_table(file), file, sets, [], words)
        return tables.estimate(planned, lambda record: None, measure=False)

    # one run a row, tested on three sets
    rows = estimates("neighborhood_table2")
    assert [each.cost.trainings for each in rows] == [1, 0, 0, 1, 0, 0]
    assert [each.cost.tested > 0 for each in rows] == [True] * 6
    # three figures of the same predictions
    assert [each.cost.trainings for each in estimates("siamese_figure11")] == [1, 0, 0, 1, 0, 0]
    # the stage on IMDB-WIKI is one run for MORPH II and for all folds of FG-NET
    morph, fgnet, *_ = estimates("deep_embedding_table1")
    assert (morph.cost.trainings, fgnet.cost.trainings) == (1, 82)
    assert morph.cost.pretrained > 0
    assert fgnet.cost.pretrained == 0


def test_a_set_that_is_not_named_leaves_its_cells_out(sets: dict[str, str]) -> None:
    file = ROOT / "configs" / "tables" / "dhaa_table4.yaml"
    planned = plan_table(read_table(str(file)), str(file), {"fgnet": sets["fgnet"]}, [], [])
    missing = {cell.name: cell.missing for cell in planned.cells if cell.missing}
    assert missing["DHAA, CACD"] == "add a FILE.yaml with data.name=cacd"
    assert missing["DHAA, FG-NET after IMDB-WIKI"] == "add a FILE.yaml with data.name=imdb_wiki"
    assert len(planned.runnable) == 2


def test_repeats_pairs_and_stages_become_experiments(sets: dict[str, str]) -> None:
    def cells(name: str) -> dict[str, Any]:
        file = ROOT / "configs" / "tables" / f"{name}.yaml"
        planned = plan_table(read_table(str(file)), str(file), sets, [], ["model.weights=x"])
        return {cell.name: cell for cell in planned.cells}

    clusters = cells("cluster_cnn_table2")
    five = clusters["normed, k=7, MORPH"].experiments
    assert [each.protocol.seed for each in five] == [0, 1, 2, 3, 4]
    assert {each.protocol.test for each in five} == {0.2}
    assert (five[0].model.clusters, five[0].model.weights) == (7, "x")
    assert clusters["nothing, MORPH"].experiments[0].model.weights == "none"  # a row's own settings win
    [pairs] = cells("dhaa_table3")["DHAA, S1-S2-S3"].experiments
    assert pairs.protocol.name == "s1_s2_s3"
    [lopo] = cells("deep_embedding_table1")["multi-task loss, FG-NET"].experiments
    assert [stage.shards is not None for stage in lopo.train.stages] == [True, False]
    assert [stage.epochs for stage in lopo.train.stages] == [5, 30]
    assert lopo.train.stages[0].optimizer == lopo.train.stages[1].optimizer
    neighborhood = cells("neighborhood_table2")
    cacd = neighborhood["Neighborhood loss, CACD"]
    assert cacd.experiments[0].data.name == "imdb_wiki"
    assert (cacd.tested.data.name, cacd.tested.protocol.name) == ("cacd", "random")
    # one training for the three sets
    assert len({config.digest(neighborhood[name].experiments[0]) for name in neighborhood}) == 2
    figure = cells("dhaa_figure6")
    assert len({cell.identity for cell in figure.values()}) == 2  # ten classifiers of one training


def test_mistakes_in_a_table_are_told_with_their_line(tmp_path: Path) -> None:
    row = "  - {name: r, recipe: x.yaml, paper: {b: 1}}"
    text = f"title: t\npaper: p\ncolumns: [{{name: a, data: x}}]\nrows:\n{row}\n"
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UserError, match="row 'r': paper names 'b', which is no column"):
        read_table(str(tmp_path / "t.yaml"))
    (tmp_path / "t.yaml").write_text(text.replace("{b: 1}", "{a: 1}").replace("recipe:", "recipee:"))
    with pytest.raises(UserError, match=r"t\.yaml:5.*did you mean 'recipe'"):
        read_table(str(tmp_path / "t.yaml"))


# --- figures --------------------------------------------------------------------------------------


def predictions(errors: list[float], folds: list[str], repeat: int = 0) -> pa.Table:
    count = len(errors)
    ages = [30.0] * count
    return pa.table(
        {
            "key": [f"k{number}" for number in range(count)],
            "age": pa.array(ages, pa.float32()),
            "predicted": pa.array([age + 1 for age in ages], pa.float32()),
            "plain": pa.array(np.array(ages) + errors, pa.float32()),
            "age_std": pa.array([2.0] * count, pa.float32()),
            "subject": pa.array([None] * count, pa.string()),
            "fold": folds,
            "repeat": [repeat] * count,
            "classifiers": pa.array([[31.0, 40.0]] * count, pa.list_(pa.float32())),
        }
    )


def test_a_cells_figure_is_of_the_ages_before_calibration() -> None:
    rows = predictions([1, 3, 5, 7, 1], ["0", "0", "0", "0", "1"])
    assert figures.figure(rows, "mae", "faces")["value"] == pytest.approx(17 / 5)
    assert figures.figure(rows, "mae", "folds")["value"] == pytest.approx((4 + 1) / 2)
    assert figures.figure(rows, "cs3", "faces")["value"] == pytest.approx(3 / 5)
    assert figures.figure(rows, "cs5", "faces")["value"] == pytest.approx(4 / 5)
    expected = np.mean([1 - np.exp(-(error**2) / 8) for error in (1, 3, 5, 7, 1)])
    assert figures.figure(rows, "epsilon_error", "faces")["value"] == pytest.approx(expected)
    assert figures.calibrated(rows) == pytest.approx(1)
    one = figures.of_classifier(rows, ["G-1", "DHAA"], "DHAA")
    assert figures.figure(one, "mae", "faces")["value"] == pytest.approx(10)


def test_a_difference_pairs_faces_of_the_same_fold_and_repeat() -> None:
    own = pa.concat_tables([predictions([1, 2, 3], ["0"] * 3), predictions([4, 4, 4], ["0"] * 3, 1)])
    control = predictions([2, 2, 2, 9], ["0", "0", "0", "1"])
    result = figures.difference(own, control)
    assert result is not None
    assert (result["faces"], result["difference"]["value"]) == (3, pytest.approx(0))
    assert figures.difference(own, predictions([1.0], ["7"])) is None


def test_repeats_that_test_the_same_face_count_as_one_unit() -> None:
    """Three copies of the same predictions tell no more than one, so the interval stays as wide."""
    errors = list(np.random.default_rng(0).normal(0, 5, 200))
    one = predictions(errors, ["0"] * 200)
    repeats = pa.concat_tables([predictions(errors, ["0"] * 200, repeat) for repeat in range(3)])

    def width(figure: dict[str, Any]) -> float:
        return float(figure["high"] - figure["low"])

    alone, together = (width(figures.figure(rows, "mae", "faces")) for rows in (one, repeats))
    assert together == pytest.approx(alone, rel=0.2)
    control = predictions([0.0] * 200, ["0"] * 200)
    controls = pa.concat_tables([predictions([0.0] * 200, ["0"] * 200, repeat) for repeat in range(3)])
    alone, together = (
        width(figures.difference(*pair)["difference"]) for pair in ((one, control), (repeats, controls))
    )
    assert together == pytest.approx(alone, rel=0.2)


# --- progress -------------------------------------------------------------------------------------


def test_the_time_left_counts_folds_and_not_what_was_finished_before(
    sets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cells of 100 s and one of 300 s; the first one was finished before."""
    file = str(ROOT / "configs" / "tables" / "dhaa_figure5.yaml")
    cells = plan_table(read_table(file), file, {"morph": sets["morph"]}, [], []).runnable[:3]
    planned = SimpleNamespace(runnable=cells)
    cost = plan.Cost(1, 1, 1)
    estimates = []
    for cell, seconds in zip(cells, (100.0, 300.0, 100.0), strict=True):
        estimates.append(plan.Estimate(cell.name, {}, 1, 1, 1, cost, seconds, "", leading=0.5))
    clock, records = [0.0], list[dict[str, Any]]()
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    progress = run._Progress(planned, estimates, records.append)
    first, second, third = cells
    progress.repeat_ended(first, 0)
    progress.ended(first)
    assert records[-1]["table_left"] is None  # nothing was done here, so there is no speed
    show = progress.of(second, 0)
    clock[0] = 200.0
    show({"kind": "note", "text": "", "epoch": 1, "epochs": 2})  # a quarter of 300 s in 200 s
    assert records[-1]["table_left"] == pytest.approx(200 / 75 * (225 + 100))
    show({"kind": "start", "done": 0, "total": 10})
    clock[0] = 500.0
    show({"kind": "fold", "done": 5, "total": 10, "left": 7.0})
    assert records[-1]["left"] == 7.0  # of the folds, which is shown elsewhere
    assert records[-1]["table_left"] == pytest.approx(500 / 225 * (75 + 100))
    progress.repeat_ended(second, 0)
    progress.ended(second)
    show = progress.of(third, 0)
    clock[0] = 600.0
    show({"kind": "start", "done": 5, "total": 10})  # three quarters were done before
    assert records[-1]["table_left"] == pytest.approx(600 / 300 * 25)


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_signal_ends_the_cells_that_run(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """A single one runs in the main thread, where the signal is raised; several are told to end."""
    ended = list[str]()

    def cell(cell: Any, out: str, caches: run.FaceCaches, *others: Any) -> None:
        if at_once == 1:
            raise SystemExit(143)
        assert caches.closed.wait(20)
        ended.append(cell.identity)

    def interrupted(*arguments: Any, **settings: Any) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(run, "plan_slots", lambda scale: SimpleNamespace(folds=at_once))
    monkeypatch.setattr(run, "_run_cell", cell)
    monkeypatch.setattr(run, "wait", interrupted)
    experiment = SimpleNamespace(scale=None)
    group = [SimpleNamespace(tested=None, experiments=[experiment], identity=name) for name in "abc"]
    with pytest.raises(SystemExit):
        run._run_group(group, "out", SimpleNamespace(), False)
    assert sorted(ended) == ["a", "b"][: 2 * (at_once - 1)]


# --- a small table --------------------------------------------------------------------------------

_TABLE = """
title: Two rows
paper: nobody, nowhere
columns:
  - {name: folds, data: fgnet, overrides: ["protocol={name: subject_exclusive, folds: 2, val: 0}"]}
  - name: seeds
    data: fgnet
    overrides: [protocol.name=random, protocol.test=0.3, protocol.val=0]
    repeats: 2
  - name: scores
    data: fgnet
    overrides: ["protocol={name: subject_exclusive, folds: 2, val: 0}"]
    metric: cs5
  - {name: private, data: null}
rows:
  - {name: plain, recipe: small.yaml, paper: {folds: 4.5, seeds: null, scores: 0.5, private: 1}}
  - name: narrow
    recipe: small.yaml
    overrides: [loss.neighborhood.sigma=1]
    control: plain
    paper: {folds: 4.25, scores: null}
"""
_SMALL = {
    "model": {"name": "residual_cnn", "width": 0.25, "ages": [0, 80]},
    "loss": {"neighborhood": {}},
    "align": {"size": 32},
    "train": {
        "batch_size": 16,
        "precision": "float32",
        "stages": [{"epochs": 1, "optimizer": {"lr": 1e-3, "body_lr": 0}}],
        "augment": dict.fromkeys(
            ("rotation", "scale", "translation", "brightness", "contrast", "saturation"), 0
        ),
    },
}
_SCALE = {"gpu": False, "threads": 1, "progress": False, "decode_batch": 16, "object_store_mib": 256}


def test_a_small_table_runs_goes_on_and_is_written(
    ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two_rows.yaml").write_text(_TABLE)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(_SMALL))
    (tmp_path / "machine.yaml").write_text(yaml.safe_dump({"scale": _SCALE}))
    data = fabricated(tmp_path, "fgnet", 60)
    words = ["--table", str(tmp_path / "two_rows.yaml"), str(data), str(tmp_path / "machine.yaml")]
    job.main([*words, "--dry-run"])
    shown = capsys.readouterr().out
    assert re.search(r"residual_cnn at 32 pixels trains .* on the features of its frozen backbone", shown)
    assert "6 trainings, about " in shown
    assert "not run: plain, private: the set is private" in shown
    assert not (tmp_path / "out").exists()
    job.main([*words, "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "3 of 3 cells" in shown
    table = json.loads((tmp_path / "out" / "two_rows.json").read_text())
    plain, narrow = table["rows"]
    assert plain["cells"][0]["paper"] == 4.5
    assert plain["cells"][0]["faces"] == 60
    assert plain["cells"][1]["faces"] == 2 * 18
    assert plain["cells"][3]["missing"] == "the set is private"
    assert narrow["cells"][1] is None
    own = narrow["cells"][0]["ours"]["value"]
    difference = narrow["cells"][0]["against_control"]["difference"]["value"]
    assert difference == pytest.approx(own - plain["cells"][0]["ours"]["value"], abs=1e-4)
    assert 0 <= narrow["cells"][2]["ours"]["value"] <= 1
    assert "against_control" not in narrow["cells"][2]  # the difference is one of MAE
    page = (tmp_path / "out" / "two_rows.html").read_text()
    assert "4.250" in page
    assert "not run: the set is private" in page
    assert (tmp_path / "out" / plain["cells"][0]["reports"][0]).is_file()
    folds = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("folds/*.parquet")}
    assert len(folds) == 2 + 2 + 2
    job.main([*words, "--out", str(tmp_path / "out")])
    assert {file: file.stat().st_mtime_ns for file in folds} == folds
    assert json.loads((tmp_path / "out" / "two_rows.json").read_text()) == table


def test_a_table_needs_a_folder_and_no_model() -> None:
    file = str(FILES[0])
    with pytest.raises(UserError, match="--out DIR: is missing"):
        job.main(["--table", file])
    with pytest.raises(UserError, match="--table trains its own models"):
        job.main(["--table", file, "zoo:default", "--dry-run"])
    with pytest.raises(UserError, match="--dry-run: goes with --table"):
        job.main(["zoo:default", "--dry-run"])
