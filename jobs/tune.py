"""`python -m jobs.tune`: the command `ageray tune`."""

from ageray.commands import cli
from ageray.commands.tune import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
