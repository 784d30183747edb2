"""`python -m jobs.export`: the command `ageray export`."""

from ageray.commands import cli
from ageray.commands.export import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
