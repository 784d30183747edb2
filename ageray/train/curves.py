"""A run's log for the eye: learning curves as a picture, and TensorBoard's events."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from ageray.report.plot import ACCENT, INK, legend, style

Record = dict[str, Any]


def learning_curves(log: Sequence[Record]) -> bytes:
    """Training loss and validation MAE over the epochs, the best one marked, as PNG. log: a record an epoch, one at least."""
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    loss, error = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in log]
    loss.plot(epochs, [record["loss"] for record in log], color=INK, marker=".")
    error.plot(epochs, [record["val_mae"] for record in log], color=INK, marker=".")
    best = [record for record in log if record["best"]][-1]
    error.plot(
        best["epoch"],
        best["val_mae"],
        "o",
        color=ACCENT,
        markersize=8,
        fillstyle="none",
        label=f"best {best['val_mae']:.3f}",
    )
    for axes, label in ((loss, "training loss"), (error, "validation MAE (years)")):
        style(axes)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    legend(error)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130, facecolor="white")
    return picture.getvalue()


def events(log: Sequence[Record]) -> bytes:
    """A TensorBoard event file with every number of the log's records by epoch. That of a longer log starts with that of a shorter."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "events"
        writer = RecordWriter(str(file))
        for event in _events(log):
            writer.write(event.SerializeToString())
        writer.close()
        return file.read_bytes()


def _events(log: Sequence[Record]) -> Iterator[Event]:
    if log:
        yield Event(wall_time=log[0]["time"], file_version="brain.Event:2")
    for record in log:
        numbers = {
            name: value
            for name, value in record.items()
            if isinstance(value, float) and math.isfinite(value) and name != "time"
        }
        summary = Summary(
            value=[
                Summary.Value(tag=name.replace("loss.", "loss/"), simple_value=value)
                for name, value in numbers.items()
            ]
        )
        yield Event(wall_time=record["time"], step=record["epoch"], summary=summary)
