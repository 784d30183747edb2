"""`python -m jobs.prepare`: the command `ageray prepare`."""

from ageray.commands import cli
from ageray.commands.prepare import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
