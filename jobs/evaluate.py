"""`python -m jobs.evaluate`: the command `ageray evaluate`."""

from ageray.commands import cli
from ageray.commands.evaluate import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
