"""Exit codes, and finding a user's mistake behind what a real Ray wraps around it."""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from ageray.commands import cli
from ageray.errors import UserError

TEXT = "data.shards=/data/x: holds no face shards (.parquet); write them with ageray prepare"


def raised(function: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - what it is, is the question
        function()
    return caught.value


def ended(main: Callable[[Sequence[str]], None], monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr("sys.argv", ["job", *words])
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    return caught.value.code


# --- exit codes ----------------------------------------------------------------------------------


def test_a_command_gets_its_arguments_and_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("sys.argv", ["job", "a.yaml", "b=1"])
    cli.run(seen.extend)
    assert seen == ["a.yaml", "b=1"]
    assert capsys.readouterr() == ("", "")


def test_a_mistake_ends_with_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: Sequence[str]) -> None:
        raise UserError(TEXT)

    assert ended(main, monkeypatch) == 2
    assert capsys.readouterr() == ("", f"error: {TEXT}\n")


def test_a_mistake_behind_another_error_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: Sequence[str]) -> None:
        try:
            raise UserError(TEXT)
        except UserError as error:
            raise RuntimeError("the actor died") from error

    assert ended(main, monkeypatch) == 2
    assert capsys.readouterr().err == f"error: {TEXT}\n"


def test_the_store_of_the_settings_is_known_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://before")
    (tmp_path / "store.yaml").write_text("storage:\n  endpoint_url: http://127.0.0.1:9000\n")
    (tmp_path / "wrong.yaml").write_text("scale: {workres: 1}\n")
    seen: list[str] = []
    monkeypatch.setattr(
        "sys.argv", ["job", "photos", str(tmp_path / "wrong.yaml"), str(tmp_path / "store.yaml")]
    )
    cli.run(lambda _: seen.append(os.environ["AWS_ENDPOINT_URL"]))
    monkeypatch.setattr(
        "sys.argv", ["job", str(tmp_path / "store.yaml"), "storage.endpoint_url=https://s3.example"]
    )
    cli.run(lambda _: seen.append(os.environ["AWS_ENDPOINT_URL"]))
    assert seen == ["http://127.0.0.1:9000", "https://s3.example"]
    assert ended(seen.extend, monkeypatch, "storage.endpoint_url=s3.example") == 2
    assert capsys.readouterr().err.startswith(
        "error: storage.endpoint_url=s3.example: no address of a server"
    )


def test_anything_else_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: Sequence[str]) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr("sys.argv", ["job"])
    with pytest.raises(ValueError, match="a mistake of ours"):
        cli.run(main)
    assert capsys.readouterr().err == ""


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(_: Sequence[str]) -> None:
        raise KeyboardInterrupt

    assert ended(main, monkeypatch) == 130


# --- behind what Ray raises ----------------------------------------------------------------------


def test_in_a_task(ray_local: None) -> None:
    @ray.remote
    def fail() -> None:
        raise UserError(TEXT)

    assert str(cli.mistake_behind(raised(lambda: ray.get(fail.remote())))) == TEXT


def test_in_an_actors_constructor(ray_local: None) -> None:
    @ray.remote
    class Fails:
        def __init__(self) -> None:
            raise UserError(TEXT)

        def answer(self) -> int:
            return 1

    actor = Fails.remote()  # type: ignore[attr-defined]
    assert str(cli.mistake_behind(raised(lambda: ray.get(actor.answer.remote())))) == TEXT


def test_a_process_that_the_kernel_ends(
    ray_local: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No mistake of anybody's, so one line that says what helps; a constructor that fails is a
    mistake of ours and has its traceback.
    """

    @ray.remote(max_retries=0)
    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @ray.remote
    class Fails:
        def __init__(self) -> None:
            raise KeyError("ours")

        def answer(self) -> int:
            return 1

    def kill(batch: dict[str, Any]) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return batch

    data = ray.data.range(1).map_batches(kill, max_retries=0)
    actor = Fails.remote()  # type: ignore[attr-defined]
    assert not cli.is_lost_process(raised(lambda: ray.get(actor.answer.remote())))
    told: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = told.append  # type: ignore[method-assign]
    logging.getLogger("ray.data").addHandler(handler)
    for main in (lambda _: ray.get(dies.remote()), lambda _: list(data.iter_batches())):
        assert ended(main, monkeypatch) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: processes were lost, ")
        assert error.count("\n") == 1
    logging.getLogger("ray.data").removeHandler(handler)
    assert told
    assert all(vars(record).get("hide") for record in told)  # Ray Data's terminal leaves them out


def test_in_a_map_function_of_ray_data(ray_local: None) -> None:
    def fail(batch: dict[str, Any]) -> dict[str, Any]:
        raise UserError(TEXT)

    data = ray.data.range(4).map_batches(fail)
    assert str(cli.mistake_behind(raised(data.materialize))) == TEXT


def test_in_the_constructor_of_an_actor_of_ray_data(ray_local: None) -> None:
    class Fails:
        def __init__(self) -> None:
            raise UserError(TEXT)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return batch

    data = ray.data.range(4).map_batches(Fails, compute=ray.data.ActorPoolStrategy(size=1), batch_size=2)
    assert str(cli.mistake_behind(raised(data.materialize))) == TEXT


def test_in_a_training_worker(ray_local: None, tmp_path: Path) -> None:
    def work(_: dict[str, Any]) -> None:
        raise UserError(TEXT)

    trainer = DataParallelTrainer(
        work,
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=1, use_gpu=False),
        run_config=RunConfig(name="fails", storage_path=str(tmp_path)),
    )
    assert str(cli.mistake_behind(raised(trainer.fit))) == TEXT


@pytest.mark.slow  # tests/train has it by a command: faces of which none can be used
def test_in_the_data_that_a_training_worker_reads(ray_local: None, tmp_path: Path) -> None:
    def fail(batch: dict[str, Any]) -> dict[str, Any]:
        raise UserError(TEXT)

    def work(_: dict[str, Any]) -> None:
        for _batch in ray.train.get_dataset_shard("train").iter_batches():
            pass

    trainer = DataParallelTrainer(
        work,
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=1, use_gpu=False),
        run_config=RunConfig(name="fails", storage_path=str(tmp_path)),
        datasets={"train": ray.data.range(4).map_batches(fail)},
    )
    assert str(cli.mistake_behind(raised(trainer.fit))) == TEXT


def test_an_error_of_ours_in_a_task_is_no_mistake_of_the_users(ray_local: None) -> None:
    @ray.remote
    def fail() -> None:
        raise ValueError("shapes do not match, as in UserError: or ageray.errors.UserError")

    assert cli.mistake_behind(raised(lambda: ray.get(fail.remote()))) is None


# --- the error itself ----------------------------------------------------------------------------


def test_a_mistake_travels_between_processes() -> None:
    again = pickle.loads(pickle.dumps(UserError(TEXT)))
    assert type(again) is UserError
    assert str(again) == TEXT


def test_a_mistake_that_is_one_is_itself() -> None:
    error = UserError(TEXT)
    assert cli.mistake_behind(error) is error


@pytest.mark.parametrize(
    "error", [ValueError(TEXT), KeyError("age"), FloatingPointError("step 3: loss is not finite")]
)
def test_other_errors_are_none(error: Exception) -> None:
    assert cli.mistake_behind(error) is None


def test_sigterm_while_ray_waits_is_told_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    """`ray.get` makes a SystemExit(1) of the one that the handler raises."""

    def main(_: Sequence[str]) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except SystemExit:
            raise SystemExit(1) from None

    main.__module__ = "ageray.commands.score"
    importlib.import_module(main.__module__)
    with pytest.raises(SystemExit) as ending:
        cli.run(main, ["photos"])
    assert ending.value.code == 143
    assert "interrupted: rows of finished photos are kept" in capsys.readouterr().err
    main.__module__ = "ageray.commands.none"
    with pytest.raises(SystemExit) as ending:
        cli.run(lambda _: sys.exit(1), [])
    assert ending.value.code == 1
