"""The console command: `ageray COMMAND ...`, and `python -m ageray COMMAND ...`."""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys

from ageray import __version__
from ageray.commands import COMMANDS

_USAGE = """\
usage: ageray COMMAND ...

{commands}

`ageray COMMAND --help` explains one. `ageray --version` prints the version.
"""


def main() -> None:
    """Runs the command that the process's first argument names. Ends the process with 2 if there is
    no such command.
    """
    word, *words = sys.argv[1:] or ["--help"]
    if word in ("-h", "--help"):
        lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
        print(_USAGE.format(commands="\n".join(lines)), end="")
        return
    if word == "--version":
        print(f"ageray {__version__}")
        return
    if word not in COMMANDS:
        nearest = difflib.get_close_matches(word, COMMANDS, 1)
        remedy = f"did you mean {nearest[0]}?" if nearest else f"give one of {', '.join(COMMANDS)}"
        print(f"error: {word}: no command of ageray; {remedy}", file=sys.stderr)
        sys.exit(2)
    interrupt = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGTERM, _end)
    if interrupt is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, _end)
    cli = importlib.import_module("ageray.commands.cli")  # takes up to seconds on a cold disk
    command = importlib.import_module(f"ageray.commands.{word}")
    signal.signal(signal.SIGINT, interrupt)
    cli.run(command.main, words)


def _end(number: int, _: object) -> None:
    """Ends the process while its modules are imported: an exception could get lost there."""
    print("\ninterrupted: nothing was begun; give the same command again", file=sys.stderr, flush=True)
    os._exit(128 + number)


if __name__ == "__main__":
    main()
