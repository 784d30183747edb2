"""The commands of README and docs do what they say: each runs as it stands, in a folder that has
drawn photos and shards under the names that the pages use. What cannot run here is in `NOT_RUN`,
with the reason; test_docs.py reads the settings of every command.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from ageray.models.googlenet import GoogLeNet
from ageray.models.mobilenet import MobileNetV1
from ageray.synthetic import faces
from tests.evaluate.official_sets import fabricated
from tests.test_docs import PAGES, ROOT, SHOWN, blocks

ZOO = ROOT / "ageray" / "zoo"

NOT_RUN = {
    "scale.workers=8": "8 GPUs",
    "s3://my-bucket": "a bucket on AWS, most a cluster with GPUs; tests/cluster/test_submit.py submits jobs",
    "configs/baseline.yaml ...": "stands for settings of your own",
}
"""A part of a command, and what it needs."""

PLANNED = "--table"
"""Tables of papers take hours: their plan is made and printed (`--dry-run`)."""

SMALLER = {
    "tune": ["tune.trials=2", "tune.finalists.count=1", "tune.finalists.seeds=2", "tune.asha.grace_epochs=1"]
    + ["train.stages=[{epochs: 1}]", "align.size=64", "train.batch_size=16"],
    "train": ["train.batch_size=16"],
}
"""Settings that are added: faces are few, and a search is short."""

QUICK = ("data:utkface data.source=DIR",)
"""Commands that run in every test run; the others are slow."""


def is_run(job: str, words: list[str]) -> bool:
    return job != "serve" and not any(part in " ".join(words) for part in NOT_RUN)


def cases() -> list[Any]:
    """Every command that runs, once."""
    commands: dict[str, tuple[str, list[str]]] = {}
    for _, job, words in SHOWN:
        if is_run(job, words):
            commands.setdefault(f"{job} {' '.join(words)}", (job, words))
    parameters = []
    for text, (job, words) in commands.items():
        quick = any(part in text for part in QUICK)
        marks = () if quick else (pytest.mark.slow,)
        parameters.append(pytest.param(job, words, id=text[:100], marks=marks))
    return parameters


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages' commands name, all of drawn faces."""
    root = tmp_path_factory.mktemp("pages")
    faces.write_photos(root / "photos", 3)
    for name in ("PHOTOS", "INPUT", "data/photos/2024"):
        shutil.copytree(root / "photos", root / name)
    for name in ("a.jpg", "b.jpg", "photo.jpg"):
        shutil.copy(root / "photos" / "photo-00000.jpg", root / name)
    faces.write_faces_table(root / "shards" / "utkface", 64, subjects=32)
    [shard] = faces.write_faces_table(root / "shards" / "mine", 64, seed=1, subjects=32)
    faces.write_faces_table(root / "shards" / "lfw", 64, seed=2, subjects=32)
    faces.write_faces_table(root / "shards" / "clap2016", 64, seed=3, subjects=32)
    parts = ["key,part"]
    for number, key in enumerate(pq.read_table(root / "shards" / "clap2016").column("key").to_pylist()):
        parts.append(f"{key},{'train' if number % 4 else 'val'}")
    (root / "clap2016.csv").write_text("\n".join(parts) + "\n")
    for name in ("fgnet", "fgnet-detect"):
        shutil.copytree(root / "shards" / "mine", root / "shards" / name)
    for name in ("cacd", "morph", "imdb_wiki"):  # with their groups
        fabricated(root, name, 2000)
    rows = pq.read_table(shard).to_pylist()
    listed = ["image,age,subject"]
    (root / "faces").mkdir()
    for folder in ("UTKFACE", "FGNET/images", "FGNET/points"):
        (root / folder).mkdir(parents=True)
    for number, row in enumerate(rows):
        age, name = round(row["age"]), f"{number // 2 + 1:03d}A{number % 2:02d}"
        (root / "faces" / f"{number}.jpg").write_bytes(row["image"])
        (root / "UTKFACE" / f"{age}_0_0_{20170100000000000 + number}.jpg").write_bytes(row["image"])
        (root / "FGNET" / "images" / f"{name}.JPG").write_bytes(row["image"])
        (root / "FGNET" / "points" / f"{name.lower()}.pts").write_text(fgnet_points(row["landmarks"]))
        listed.append(f"faces/{number}.jpg,{age},{row['subject']}")
    for name in ("faces.csv", "people.csv"):
        (root / name).write_text("\n".join(listed) + "\n")
    for name in ("MODEL", "RUN", "runs/RUN", "runs/dhaa-1a2b3c4d", "runs/a", "runs/b", "models/mine"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copytree(ZOO / "fast" / "1", root / name)
    shutil.copytree(ZOO / "default" / "1", root / "OTHER")
    shutil.copytree(ZOO / "default" / "3", root / "TEACHER")
    shutil.copy(ZOO / "default" / "2" / "model.safetensors", root / "FILE")
    save_file(MobileNetV1().state_dict(), root / "FACES")
    layers = GoogLeNet().state_dict()
    save_file({name.removeprefix("layers."): tensor for name, tensor in layers.items()}, root / "GOOGLENET")
    for name in ("configs", "ageray"):
        (root / name).symlink_to(ROOT / name)
    return root


def fgnet_points(landmarks: list[float]) -> str:
    """FG-NET's file of 68 points with these five among them."""
    points = [(0.0, 0.0)] * 68
    for place, index in enumerate((31, 36, 67, 48, 54)):
        points[index] = (landmarks[2 * place], landmarks[2 * place + 1])
    lines = "\n".join(f"{x} {y}" for x, y in points)
    return f"version: 1\nn_points: 68\n{{\n{lines}\n}}\n"


@pytest.fixture
def here(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of those files as the current folder."""
    folder = tmp_path / "pages"
    shutil.copytree(drawn, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def local(job: str, words: list[str]) -> list[str]:
    """The words with names of files that are here; a result that a page begins is not there yet."""
    text = " ".join(words)
    own = []
    for word in words:
        word = re.sub(r"^\[(--rate)|(core_hour|million_gets)(=[\d.]+)\]", r"\1\2\3", word)
        word = word.replace("s3://bucket", ".").replace("data.shards=DIR", "data.shards=shards/utkface")
        if "fgnet" in text:
            word = word.replace("data.source=DIR", "data.source=FGNET")
        word = word.replace("data.source=DIR", "data.source=UTKFACE")
        if "googlenet" in text and word.startswith("model.weights="):
            word = "model.weights=none"  # BVLC's file does not ship
        own.append(word.replace("1/8", "1/1"))  # three photos are one unit of work
    if job == "tune" and "deep_embedding" in text:
        own.append("model.weights=none")  # those of ImageNet would be downloaded
    if PLANNED in own:
        return [*own, "--dry-run"]
    text = " ".join(own)
    results = re.findall(r"--out (\S+)", text)
    if job == "prepare":
        results += re.findall(r"data\.shards=(\S+)", text)
    for name in results:
        shutil.rmtree(name, ignore_errors=True)
    if job != "export":
        own.append("scale.progress=false")
    if "--protocol" in own:
        own.append("train.batch_size=16")
    return own + SMALLER.get(job, [])


@pytest.mark.parametrize(("job", "words"), cases())
def test_a_command_of_a_page_runs(job: str, words: list[str], here: Path, ray_local: None) -> None:
    own = local(job, words)
    importlib.import_module(f"ageray.commands.{job}").main(own)
    out = re.search(r"--out (\S+)", " ".join(own))
    if out and PLANNED not in own:
        assert Path(out[1]).exists()
    if job == "prepare":
        [shards] = re.findall(r"data\.shards=(\S+)", " ".join(own))
        assert list(Path(shards).glob("*.parquet"))


def test_every_command_runs_or_says_what_it_needs() -> None:
    texts = [" ".join(words) for _, _, words in SHOWN]
    for part in NOT_RUN:
        assert any(part in text for text in texts), part
    for part in QUICK:
        assert any(part in f"{job} {' '.join(words)}" for _, job, words in SHOWN), part


PYTHON = [
    pytest.param(page, id=page.name, marks=() if page.name == "README.md" else (pytest.mark.slow,))
    for page in PAGES
    if blocks(page, "python") and page.name != "serve.md"  # that page's needs the service, below
]


@pytest.mark.parametrize("page", PYTHON)
def test_python_of_a_page_runs(page: Path, here: Path, request: pytest.FixtureRequest) -> None:
    if page.name != "README.md":
        request.getfixturevalue("ray_local")
    if page.name == "export.md":
        importlib.import_module("ageray.commands.export").main(["zoo:default", "ages.onnx"])
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


SERVED = [words for _, job, words in SHOWN if job == "serve"]


@pytest.mark.slow
@pytest.mark.parametrize("words", SERVED, ids=[" ".join(words)[:60] or "alone" for words in SERVED])
def test_the_service_of_a_page_starts_and_answers(words: list[str], here: Path) -> None:
    """With a batch, `curl` and the client's lines of docs/serve.md are run too."""
    (here / "data" / "scores").mkdir()
    own = [word.replace("/data/", f"{here}/data/").replace(", s3://bucket/photos", "") for word in words]
    port = free_port()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if "0.0.0.0" in own:
        environment["AGERAY_API_KEYS"] = "0123456789abcdef0123456789abcdef"
    command = [sys.executable, "-m", "ageray", "serve", *own, "--port", str(port)]
    with Path("serve.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        while "Ctrl-C" not in Path("serve.log").read_text():
            assert process.poll() is None, Path("serve.log").read_text()
            time.sleep(0.5)
        if any("batches.inputs" in word for word in own):
            ask_as_the_page_does(port, here)
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(120)
    lines = Path("serve.log").read_text().splitlines()
    assert (code, len(lines), lines[-1].partition(":")[0]) == (0, 2, "ending"), lines


def ask_as_the_page_does(port: int, here: Path) -> None:
    page = ROOT / "docs" / "serve.md"

    def own(text: str) -> str:
        text = re.sub(r"http://(127\.0\.0\.1|host):8000", f"http://127.0.0.1:{port}", text)
        return text.replace("/data/", f"{here}/data/")

    [client] = [block for block in blocks(page, "python") if "ageray.Client" in block]
    names: dict[str, Any] = {}
    exec(compile(own(client), page.name, "exec"), names)
    assert Path("scores", "_summary.json").is_file()
    asked = 0
    for line in re.sub(r"\\\n\s*", " ", page.read_text()).splitlines():
        if line.startswith("curl "):
            for part in own(line).replace("/ID", f"/{names['job']['id']}").split(" ; "):
                words = ["bash", "-c", f"KEY=x; {part.replace('curl ', 'curl -sS -w %{http_code} ', 1)}"]
                ended = subprocess.run(words, capture_output=True, text=True, timeout=120)
                code = ended.stdout[-3:]
                over = part.endswith("/cancel") and code == "409"  # the batch has ended already
                assert ended.returncode == 0, (part, ended)
                assert code.startswith("2") or over, (part, ended)
                asked += 1
    assert asked > 5
