"""A model as a file for other programs: ONNX or torch.export, calibrated, for aligned faces."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ageray import bundle
from ageray.commands import cli
from ageray.errors import UserError

_EPILOG = """\
FILE ends in
  .onnx     for ONNX Runtime and others; needs pip install 'ageray[onnx]'
  .pt2      a program of torch.export, for torch alone

Inputs are aligned faces: face (B, 3, S, S), RGB 0..255, and for models that know a picture's quality
points (B, 5, 2) and resolution (B,). Outputs: posterior (B, K), age (B,), interval (B, 2) and
difficulty (B,). Detecting and aligning faces stay outside; docs/export.md says how to do both.

examples:
  ageray export zoo:default ages.onnx
  ageray export runs/baseline-utkface-1a2b3c4d ages.pt2

Exit 0: done; 2: a mistake in the command or a model that does not fit, told in one line; 1: anything
else.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.new_parser("export", __doc__, _EPILOG)
    parser.add_argument("model", metavar="MODEL", help="zoo:NAME, a bundle or a run folder")
    parser.add_argument("file", metavar="FILE", type=Path, help="the file to write; replaced if it is there")
    return parser


def main(words: Sequence[str]) -> None:
    """Writes the file and prints its inputs. Raises UserError for mistakes in the command."""
    arguments = parser().parse_intermixed_args(words)
    if arguments.file.suffix.lower() == ".onnx" and find_spec("onnxscript") is None:
        raise UserError("exporting needs the package onnxscript: pip install 'ageray[onnx]'")
    model = bundle.load(arguments.model)

    from ageray.export.run import export

    about = export(model, arguments.file)
    size = about["size"]
    print(f"{arguments.file}: {', '.join(about['inputs'])} to {', '.join(about['outputs'])}")
    print(f"a face is RGB, {size} x {size} pixels; its terms: {about['terms'] or 'see the card'}")
