"""Writes a bundle as an ONNX file or as a program of torch.export, and makes the inputs of either.

Shape letters: B faces (any number), S side of the aligned face.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ageray import __version__
from ageray.bundle import Bundle
from ageray.errors import UserError
from ageray.experiment import Align
from ageray.export.calibrated import OUTPUTS, CalibratedAges
from ageray.faces import geometry
from ageray.faces.align import align_faces, crop_map
from ageray.faces.canvases import to_tensors
from ageray.models.export import OPSET

ONNX, PROGRAM = ".onnx", ".pt2"


def export(bundle: Bundle, file: Path) -> dict[str, Any]:
    """Writes the file and returns what it says about itself (`description`).

    The name of the file decides: `.onnx` or `.pt2` (torch.export). Inputs and outputs are those of
    `CalibratedAges`; the number of faces is free. Raises UserError for another ending, for a
    folder that is not there, for models that do not fit, and where the packages that write ONNX are
    missing.
    """
    if file.suffix not in (ONNX, PROGRAM):
        raise UserError(f"{file}: name a file that ends in {ONNX} or {PROGRAM} (torch.export)")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}; make it first")
    network = CalibratedAges(bundle).eval()
    about = description(bundle, network)
    examples = _examples(network, bundle.experiment.align)
    count = torch.export.Dim("faces", min=1)
    shapes = {name: {0: count} for name in network.inputs}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about its own parts
        program = torch.export.export(network, examples, dynamic_shapes=shapes, strict=False)
        if file.suffix == PROGRAM:
            torch.export.save(program, file, extra_files={"ageray.json": json.dumps(about)})
        else:
            _write_onnx(program, network, file, about)
    return about


def _write_onnx(
    program: torch.export.ExportedProgram, network: CalibratedAges, file: Path, about: dict[str, Any]
) -> None:
    try:
        import onnxscript  # noqa: F401  # torch.onnx needs it and says so in a long traceback
    except ImportError:
        raise UserError("exporting needs the package onnxscript: pip install 'ageray[onnx]'") from None
    graph = torch.onnx.export(
        program,
        input_names=list(network.inputs),
        output_names=list(OUTPUTS),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert graph is not None
    for key, value in about.items():
        graph.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    graph.save(str(file))


def description(bundle: Bundle, network: CalibratedAges) -> dict[str, Any]:
    """What a program needs to know to use the file: how to align a face, and the terms."""
    align = bundle.experiment.align
    about: dict[str, Any] = {
        "code": f"ageray {__version__}",
        "model": bundle.identity,
        "inputs": list(network.inputs),
        "outputs": list(OUTPUTS),
        "align": align.mode,
        "size": align.size,
        "years": list(bundle.experiment.model.ages),
        "refused_above": network.largest,
        "terms": str(bundle.card.get("terms", "")),
    }
    if align.mode == "similarity":
        about["template"] = geometry.template(align.size, align.coverage).tolist()
    return about


def aligned_inputs(
    canvas: NDArray[np.uint8], points: NDArray[np.float32], box: NDArray[np.float32], align: Align
) -> dict[str, NDArray[np.float32]]:
    """The inputs of an exported file, of B faces: `face` (B, 3, S, S), `points` (B, 5, 2),
    `resolution` (B,).

    canvas: uint8 (B, C, C, 3), points (B, 5, 2), box (B, 4), as `Predictor.predict` takes them.
    """
    batch = to_tensors({"canvas": canvas, "points": points, "box": box}, torch.device("cpu"))
    face, aligned_points = align_faces(batch["canvas"], batch["points"], batch["box"], align)
    resolution = 1 / geometry.scale_of(crop_map(batch["points"], batch["box"], align))
    return {"face": face.numpy(), "points": aligned_points.numpy(), "resolution": resolution.numpy()}


def _examples(network: CalibratedAges, align: Align) -> tuple[Tensor, ...]:
    """Inputs of two faces, from which the program is traced."""
    face = torch.linspace(0, 255, 2 * 3 * align.size**2).view(2, 3, align.size, align.size)
    points = geometry.template(align.size, align.coverage).expand(2, 5, 2).contiguous()
    inputs = {"face": face, "points": points, "resolution": torch.ones(2)}
    return tuple(inputs[name] for name in network.inputs)
