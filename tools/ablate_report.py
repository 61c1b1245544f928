"""Compares the arms of an ablation by paired intervals over seeds; writes CSV, Markdown, a figure and an HTML page."""

import csv
import io
import math
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.ablate_statistics import LEVEL, POWER, Difference, detectable, holm, paired, pooled, verdict
from utils import page
from utils.text import csv_field

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = ("P", "R", "mAP50", "mAP50-95")  # of a split, in the order of a result
SHOWN = ("mAP50", "mAP50-95")
MAIN = "mAP50-95"  # what conclusions are drawn from
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
    controls: list[str]  # arms without attention of which each has its own table: plain layers, learnt constants
    seeds: list[int]
    splits: list[str]  # that may be shown
    results: dict[tuple[str, int], dict]  # (arm, seed) -> {split: [P, R, mAP50, mAP50-95], "seconds": ..., ...}
    costs: dict[str, dict[str, float]] = field(default_factory=dict)  # arm -> values by the keys of COSTS
    machine: str = ""  # on which the times were measured
    command: str = ""
    looks: int | None = None  # how often results of test were shown; None where there is no test split

    def values(self, arm: str, split: str, metric: str) -> dict[int, float]:
        """Returns seed -> value for the runs that are done."""
        at = METRICS.index(metric)
        return {seed: self.results[arm, seed][split][at] for seed in self.seeds if (arm, seed) in self.results}

    def class_values(self, arm: str, split: str) -> dict[str, dict[int, float]]:
        """Returns class -> seed -> mAP50-95 for the runs that are done and have it."""
        found: dict[str, dict[int, float]] = {}
        for seed in self.seeds:
            for name, value in self.results.get((arm, seed), {}).get("classes", {}).get(split, {}).items():
                found.setdefault(name, {})[seed] = value
        return found

    @property
    def references(self) -> list[str]:
        """Returns the arms that others are compared with: the first, and the controls."""
        return list(dict.fromkeys([self.arms[0], *self.controls]))


class Compared(NamedTuple):
    """The difference of an arm to a reference, with its p-value after Holm's correction for all arms compared so."""

    difference: Difference
    p: float  # NaN for one pair

    @property
    def verdict(self) -> str:
        return verdict(self.difference, self.p)

    def __str__(self) -> str:
        if math.isnan(self.p):
            return str(self.difference)
        mark = f" *{self.verdict}*" if self.verdict in ("better", "worse") else ""
        return f"{self.difference} p {p_text(self.p)}{mark}"


def p_text(p: float) -> str:
    """Returns a p-value with two digits, or < 0.001."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def compared(ablation: Ablation, reference: str, split: str, metric: str) -> dict[str, Compared]:
    """Returns the arms that have a seed in common with the reference; they are the family of Holm's correction.

    The first arm is left out where a control is the reference: their difference stands in the first arm's own table.
    """
    base = ablation.values(reference, split, metric)
    pairs = {
        arm: paired(ablation.values(arm, split, metric), base)
        for arm in ablation.arms
        if arm not in (reference, ablation.arms[0])
    }
    known = {arm: d for arm, d in pairs.items() if d}
    return {arm: Compared(d, p) for (arm, d), p in zip(known.items(), holm([d.p for d in known.values()]))}


# --- tables -----------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str


def tables(ablation: Ablation) -> list[Table]:
    """Returns the tables of results, of differences to the first arm and to the controls, of classes, and of costs."""
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
    made += [_difference_table(ablation, reference, columns, heads) for reference in ablation.references]
    made += [table for split in ablation.splits if (table := _class_table(ablation, split))]
    if ablation.costs:
        made.append(_cost_table(ablation))
    return made


def spread(values: list[float]) -> str:
    """Returns mean +- standard deviation as text."""
    if not values:
        return "-"
    return f"{statistics.fmean(values):.4f}" + (f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def _difference_table(ablation: Ablation, reference: str, columns: list[tuple[str, str]], heads: list[str]) -> Table:
    found = [compared(ablation, reference, *column) for column in columns]
    arms = [arm for arm in ablation.arms if any(arm in column for column in found)]
    rows = [[arm, *(str(column.get(arm, "-")) for column in found)] for arm in arms]
    note = (
        f"Mean of the differences of runs of the same seed, and its {LEVEL:.0%} t interval over seeds, which is not "
        "corrected. p is corrected for the number of arms in its column (Holm); *better*, *worse*: p is below "
        f"{1 - LEVEL:.2g}. {_shown(found)} {power_line(ablation, reference)}"
    )
    return Table(f"Difference to {reference}", ["arm", *heads], rows, note.strip())


def _shown(found: list[dict[str, Compared]]) -> str:
    known = [c for column in found for c in column.values() if not math.isnan(c.p)]
    if not known:
        return "An interval needs two seeds."
    shown = sum(c.p < 1 - LEVEL for c in known)
    return f"A difference is shown in {shown} of {len(known)} cells." if shown else "No difference is shown."


def power_line(ablation: Ablation, reference: str) -> str:
    """Returns which difference of val mAP50-95 so many seeds could have shown, as a sentence; "" before two seeds."""
    found = compared(ablation, reference, ablation.splits[0], MAIN)
    spread = pooled([c.difference.deviation for c in found.values()])
    pairs = min((c.difference.pairs for c in found.values() if c.difference.pairs > 1), default=0)
    if not pairs:
        return ""
    several, single = (detectable(pairs, spread, arms) for arms in (len(found), 1))
    return (
        f"Power: the differences of {ablation.splits[0]} {MAIN} have a standard deviation of {spread:.4f} over seeds, "
        f"so with {pairs} seeds a true difference of {several:.4f} is shown with a chance of {POWER:.0%} after the "
        f"correction for {len(found)} arms ({single:.4f} for a single arm); a smaller one can be missed."
    )


def _class_table(ablation: Ablation, split: str) -> Table | None:
    """Returns the classes' mAP50-95 of the first arm, and the differences of the others to it; None without results."""
    first, *others = ablation.arms
    base = ablation.class_values(first, split)
    values = {arm: ablation.class_values(arm, split) for arm in others}
    rows = []
    for name, seeds in base.items():
        cells = [paired(values[arm].get(name, {}), seeds) for arm in others]
        rows.append([name, f"{statistics.fmean(seeds.values()):.4f}", *(str(d) if d else "-" for d in cells)])
    note = (
        f"{MAIN} of each class: the mean of {first}, and the differences of the other arms to it with their intervals. "
        "They are not corrected for the number of classes and arms: they describe, and prove nothing."
    )
    return Table(f"Classes, {split} {MAIN}", ["class", *ablation.arms], rows, note) if rows else None


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
    """Returns sentences: how often test was shown, which arm val chooses, and each arm's mAP50-95 against the first."""
    lines = [*_about_test(ablation), *_chosen(ablation)]
    for split in ablation.splits:
        for arm, c in compared(ablation, ablation.arms[0], split, MAIN).items():
            p = "" if math.isnan(c.p) else f"; p {p_text(c.p)} (Holm)"
            lines.append(
                f"{arm} against {ablation.arms[0]}, {split} {MAIN}: {c.difference}; seeds: {c.difference.pairs}{p}; "
                f"{c.verdict}."
            )
    return lines


def _about_test(ablation: Ablation) -> list[str]:
    if ablation.looks is None:
        return []
    if "test" not in ablation.splits:
        before = (
            f" (it was looked at {_times(ablation.looks)} before, with other arms or seeds)" if ablation.looks else ""
        )
        return [f"test is measured in every run, and shown when all runs are done{before}."]
    more = "" if ablation.looks == 1 else "; an arm that was added after the first look was not chosen blindly"
    return [f"test was looked at {_times(ablation.looks)}{more}."]


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _chosen(ablation: Ablation) -> list[str]:
    """Returns a sentence on the arm with the highest mean on val, controls aside, and on what test says of that arm."""
    means = {
        arm: statistics.fmean(values.values())
        for arm in ablation.arms[1:]
        if arm not in ablation.controls and (values := ablation.values(arm, "val", MAIN))
    }
    if not means:
        return []
    best = max(means, key=means.get)
    said = f"val chooses {best}: its mean {MAIN} there, {means[best]:.4f}, is the highest, the controls aside."
    if "test" in ablation.splits:
        values = ablation.values(best, "test", MAIN)
        pairs = {r: paired(values, ablation.values(r, "test", MAIN)) for r in ablation.references}
        parts = [
            f"against {r} {d}" + ("" if math.isnan(d.p) else f", p {p_text(d.p)}, {verdict(d, d.p)}")
            for r, d in pairs.items()
            if d
        ]
        said += f" On test, for this one arm (so p is not corrected): {'; '.join(parts)}."
    return [said]


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


def classes_as_csv(ablation: Ablation) -> str:
    """Returns a CSV with a line for every class of every run that is done, in each split that may be shown."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", "split", "class", MAIN])
    for split in ablation.splits:
        for arm in ablation.arms:
            for name, values in ablation.class_values(arm, split).items():
                writer.writerows([arm, seed, split, csv_field(name), f"{value:.5f}"] for seed, value in values.items())
    return text.getvalue()


def as_markdown(ablation: Ablation) -> str:
    """Returns all tables and the conclusions as Markdown."""
    parts = [f"# {ablation.title}", progress(ablation)]
    if said := verdicts(ablation):
        parts.append("## Conclusions\n\n" + "\n".join(f"- {line}" for line in said))
    for table in tables(ablation):
        lines = [table.heads, ["---", *["--:"] * (len(table.heads) - 1)], *table.rows]
        parts.append(f"## {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts.append(table.note)
    parts.append(f"```\n{ablation.command}\n```")
    return "\n\n".join(parts) + "\n"


def progress(ablation: Ablation) -> str:
    """Returns how many of the runs are done, and about how long the others take, as text."""
    runs = [(arm, seed) for seed in ablation.seeds for arm in ablation.arms]
    done = [run for run in runs if run in ablation.results]
    text = (
        f"{len(done)} of {len(runs)} runs are done: {len(ablation.arms)} arms, {len(ablation.seeds)} "
        f"seed{'s' * (len(ablation.seeds) > 1)}."
    )
    if done and len(done) < len(runs):
        each = statistics.fmean(ablation.results[run]["seconds"] for run in done)
        text += f" The others take one process about {_duration(each * (len(runs) - len(done)))}."
    return text


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{max(seconds, 60) / 60:.0f} min"


def as_figure(ablation: Ablation) -> bytes:
    """Returns the figure of `draw` as a PNG."""
    file = io.BytesIO()
    draw(ablation).savefig(file, format="png", dpi=120)
    return file.getvalue()


def draw(ablation: Ablation) -> "Figure":
    """Draws the differences of mAP50-95 to the first arm with their intervals, a panel per split; and the costs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    reference, *arms = ablation.arms
    panels = len(ablation.splits) + bool(ablation.costs)
    figure = Figure(figsize=(1.5 + 4.2 * panels, 1.8 + 0.55 * len(arms)), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for axis, split in zip(axes, ablation.splits):
        base = ablation.values(reference, split, MAIN)
        for arm, c in compared(ablation, reference, split, MAIN).items():
            values, y = ablation.values(arm, split, MAIN), arms.index(arm)
            _draw_difference(axis, y, c, [values[seed] - base[seed] for seed in values if seed in base])
        axis.axvline(0, color="black", lw=0.8)
        axis.set_title(f"{split} {MAIN}, difference to {reference}", fontsize=10)
    if ablation.costs:
        _draw_costs(axes[-1], ablation, arms)
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(5))  # of a panel's 4 inches: six labels such as -0.0050 fit
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        f"large mark: mean (triangle: better or worse, p < {1 - LEVEL:.2g} after Holm's correction; diamond: neither)\n"
        f"bar: its {LEVEL:.0%} interval; rings: the seeds",
        fontsize=8, color="#555555",
    )  # fmt: skip
    return figure


# of Okabe and Ito, the order such that neighbours differ in print too
COST_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#f0e442", "#cc79a7")
# colour (also of theirs) and mark of a verdict, which differ in print too
MARKS = {"better": ("#0072b2", ">"), "worse": ("#d55e00", "<")}


def _draw_difference(axis, y: int, c: Compared, differences: list[float]) -> None:
    colour, mark = MARKS.get(c.verdict, ("#3d405b", "D"))
    if not math.isnan(c.difference.reach):
        axis.plot(c.difference.interval, [y, y], color=colour, lw=3, solid_capstyle="round", alpha=0.6)
    axis.plot(differences, [y] * len(differences), "o", ms=4, mfc="none", mec="#777777")
    axis.plot([c.difference.mean], [y], mark, ms=7, color=colour)


def _draw_costs(axis, ablation: Ablation, arms: list[str]) -> None:
    known = [cost for cost in COSTS if cost[0] in ablation.costs[ablation.arms[0]]]
    first = ablation.costs[ablation.arms[0]]
    height = 0.8 / len(known)
    for k, (key, heading, _, _) in enumerate(known):
        more = [100 * (ablation.costs[arm][key] / first[key] - 1) for arm in arms]
        positions = [y - 0.4 + (k + 0.5) * height for y in range(len(arms))]
        axis.barh(positions, more, height * 0.9, label=heading.partition(",")[0], color=COST_COLOURS[k])
    axis.axvline(0, color="black", lw=0.8)
    axis.set_title(f"cost, % more than {ablation.arms[0]}", fontsize=10)
    axis.legend(fontsize=7, frameon=False)


def as_html(ablation: Ablation, figure: bytes) -> str:
    """Returns a page that needs no other file: the figure, tables, conclusions, every run."""
    parts = [
        page.paragraph(progress(ablation)),
        page.figure(figure, "Differences with their intervals, and costs", "png"),
    ]
    if said := verdicts(ablation):
        parts += [page.heading("Conclusions"), page.bullets(said)]
    for table in tables(ablation):
        parts += [page.heading(table.title), page.table(table.heads, table.rows), page.paragraph(table.note, note=True)]
    heads, *rows = csv.reader(io.StringIO(as_csv(ablation)))
    parts += [page.heading("Every run"), page.table(heads, rows)]
    parts += [page.heading("Command"), page.preformatted(ablation.command)]
    return page.page(ablation.title, parts)
