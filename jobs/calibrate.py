"""`python -m jobs.calibrate`: the command `ageray calibrate`."""

from ageray.commands import cli
from ageray.commands.calibrate import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
