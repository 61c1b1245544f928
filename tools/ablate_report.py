"""Compares the arms of an ablation by paired intervals over seeds; writes CSV, Markdown, a figure and an HTML page."""

import csv
import io
import math
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import page

LEVEL = 0.95  # of the intervals
METRICS = ("P", "R", "mAP50", "mAP50-95")  # of a split, in the order of a result
SHOWN = ("mAP50", "mAP50-95")
# costs of an arm: key, heading, divisor, digits
COSTS = (
    ("parameters", "parameters", 1, 0),
    ("flops", "GFLOPs", 1e9, 3),
    ("inference", "inference, ms", 1e-3, 2),
    ("step", "training step, ms", 1e-3, 0),
    ("memory", "peak of a step, MiB", 2**20, 0),
)


@dataclass(frozen=True)
class Ablation:
    """The arms of an ablation and the results so far."""

    title: str
    arms: list[str]  # all are compared with the first
    matched: str | None  # the arm of plain layers with as many parameters as the largest
    seeds: list[int]
    splits: list[str]
    results: dict[tuple[str, int], dict]  # (arm, seed) -> {split: [P, R, mAP50, mAP50-95], "seconds": ..., ...}
    costs: dict[str, dict[str, float]] = field(default_factory=dict)  # arm -> values by the keys of COSTS
    machine: str = ""  # on which the times were measured
    command: str = ""

    def values(self, arm: str, split: str, metric: str) -> dict[int, float]:
        """Returns seed -> value for the runs that are done."""
        at = METRICS.index(metric)
        return {seed: self.results[arm, seed][split][at] for seed in self.seeds if (arm, seed) in self.results}


# --- intervals --------------------------------------------------------------------------------------------------------


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


def _within(theta: float, df: int) -> float:
    """Returns P(|T| <= sqrt(df) tan(theta))."""
    cosine, odd = math.cos(theta), df % 2
    term = math.sin(theta) * (cosine if odd else 1)
    total = 0.0
    for k in range(1 + odd, df, 2):  # one term for each power of the cosine below df - 1
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (theta + total) if odd else total


class Difference(NamedTuple):
    """The mean difference of pairs, and half the width of its interval (NaN for one pair)."""

    mean: float
    reach: float
    pairs: int

    @property
    def interval(self) -> tuple[float, float]:
        return self.mean - self.reach, self.mean + self.reach

    @property
    def verdict(self) -> str:
        """Returns the conclusion that the interval allows."""
        low, high = self.interval
        if math.isnan(self.reach):
            return "one pair: no interval"
        return "better" if low > 0 else "worse" if high < 0 else "no difference shown: the interval contains zero"

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
    reach = t_quantile(n - 1) * statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.nan
    return Difference(statistics.fmean(differences), reach, n)


# --- tables -----------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str


def tables(ablation: Ablation) -> list[Table]:
    """Returns the tables of results, of differences to the first and to the matched arm, and of costs."""
    columns = [(split, metric) for split in ablation.splits for metric in SHOWN]
    heads = [f"{split} {metric}" for split, metric in columns]
    made = [
        Table(
            "Results",
            ["arm", "seeds", *heads],
            [
                [arm, str(sum((arm, seed) in ablation.results for seed in ablation.seeds))]
                + [spread(list(ablation.values(arm, *column).values())) for column in columns]
                for arm in ablation.arms
            ],
            "Mean and standard deviation over seeds, of the weights after the last epoch.",
        )
    ]
    for reference in filter(None, (ablation.arms[0], ablation.matched)):
        made.append(_difference_table(ablation, reference, columns, heads))
    if ablation.costs:
        made.append(_cost_table(ablation))
    return made


def spread(values: list[float]) -> str:
    """Returns mean +- standard deviation as text."""
    if not values:
        return "-"
    return f"{statistics.fmean(values):.4f}" + (f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def _difference_table(ablation: Ablation, reference: str, columns: list[tuple[str, str]], heads: list[str]) -> Table:
    rows, known = [], []
    for arm in ablation.arms:
        differences = [paired(ablation.values(arm, *c), ablation.values(reference, *c)) for c in columns]
        if arm != reference and any(differences):
            rows.append([arm, *(f"{d} {_mark(d)}".strip() if d else "-" for d in differences)])
            known += [d for d in differences if d and not math.isnan(d.reach)]
    shown = sum(bool(_mark(d)) for d in known)
    if not known:
        verdict = "An interval needs two seeds."
    elif shown:
        by_chance = len(known) * (1 - LEVEL)
        verdict = f"{shown} of {len(known)} intervals exclude zero; by chance alone, {by_chance:.1f} of them would."
    else:
        verdict = "Every interval contains zero: no difference is shown."
    note = (
        f"Mean of the differences of runs of the same seed, and its {LEVEL:.0%} t interval over seeds, not corrected "
        f"for the number of comparisons. *better*, *worse*: the interval excludes zero. {verdict}"
    )
    return Table(f"Difference to {reference}", ["arm", *heads], rows, note)


def _mark(d: Difference) -> str:
    return f"*{d.verdict}*" if d.verdict in ("better", "worse") else ""


def _cost_table(ablation: Ablation) -> Table:
    first = ablation.costs[ablation.arms[0]]
    rows = []
    for arm in ablation.arms:
        cells = [arm]
        for key, _, unit, digits in COSTS:
            value = ablation.costs[arm].get(key)
            if value is None:
                cells.append("-")
            else:
                cells.append(f"{value / unit:,.{digits}f} ({value / first[key]:.3f})")
        rows.append(cells)
    times = f" Times and memory: {ablation.machine}." if ablation.machine else ""
    note = f"In brackets: as a multiple of {ablation.arms[0]}. FLOPs: a multiply-add counts as two.{times}"
    return Table("Cost", ["arm", *(heading for _, heading, _, _ in COSTS)], rows, note)


def verdicts(ablation: Ablation) -> list[str]:
    """Returns a sentence about mAP50-95 for each arm, split and reference."""
    lines = []
    for reference in filter(None, (ablation.arms[0], ablation.matched)):
        for arm in ablation.arms:
            for split in ablation.splits:
                column = split, "mAP50-95"
                d = paired(ablation.values(arm, *column), ablation.values(reference, *column))
                if d and arm != reference and (reference == ablation.arms[0] or arm != ablation.arms[0]):
                    lines.append(f"{arm} against {reference}, {split} mAP50-95: {d}; seeds: {d.pairs}; {d.verdict}.")
    return lines


# --- files ------------------------------------------------------------------------------------------------------------


def as_csv(ablation: Ablation) -> str:
    """Returns a CSV with a line for every run, whether it is done or not."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["arm", "seed", "status", "epochs", "seconds", "device", "torch"]
        + [f"{split}/{metric}" for split in ablation.splits for metric in METRICS]
    )
    for seed in ablation.seeds:
        for arm in ablation.arms:
            result = ablation.results.get((arm, seed))
            if result is None:
                writer.writerow([arm, seed, "not done", *[""] * (4 + len(METRICS) * len(ablation.splits))])
                continue
            about = [result["epochs"], f"{result['seconds']:.0f}", result["device"], result["torch"]]
            figures = [f"{value:.5f}" for split in ablation.splits for value in result[split]]
            writer.writerow([arm, seed, "done", *about, *figures])
    return text.getvalue()


def as_markdown(ablation: Ablation) -> str:
    """Returns all tables and the conclusions as Markdown."""
    parts = [f"# {ablation.title}", progress(ablation)]
    for table in tables(ablation):
        lines = [table.heads, ["---", *["--:"] * (len(table.heads) - 1)], *table.rows]
        parts.append(f"## {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts.append(table.note)
    if said := verdicts(ablation):
        parts.append("## Conclusions\n\n" + "\n".join(f"- {line}" for line in said))
    parts.append(f"```\n{ablation.command}\n```")
    return "\n\n".join(parts) + "\n"


def progress(ablation: Ablation) -> str:
    """Returns how many of the runs are done, as text."""
    total = len(ablation.arms) * len(ablation.seeds)
    done = sum((arm, seed) in ablation.results for arm in ablation.arms for seed in ablation.seeds)
    return f"{done} of {total} runs are done: {len(ablation.arms)} arms, {len(ablation.seeds)} seeds."


def as_figure(ablation: Ablation) -> bytes:
    """Returns a PNG: differences of mAP50-95 to the first arm with their intervals, a panel per split; and costs."""
    from matplotlib.figure import Figure

    reference, *arms = ablation.arms
    panels = len(ablation.splits) + bool(ablation.costs)
    figure = Figure(figsize=(1.5 + 4.2 * panels, 1.6 + 0.55 * len(arms)), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for axis, split in zip(axes, ablation.splits):
        base = ablation.values(reference, split, "mAP50-95")
        for y, arm in enumerate(arms):
            values = ablation.values(arm, split, "mAP50-95")
            if d := paired(values, base):
                colour = {"better": "#2a7f3f", "worse": "#b00020"}.get(d.verdict, "#3d405b")
                if not math.isnan(d.reach):
                    axis.plot(d.interval, [y, y], color=colour, lw=3, solid_capstyle="round", alpha=0.6)
                axis.plot(
                    [values[s] - base[s] for s in values if s in base],
                    [y] * d.pairs,
                    "o",
                    ms=4,
                    mfc="none",
                    mec="#777777",
                )
                axis.plot([d.mean], [y], "D", ms=6, color=colour)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_title(f"{split} mAP50-95, difference to {reference}", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    if ablation.costs:
        _draw_costs(axes[-1], ablation, arms)
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"diamond: mean; bar: its {LEVEL:.0%} interval; rings: the seeds", fontsize=8, color="#555555")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _draw_costs(axis, ablation: Ablation, arms: list[str]) -> None:
    known = [cost for cost in COSTS if cost[0] in ablation.costs[ablation.arms[0]]]
    first = ablation.costs[ablation.arms[0]]
    height = 0.8 / len(known)
    for k, (key, heading, _, _) in enumerate(known):
        more = [100 * (ablation.costs[arm][key] / first[key] - 1) for arm in arms]
        positions = [y - 0.4 + (k + 0.5) * height for y in range(len(arms))]
        axis.barh(positions, more, height * 0.9, label=heading.partition(",")[0])
    axis.axvline(0, color="black", lw=0.8)
    axis.set_title(f"cost, % more than {ablation.arms[0]}", fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=7, frameon=False)


def as_html(ablation: Ablation, figure: bytes) -> str:
    """Returns a page that needs no other file: the figure, tables, conclusions, every run."""
    parts = [
        page.paragraph(progress(ablation)),
        page.figure(figure, "Differences with their intervals, and costs", "png"),
    ]
    for table in tables(ablation):
        parts += [page.heading(table.title), page.table(table.heads, table.rows), page.paragraph(table.note, note=True)]
    if said := verdicts(ablation):
        parts += [page.heading("Conclusions"), page.bullets(said)]
    heads, *rows = csv.reader(io.StringIO(as_csv(ablation)))
    parts += [page.heading("Every run"), page.table(heads, rows)]
    parts += [page.heading("Command"), page.preformatted(ablation.command)]
    return page.page(ablation.title, parts)
