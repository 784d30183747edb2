"""Writes a model as an ONNX file.

    python -m ageray.zoo.export MODEL FILE.onnx

MODEL is `zoo:NAME`, a bundle or a run folder. Input of the network in the file: `face` (B, 3, S,
S), float RGB 0..255, aligned, S = `align.size`. Outputs: `posterior` (B, K) and `age` (B,) years,
both without calibration. See `ageray.models.export`.
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
    args = parser.parse_args(words)
    model = bundle.load(args.model)
    if not args.file.parent.is_dir():
        raise UserError(f"{args.file}: there is no folder {args.file.parent}; make it first")
    export(model.network(), model.experiment, args.file)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
