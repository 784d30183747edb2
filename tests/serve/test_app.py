"""The service over HTTP: a real Serve, real photos, a real (untrained) model, a real scoring
job."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from PIL import Image

import ageray
from ageray import bundle
from ageray.experiment import Align, Experiment
from ageray.experiment.model import ResidualCnn
from ageray.faces.canvases import face_canvases
from ageray.faces.detect import YuNet
from ageray.faces.images import decode
from ageray.models.build import build
from ageray.predictor import Predictor
from ageray.serve import auth
from ageray.synthetic import faces as synthetic_faces

KEY = "a-key-of-the-tests-0123456789"
WAIT = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of an untrained network that answers differently for different faces."""
    folder = str(tmp_path_factory.mktemp("model") / "tiny")
    experiment = Experiment(model=ResidualCnn(name="residual_cnn", width=0.25), align=Align(size=64))
    network = build(experiment.model, seed=0)
    with torch.no_grad():
        network.head.weight.mul_(30)
    bundle.save(
        folder, network, experiment, {"name": "tiny", "not_good_for": ["anything: its weights are random"]}
    )
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service") / "in" / "photos"
    synthetic_faces.write_photos(folder, 3)
    return folder


@pytest.fixture(scope="module")
def url(model: str, photos: Path, ray_local: None) -> Iterator[str]:
    """A service with keys, whose batches read `in` and write `out`."""
    from ray import serve

    from ageray.serve.app import start
    from ageray.serve.settings import Limits, Service

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = photos.parents[1]
    batches = {
        "inputs": (str(root / "in"),),
        "outputs": (str(root / "out"),),
        "records": str(root / "records"),
    }
    limits = Limits(body_mib=4, images=6)
    settings = Service(model=model, threads=1, decoders=2, limits=limits, batches=batches)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(auth.VARIABLE, f"{KEY},another-key-0123456789")
        start(settings, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def ask(method: str, address: str, **more: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {KEY}", **more.pop("headers", {})}
    return requests.request(method, address, headers=headers, timeout=WAIT, **more)


def send(url: str, files: dict[str, bytes], query: str = "") -> requests.Response:
    return ask(
        "POST",
        f"{url}/v1/score{query}",
        files=[("images", (name, content)) for name, content in files.items()],
    )


def code(answer: requests.Response) -> tuple[int, str]:
    assert "Traceback" not in answer.text
    return answer.status_code, answer.json()["error"]["code"]


def test_http_job_and_predictor_give_the_same_ages(
    url: str, photos: Path, model: str, tmp_path: Path
) -> None:
    out = photos.parents[1] / "out" / "scores"
    client = ageray.Client(url, KEY, timeout=WAIT)
    job = client.submit(str(photos), str(out))
    contents = {file.name: file.read_bytes() for file in sorted(photos.iterdir())}
    images = send(url, contents, "?posterior=true").json()["images"]
    assert [image["name"] for image in images] == list(contents)
    loaded = bundle.load(model)
    predictor, detect, align = (
        Predictor(loaded, device="cpu", threads=1),
        loaded.experiment.data.detect,
        loaded.experiment.align,
    )
    over_http = {}
    for image in images:
        content = contents[image["name"]]
        faces = sorted(
            YuNet(detect).detect(decode(content, detect.max_side)), key=lambda face: face.box[0] + face.box[2]
        )
        cut = face_canvases(
            content, np.stack([face.points for face in faces]), np.stack([face.box for face in faces]), align
        )
        expected = predictor.predict(cut.pixels, cut.points, cut.box)
        np.testing.assert_allclose([face["age"] for face in image["faces"]], expected.age, atol=1e-3)
        np.testing.assert_allclose([face["age_low"] for face in image["faces"]], expected.low, atol=1e-3)
        np.testing.assert_allclose([sum(face["posterior"]) for face in image["faces"]], 1, atol=1e-4)
        np.testing.assert_allclose(
            [face["box"] for face in image["faces"]], [face.box for face in faces], atol=1e-2
        )
        over_http |= {(image["name"], face["face"]): face["age"] for face in image["faces"]}
    batch = client.wait(job["id"], WAIT)
    assert batch["state"] == "done", batch
    files = client.download(job["id"], tmp_path / "result")
    assert [file.name for file in files] == batch["files"]
    assert json.loads((tmp_path / "result" / "_summary.json").read_text())["images"] == 3
    import pyarrow.parquet as pq

    rows = [
        row
        for part in out.glob("part-*.parquet")
        for row in pq.read_table(part).to_pylist()
        if row["error"] is None
    ]
    by_job = {(Path(row["image"]).name, row["face"]): row["age"] for row in rows}
    assert by_job.keys() == over_http.keys()
    assert len(by_job) > 2
    for face, age in by_job.items():
        assert age == pytest.approx(over_http[face], abs=1e-3)
    assert batch["progress"]["done"] == 3
    assert ask("POST", f"{url}/v1/batches/{batch['id']}/cancel").status_code == 409
    check_files(url, batch, out)


def check_files(url: str, batch: dict[str, Any], out: Path) -> None:
    """A finished job lists its files, page first, and the service has them; nothing else."""
    files = f"{url}/v1/batches/{batch['id']}/files"
    assert batch["files"][0] == "_report.html"
    assert {"_summary.json", "errors.parquet"} < set(batch["files"])
    assert set(batch["files"]) == {file.name for file in out.iterdir()}
    for name in batch["files"]:
        answer = ask("GET", f"{files}/{name}")
        assert answer.content == (out / name).read_bytes()
        assert answer.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    assert ask("GET", f"{files}/_report.html").headers["Content-Type"].startswith("text/html")
    assert "attachment" in ask("GET", f"{files}/errors.parquet").headers["Content-Disposition"]
    assert requests.get(f"{files}/_report.html", timeout=WAIT).status_code == 401
    for name in ("other.parquet", "..%2Frecords", "progress.json"):
        assert ask("GET", f"{files}/{name}").status_code == 404


def test_json_and_form_are_the_same(url: str, photos: Path) -> None:
    content = (photos / "photo-00000.jpg").read_bytes()
    body = {"images": [{"name": "a.jpg", "data": base64.b64encode(content).decode()}]}
    by_json, by_form = ask("POST", f"{url}/v1/score", json=body).json(), send(url, {"a.jpg": content}).json()
    assert by_json["images"][0]["width"] == 640
    assert "posterior" not in by_json["images"][0]["faces"][0]
    for one, other in zip(by_json["images"][0]["faces"], by_form["images"][0]["faces"], strict=True):
        assert one["age"] == pytest.approx(other["age"], abs=1e-3)


def test_a_bad_image_does_not_cost_the_others(url: str, photos: Path) -> None:
    huge = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(huge, "PNG")
    files = {
        "text.jpg": b"no photo",
        "huge.png": huge.getvalue(),
        "empty.jpg": b"",
        "good.jpg": (photos / "photo-00000.jpg").read_bytes(),
    }
    answer = send(url, files)
    assert answer.status_code == 200
    errors = {image["name"]: image["error"] for image in answer.json()["images"]}
    assert errors == {
        "text.jpg": "cannot decode: not an image",
        "huge.png": "too large: 10000x10000 is over 50 megapixels",
        "empty.jpg": "cannot decode: empty file",
        "good.jpg": None,
    }
    assert answer.json()["images"][3]["faces"]


def test_what_is_refused(url: str, photos: Path) -> None:
    score = f"{url}/v1/score"
    assert code(requests.post(score, timeout=WAIT)) == (401, "unauthorized")
    assert code(ask("POST", score, headers={"Authorization": "Bearer wrong"})) == (401, "unauthorized")
    assert requests.get(f"{url}/v1/model", headers={"X-API-Key": KEY}, timeout=WAIT).status_code == 200
    assert code(ask("POST", score, data="{", headers={"Content-Type": "application/json"})) == (
        400,
        "malformed",
    )
    assert code(ask("POST", score, json={"images": ["%%"]})) == (400, "malformed")
    assert code(ask("POST", score, json={"images": []})) == (400, "malformed")
    assert code(ask("POST", score, data="x", headers={"Content-Type": "text/plain"})) == (415, "unsupported")
    assert code(send(url, {f"{number}.jpg": b"x" for number in range(7)})) == (413, "too_large")
    assert code(send(url, {"a.jpg": bytes(5 * 2**20)})) == (413, "too_large")
    assert code(
        ask("POST", score, data=iter([bytes(2**20)] * 5), headers={"Content-Type": "application/json"})
    ) == (413, "too_large")
    assert code(ask("POST", score, json={}, headers={"Origin": "https://elsewhere.example"})) == (
        403,
        "other_origin",
    )
    assert code(ask("GET", f"{url}/v1/batches/none")) == (404, "not_found")
    assert code(ask("POST", f"{url}/v1/batches", json={"input": str(photos)})) == (422, "malformed")


def test_batches_stay_below_their_prefixes(url: str, photos: Path) -> None:
    root = photos.parents[1]
    good = {"input": str(photos), "out": str(root / "out" / "more")}
    (root / "in" / "link").symlink_to("/etc")
    (root / "in" / "linked").mkdir()
    (root / "in" / "linked" / "a.jpg").symlink_to("/etc/passwd")
    inputs = [
        "/etc",
        f"{root}/in/../out",
        f"{root}/in/link",
        f"{root}/in/linked",
        "s3://bucket/photos",
        "http://127.0.0.1/x",
        "photos",
    ]
    for wrong in inputs:
        assert code(ask("POST", f"{url}/v1/batches", json={**good, "input": wrong})) == (403, "forbidden"), (
            wrong
        )
    for wrong in [str(root / "in" / "scores"), str(root / "out"), "/tmp/x"]:
        assert code(ask("POST", f"{url}/v1/batches", json={**good, "out": wrong})) == (403, "forbidden"), (
            wrong
        )
    assert code(ask("POST", f"{url}/v1/batches", json={**good, "input": "a\nb"})) == (400, "malformed")


def test_a_missing_input_is_refused_at_once(url: str, photos: Path) -> None:
    body = {"input": str(photos / "nowhere"), "out": str(photos.parents[1] / "out" / "none")}
    assert code(ask("POST", f"{url}/v1/batches", json=body)) == (404, "not_found")


def test_metrics_count_requests_faces_errors_and_jobs(url: str, photos: Path) -> None:
    def read() -> dict[str, float]:
        answer = ask("GET", f"{url}/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    before = read()
    files = {"a.jpg": (photos / "photo-00000.jpg").read_bytes(), "b.jpg": b"no photo"}
    images = send(url, files).json()["images"]
    assert ask("POST", f"{url}/v1/score", json={"images": []}).status_code == 400
    after = read()
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown['ageray_requests_total{route="/v1/score",status="200"}'] == 1
    assert grown['ageray_requests_total{route="/v1/score",status="400"}'] == 1
    assert grown['ageray_request_seconds_count{route="/v1/score"}'] == 2
    assert grown['ageray_request_seconds_bucket{route="/v1/score",le="+Inf"}'] == 2
    assert grown["ageray_images_total"] == 2
    assert grown["ageray_faces_total"] == len(images[0]["faces"])
    assert grown['ageray_image_errors_total{kind="cannot decode"}'] == 1
    assert after["ageray_requests_in_progress"] == 1  # the one that reads them
    assert after['ageray_batches{state="waiting"}'] == 0
    assert requests.get(f"{url}/metrics", timeout=WAIT).status_code == 401


def test_pages_for_people(url: str) -> None:
    docs = requests.get(f"{url}/docs", timeout=WAIT)
    card = requests.get(f"{url}/model", timeout=WAIT)
    for page in (docs, card):
        assert page.headers["Content-Type"].startswith("text/html")
        assert "style-src 'unsafe-inline'" in page.headers["Content-Security-Policy"]
    assert "POST /v1/score" in docs.text
    assert ("<code>error</code>" in docs.text, "`" in docs.text) == (True, False)
    assert "its weights are random" in card.text


def test_the_client(url: str, photos: Path) -> None:
    client = ageray.Client(url, KEY, timeout=WAIT)
    names = sorted(photos.iterdir())
    images = client.ages([*names, *names, names[0].read_bytes()])  # more than one request takes
    assert [image["name"] for image in images] == [file.name for file in (*names, *names)] + ["photo 0"]
    assert images[0]["faces"][0]["age"] == pytest.approx(client.ages(names[0])["faces"][0]["age"], abs=1e-3)
    with pytest.raises(ageray.ServiceError, match="nothing of this name") as caught:
        client.submit(str(photos / "nowhere"), str(photos.parents[1] / "out" / "none"))
    assert (caught.value.status, caught.value.code) == (404, "not_found")


def test_health_model_and_description(url: str, model: str) -> None:
    assert requests.get(f"{url}/healthz", timeout=WAIT).json() == {
        "status": "ok",
        "identity": bundle.load(model).identity,
    }
    about = ask("GET", f"{url}/v1/model").json()
    assert (about["card"]["name"], about["batches"], about["limits"]["images"]) == ("tiny", True, 6)
    paths = requests.get(f"{url}/openapi.json", timeout=WAIT).json()["paths"]
    assert {
        "/v1/score",
        "/v1/model",
        "/healthz",
        "/v1/batches",
        "/v1/batches/{name}",
        "/v1/batches/{name}/cancel",
    } <= set(paths)
    page = requests.get(f"{url}/", timeout=WAIT)
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert json.dumps(paths["/v1/score"]["post"]["requestBody"]).count("multipart/form-data") == 1


# --- the page -------------------------------------------------------------------------------------

CHROMIUM = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update"
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A headless Chromium with an empty profile."""
    program, service = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or service is None:
        pytest.skip("no chromium here: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in (*CHROMIUM.split(), "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(word)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield driver
    driver.quit()


def test_page_in_a_browser(url: str, photos: Path, browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    def find(css: str) -> Any:
        return browser.find_element("css selector", css)

    def until(true: Any) -> None:
        WebDriverWait(browser, WAIT).until(lambda _: true())

    text = tmp_path / "<b>text.jpg"
    text.write_text("no photo")
    browser.get(url)
    until(lambda: find("#key-form").is_displayed())
    find("#key").send_keys(KEY)
    find("#key-form button").click()
    until(lambda: find("#bounds").text)
    find("#files").send_keys(f"{photos / 'photo-00000.jpg'}\n{text}")
    until(lambda: " in 2 photos" in find("#status").text)
    assert len(browser.find_elements("css selector", ".face .plot polygon")) >= 1
    assert find("canvas").get_attribute("width") == "640"
    assert find(".failed").text == "cannot decode: not an image"
    assert "<b>text.jpg" in [heading.text for heading in browser.find_elements("css selector", ".card h2")]
    find("#tab-batches").click()
    before = len(ask("GET", f"{url}/v1/batches").json()["batches"])
    out = str(photos.parents[1] / "out" / "scores")  # complete, if the test of a job ran before
    find("#input").send_keys("/etc")
    find("#out").send_keys(out)
    find("#batch-form button").click()
    until(lambda: "must lie below" in find("#batch-alert").text)
    find("#input").clear()
    find("#input").send_keys(str(photos))
    find("#batch-form button").click()
    until(lambda: len(browser.find_elements("css selector", "#batch-list .job")) == before + 1)
    assert out in find("#batch-list .job:first-child").text
    until(
        lambda: (
            browser.execute_script("return document.querySelector('#batch-list .state').textContent")
            not in ("waiting", "running")
        )
    )
    assert find("#batch-list .state").text == "done"
    assert "3 of 3 images" in find("#batch-list .job:first-child").text
    names = [link.text for link in browser.find_elements("css selector", "#batch-list .job:first-child a")]
    assert names[:3] == ["Page", "Summary", "Errors"]
    find("#tab-model").click()
    assert "its weights are random" in find("#limits").text
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert loaded
    assert all(name.startswith((url, "blob:")) for name in loaded)
