"""A head and a worker node as processes of their own, a token, a store: the commands as jobs that
Ray runs there, and a node that is lost.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import requests
from moto.server import ThreadedMotoServer

from ageray import bundle
from ageray.faces.canvases import face_canvases
from ageray.predictor import Predictor
from ageray.synthetic import faces as synthetic_faces

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
BUCKET = "chain"  # servers in one process share their buckets
PEOPLE, FACES = 48, 96
PATIENCE = 240.0  # seconds
TRAIN = [
    *(
        "configs/baseline.yaml",
        "configs/scale/cluster.yaml",
        "scale.runs=s3://chain/runs",
        "scale.workers=2",
        "scale.gpu=false",
    ),
    *(
        "scale.cpus_per_worker=1",
        "scale.decode_batch=16",
        "scale.audit=false",
        "data.name=drawn",
        "data.shards=s3://chain/shards",
    ),
    *(
        "model.weights=none",
        "align.size=48",
        "train.batch_size=16",
        "train.precision=float32",
        "train.sync_batchnorm=true",
    ),
]


class Store:
    """An S3-compatible server on loopback with one bucket."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        self.client = boto3.client(
            "s3", endpoint_url=self.variables["AWS_ENDPOINT_URL"], region_name="us-east-1", **keys
        )
        self.client.create_bucket(Bucket=BUCKET)

    def list(self, prefix: str) -> list[str]:
        return [
            item["Key"]
            for item in self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        ]

    def read(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def rows(self, prefix: str) -> list[dict[str, Any]]:
        tables = [
            pq.read_table(io.BytesIO(self.read(key))) for key in self.list(prefix) if key.endswith(".parquet")
        ]
        return [row for table in tables for row in table.to_pylist()]

    def stop(self) -> None:
        self._server.stop()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a node: its raylet, agents and workers at once, as if it was switched off."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in family:
        each.suspend()  # or one sees the other die, and says so
    for each in family:
        each.kill()
    process.wait()


class Cluster:
    """The nodes, each a `ray start --block`: two logical CPUs on the head, two on the other. Tests
    that lose a node add more."""

    def __init__(self, store: Store, folder: Path) -> None:
        token = secrets.token_hex(32)
        (folder / "token").write_text(token)
        self._bearer = {"Authorization": f"Bearer {token}"}
        self.address, self.dashboard = (
            f"{ray.util.get_node_ip_address()}:{free_port()}",
            f"http://127.0.0.1:{free_port()}",
        )
        self._folder = folder
        others = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        # Ray kills the largest where a machine is short of memory; here three nodes count the same
        # memory
        settings |= {"RAY_memory_monitor_refresh_ms": "0"}
        self.environment = (
            others
            | store.variables
            | settings
            | {"PATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        )
        port, dashboard_port = self.address.split(":")[1], self.dashboard.rsplit(":", 1)[1]
        head = [
            "--head",
            f"--port={port}",
            f"--dashboard-port={dashboard_port}",
            "--dashboard-host=127.0.0.1",
            f"--ray-client-server-port={free_port()}",
        ]
        # a folder of its own: a Ray that a test starts would join a cluster that it finds in the
        # usual one
        self.head = self._start(2, *head, f"--temp-dir={folder / 'ray'}")
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Adds the other node once the head is there."""
        self.wait_for(self._begun)
        self.add(2)

    def _start(self, cpus: int, *words: str) -> subprocess.Popen[bytes]:
        ports = ["--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"]
        size = [f"--num-cpus={cpus}", "--num-gpus=0", f"--object-store-memory={200 * 2**20}"]
        command = [RAY, "start", *words, *ports, *size, "--block", "--disable-usage-stats"]
        with (self._folder / "nodes").open("ab") as output:
            return subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=output, cwd=self._folder
            )

    def add(self, cpus: int = 1) -> None:
        """One more worker node, once the cluster counts it: two that start at once on one machine
        time out in Ray.
        """
        before = self.alive()
        self.workers.append(self._start(cpus, f"--address={self.address}"))
        self.wait_for(lambda: self.alive() > before)

    def _get(self, path: str) -> Any:
        answer = requests.get(f"{self.dashboard}{path}", headers=self._bearer, timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json()

    def _begun(self) -> bool:
        """It takes jobs before it counts itself: whoever added a node by then would take the head
        for that node, and add the next too early.
        """
        with suppress(requests.RequestException):  # nothing listens there yet
            return self.jobs() == [] and self.alive() == 1
        return False

    def alive(self) -> int:
        """Nodes that the cluster counts."""
        return sum(
            node["state"] == "ALIVE" for node in self._get("/api/v0/nodes")["data"]["result"]["result"]
        )

    def jobs(self) -> list[str]:
        """Ids of the jobs that were submitted."""
        return [job["submission_id"] for job in self._get("/api/jobs/")]

    def wait_for(self, what: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while not what():
            assert not self.lost(), self.lost()
            assert time.monotonic() < until, (self._folder / "nodes").read_text()[-3000:]
            time.sleep(0.2)

    def submit(self, name: str, *words: str) -> subprocess.Popen[str]:
        """`ray job submit` from the repository's root; what the job prints is its output."""
        command = [
            RAY,
            "job",
            "submit",
            f"--address={self.dashboard}",
            f"--submission-id={name}",
            "--working-dir",
            ".",
            "--",
            "python",
            "-m",
        ]
        return subprocess.Popen(
            [*command, *words],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ends(self, job: subprocess.Popen[str]) -> str:
        """What the job printed. It must succeed."""
        output, _ = job.communicate(timeout=2 * PATIENCE)
        assert job.returncode == 0, output[-4000:]
        return str(output)

    def with_process(self, name: str) -> list[subprocess.Popen[bytes]]:
        """Worker nodes on which a process of such a name runs."""

        def named(process: psutil.Process) -> bool:
            with suppress(psutil.Error):  # gone since, or a zombie
                return name in " ".join(process.cmdline())
            return False

        return [
            node
            for node in self.workers
            if any(map(named, psutil.Process(node.pid).children(recursive=True)))
        ]

    def lost(self) -> str:
        """What is known of nodes that ended and were not killed here: nothing where none did."""
        if all(node.poll() is None for node in [*self.workers, self.head]):
            return ""
        output = [(self._folder / "nodes").read_text()[-3000:]]
        for log in sorted(self._folder.glob("ray/session_2*/logs/raylet*.out")):
            output += [
                log.name,
                *re.findall(r"^\[[^\]]* [CEF] .*$", log.read_text(errors="replace"), re.MULTILINE)[:5],
            ]
        return "\n".join(output)

    def stop(self) -> None:
        if output := self.lost():
            warnings.warn(f"a node of the test's cluster ended by itself\n{output}", stacklevel=1)
        for node in [*self.workers, self.head]:
            if node.poll() is None:
                kill(node)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    server = Store()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def cluster(store: Store) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(
        prefix="r", ignore_cleanup_errors=True
    ) as folder:  # sockets allow short paths only
        server = Cluster(store, Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="module")
def chain(store: Store, cluster: Cluster) -> dict[str, str]:
    """Prepare, train on two workers and score, each a job, every path on the store; what each
    printed.
    """
    rows = ["image,age,subject,x0,y0,x1,y1,x2,y2,x3,y3,x4,y4"]
    for number, face in enumerate(synthetic_faces.faces(FACES, subjects=PEOPLE, size=96)):
        store.client.put_object(Bucket=BUCKET, Key=f"photos/{number}.jpg", Body=face.jpeg())
        points = ",".join(f"{value:.2f}" for value in face.points.ravel())
        rows.append(f"{number}.jpg,{face.age:.1f},{face.subject},{points}")
    store.client.put_object(Bucket=BUCKET, Key="photos/faces.csv", Body="\n".join(rows).encode())
    prepare = [
        "jobs.prepare",
        "data.source=s3://chain/photos/faces.csv",
        "data.name=drawn",
        "data.shards=s3://chain/shards",
    ]
    output = {"prepare": cluster.ends(cluster.submit("prepare-1", *prepare, "scale.progress=false"))}
    output["train"] = cluster.ends(
        cluster.submit("train-1", "jobs.train", *TRAIN, "train.stages=[{epochs: 1}]")
    )
    model = run_of(output["train"])
    score = [
        "jobs.score",
        "s3://chain/shards",
        "--model",
        model,
        "--out",
        "s3://chain/scores",
        "configs/scale/cluster.yaml",
    ]
    output["score"] = cluster.ends(
        cluster.submit("score-1", *score, "scale.gpu=false", "scale.cpus_per_worker=1")
    )
    return output


def run_of(output: str) -> str:
    """The run that a training job names at its end."""
    return next(
        line.removeprefix("model: ").strip() for line in output.splitlines() if line.startswith("model: ")
    )


@pytest.mark.timeout(1200)
def test_the_chain_as_submitted_jobs(store: Store, chain: dict[str, str]) -> None:
    assert f"{FACES} photos, {FACES} faces kept" in chain["prepare"]
    run = run_of(chain["train"]).removeprefix("s3://chain/")
    assert {
        f"{run}/{name}" for name in ("bundle/model.safetensors", "log.jsonl", "curves.png", "state.pt")
    } <= set(store.list(run))
    scored = {row["key"]: row for row in store.rows("scores/part")}
    assert sorted(scored) == sorted(f"drawn/{number}.jpg" for number in range(FACES))
    assert all(row["age_low"] <= row["age"] <= row["age_high"] for row in scored.values())
    assert {"scores/_summary.json", "scores/_report.html"} <= set(store.list("scores/"))


@pytest.mark.slow  # in the default run tests/evaluate has the command, and the chain the jobs
@pytest.mark.timeout(1200)
def test_a_submitted_evaluation_predicts_what_was_scored(
    store: Store, cluster: Cluster, chain: dict[str, str]
) -> None:
    evaluate = [
        "jobs.evaluate",
        run_of(chain["train"]),
        "data.name=drawn",
        "data.shards=s3://chain/shards",
        "--out",
        "s3://chain/results",
    ]
    cluster.ends(cluster.submit("evaluate-1", *evaluate, "scale.progress=false"))
    scored = {row["key"]: row for row in store.rows("scores/part")}
    tested = [
        key
        for key in store.list("results/")
        if key.endswith(("report.json", "report.html", "predictions.parquet"))
    ]
    assert len(tested) == 3
    predictions = store.rows(next(key for key in tested if key.endswith("predictions.parquet")))
    assert 0 < len(predictions) < FACES
    for row in predictions:
        assert scored[row["key"]]["age"] == pytest.approx(row["predicted"], abs=1e-3)


def test_a_repeated_id_starts_nothing(store: Store, cluster: Cluster, chain: dict[str, str]) -> None:
    before = {
        key: store.client.head_object(Bucket=BUCKET, Key=key)["LastModified"] for key in store.list("shards/")
    }
    again = cluster.submit(
        "prepare-1",
        "jobs.prepare",
        "data.source=s3://chain/photos/faces.csv",
        "data.shards=s3://chain/shards",
        "--fresh",
    )
    output, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode != 0
    assert "prepare-1" in output
    assert "already" in output
    assert {
        key: store.client.head_object(Bucket=BUCKET, Key=key)["LastModified"] for key in store.list("shards/")
    } == before
    assert cluster.jobs().count("prepare-1") == 1


@pytest.mark.slow  # each submitted job takes a quarter of a minute; tests/cluster has the refusal
def test_a_job_that_can_never_fit_says_so_in_one_line(cluster: Cluster, chain: dict[str, str]) -> None:
    job = cluster.submit("too-large", "jobs.train", *TRAIN, "scale.workers=8", "train.stages=[{epochs: 2}]")
    output, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode != 0
    assert "Traceback" not in output
    assert len({line for line in output.splitlines() if line.startswith("error: ")}) == 1
    line = next(line for line in output.splitlines() if line.startswith("error: "))
    # two CPUs on either node, less the one that decodes
    assert line.startswith("error: scale.workers=8: the cluster has room for 3 workers"), cluster.lost()


def ask(cluster: Cluster, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and errors of a command that joins a cluster from a shell."""
    inherited = {name: value for name, value in cluster.environment.items() if not name.startswith("RAY_")}
    command = [
        sys.executable,
        "-m",
        "jobs.score",
        "s3://chain/shards",
        "--model",
        "zoo:default",
        "--out",
        "s3://chain/never",
    ]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return ended.returncode, ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "token",
    [
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64},
        pytest.param({"RAY_AUTH_MODE": "disabled"}, marks=pytest.mark.slow),
    ],
)
def test_another_token_or_none_is_told(
    token: dict[str, str], store: Store, cluster: Cluster, chain: dict[str, str]
) -> None:
    code, output = ask(cluster, {"RAY_ADDRESS": cluster.address, **token})
    assert code == 2, output
    [line] = [line for line in output.splitlines() if line.startswith("error: ")]
    reason = "the cluster wants its token and got none or another"
    assert line.startswith(f"error: RAY_ADDRESS={cluster.address}: {reason}; set RAY_AUTH_MODE=token")
    assert "Traceback" not in output
    assert not store.list("never")


def test_an_address_where_nothing_answers_is_told(
    store: Store, cluster: Cluster, chain: dict[str, str]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    code, output = ask(cluster, {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"})
    assert code == 2, output
    [line] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert line.startswith(
        f"error: RAY_ADDRESS={address}: no Ray cluster answers there; unset it to run on this machine"
    )
    assert "Traceback" not in output
    assert not store.list("never")


# --- a node is lost ------------------------------------------------------------------------------


def alone(faces: pa.Table) -> dict[str, float]:
    """Ages of faces, by key, of one process without Ray."""
    loaded = bundle.load("zoo:default")
    columns: list[list[Any]] = [[], [], []]
    for row in faces.to_pylist():
        points, box = np.reshape(row["landmarks"], (1, 5, 2)), np.reshape(row["box"], (1, 4))
        found = face_canvases(row["image"], points, box, loaded.experiment.align)
        for column, value in zip(columns, (found.pixels, found.points, found.box), strict=True):
            column.append(value[0])
    output = Predictor(loaded, "cpu", threads=1).predict(*(np.stack(column) for column in columns))
    return dict(zip(faces.column("key").to_pylist(), output.age.tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_node_lost_while_scoring_loses_no_row(
    store: Store, cluster: Cluster, chain: dict[str, str], tmp_path: Path
) -> None:
    cluster.add()
    files = synthetic_faces.write_faces_table(tmp_path, 600, seed=5, size=96, shards=6)
    for file in files:
        store.client.upload_file(str(file), BUCKET, f"many/{Path(file).name}")
    words = [
        "jobs.score",
        "s3://chain/many",
        "--model",
        "zoo:default",
        "--out",
        "s3://chain/lost",
        "scale.score_batch=16",
        "scale.score_workers=2",
    ]
    job = cluster.submit("score-lost", *words, "scale.progress=false", "scale.decode_batch=16")
    cluster.wait_for(lambda: job.poll() is not None or len(store.list("lost.unfinished/pieces/")) > 1)
    assert job.poll() is None, job.communicate()[0]
    # a node that holds the model, where one does
    lost = next(iter(cluster.with_process("AgeFaces")), cluster.workers[-1])
    cluster.workers.remove(lost)
    kill(lost)
    cluster.ends(job)
    rows = store.rows("lost/part")
    expected = alone(pa.concat_tables([pq.read_table(file) for file in files]))
    assert sorted(row["key"] for row in rows) == sorted(expected)
    for row in rows:
        assert row["age"] == pytest.approx(expected[row["key"]], abs=1e-3)
    assert not store.list("lost.unfinished")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_node_lost_while_training_is_made_up_for(
    store: Store, cluster: Cluster, chain: dict[str, str]
) -> None:
    """One worker a node; the node of one goes in the middle of an epoch: the same figures at the
    end as a run that kept its nodes.
    """
    for _ in range(2):
        cluster.add(2)
    stages = [
        "train.stages=[{epochs: 4, optimizer: {name: sgd, lr: 0.01}}]",
        "scale.checkpoint_steps=2",
        "scale.cpus_per_worker=2",
    ]
    whole = run_of(
        cluster.ends(
            cluster.submit("train-whole", "jobs.train", *TRAIN, *stages, "scale.runs=s3://chain/whole")
        )
    )
    job = cluster.submit("train-lost", "jobs.train", *TRAIN, *stages, "scale.runs=s3://chain/less")
    run = whole.replace("s3://chain/whole", "less")
    cluster.wait_for(lambda: job.poll() is not None or f"{run}/log.jsonl" in store.list(run))
    assert job.poll() is None, job.communicate()[0]
    lost = cluster.with_process("TrainWorker")[0]
    cluster.workers.remove(lost)
    kill(lost)
    output = cluster.ends(job)
    assert "a worker was lost; going on from the last checkpoint (1 of 3)" in output
    logs = [
        store.read(f"{place}/log.jsonl").decode().splitlines()
        for place in (whole.removeprefix("s3://chain/"), run)
    ]
    assert len(logs[0]) == len(logs[1]) == 4
    for expected, record in zip(*([json.loads(line) for line in log] for log in logs), strict=True):
        assert record["step"] == expected["step"]
        assert record["loss"] == pytest.approx(expected["loss"], rel=2e-2)
