"""What every command does around its work: the parser's form, one line for a user's mistake, exit
codes.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TextIO, cast

from ageray import config, storage
from ageray.commands.quiet import without_lines_of_ray
from ageray.config import shipped
from ageray.errors import DamagedError, StoreError, UserError

_IN_A_TRACE = re.compile(
    r"^(?:\S*\s)?ageray\.errors\.(UserError|StoreError|DamagedError): (.+)$", re.MULTILINE
)
_LOST = (
    "processes were lost, more often than is made good: the kernel ends them for lack of memory, or their "
    "node is gone; what is finished is kept: give the same command again, with more memory or fewer workers"
)
_LOGGERS = ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state")
_STORE_AWAY = 75  # EX_TEMPFAIL of sysexits.h: give the same command again


def new_parser(command: str, description: str | None, epilog: str) -> argparse.ArgumentParser:
    """An empty parser for `ageray COMMAND`. The texts are shown as they are."""
    return argparse.ArgumentParser(
        prog=f"ageray {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def mistake_behind(error: BaseException) -> UserError | None:
    """The UserError that `error` is, or that caused it; None if there is none.

    Ray wraps what its tasks and workers raise. Ray Data keeps only the text of the trace, so that
    is searched last.
    """
    for cause in _causes(error):
        # Ray's wrappers are subclasses, with the whole trace as their text
        if type(cause) in (UserError, StoreError, DamagedError):
            return cast(UserError, cause)
    in_text = _IN_A_TRACE.findall(str(error))
    if not in_text:
        return None
    kind, text = in_text[-1]
    return StoreError(text) if kind == "StoreError" else UserError(text)


def is_lost_process(error: BaseException) -> bool:
    """Whether the end of a process of Ray's, not an error in it, is behind an error: the kernel
    ended it for lack of memory, or its node is gone.
    """
    ray = sys.modules.get("ray.exceptions")
    if ray is None:
        return False
    kinds = (ray.RayActorError, ray.WorkerCrashedError, ray.OutOfMemoryError, ray.NodeDiedError)
    return any(
        isinstance(cause, kinds) and not getattr(cause, "actor_init_failed", False)
        for cause in _causes(error)
    )


def _hide_lost_process(record: logging.LogRecord) -> bool:
    """Keeps Ray Data's trace of such an error in Ray's log file and off the terminal."""
    error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
    if error is not None and is_lost_process(error):
        record.hide = True  # which Ray Data's handler for the terminal looks at
    return True


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what caused it: in the workers of a training, in a task, in Python."""
    while error is not None:
        yield error
        for failure in getattr(error, "worker_failures", {}).values():
            yield from _causes(failure)
        cause = getattr(error, "cause", None)
        error = cause if isinstance(cause, BaseException) else error.__cause__ or error.__context__


def is_setting(word: str) -> bool:
    """Whether a word of the command line is a settings file, the name of one that ships, or
    `key=value`. A path may have `=` behind a slash.
    """
    if "=" in word.split("/")[0]:
        return not os.path.exists(word)  # noqa: PTH110  # a folder of a partition: `date=2024-01-01`
    return word.endswith((".yaml", ".yml")) or shipped.is_name(word)


def count(number: int, noun: str) -> str:
    """A number with its noun, such as "1 photo" or "1,000 photos"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def use_storage(words: Sequence[str]) -> None:
    """Applies the `storage` settings of a command line, because models and settings may lie on that
    store.

    Raises UserError for an invalid address. Other mistakes are reported when all settings are read.
    """
    overrides = []
    for word in words:
        if word.startswith("storage."):
            overrides.append(word)
        elif word.endswith((".yaml", ".yml")) and "=" not in word:
            _use_storage_of([word], [])
    _use_storage_of([], overrides)


def _use_storage_of(paths: list[str], overrides: list[str]) -> None:
    try:
        url = config.load(paths, overrides).storage.endpoint_url
    except UserError:
        return
    storage.use_endpoint(url)


_signals: list[int] = []  # that have come


def _end(number: int, _: object) -> None:
    """Ends the command as an exception does, so that it writes what it has: on a spot node SIGTERM
    comes two minutes before the end.
    """
    _signals.append(number)
    raise SystemExit(128 + number)


def run(main: Callable[[Sequence[str]], None], words: Sequence[str] | None = None) -> None:
    """Runs a command on `words`, by default the arguments of the process.

    Exit codes: 0 done; 2 the user's mistake, or processes that were lost (one line on stderr); 75 a
    store does not answer (one line), and the same command may succeed later; 130 or 143 after
    SIGINT or SIGTERM (one line: what is kept, which command goes on, by the text INTERRUPTED of the
    command's module); 1 with a traceback otherwise.
    """
    words = sys.argv[1:] if words is None else words
    _signals.clear()
    _open_streams()
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _end)
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_hide_lost_process)
    with without_lines_of_ray():
        try:
            use_storage(words)
            main(words)
        except (KeyboardInterrupt, SystemExit) as ending:
            code = _signal_code(ending)
            if code is None:
                raise
            kept = getattr(sys.modules.get(main.__module__ or ""), "INTERRUPTED", None)
            if kept is not None:
                print(f"\ninterrupted: {kept.format(command=_command(main, words))}", file=sys.stderr)
            sys.exit(code)
        except Exception as error:
            mistake = mistake_behind(error)
            if mistake is None and is_lost_process(error):
                mistake = UserError(_LOST)
            if mistake is None:
                raise
            print(f"error: {mistake}", file=sys.stderr)
            sys.exit(_STORE_AWAY if isinstance(mistake, StoreError) else 2)


def _signal_code(ending: KeyboardInterrupt | SystemExit) -> int | None:
    """The exit code of a command that a signal ends; None for another end.

    `ray.get` makes a SystemExit(1) of every other one, and Ray's handler of SIGTERM exits with the
    signal's number.
    """
    if isinstance(ending, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if _signals or ending.code in (signal.SIGTERM, 128 + signal.SIGTERM):
        return 128 + signal.SIGTERM
    return None


def _command(main: Callable[[Sequence[str]], None], words: Sequence[str]) -> str:
    """The command as it was given."""
    return shlex.join(["ageray", main.__module__.rpartition(".")[2], *words])


class _Stream:
    """A text stream that goes on without its reader, as with `| head`: a job is not to end for
    that."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text; without a reader, nothing."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._close()
            return len(text)

    def flush(self) -> None:
        """Flushes what was written."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._close()

    def _close(self) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)


def _open_streams() -> None:
    """Makes standard output and error take every text, whatever they are connected to.

    A closed one is opened: the next file would get its number, and what libraries write to it. A
    character that the terminal cannot show becomes a question mark.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: PTH123, SIM115  # open until the process ends
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
            stream = _Stream(stream)
        setattr(sys, name, stream)
