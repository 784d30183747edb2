"""A network as an ONNX file: aligned faces in, posterior and age out.

Shape letters: B faces (any number), S side of the aligned face, K age bins.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.faces import geometry
from ageray.faces.align import standardize
from ageray.models.decode import classifier_posterior, decode
from ageray.models.network import AgeNetwork

OPSET = 18
OUTPUTS = ("posterior", "age")


class FacesToAges(nn.Module):
    """`face` (B, 3, S, S), float RGB in 0..255, and `points` (B, 5, 2) in its pixels, to
    `posterior` (B, K) and `age` (B,) in years, decoded as the model decodes but not calibrated.

    Standardisation (`align.standardize`) and the mirror image (`decode.flip`) are part of it.
    Views of other crops and sizes (`decode.views`) are not: they need the photo.
    """

    def __init__(self, network: AgeNetwork, experiment: Experiment) -> None:
        """Raises UserError for a model without a classifier."""
        super().__init__()
        if experiment.model.decode.method == "gallery":
            raise UserError(
                f"model '{experiment.model.name}' takes ages from a gallery, which does not fit into ONNX"
            )
        self.network = network
        self._experiment = experiment

    def forward(self, face: Tensor, points: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Faces to posterior and age."""
        model, align = self._experiment.model, self._experiment.align
        face_B3SS = standardize(face, align)
        posterior_BK = self._posterior(face_B3SS, points)
        if model.decode.flip:
            mirrored = None if points is None else geometry.mirror_points(points, align.size)
            posterior_BK = (posterior_BK + self._posterior(face_B3SS.flip(-1), mirrored)) / 2
        return posterior_BK, decode(posterior_BK, model)

    def embedding(self, face: Tensor, points: Tensor | None = None) -> Tensor:
        """The network's embedding (B, D) of the faces as they are, for the distance from the faces
        of training."""
        face_B3SS = standardize(face, self._experiment.align)
        embedding_BD: Tensor = self.network(_batch(face_B3SS, points))["embedding"]
        return embedding_BD.float()

    def _posterior(self, face_B3SS: Tensor, points_B52: Tensor | None) -> Tensor:
        return classifier_posterior(self.network(_batch(face_B3SS, points_B52)))


def _batch(face_B3SS: Tensor, points_B52: Tensor | None) -> dict[str, Tensor]:
    """The network's inputs."""
    return {"face": face_B3SS} if points_B52 is None else {"face": face_B3SS, "points": points_B52}


def export(network: AgeNetwork, experiment: Experiment, file: Path) -> None:
    """Writes the network, in eval mode on CPU, to an ONNX file.

    Inputs are `face` (B, 3, S, S) and, for a model that reads them, `points` (B, 5, 2); B is
    free. Raises UserError for a model without a classifier, and where the packages that write
    ONNX are missing.
    """
    try:
        import onnxscript  # noqa: F401  # torch.onnx needs it and says so in a long traceback
    except ImportError:
        raise UserError("exporting needs the package onnxscript: pip install 'ageray[onnx]'") from None
    size = experiment.align.size
    faces = torch.rand(2, 3, size, size) * 255
    points = geometry.template(size, experiment.align.coverage).expand(2, 5, 2).contiguous()
    count = torch.export.Dim("faces", min=1)
    inputs: dict[str, Tensor] = {"face": faces}
    if network.reads_points:
        inputs["points"] = points
    program = torch.onnx.export(
        FacesToAges(network.eval(), experiment).eval(),
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=list(OUTPUTS),
        dynamic_shapes={name: {0: count} for name in inputs},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(file))
