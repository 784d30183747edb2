"""The pictures of docs/dhaa.md, with drawn faces.

One shows the five regions with their points. The other shows what alignment does in other poses.

    python docs/pictures/regions.py
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor

from ageray.faces import geometry
from ageray.models.regions import REGIONS, RegionPooling, affine, targets, to_unit
from ageray.synthetic.faces import draw_face

IMAGES = Path(__file__).resolve().parents[1] / "images"
NAMES = list(REGIONS)
COLOURS = dict(zip(NAMES, ("tab:blue", "tab:cyan", "tab:red", "tab:green", "tab:purple"), strict=True))
WHAT = {"G-2": "all", "G-3": "all, 1.2 x", "L-1": "left eye", "L-2": "nose", "L-3": "mouth"}
SIDE, REGION, DPI = 256, 112, 100
UPRIGHT: dict[str, Any] = {"roll": 0.0, "yaw": 0.0, "shift": (0.0, -0.06), "scale": 0.2}
TURNED: dict[str, Any] = {**UPRIGHT, "roll": 20.0, "shift": (0.06, -0.03)}
POSES = {
    "upright": UPRIGHT,
    "turned 20°, shifted": TURNED,
    "turned -15°, looking aside": {**UPRIGHT, "roll": -15.0, "yaw": 20.0, "shift": (-0.04, -0.06)},
}


def picture(seed: int, pose: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Pixels (1, 3, SIDE, SIDE) and points (1, 5, 2)."""
    face = draw_face(seed, 52, size=SIDE, **pose)
    return torch.from_numpy(face.pixels).permute(2, 0, 1)[None].float(), torch.from_numpy(face.points)[None]


def show(axes: Any, pixels: Tensor, title: str = "", below: str = "") -> None:
    """One panel without ticks."""
    axes.imshow(pixels[0].permute(1, 2, 0).byte().numpy())
    axes.set_title(title, fontsize=8, pad=3)
    axes.set_xlabel(below, fontsize=8, labelpad=2)
    axes.set_xticks([])
    axes.set_yticks([])


def to_pixels(unit: Tensor, side: int) -> Tensor:
    """Normalised coordinates to pixels of a map of that side."""
    return ((unit + 1) * side - 1) / 2


def draw_regions() -> None:
    """A turned face with its points and the template's five squares on it, then the regions.

    Each region has its source and target points.
    """
    face, points = picture(16, TURNED)
    pool = RegionPooling(NAMES)
    unit = to_unit(points, SIDE)
    corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    figure, panels = plt.subplots(1, 6, figsize=(9.6, 1.95), layout="constrained")
    show(panels[0], face, "face and source points")
    for name, back in zip(NAMES, pool.aligned(unit)[0], strict=True):
        panels[0].plot(*to_pixels(geometry.apply(back, corners), SIDE).T, color=COLOURS[name], linewidth=1)
    panels[0].plot(*points[0].T, ".", color="yellow", markersize=4)
    panels[0].set_xlim(-0.5, SIDE - 0.5)
    panels[0].set_ylim(SIDE - 0.5, -0.5)
    pooled = pool(face, points, REGION)
    landed = geometry.apply(affine(unit[:, None], targets(NAMES))[0], unit.expand(5, 5, 2))
    for axes, name, goal, place in zip(panels[1:], NAMES, targets(NAMES), landed, strict=True):
        show(axes, pooled[name], f"{name}: {WHAT[name]}")
        for spots, style in (
            (goal, {"marker": "o", "markersize": 6, "fillstyle": "none"}),
            (place, {"marker": ".", "markersize": 4}),
        ):
            inside = to_pixels(spots[(spots.abs() < 1).all(-1)], REGION)
            axes.plot(*inside.T, linestyle="none", color="yellow", **style)
        plt.setp(axes.spines.values(), color=COLOURS[name], linewidth=2)
    save(figure, "dhaa-regions.png")


def likeness(first: Tensor, second: Tensor) -> float:
    """Correlation over space, each colour about its own mean."""
    a, b = (x - x.mean((2, 3), keepdim=True) for x in (first, second))
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


def draw_alignment() -> None:
    """A face in three poses, its regions by both poolings, and their correlation with the upright
    face's.
    """
    names = ["G-2", "L-1", "L-2", "L-3"]
    figure, panels = plt.subplots(len(POSES), 9, figsize=(9.6, 4.1), layout="constrained")
    first: dict[tuple[str, str], Tensor] = {}
    for row, (title, pose) in zip(panels, POSES.items(), strict=True):
        face, points = picture(16, pose)
        show(row[0], face, below=title.replace(", ", ",\n"))
        row[0].plot(*points[0].T, ".", color="yellow", markersize=3)
        for start, pooling in ((1, "arp"), (5, "roi")):
            pooled = RegionPooling(names, pooling)(face, points, REGION)  # type: ignore[arg-type]
            for axes, name in zip(row[start:], names, strict=False):
                reference = first.setdefault((pooling, name), pooled[name])
                heading = f"{'aligned' if pooling == 'arp' else 'square'} {name}" if pose is UPRIGHT else ""
                show(
                    axes,
                    pooled[name],
                    heading,
                    "" if pose is UPRIGHT else f"{likeness(reference, pooled[name]):.2f}",
                )
    save(figure, "dhaa-alignment.png")


def save(figure: Any, name: str) -> None:
    """Saves a PNG of 96 colours; the grain of the skin makes one of all colours several times as
    large.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    plt.close(figure)
    IMAGES.mkdir(exist_ok=True)
    small = Image.open(buffer).convert("RGB").quantize(96, dither=Image.Dither.NONE)
    small.save(IMAGES / name, optimize=True)
    size = (IMAGES / name).stat().st_size / 1000
    print(f"{IMAGES / name}: {size:.0f} kB, {np.asarray(small).shape[::-1]} pixels")


if __name__ == "__main__":
    mpl.use("agg")
    draw_regions()
    draw_alignment()
