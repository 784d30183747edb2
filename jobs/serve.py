"""`python -m jobs.serve`: the command `ageray serve`."""

from ageray.commands import cli
from ageray.commands.serve import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
