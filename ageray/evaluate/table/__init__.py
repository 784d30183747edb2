"""A paper's table as one command: every row trained and tested, its figure beside the paper's.

The file is one of configs/tables (`ageray.experiment.paper_table`); `ageray.config.paper_table`
makes an experiment for each cell of it.

plan.py    what will run, and how long by the speed measured here
run.py     trains and tests the cells, goes on after an interruption
figures.py predictions -> a cell's figure and its difference from the control
page.py    the table on a page
"""

from ageray.evaluate.table.plan import Estimate, estimate
from ageray.evaluate.table.run import run_table

__all__ = ["Estimate", "estimate", "run_table"]
