"""Records of batches belong to one service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from ageray.serve import records
from ageray.serve.batches import BatchJobs
from ageray.serve.errors import ApiError
from ageray.serve.schemas import BatchRequest
from ageray.serve.settings import Batches, Service

KEY, OTHER = b"k" * 32, b"o" * 32


def settings_of(root: Path, **others: Any) -> Service:
    fields = {"inputs": (f"{root}/in",), "outputs": (f"{root}/out",), "records": f"{root}/records"}
    return Service(batches=Batches(**(fields | others)))


def with_jobs(settings: Service, keys: tuple[bytes, ...], use: Any) -> Any:
    """What `use` gives for the batch jobs of a service, which starts none."""

    async def call() -> Any:
        jobs = BatchJobs.func_or_class(settings, records.owner(settings.batches, keys))  # type: ignore[attr-defined]
        jobs._loop.cancel()
        return await use(jobs)

    return asyncio.run(call())


def names(settings: Service, keys: tuple[bytes, ...] = (KEY,)) -> list[str]:
    return [batch.id for batch in with_jobs(settings, keys, lambda jobs: jobs.list_batches())]


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A batch that was submitted to a service with one key."""
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="nowhere"))
    (tmp_path / "in" / "photos").mkdir(parents=True)
    request = BatchRequest(input=f"{tmp_path}/in/photos", out=f"{tmp_path}/out/scores")
    return with_jobs(settings_of(tmp_path), (KEY,), lambda jobs: jobs.submit(request))


def test_a_restarted_service_finds_its_own(tmp_path: Path, batch: Any) -> None:
    assert names(settings_of(tmp_path)) == [batch.id]
    inputs = (f"{tmp_path}/in/",)
    assert names(settings_of(tmp_path, inputs=inputs)) == [batch.id]
    assert names(settings_of(tmp_path), (KEY, OTHER)) == []
    assert records.owner(settings_of(tmp_path).batches, (KEY, OTHER)) == records.owner(
        settings_of(tmp_path).batches, (OTHER, KEY)
    )


@pytest.mark.parametrize(
    ("others", "key"),
    [
        ({}, OTHER),
        ({"inputs": ("/",)}, KEY),
        ({"outputs": ("/",)}, KEY),
        ({"records": "elsewhere"}, KEY),
    ],
    ids=["key", "inputs", "outputs", "records"],
)
def test_another_service_neither_lists_nor_serves_it(
    tmp_path: Path, batch: Any, others: dict[str, Any], key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = settings_of(tmp_path, **others)
    assert names(settings, (key,)) == []
    for use in (
        lambda jobs: jobs.get(batch.id),
        lambda jobs: jobs.read_file(batch.id, "_summary.json", 0),
        lambda jobs: jobs.cancel(batch.id),
    ):
        with pytest.raises(ApiError, match="there is no batch"):
            with_jobs(settings, (key,), use)
    assert names(settings_of(tmp_path)) == [batch.id]


def test_records_of_before_go_to_one_service(tmp_path: Path, batch: Any) -> None:
    """They lay in the folder itself."""
    root = tmp_path / "records"
    [folder] = root.iterdir()
    (folder / f"{batch.id}.log").write_text("log")
    for file in folder.iterdir():
        file.rename(root / file.name)
    assert names(settings_of(tmp_path, outputs=(f"{tmp_path}/elsewhere",))) == []
    assert names(settings_of(tmp_path)) == [batch.id]
    assert names(settings_of(tmp_path), (OTHER,)) == []
    assert sorted(file.suffix for file in folder.iterdir()) == [".json", ".log"]
