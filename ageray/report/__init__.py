"""Pages that a reader opens in a browser: one file, nothing loaded from elsewhere, light or dark as the browser asks."""

from ageray.report.comparison import comparison_report, matrix_report
from ageray.report.drawing import figure_svg, histogram_svg, new_figure
from ageray.report.evaluation import evaluation_report
from ageray.report.page import PAGE, describe_model, render
from ageray.report.pictures import thumbnail
from ageray.report.scores import score_report
from ageray.report.search import search_report

__all__ = [
    "PAGE",
    "comparison_report",
    "describe_model",
    "evaluation_report",
    "figure_svg",
    "histogram_svg",
    "matrix_report",
    "new_figure",
    "render",
    "score_report",
    "search_report",
    "thumbnail",
]
