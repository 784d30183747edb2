"""The console command: `ageray COMMAND ...`, and `python -m ageray COMMAND ...`."""

from __future__ import annotations

import difflib
import importlib
import sys

from ageray import __version__
from ageray.commands import COMMANDS, cli

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
    command = importlib.import_module(f"ageray.commands.{word}")
    cli.run(command.main, words)


if __name__ == "__main__":
    main()
