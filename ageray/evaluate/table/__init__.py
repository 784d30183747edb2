"""A paper's table as one command: every row trained and tested, its figure beside the paper's.

spec.py    the file in configs/tables/
cells.py   the file and the sets at hand -> an experiment for each cell
plan.py    what will run, and how long by the speed measured here
run.py     trains and tests the cells, goes on after an interruption
figures.py predictions -> a cell's figure and its difference from the control
page.py    the table on a page
"""

from ageray.evaluate.table.cells import CellPlan, TablePlan, plan_table
from ageray.evaluate.table.plan import Estimate, estimate
from ageray.evaluate.table.run import run_table
from ageray.evaluate.table.spec import PaperTable, read_table

__all__ = [
    "CellPlan",
    "Estimate",
    "PaperTable",
    "TablePlan",
    "estimate",
    "plan_table",
    "read_table",
    "run_table",
]
