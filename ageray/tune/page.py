"""The page of a search: the winner and whether it is more than luck, then finalists, settings, trials."""

from __future__ import annotations

import statistics
from typing import Any

from ageray import storage
from ageray.report.cells import NONE, Cell, Table, minus, probability, years
from ageray.report.page import PAGE, render
from ageray.report.plot import figure_svg
from ageray.tune import plots as figures

Record = dict[str, Any]

_FIRST = 15  # trials of the table that are seen at once


def search_report(folder: str, report: Record) -> None:
    """Writes `report.html` into the folder of a search; report: see `ageray.tune.results.report`."""
    html = render(
        "search.html",
        title=f"Search: {report['model']} on {report['data']['name']}",
        report=report,
        verdict=verdict(report),
        tiles=_tiles(report),
        winner=_winner(report),
        drawn={name: figure_svg(figure) for name, figure in drawings(report).items()},
        slices=[(figures.short(path), figure_svg(figures.scatter(report, path))) for path in report["space"]],
        finalists=_finalists(report),
        comparisons=_comparisons(report),
        best=_trials(report, 0, _FIRST),
        rest=_trials(report, _FIRST, None),
        importance=_importance_caption(report),
        space=_space(report),
        method=_method(report),
    )
    storage.write_text(storage.join(folder, PAGE), html)


def drawings(report: Record) -> dict[str, Any]:
    """The figures by name, but for the slices."""
    made = {"parallel": figures.parallel(report), "curves": figures.curves(report)}
    made |= {"importance": figures.importance(report)} if report["importance"] else {}
    made["finalists"] = figures.finalists(report)
    return made | ({"differences": figures.differences(report)} if report["comparisons"] else {})


def verdict(report: Record) -> str:
    """Whether the winner beats the recipe, in one sentence."""
    name = report["winner"]["name"]
    found = next((row for row in report["comparisons"] if row["first"] == name), None)
    if found is None:
        return "No finalist did better than the recipe's own settings on the validation faces: the recipe stays as it is."
    cell = years(found["difference"], signed=True, digits=3)
    said = (
        f"test MAE {found['first_mae']:.3f} against {found['second_mae']:.3f}: {cell.text} years, 95% interval {cell.interval}; p = "
        + (probability(found["p"]))
    )
    said = said.replace("= <", "<")
    if not found["real"]:
        return (
            f"The winner, {name}, is not better than the recipe beyond the noise of seeds and faces ({said})."
        )
    better = found["difference"]["value"] < 0
    return f"The winner, {name}, is {'better' if better else 'worse'} than the recipe beyond the noise of seeds and faces ({said})."


def _tiles(report: Record) -> list[tuple[str, ...]]:
    trials, best = (
        report["trials"],
        next(row for row in report["finalists"] if row["name"] == report["winner"]["name"]),
    )
    recipe = report["finalists"][0]
    states = [trial["state"] for trial in trials]
    return [
        ("Winner", report["winner"]["name"], f"seed {report['winner']['train_seed']} is the bundle"),
        (
            "Its test MAE",
            f"{best['test_mae']:.3f}",
            f"mean of {len(best['runs'])} seeds, ± {best['deviation']:.3f}",
        ),
        (
            "The recipe's",
            f"{recipe['test_mae']:.3f}",
            f"mean of {len(recipe['runs'])} seeds, ± {recipe['deviation']:.3f}",
        ),
        (
            "Trials",
            str(len(trials)),
            f"{states.count('stopped')} stopped early, {states.count('failed')} failed",
        ),
        ("Minutes", f"{(report['seconds']['trials']) / 60:.1f}", "for the trials"),
    ]


def _winner(report: Record) -> Table:
    rows = [
        (path, value_text(report["recipe"][path]), value_text(report["winner"]["values"][path]))
        for path in report["space"]
    ]
    return Table(("Setting", "Recipe", f"Winner ({report['winner']['name']})"), rows)


def _finalists(report: Record) -> Table:
    seeds = [run["seed"] for run in report["finalists"][0]["runs"]]
    head = (
        "",
        *map(figures.short, report["space"]),
        "Validation",
        *(f"Test, seed {seed}" for seed in seeds),
        "Test, mean",
    )
    rows = []
    for row in report["finalists"]:
        values = [value_text(row["values"][path]) for path in report["space"]]
        tested = [f"{run['test_mae']:.3f}" for run in row["runs"]]
        rows.append(
            (
                row["name"],
                *values,
                f"{row['score']:.3f}",
                *tested,
                Cell(f"{row['test_mae']:.3f}", f"± {row['deviation']:.3f}"),
            )
        )
    return Table(head, rows)


def _comparisons(report: Record) -> Table:
    rows = []
    for row in report["comparisons"]:
        spread = [f"{row['deviation'][name]:.3f}" for name in ("faces", "seeds")]
        gap = years(row["difference"], signed=True, digits=3)
        rows.append(
            (f"{row['first']} − recipe", gap, *spread, probability(row["p"]), "yes" if row["real"] else "no")
        )
    return Table(("", "Difference of test MAE", "Noise of faces", "Noise of seeds", "p", "Real"), rows)


def _trials(report: Record, first: int, last: int | None) -> Table | None:
    """The trials from the best to the worst, those that failed last."""
    trials = sorted(
        report["trials"], key=lambda trial: (trial["score"] is None, trial["score"] or 0.0, trial["number"])
    )[first:last]
    if not trials:
        return None
    rows = []
    for trial in trials:
        name = f"{trial['number']}{' (recipe)' if trial['values'] == report['recipe'] else ''}"
        values = [value_text(trial["values"][path]) for path in report["space"]]
        score = NONE if trial["score"] is None else f"{trial['score']:.3f}"
        seconds = sum(record["seconds"] for record in trial["epochs"])
        state = (
            f"failed: {trial['reason']}"
            if trial["reason"]
            else {"stopped": "stopped early"}.get(trial["state"], trial["state"])
        )
        rows.append((name, *values, score, str(len(trial["epochs"])), f"{seconds:.0f}", state))
    return Table(
        ("Trial", *map(figures.short, report["space"]), report["tune"]["metric"], "Epochs", "Seconds", ""),
        rows,
    )


def _importance_caption(report: Record) -> str:
    settings = report["tune"]
    rung = settings["asha"]["grace_epochs"]
    early = (
        f" Every trial reached epoch {rung}; those that went on from there are the better ones."
        if settings["asha"]["enabled"]
        else ""
    )
    return (
        f"fANOVA: a forest of trees fitted to values and scores, its variance taken apart by setting.{early}"
    )


def _space(report: Record) -> Table:
    rows = []
    for path, dimension in report["space"].items():
        if dimension["kind"] == "choice":
            between = ", ".join(value_text(value) for value in dimension["values"])
        else:
            between = f"{dimension['low']:g} to {dimension['high']:g}"
        kind = "int, logarithmic" if dimension.get("log") else dimension["kind"]
        rows.append((path, kind, between, value_text(report["recipe"][path])))
    return Table(("Setting", "Kind", "Range", "Recipe"), rows)


def _method(report: Record) -> list[tuple[str, str]]:
    settings, faces = report["tune"], report["faces"]
    asha = settings["asha"]
    halving = (
        f"asynchronous successive halving: from epoch {asha['grace_epochs']}, one of {asha['reduction']:g} goes on at each rung"
        if asha["enabled"]
        else "none: every trial has all epochs"
    )
    compared = len(report["comparisons"])
    times = [
        sum(record["seconds"] for record in trial["epochs"]) / max(1, len(trial["epochs"]))
        for trial in report["trials"]
    ]
    return [
        ("Faces", f"{faces['train']:,} training, {faces['val']:,} validation, {faces['test']:,} test"),
        ("Protocol", f"{report['protocol']['name']}, seed {report['protocol']['seed']}"),
        (
            "Proposals",
            f"TPE (Optuna), seed {settings['seed']}; the first {settings['startup']} at random; trial 0 is the recipe",
        ),
        ("Early stopping", halving),
        ("Epochs", f"{report['epochs']}; {statistics.median(times):.1f} seconds each"),
        ("Score", f"{settings['metric']}, of a trial's best epoch, every trial with the same seed and split"),
        (
            "Winner",
            "the least mean score on the validation faces over seeds that no trial had; the test faces have no say",
        ),
        (
            "Differences",
            "on the test faces, seed by seed; the interval (Welch and Satterthwaite) holds the noise of faces and of seeds; real: "
            f"p times {compared} (Bonferroni) below 0.05",
        ),
        ("Machine", report["machine"]),
    ]


def value_text(value: Any) -> str:
    """A setting's value."""
    if value is None:
        return NONE
    return minus(f"{value:.4g}") if isinstance(value, float) else str(value)
