"""`python -m jobs.score`: the command `ageray score`."""

from ageray.commands import cli
from ageray.commands.score import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
