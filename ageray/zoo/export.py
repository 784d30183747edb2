"""A model as an ONNX file.

    python -m ageray.zoo.export MODEL FILE.onnx

MODEL is `zoo:NAME`, a bundle or a run folder. The file takes `face`, float RGB in 0..255, aligned
at `align.size`, (B, 3, S, S), and gives `posterior` (B, K) and `age` (B,), not calibrated; see
`ageray.models.export`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ageray import bundle
from ageray.errors import UserError
from ageray.models.export import export


def main(words: Sequence[str]) -> None:
    """The command line. Raises UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m ageray.zoo.export", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("file", metavar="FILE.onnx", type=Path)
    given = parser.parse_args(words)
    loaded = bundle.load(given.model)
    if not given.file.parent.is_dir():
        raise UserError(f"{given.file}: there is no folder {given.file.parent}; make it first")
    export(loaded.network(), loaded.experiment, given.file)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
