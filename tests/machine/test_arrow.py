"""Arrow does without pandas, and tables still become frames."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ageray.machine.arrow import leave_out_pandas
leave_out_pandas()
assert pa.array(["a", None]).to_pylist() == ["a", None]
assert pa.Table.from_pylist([{"a": 1.5}]).num_rows == 1
assert pc.sum(pc.equal(pa.chunked_array([[1, 2]]), 1)).as_py() == 1
assert pa.array(np.zeros(2)).to_numpy().sum() == pa.scalar(0).as_py()
assert "pandas" not in sys.modules
import pandas
leave_out_pandas()  # too late, and no harm
assert pa.table({"a": [1]}).to_pandas().equals(pandas.DataFrame({"a": [1]}))
"""


def test_arrow_does_without_pandas() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, cwd=ROOT)
