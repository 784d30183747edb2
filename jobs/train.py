"""`python -m jobs.train`: the command `ageray train`."""

from ageray.commands import cli
from ageray.commands.train import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
