"""The pictures of pages in docs/images, from drawn faces, taken in a headless Chromium:

    python docs/pictures/screens.py DIR

Writes DIR/NAME-{1280,390}.png, where NAME is service, batches, card, routes, report, evaluation or
comparison; docs/images has some of them. Needs Chromium and its driver, and a minute or two.
"""

from __future__ import annotations

import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from selenium import webdriver

import ageray
from ageray.serve.app import start
from ageray.serve.settings import Service
from ageray.synthetic import faces

HEIGHTS = {"service": 900, "batches": 700, "card": 1400, "routes": 1000, "report": 1300}


def browser(width: int, height: int) -> Any:
    """A headless Chromium with a window of this size."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    words = "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --disable-background-networking"
    for word in (*words.split(), f"--window-size={width},{height}", "--force-device-scale-factor=1"):
        options.add_argument(word)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    return driver


def serve(work: Path) -> str:
    """Starts the service with prefixes for batches, and returns its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    batches = {"inputs": (f"{work}/in",), "outputs": (f"{work}/out",), "records": f"{work}/records"}
    values = {"model": "zoo:default", "threads": 1, "decoders": 1, "batches": batches}
    settings = Service.model_validate(values)
    start(settings, "127.0.0.1", port)
    return f"http://127.0.0.1:{port}"


def main(target: Path) -> None:
    """Makes the pages and takes their pictures."""
    target.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp())
    photos = work / "in" / "holiday"
    faces.write_photos(photos, 12)
    faces.write_faces_table(str(work / "shards"), 48, seed=3)
    data = ["data:synthetic", f"data.shards={work / 'shards'}", "protocol.name=all", "scale.progress=false"]
    ageray.evaluate("zoo:default", str(work / "evaluation"), settings=data)
    ageray.evaluate(["zoo:default", "zoo:fast"], str(work / "comparison"), settings=data)
    url = serve(work)
    client = ageray.Client(url)
    job = client.wait(client.submit(str(photos), str(work / "out" / "holiday"))["id"])
    files = client.download(job["id"], work / "result")
    page = next(file for file in files if file.name == "_report.html")
    page.write_text(page.read_text().replace(f"{work}/in/", ""))  # no paths of this machine in a picture
    pages = {
        "service": url,
        "batches": url,
        "card": f"{url}/model",
        "routes": f"{url}/docs",
        "report": page.as_uri(),
        "evaluation": (work / "evaluation" / "report.html").as_uri(),
        "comparison": (work / "comparison" / "report.html").as_uri(),
    }
    for width in (1280, 390):
        for name, address in pages.items():
            driver = browser(width, HEIGHTS.get(name, 1300))
            driver.get(address)
            time.sleep(1)
            if name == "service":
                files = sorted(photos.iterdir())[:2]
                driver.find_element("id", "files").send_keys("\n".join(map(str, files)))
                time.sleep(6)
            if name == "batches":
                driver.find_element("id", "tab-batches").click()
                time.sleep(2)
            driver.save_screenshot(str(target / f"{name}-{width}.png"))
            broad = driver.execute_script("return document.documentElement.scrollWidth")
            print(f"{name} at {width}: {driver.title!r}, {broad} pixels broad", flush=True)
            driver.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
