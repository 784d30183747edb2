"""`align`: from a photo to the network's input."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ageray.experiment.strict import Positive, Strict


class Align(Strict):
    """From a photo and five points to the network's square input; the same in training, evaluation,
    scoring and serving.
    """

    mode: Literal["similarity", "eyes_mouth", "eyes", "box", "none"] = "similarity"
    """`similarity`: five points to a template by least squares. `eyes_mouth`: the same from two
    points, the middle between the eyes and that of the mouth's corners (DHAA, section 4.2, which
    names the eyes' centre and the upper lip). `eyes`: an upright square of `eyes_scale` x eye
    distance (Cluster-CNN, section 3.1). `box`: the detector's box, enlarged by `coverage`, as a
    square; of a face without a box, the box that its points suggest. `none`: the whole image,
    resized."""
    size: Annotated[int, Field(ge=16, le=1024)] = 128
    """Side of the network's input in pixels (Cluster-CNN 128, neighborhood 224, DHAA 256)."""
    coverage: Positive = 1.0
    """How much of the head shows: side of the crop relative to the template's own framing
    (`similarity` and `eyes_mouth`; 1 is hairline to chin) or to the box's longer side (`box`)."""
    eyes_scale: Positive = 3.2
    """alpha of `eyes`: side of the square in eye distances. The paper gives no number; a whole face
    fits in 3.2.
    """
    standardize: bool = False
    """Give each colour channel of each face the same mean and contrast, measured on the middle of
    the crop. It removes colour casts, faded prints and exposure, in training and in use.
    """
    fill: Annotated[int, Field(ge=0, le=255)] = 117
    """Gray value of pixels outside the photo."""
    placement: Literal["worker", "actors"] = "worker"
    """Where training faces are aligned. `worker`: in the training worker, on its device. `actors`:
    in an actor of Ray Data beside each worker, with `scale.align_gpus`, which sends float32 faces
    to it. The results are equal. All other commands align where the network is.
    """
