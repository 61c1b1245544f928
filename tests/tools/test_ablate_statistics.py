"""Statistics of paired runs: quantiles against printed tables, pairs by hand, Holm's example, power by simulation."""

import math

import numpy as np
import pytest

from tools.ablate_statistics import detectable, holm, paired, pooled, t_outside, t_quantile, verdict


@pytest.mark.parametrize(
    ("df", "level", "t"),  # from printed tables
    [
        (1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.95, 2.776), (9, 0.95, 2.262), (30, 0.95, 2.042),
        (120, 0.95, 1.980), (1, 0.90, 6.314), (5, 0.99, 4.032), (10, 0.99, 3.169),
    ],
)  # fmt: skip
def test_t_quantile_and_p(df, level, t):
    assert t_quantile(df, level) == pytest.approx(t, abs=6e-4)
    assert t_outside(-t, df) == pytest.approx(1 - level, abs=2e-4)


def test_t_quantile_needs_a_degree_of_freedom():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        t_quantile(0)


def test_paired_by_hand():
    """Differences 0.01, 0.02, 0.03 of the seeds that both have: mean 0.02, deviation 0.01, t 4.3027."""
    d = paired({0: 0.51, 1: 0.62, 2: 0.73, 9: 1.0}, {0: 0.5, 1: 0.6, 2: 0.7, 5: 0.0})
    assert d.pairs == 3
    assert d.mean == pytest.approx(0.02)
    assert d.reach == pytest.approx(4.30265 * 0.01 / math.sqrt(3), rel=1e-5)
    assert d.p == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-6)  # t^2 = 12, and with 2 df P = t / sqrt(2 + t^2)
    assert verdict(d, d.p) == "no difference shown"
    assert str(d) == "+0.0200 [-0.0048, +0.0448]"


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([0.03, 0.031, 0.029], "better"),
        ([-0.03, -0.031, -0.029], "worse"),
        ([0.03, -0.01, 0.02], "no difference shown"),
        ([0.0, 0.0], "no difference shown"),
        ([0.5, 0.5], "better"),
        ([0.2], "one pair: no interval"),
    ],
)
def test_verdict(differences, said):
    zeros = dict.fromkeys(range(len(differences)), 0.0)
    d = paired(dict(enumerate(differences)), zeros)
    assert verdict(d, d.p) == said
    low, high = d.interval
    assert math.isnan(d.p) or (d.p < 0.05) == (low > 0 or high < 0)  # the interval says the same


def test_no_pairs():
    assert paired({0: 0.5}, {1: 0.5}) is None


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, 0.03 x 2 and 0.04 x 1, each at least as large as the one before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, math.nan, 0.6])[::2] == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_level():
    """Of families of six arms that do not differ, about 5 % have one that is called different; uncorrected, 26 %."""
    ps = np.random.default_rng(0).random((3000, 6))
    assert np.mean([min(holm(list(row))) < 0.05 for row in ps]) == pytest.approx(0.049, abs=0.012)


def test_pooled():
    assert pooled([3.0, math.nan, 4.0]) == pytest.approx(math.sqrt(12.5))
    assert math.isnan(pooled([math.nan]))


@pytest.mark.parametrize(("pairs", "arms"), [(2, 1), (3, 1), (5, 1), (5, 6), (10, 3)])
def test_detectable_by_simulation(pairs, arms):
    """Differences drawn with that mean are found in 80 % of the draws."""
    size = detectable(pairs, 0.5, arms)
    draws = np.random.default_rng(pairs).normal(size, 0.5, (20000, pairs))
    t = draws.mean(1) / draws.std(1, ddof=1) * math.sqrt(pairs)
    assert np.mean(np.abs(t) > t_quantile(pairs - 1, 1 - 0.05 / arms)) == pytest.approx(0.8, abs=0.012)
