"""A run's log as pictures: learning curves (PNG) and TensorBoard's event file.

A record has the numbers of one epoch, see `ageray.train.epochs.close`.
"""

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
    """Training loss and validation MAE by epoch as PNG, the best epoch marked.

    log: one record per epoch, at least one.
    """
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    loss, error = figure.subplots(1, 2)
    rows, best = [], log[-1]
    for record in log:
        rows.append((record["epoch"], record["loss"], record["val_mae"]))
        if record["best"]:
            best = record
    epochs, losses, maes = zip(*rows, strict=True)
    loss.plot(epochs, losses, color=INK, marker=".")
    error.plot(epochs, maes, color=INK, marker=".")
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
    """A TensorBoard event file with every finite number of the log by epoch.

    The file of a longer log starts with the bytes of the file of a shorter one.
    """
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
        values = []
        for name, value in record.items():
            if isinstance(value, float) and math.isfinite(value) and name != "time":
                values.append(Summary.Value(tag=name.replace("loss.", "loss/"), simple_value=value))
        yield Event(wall_time=record["time"], step=record["epoch"], summary=Summary(value=values))
