"""Ages over HTTP: an endpoint for programs, a page for people, scoring jobs for collections."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import closing

from ageray import config
from ageray.commands import cli
from ageray.commands.quiet import without_messages_of_ray
from ageray.errors import UserError
from ageray.serve.settings import Service

_EPILOG = """\
  GET  /             a page: drop photos, see ages; batches; the model's card
  POST /v1/score     images (multipart, or JSON with base64) to faces with ages; ?posterior=true
                     adds the posteriors
  GET  /v1/model     the model's card        GET /healthz  has the model answer        GET
       /openapi.json
  POST /v1/batches   starts ageray score for {"input": ..., "out": ...}; GET /v1/batches, GET
                     /v1/batches/ID, POST /v1/batches/ID/cancel

Others than this machine (any --host but 127.0.0.1, ::1, localhost) need an API key: export
AGERAY_API_KEYS=KEY[,KEY...]

examples:
  ageray serve
  ageray serve --model runs/dhaa-1a2b3c4d limits.images=16 max_batch_size=64
  ageray serve 'batches.inputs=[/data/photos]' 'batches.outputs=[/data/scores]'
  AGERAY_API_KEYS=$(openssl rand -hex 32) ageray serve --host 0.0.0.0

Settings are those of `args` in configs/serve.yaml, which `serve deploy` takes; docs/serve.md
explains them. Runs on the cluster of RAY_ADDRESS, else on this machine, until it is interrupted.
Exit 0: stopped; 2: a mistake in the command, told in one line; 130 or 143: interrupted before it
had started; 1: anything else.
"""

INTERRUPTED = "the service has ended; to start it again: {command}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.new_parser("serve", __doc__, _EPILOG)
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings of the service")
    parser.add_argument(
        "--model", default="zoo:default", help="zoo:NAME, a bundle or a run folder (default: %(default)s)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    return parser


def main(words: Sequence[str]) -> None:
    """Serves until SIGINT or SIGTERM. Raises UserError for mistakes in the command."""
    arguments = parser().parse_intermixed_args(words)
    model = {"model": arguments.model}
    settings, _ = config.parse(Service, overrides=arguments.words, base=model, base_name="--model")
    _check_port(arguments.host, arguments.port)

    import ray
    from ray import serve

    from ageray.serve.app import DRAIN_SECONDS, start, stop

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # this process's own; what it tells is below
    stopped, ready = threading.Event(), threading.Event()

    def end(number: int, _: object) -> None:
        stopped.set()  # an exception can get lost in a callback of Python's
        if not ready.is_set():
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        start(settings, arguments.host, arguments.port)
        ready.set()
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        print(f"{settings.model}: http://{host}:{arguments.port}/ (Ctrl-C ends it)", flush=True)
        stopped.wait()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)  # a second one ends at once
        print(f"ending: up to {DRAIN_SECONDS:g} s for the requests in flight", flush=True)
        with without_messages_of_ray():
            lost = stop()
        if lost:
            print(f"{lost} requests were not answered in time", flush=True)
    finally:
        with without_messages_of_ray():
            if ray.is_initialized():  # else `serve.shutdown` would start a Ray
                serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


def _check_port(host: str, port: int) -> None:
    """Raises UserError if nothing can listen there. Serve itself would report that only after some
    time.
    """
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port}: not a port; give one from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind, protocol)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error}); give another") from None
