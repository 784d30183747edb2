"""Bootstrap intervals of figures: whole subjects are drawn with replacement where they are known, else images.

Faces of one person err alike, so drawing images would treat 12 photos of a person as 12 people and give intervals that are too narrow
(Field and Welsh, JRSS B 2007, on the cluster bootstrap). A resample is only how often each unit was drawn; a mean needs two sums a unit.
Shape letters: N faces, C units (subjects, or faces), F figures, R resamples, r resamples of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import ndtr, ndtri

from ageray.metrics.accuracy import Labels, units
from ageray.metrics.mean import Mean, Tree, leaves, mapped

Interval = tuple[float, float]

FEWEST = 10
"""With fewer units no interval is given: those of 10 hold 0.82 to 0.88 where they promise 0.95, those of 20 about 0.90 (simulated)."""

_CELLS = 2**22  # of the count table of a chunk: 32 MiB
_TERMS = 2**22  # of the figures that go through the resamples together


class Bootstrap:
    """Resamples of `faces` faces, the same for every figure and run with the same seed.

    `subjects` says who each face shows; a face without one, and every face where that is None, is a unit of its own. `unit` is "subject"
    if any subject is known, else "image"; `units` is how many there are.
    """

    def __init__(
        self,
        faces: int,
        subjects: Labels | None = None,
        resamples: int = 1000,
        level: float = 0.95,
        seed: int = 0,
    ) -> None:
        if not 0 < level < 1 or resamples < 1:
            raise ValueError(
                f"a bootstrap needs a level between 0 and 1 and a resample; got {level}, {resamples}"
            )
        known = subjects is not None and any(subject is not None for subject in subjects)
        self.unit_N = units(subjects, faces) if subjects is not None else np.arange(faces)
        self.unit, self.units = "subject" if known else "image", int(self.unit_N.max()) + 1
        self.resamples, self.level, self.seed = resamples, level, seed

    def to_dict(self) -> dict[str, Any]:
        """How the intervals were made, for a report."""
        method = "BCa bootstrap; exact binomial for a share of 0 or 1; percentiles for risk_coverage"
        own = {
            "unit": self.unit,
            "units": self.units,
            "resamples": self.resamples,
            "level": self.level,
            "seed": self.seed,
        }
        return {"method": method, **own, "fewest_units": FEWEST}

    def counts(self) -> Iterator[NDArray[np.float64]]:
        """How often each unit was drawn, (r, C) at a time; a resample does not depend on r."""
        rng, rows = np.random.default_rng(self.seed), max(1, _CELLS // self.units)
        for start in range(0, self.resamples, rows):
            drawn = (
                rng.integers(0, self.units, self.units) for _ in range(min(rows, self.resamples - start))
            )
            yield np.stack([np.bincount(numbers, minlength=self.units) for numbers in drawn]).astype(
                np.float64
            )

    def face_counts(self) -> Iterator[NDArray[np.float64]]:
        """How often each face was drawn with its unit, (r, N) at a time."""
        for counts_rC in self.counts():
            yield counts_rC[:, self.unit_N]

    def intervals(self, means: Sequence[Mean]) -> list[Interval | None]:
        """The BCa interval (Efron, JASA 1987) of each mean; None over fewer than 10 units.

        The acceleration is that of the infinitesimal jackknife, which a ratio of sums has in closed form: unit c has the influence
        U_c = (x_c - t w_c) / sum w with x_c, w_c its sums and t the figure; a = sum U^3 / (6 (sum U^2)^1.5). A share of exactly 0 or 1 never
        varies under resampling: its interval is Clopper and Pearson's, with the units that occur as trials, however few.
        """
        found: list[Interval | None] = []
        for block in _blocks(means):
            value_CF, weight_CF = (self._sums(block, weighted) for weighted in (True, False))
            total = np.stack([_column_sums(table) for table in (value_CF, weight_CF)])
            with np.errstate(invalid="ignore", divide="ignore"):
                drawn_RF = np.concatenate(
                    [(value_CF.T @ many.T / (weight_CF.T @ many.T)).T for many in self.counts()]
                )
                figure_F = total[0] / total[1]
            for f, mean in enumerate(block):
                # the units that occur, the same entries in both tables
                value_c, weight_c = (
                    table.data[table.indptr[f] : table.indptr[f + 1]] for table in (value_CF, weight_CF)
                )
                influence_c = value_c - figure_F[f] * weight_c if len(value_c) else value_c
                found.append(self._interval(mean, float(figure_F[f]), influence_c, drawn_RF[:, f]))
        return found

    def percentiles(
        self, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> list[Interval | None]:
        """The percentile interval of each of F figures that are no means; `statistic` takes face counts (r, N) and gives (r, F)."""
        drawn_RF = np.concatenate([statistic(counts_rN) for counts_rN in self.face_counts()])
        if self.units < FEWEST:
            return [None] * drawn_RF.shape[1]
        ends = np.quantile(drawn_RF, self._tails(), axis=0)
        return [(float(low), float(high)) for low, high in ends.T]

    def _tails(self) -> NDArray[np.float64]:
        return np.array([(1 - self.level) / 2, (1 + self.level) / 2])

    def _sums(self, means: Sequence[Mean], weighted: bool) -> sparse.csc_array:
        """Sums of w x, or of w alone, of each unit and mean: (C, F)."""
        terms = []
        for mean in means:
            weights_M = np.ones(len(mean.rows_M)) if mean.weights_M is None else mean.weights_M
            terms.append(weights_M * mean.values_M if weighted else weights_M)
        columns = np.repeat(np.arange(len(means)), [len(mean.rows_M) for mean in means])
        rows = self.unit_N[np.concatenate([mean.rows_M for mean in means])]
        return sparse.coo_array(
            (np.concatenate(terms), (rows, columns)), shape=(self.units, len(means))
        ).tocsc()

    def _interval(
        self, mean: Mean, figure: float, influence_c: NDArray[np.float64], drawn_R: NDArray[np.float64]
    ) -> Interval | None:
        if mean.share and len(influence_c) and figure in (0.0, 1.0):
            bound = float(((1 - self.level) / 2) ** (1 / len(influence_c)))
            return (0.0, 1 - bound) if figure == 0 else (bound, 1.0)
        if len(influence_c) < FEWEST:
            return None
        drawn_R = np.sort(drawn_R[np.isfinite(drawn_R)])  # a resample may hold none of a rare part's units
        spread = float((influence_c**2).sum())
        if len(drawn_R) == 0 or spread <= 1e-24 * max(1.0, figure**2) or drawn_R[0] == drawn_R[-1]:
            return figure, figure
        below = ((drawn_R < figure).sum() + (drawn_R <= figure).sum()) / (2 * len(drawn_R))
        shift = ndtri(np.clip(below, 0.5 / len(drawn_R), 1 - 0.5 / len(drawn_R)))
        acceleration = float((influence_c**3).sum()) / (6 * spread**1.5)
        moved = shift + ndtri(self._tails())
        low, high = np.quantile(drawn_R, ndtr(shift + moved / (1 - acceleration * moved)))
        return float(low), float(high)


def with_intervals(tree: Tree, bootstrap: Bootstrap) -> Tree:
    """The same tree with {"value", "low", "high"} in place of every mean; low and high are null where no interval can be given."""
    ends = iter(bootstrap.intervals(list(leaves(tree))))
    return mapped(tree, lambda mean: estimate(mean.value, next(ends)))


def estimate(value: float | None, interval: Interval | None) -> dict[str, float | None]:
    """A figure and its interval as a report writes them."""
    low, high = interval or (None, None)
    return {"value": value, "low": low, "high": high}


def _blocks(means: Sequence[Mean]) -> Iterator[list[Mean]]:
    block: list[Mean] = []
    terms = 0
    for mean in means:
        if block and terms + len(mean.rows_M) > _TERMS:
            yield block
            block, terms = [], 0
        block.append(mean)
        terms += len(mean.rows_M)
    if block:
        yield block


def _column_sums(table: sparse.csc_array) -> NDArray[np.float64]:
    return np.asarray(table.sum(axis=0), np.float64).ravel()
