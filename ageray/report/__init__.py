"""Pages that a reader opens in a browser: one file, nothing loaded from elsewhere, light or dark as the browser asks."""

from ageray.report.page import PAGE, describe_model, render
from ageray.report.pictures import thumbnail
from ageray.report.plot import figure_svg, histogram_svg, new_figure

__all__ = [
    "PAGE",
    "describe_model",
    "figure_svg",
    "histogram_svg",
    "new_figure",
    "render",
    "thumbnail",
]
