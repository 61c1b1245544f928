"""Compares paired runs: t intervals and p-values, Holm's correction for several arms, and the power of so many seeds.

tools/ablate.py uses it. Student's T is summed here, since SciPy is not among the dependencies.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.95  # of the intervals
POWER = 0.8  # of `detectable`
STEPS = 2000  # of an integral over the spread that a sample shows


# --- Student's T ------------------------------------------------------------------------------------------------------


def t_quantile(df: int, level: float = LEVEL) -> float:
    """Returns t with P(|T| <= t) = level for Student's T with df degrees of freedom.

    With theta = atan(t / sqrt(df)) that probability is a finite sum (Abramowitz and Stegun 26.7.3, 26.7.4), which
    grows with theta; so theta is found by halving.
    """
    if df < 1:
        raise ValueError(f"degrees of freedom must be at least 1, got {df}")
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        theta = (low + high) / 2
        low, high = (theta, high) if _within(theta, df) < level else (low, theta)
    return math.sqrt(df) * math.tan(low)


def t_outside(t: float, df: int) -> float:
    """Returns P(|T| > |t|) for Student's T with df degrees of freedom: the two-sided p-value, 0 to 1."""
    return min(max(1 - _within(math.atan(abs(t) / math.sqrt(df)), df), 0.0), 1.0)


def _within(theta: float, df: int) -> float:
    """Returns P(|T| <= sqrt(df) tan(theta))."""
    cosine, odd = math.cos(theta), df % 2
    term = math.sin(theta) * (cosine if odd else 1)
    total = 0.0
    for k in range(1 + odd, df, 2):  # one term for each power of the cosine below df - 1
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (theta + total) if odd else total


# --- pairs ------------------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """The mean difference of pairs, and half the width of its interval (NaN for one pair)."""

    mean: float
    reach: float
    pairs: int
    deviation: float = math.nan  # standard deviation of the differences; NaN for one pair

    @property
    def interval(self) -> tuple[float, float]:
        return self.mean - self.reach, self.mean + self.reach

    @property
    def p(self) -> float:
        """Returns the two-sided p-value of "the mean is zero", 0 to 1; NaN for one pair."""
        if math.isnan(self.reach):
            return math.nan
        if not self.deviation:
            return float(self.mean == 0)
        return t_outside(self.mean / self.deviation * math.sqrt(self.pairs), self.pairs - 1)

    def __str__(self) -> str:
        if math.isnan(self.reach):
            return f"{self.mean:+.4f}"
        low, high = self.interval
        return f"{self.mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def paired(values: dict[int, float], reference: dict[int, float]) -> Difference | None:
    """Returns the difference of values to reference over the seeds that both have; None where there is none."""
    differences = [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
    n = len(differences)
    if not n:
        return None
    deviation = statistics.stdev(differences) if n > 1 else math.nan
    reach = t_quantile(n - 1) * deviation / math.sqrt(n) if n > 1 else math.nan
    return Difference(statistics.fmean(differences), reach, n, deviation)


def verdict(d: Difference, p: float) -> str:
    """Returns the conclusion that a difference allows. p: its p-value, corrected where there are several arms."""
    if math.isnan(p):
        return "one pair: no interval"
    if p >= 1 - LEVEL:
        return "no difference shown"
    return "better" if d.mean > 0 else "worse"


# --- several arms -----------------------------------------------------------------------------------------------------


def holm(ps: Sequence[float]) -> list[float]:
    """Returns the p-values of a family corrected by Holm's step-down procedure, in their order; NaN stays NaN.

    Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979. Where the
    corrected values below 0.05 are called shown, the chance that any of them is wrong is at most 0.05.
    """
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=ps.__getitem__)
    corrected, reached = list(ps), 0.0
    for rank, i in enumerate(order):
        reached = corrected[i] = max(reached, min(1.0, (len(order) - rank) * ps[i]))
    return corrected


def pooled(deviations: Sequence[float]) -> float:
    """Returns the root mean square of standard deviations, those that are NaN aside; NaN where none is left."""
    known = [d for d in deviations if not math.isnan(d)]
    return math.sqrt(statistics.fmean(d * d for d in known)) if known else math.nan


def detectable(pairs: int, deviation: float, arms: int = 1) -> float:
    """Returns the difference that so many pairs show with a chance of POWER, where their differences spread so much.

    Shown means p below 0.05 / arms, as Holm's first step asks of each of so many arms. The chance is that of the
    noncentral t distribution, P(|Z + delta| > t S) for delta = difference sqrt(pairs) / deviation.
    """
    limit = t_quantile(pairs - 1, 1 - (1 - LEVEL) / arms)
    low, high = 0.0, 1.0
    while _power(high, limit, pairs - 1) < POWER:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, limit, pairs - 1) < POWER else (low, middle)
    return high * deviation / math.sqrt(pairs)


def _power(delta: float, limit: float, df: int) -> float:
    """Returns P(|Z + delta| > limit S) for Z normal and S^2 chi-squared by df, by the midpoint rule over S."""
    normal = statistics.NormalDist()
    constant = math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2)
    most = 1 + 8 / math.sqrt(df)  # S beyond it has a chance below 1e-12
    width, total = most / STEPS, 0.0
    for k in range(STEPS):
        s = (k + 0.5) * width
        density = math.exp(constant + (df - 1) * math.log(s) - df * s * s / 2)
        total += density * (normal.cdf(delta - limit * s) + normal.cdf(-delta - limit * s))
    return total * width
