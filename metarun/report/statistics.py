"""Intervals, paired tests and cluster agreement on per-task scores; T tasks, S seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from metarun.errors import DataError

Z95 = 1.96
FEW_STARTS = 0.2  # of the way from one start to all
EXACT_TASKS = 16  # up to here all sign patterns are counted: 32,768 of them


class Interval(NamedTuple):
    """A mean and the half-width of its 95 % interval."""

    mean: float
    ci95: float


class Paired(NamedTuple):
    """The mean of a - b over the same tasks, its half-width and its two-sided p-value."""

    difference: float
    ci95: float
    p_value: float
    tasks: int


def mean_ci(scores: ArrayLike) -> Interval:
    """Return the mean of scores [T] and 1.96 standard errors.

    Covers the noise of drawing tasks, not that of training. NaN in, NaN out; the interval of
    fewer than two scores is NaN. Too narrow below some 30 tasks (of ten, it holds 92 % for scores
    as even as a normal's, 57 % for nearly perfect ones) and where `tasks_needed` are more.
    """
    x = np.asarray(scores, dtype=np.float64)
    if x.size < 2 or not np.isfinite(x).all():
        return Interval(float(x.mean()) if np.isfinite(x).all() and x.size else np.nan, np.nan)
    return Interval(float(x.mean()), float(Z95 * x.std(ddof=1) / np.sqrt(x.size)))


def tasks_needed(scores: ArrayLike) -> int:
    """Return how many tasks make 1.96 standard errors an honest interval for scores [T] so skewed.

    Cochran, 1977, Sampling Techniques, section 2.15: 25 times the squared skewness.
    """
    x = np.asarray(scores, dtype=np.float64)
    if (spread := float(x.std())) <= 1e-12 * float(np.abs(x).max()):
        return 0
    return math.ceil(25 * float((((x - x.mean()) / spread) ** 3).mean()) ** 2)


def paired(a: ArrayLike, b: ArrayLike) -> Paired:
    """Compare two methods on the same tasks in the same order: scores a, b [T], T >= 2.

    The null hypothesis is that swapping the two methods on any task changes nothing. Up to 16
    tasks its sign-flip distribution is counted out. Above, Student's t stands for it: a few
    hundred signs are as good as normal, the value needs no random numbers, has no floor at one
    over the number of draws, and agrees with the interval, which has the same standard error.

    Raises: DataError when the lists differ in length or a score is not finite.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or x.size < 2:
        raise DataError(
            f"paired: needs two equal lists of 2 scores or more, got {x.shape}, {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("paired: a task without a finite score cannot be paired")
    d = x - y
    mean, ci95 = mean_ci(d)
    p = _sign_flips(d) if d.size <= EXACT_TASKS else _student(mean, ci95 / Z95, d.size)
    return Paired(mean, ci95, p, d.size)


def _sign_flips(d: NDArray[np.float64]) -> float:
    # The last sign stays: flipping all of them gives the same two-sided statistic.
    patterns = np.arange(2 ** (d.size - 1))[:, None] >> np.arange(d.size)
    sums = np.abs((1 - 2 * (patterns & 1)) @ d)
    observed = abs(d.sum())
    return float(np.mean(sums >= observed - 1e-12 * np.abs(d).sum()))


def _student(mean: float, error: float, tasks: int) -> float:
    least = 2.0 ** (1 - tasks)  # no sign-flip test can say less
    if error <= 1e-15 * abs(mean) or error == 0:
        return least if mean else 1.0
    return max(float(2 * stdtr(tasks - 1, -abs(mean) / error)), least)


def seed_ci(means: ArrayLike) -> Interval:
    """Return the mean over training seeds [S] and Student's 95 % half-width; NaN for one seed."""
    x = np.asarray(means, dtype=np.float64)
    if x.size < 2:
        return Interval(float(x.mean()), np.nan)
    error = x.std(ddof=1) / np.sqrt(x.size)
    return Interval(float(x.mean()), float(stdtrit(x.size - 1, 0.975) * error))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values [n] of one family so that the chance of any false alarm stays at the level.

    Holm, 1979: the k-th smallest is multiplied by n - k + 1 and never falls below its elders.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    scaled = np.minimum(p[order] * np.arange(p.size, 0, -1), 1.0)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted


def contingency(truth: ArrayLike, assigned: ArrayLike) -> NDArray[np.float64]:
    """Count the tasks of each true family (rows) in each cluster that is in use (columns)."""
    t, c = np.asarray(truth), np.asarray(assigned)
    if t.ndim != 1 or t.shape != c.shape or t.size == 0:
        raise DataError(f"clusters: needs two equal lists of labels, got {t.shape} and {c.shape}")
    rows, columns = np.unique(t, return_inverse=True)[1], np.unique(c, return_inverse=True)[1]
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    return table


def purity(truth: ArrayLike, assigned: ArrayLike) -> float:
    """Return the share of tasks in their cluster's commonest family; rises with more clusters."""
    table = contingency(truth, assigned)
    return float(table.max(axis=0).sum() / table.sum())


def nmi(truth: ArrayLike, assigned: ArrayLike) -> float:
    """Return mutual information over the arithmetic mean of the two entropies, 0 to 1.

    One family in one cluster is full agreement, 1.
    """
    joint = contingency(truth, assigned)
    joint /= joint.sum()
    rows, columns = _entropy(joint.sum(axis=1)), _entropy(joint.sum(axis=0))
    if rows + columns == 0:
        return 1.0
    return float(np.clip(2 * (rows + columns - _entropy(joint)) / (rows + columns), 0, 1))


def ari(truth: ArrayLike, assigned: ArrayLike) -> float:
    """Return the adjusted Rand index: 1 for the same partition, 0 on average for chance.

    Hubert and Arabie, 1985.
    """
    table = contingency(truth, assigned)
    together = _couples(table)
    rows, columns = _couples(table.sum(axis=1)), _couples(table.sum(axis=0))
    chance = rows * columns / max(_couples(table.sum()), 1.0)
    most = (rows + columns) / 2
    return 1.0 if most == chance else float((together - chance) / (most - chance))


def effective_clusters(usage: ArrayLike) -> float:
    """Return exp(entropy) of cluster counts or shares [M]: how many are really in use, 1 to M."""
    u = np.asarray(usage, dtype=np.float64)
    return float(np.exp(_entropy(u / u.sum())))


def collapsed(usage: Sequence[float]) -> bool:
    """Tell whether nearly all tasks go to one of several starts; `usage` is what each takes."""
    return len(usage) > 1 and effective_clusters(usage) < 1 + FEW_STARTS * (len(usage) - 1)


def _entropy(shares: NDArray[np.float64]) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def _couples(counts: ArrayLike) -> float:
    n = np.asarray(counts, dtype=np.float64)
    return float((n * (n - 1) / 2).sum())
