"""The page kit: templates, cells and tables, plots, small pictures. Each command owns its page.

A page is one HTML file for a browser. It loads nothing, and is light or dark as the browser asks.
"""

from ageray.report.histogram import histogram_svg
from ageray.report.page import PAGE, describe_model, render
from ageray.report.pictures import thumbnail
from ageray.report.plot import figure_svg, new_figure

__all__ = [
    "PAGE",
    "describe_model",
    "figure_svg",
    "histogram_svg",
    "new_figure",
    "render",
    "thumbnail",
]
