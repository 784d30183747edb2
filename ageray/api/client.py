"""A client of the service (`ageray serve`), with the standard library alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from ageray.errors import UserError

Photo: TypeAlias = "str | os.PathLike[str] | bytes"
"""A local file, or an encoded photo."""

_TRY_AGAIN = (429, 502, 503, 504)
_LONGEST_WAIT = 30.0


class ServiceError(UserError):
    """The service refused a request: the `status` of HTTP, a `code` for programs, a message for
    people."""

    def __init__(self, message: str, status: int = 0, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code

    def __reduce__(self) -> tuple[type[UserError], tuple[Any, ...]]:
        return type(self), (str(self), self.status, self.code)


class Client:
    """A service at `url`. Requests that it was too busy for are repeated."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        retries: int = 5,
        timeout: float = 120.0,
    ) -> None:
        """key: an API key; by default that of the environment, AGERAY_API_KEY.

        retries: how often a request is repeated when the service cannot be reached or is busy
        (429, 502, 503, 504). It waits as long as `Retry-After` says, else twice as long each time,
        from half a second to 30. timeout: seconds for one try.
        """
        self._url = url.rstrip("/")
        self._key = key if key is not None else os.environ.get("AGERAY_API_KEY", "")
        self._retries, self._timeout = retries, timeout
        self._limit: int | None = None

    def ages(self, photos: Photo | Sequence[Photo], posterior: bool = False) -> Any:
        """The faces of a photo, or of each photo of a list, as the service's JSON gives them.

        For one photo: its entry of `images`, with `faces` and `error`. For a list: a list of them,
        asked for in requests of as many images as the service takes.
        """
        if isinstance(photos, (str, os.PathLike, bytes)):
            return self._score([photos], posterior)[0]
        if self._limit is None:
            self._limit = int(self.model()["limits"]["images"])
        images: list[dict[str, Any]] = []
        for start in range(0, len(photos), self._limit):
            images += self._score(photos[start : start + self._limit], posterior)
        return images

    def model(self) -> dict[str, Any]:
        """The model's card, the ages of its posterior, and the limits of the service."""
        return self._json("GET", "/v1/model")

    def submit(self, input: str, out: str, **options: Any) -> dict[str, Any]:
        """Starts a scoring job on the service's machines. options: `detect`, `posterior`, `fresh`.

        Returns the job; `job["id"]` names it.
        """
        body = json.dumps({"input": input, "out": out, **options}).encode()
        return self._json("POST", "/v1/batches", body, "application/json")

    def job(self, name: str) -> dict[str, Any]:
        """A job with its state and its progress."""
        return self._json("GET", f"/v1/batches/{quote(name, safe='')}")

    def wait(self, name: str, seconds: float | None = None) -> dict[str, Any]:
        """Waits for the end of a job and returns it.

        seconds: the longest wait. Raises ServiceError if it failed or was cancelled, TimeoutError
        after that time.
        """
        end = None if seconds is None else time.monotonic() + seconds
        pause = 0.5
        while True:
            job = self.job(name)
            if job["state"] == "done":
                return job
            if job["state"] in ("failed", "cancelled"):
                raise ServiceError(f"{job['out']}: {job['state']}: {job['message'] or 'no reason is given'}")
            if end is not None and time.monotonic() + pause > end:
                raise TimeoutError(f"{job['out']}: is {job['state']} after {seconds:g} s")
            time.sleep(pause)
            pause = min(1.5 * pause, 10)

    def cancel(self, name: str) -> dict[str, Any]:
        """Stops a job."""
        return self._json("POST", f"/v1/batches/{quote(name, safe='')}/cancel", b"{}", "application/json")

    def download(self, name: str, folder: str | os.PathLike[str]) -> list[Path]:
        """Copies the files of a finished job's result into a local folder; returns their paths."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        paths = []
        for file in self.job(name)["files"]:
            path = target / Path(file).name
            part = path.with_name(f"{path.name}.part")
            address = f"/v1/batches/{quote(name, safe='')}/files/{quote(file, safe='')}"
            with self._open("GET", address) as answer, part.open("wb") as copy:
                shutil.copyfileobj(answer, copy)
            part.replace(path)
            paths.append(path)
        return paths

    def _score(self, photos: Sequence[Photo], posterior: bool) -> list[dict[str, Any]]:
        boundary = uuid.uuid4().hex
        body = b"".join(_form(photos, boundary))
        path = "/v1/score?posterior=true" if posterior else "/v1/score"
        images: list[dict[str, Any]] = self._json(
            "POST", path, body, f"multipart/form-data; boundary={boundary}"
        )["images"]
        return images

    def _json(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> dict[str, Any]:
        with self._open(method, path, body, kind) as answer:
            content: dict[str, Any] = json.load(answer)
        return content

    def _open(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> Any:
        """The open answer of a request. Raises ServiceError if the service refuses, or is not
        reached after all retries."""
        headers = {"Content-Type": kind} if kind else {}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        for attempt in range(self._retries + 1):
            request = urllib.request.Request(self._url + path, body, headers, method=method)
            wait = min(_LONGEST_WAIT, 0.5 * 2**attempt) * random.uniform(0.75, 1.25)
            try:
                return urllib.request.urlopen(request, timeout=self._timeout)
            except urllib.error.HTTPError as error:
                if error.code not in _TRY_AGAIN or attempt == self._retries:
                    raise _refusal(error) from None
                wait = _seconds(error.headers.get("Retry-After"), wait)
            except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
                if attempt == self._retries:
                    reason = getattr(error, "reason", error)
                    raise ServiceError(f"{self._url}: cannot be reached ({reason})") from None
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")


def _form(photos: Sequence[Photo], boundary: str) -> Iterator[bytes]:
    """The body of a form with the photos."""
    for number, photo in enumerate(photos):
        name = f"photo {number}"
        if isinstance(photo, bytes):
            content = photo
        else:
            name = Path(photo).name.replace('"', "%22")
            try:
                content = Path(photo).read_bytes()
            except OSError as error:
                raise UserError(f"{photo}: cannot be read: {error.strerror}") from None
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'
        yield head.encode()
        yield content
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def _refusal(error: urllib.error.HTTPError) -> ServiceError:
    try:
        problem = json.load(error)["error"]
        return ServiceError(str(problem["message"]), error.code, str(problem["code"]))
    except (ValueError, KeyError, TypeError):
        return ServiceError(f"{error.url}: answered {error.code} {error.reason}", error.code)


def _seconds(header: str | None, otherwise: float) -> float:
    try:
        return min(float(header or ""), _LONGEST_WAIT)
    except ValueError:
        return otherwise
