"""The page of a search: the winner and whether it beats the recipe, then finalists, settings,
trials.
"""

from __future__ import annotations

import statistics
from typing import Any

from ageray import storage
from ageray.report.cells import NONE, Cell, Table, minus, probability, years
from ageray.report.page import render
from ageray.report.plot import figure_svg
from ageray.tune import plots
from ageray.tune.files import SearchFiles

Record = dict[str, Any]

_FIRST = 15  # trials that the table shows at once


def search_report(folder: str, report: Record) -> None:
    """Writes `report.html` into a search folder. report: see `ageray.tune.results.report`."""
    drawn = {}
    for name, figure in drawings(report).items():
        drawn[name] = figure_svg(figure)
    slices = []
    for path in report["space"]:
        slices.append((plots.short(path), figure_svg(plots.scatter(report, path))))
    html = render(
        "search.html",
        title=f"Search: {report['model']} on {report['data']['name']}",
        report=report,
        verdict=verdict(report),
        tiles=_tiles(report),
        winner=_winner(report),
        drawn=drawn,
        slices=slices,
        finalists=_finalists(report),
        comparisons=_comparisons(report),
        best=_trials(report, 0, _FIRST),
        rest=_trials(report, _FIRST, None),
        importance=_importance_caption(report),
        space=_space(report),
        method=_method(report),
    )
    storage.write_text(SearchFiles(folder).page, html)


def drawings(report: Record) -> dict[str, Any]:
    """The figures by name, without the slices."""
    figures = {"parallel": plots.parallel(report), "curves": plots.curves(report)}
    if report["importance"]:
        figures["importance"] = plots.importance(report)
    figures["finalists"] = plots.finalists(report)
    if report["comparisons"]:
        figures["differences"] = plots.differences(report)
    return figures


def verdict(report: Record) -> str:
    """Whether the winner beats the recipe, in one sentence."""
    name = report["winner"]["name"]
    for row in report["comparisons"]:
        if row["first"] == name:
            return _verdict(name, row)
    return (
        "No finalist did better than the recipe's own settings on the validation faces: "
        "the recipe stays as it is."
    )


def _verdict(name: str, comparison: Record) -> str:
    difference = comparison["difference"]
    cell = years(difference, signed=True, digits=3)
    p_value = f"p = {probability(comparison['p'])}".replace("= <", "<")
    maes = f"test MAE {comparison['first_mae']:.3f} against {comparison['second_mae']:.3f}"
    figures = f"{maes}: {cell.text} years, 95% interval {cell.interval}; {p_value}"
    if not comparison["real"]:
        relation = "is not better than the recipe"
    elif difference["value"] < 0:
        relation = "is better than the recipe"
    else:
        relation = "is worse than the recipe"
    return f"The winner, {name}, {relation} beyond the noise of seeds and faces ({figures})."


def _tiles(report: Record) -> list[tuple[str, ...]]:
    winner, recipe = report["winner"], report["finalists"][0]
    best = next(row for row in report["finalists"] if row["name"] == winner["name"])
    states = [trial["state"] for trial in report["trials"]]
    ended = f"{states.count('stopped')} stopped early, {states.count('failed')} failed"
    minutes = report["seconds"]["trials"] / 60
    return [
        ("Winner", winner["name"], f"seed {winner['train_seed']} is the bundle"),
        ("Its test MAE", f"{best['test_mae']:.3f}", _over_seeds(best)),
        ("The recipe's", f"{recipe['test_mae']:.3f}", _over_seeds(recipe)),
        ("Trials", str(len(states)), ended),
        ("Minutes", f"{minutes:.1f}", "for the trials"),
    ]


def _over_seeds(finalist: Record) -> str:
    return f"mean of {len(finalist['runs'])} seeds, ± {finalist['deviation']:.3f}"


def _values(report: Record, values: Record) -> list[str]:
    """The values of the searched settings, in their order."""
    return [value_text(values[path]) for path in report["space"]]


def _winner(report: Record) -> Table:
    winner = report["winner"]
    columns = _values(report, report["recipe"]), _values(report, winner["values"])
    rows = list(zip(report["space"], *columns, strict=True))
    return Table(("Setting", "Recipe", f"Winner ({winner['name']})"), rows)


def _finalists(report: Record) -> Table:
    head = ["", *map(plots.short, report["space"]), "Validation"]
    for run in report["finalists"][0]["runs"]:
        head.append(f"Test, seed {run['seed']}")
    head.append("Test, mean")
    rows = []
    for row in report["finalists"]:
        cells: list[str | Cell] = [row["name"], *_values(report, row["values"]), f"{row['score']:.3f}"]
        for run in row["runs"]:
            cells.append(f"{run['test_mae']:.3f}")
        cells.append(Cell(f"{row['test_mae']:.3f}", f"± {row['deviation']:.3f}"))
        rows.append(tuple(cells))
    return Table(tuple(head), rows)


def _comparisons(report: Record) -> Table:
    rows = []
    for row in report["comparisons"]:
        difference = years(row["difference"], signed=True, digits=3)
        faces, seeds = f"{row['deviation']['faces']:.3f}", f"{row['deviation']['seeds']:.3f}"
        real = "yes" if row["real"] else "no"
        name = f"{row['first']} − recipe"
        rows.append((name, difference, faces, seeds, probability(row["p"]), real))
    return Table(("", "Difference of test MAE", "Noise of faces", "Noise of seeds", "p", "Real"), rows)


def _trials(report: Record, first: int, last: int | None) -> Table | None:
    """The trials from the best to the worst, failed ones last; None if there are none from `first`
    on.
    """

    def order(trial: Record) -> tuple[bool, float, int]:
        return trial["score"] is None, trial["score"] or 0.0, trial["number"]

    trials = sorted(report["trials"], key=order)[first:last]
    if not trials:
        return None
    rows = []
    for trial in trials:
        name = str(trial["number"])
        if trial["values"] == report["recipe"]:
            name += " (recipe)"
        score = NONE if trial["score"] is None else f"{trial['score']:.3f}"
        epochs, seconds = len(trial["epochs"]), _seconds(trial)
        values = _values(report, trial["values"])
        rows.append((name, *values, score, str(epochs), f"{seconds:.0f}", _end(trial)))
    settings = map(plots.short, report["space"])
    return Table(("Trial", *settings, report["tune"]["metric"], "Epochs", "Seconds", ""), rows)


def _seconds(trial: Record) -> float:
    return float(sum(record["seconds"] for record in trial["epochs"]))


def _end(trial: Record) -> str:
    """How a trial ended."""
    if trial["reason"]:
        return f"failed: {trial['reason']}"
    return "stopped early" if trial["state"] == "stopped" else str(trial["state"])


def _importance_caption(report: Record) -> str:
    settings = report["tune"]
    rung = settings["asha"]["grace_epochs"]
    caption = "fANOVA: a forest of trees fitted to values and scores, its variance taken apart by setting."
    if settings["asha"]["enabled"]:
        caption += f" Every trial reached epoch {rung}; those that went on from there are the better ones."
    return caption


def _space(report: Record) -> Table:
    rows = []
    for path, dimension in report["space"].items():
        if dimension["kind"] == "choice":
            between = ", ".join(map(value_text, dimension["values"]))
        else:
            between = f"{dimension['low']:g} to {dimension['high']:g}"
        kind = "int, logarithmic" if dimension.get("log") else dimension["kind"]
        rows.append((path, kind, between, value_text(report["recipe"][path])))
    return Table(("Setting", "Kind", "Range", "Recipe"), rows)


def _method(report: Record) -> list[tuple[str, str]]:
    settings, faces = report["tune"], report["faces"]
    asha = settings["asha"]
    halving = "none: every trial has all epochs"
    if asha["enabled"]:
        halving = (
            f"asynchronous successive halving: from epoch {asha['grace_epochs']}, "
            f"one of {asha['reduction']:g} goes on at each rung"
        )
    compared = len(report["comparisons"])
    times = []
    for trial in report["trials"]:
        times.append(_seconds(trial) / max(1, len(trial["epochs"])))
    return [
        ("Faces", f"{faces['train']:,} training, {faces['val']:,} validation, {faces['test']:,} test"),
        ("Protocol", f"{report['protocol']['name']}, seed {report['protocol']['seed']}"),
        (
            "Proposals",
            f"TPE (Optuna), seed {settings['seed']}; the first {settings['startup']} at random; "
            "trial 0 is the recipe",
        ),
        ("Early stopping", halving),
        ("Epochs", f"{report['epochs']}; {statistics.median(times):.1f} seconds each"),
        ("Score", f"{settings['metric']}, of a trial's best epoch, every trial with the same seed and split"),
        (
            "Winner",
            "the least mean score on the validation faces over seeds that no trial had; "
            "the test faces have no say",
        ),
        (
            "Differences",
            "on the test faces, seed by seed; the interval (Welch and Satterthwaite) holds the noise of "
            f"faces and of seeds; real: p times {compared} (Bonferroni) below 0.05",
        ),
        ("Machine", report["machine"]),
    ]


def value_text(value: Any) -> str:
    """A setting's value as text, numbers with four significant digits."""
    if value is None:
        return NONE
    if isinstance(value, float):
        return minus(f"{value:.4g}")
    return str(value)
