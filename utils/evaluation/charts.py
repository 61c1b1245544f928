"""Charts of numbers: curves over epochs, precision and recall, the confusion matrix, a search, a study.

They are matplotlib `Figure` objects without pyplot, made and written by the functions of `plots`. Classes have the
colours of their boxes, darkened where they would be lost on white, and line styles that a print in grey keeps apart.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from utils.drawing import Names, class_name
from utils.evaluation.metrics import CONFIDENCE_GRID, RECALL_GRID, ClassMetrics, ConfusionMatrix, fitness
from utils.evaluation.plots import class_rgb, font_family, new_figure, plain_text, save_figure, tick_rotation
from utils.files import read_at_most

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")
MOST_NAMED = 20  # classes that a legend has room for
BEST = "#D55E00"  # of what marks the best


# --- tables of train.py and of --evolve -------------------------------------------------------------------------------


MAX_RESULTS = 1 << 26  # bytes of a table: more than 200,000 epochs
MEASURED = slice(4, 11)  # columns of a results.csv that validation gives: metrics and losses


class ResultTable(NamedTuple):
    """The content of a results.csv: a row per epoch."""

    titles: list[str]
    values: np.ndarray  # (epochs, columns), the first column is the epoch

    @property
    def fitness(self) -> np.ndarray:
        """Returns the fitness (epochs,) by which best.pt is chosen; NaN counts as 0."""
        return np.nan_to_num(fitness(self.values[:, 4:8]))

    @property
    def best(self) -> int:
        """Returns the row of the best epoch, the last one of equals, as train.py chooses it."""
        return len(self.values) - 1 - int(self.fitness[::-1].argmax())

    @property
    def validated(self) -> np.ndarray:
        """Returns which epochs (epochs,) were validated; of the others, after --noval, the table has zeros."""
        return self.values[:, MEASURED].any(1)

    def curve(self, column: int | None) -> np.ndarray:
        """Returns a column (epochs,), or the fitness for None, with NaN where nothing was measured."""
        if column is None or column in range(*MEASURED.indices(len(self.titles))):
            return np.where(self.validated, self.fitness if column is None else self.values[:, column], np.nan)
        return self.values[:, column]


def read_results(file: str | Path) -> ResultTable:
    """Reads a results.csv or evolve.csv; ValueError that names the line for what is no such table."""
    file = Path(file)
    try:
        reader = csv.reader(io.StringIO(read_at_most(file, MAX_RESULTS).decode(), newline=""), skipinitialspace=True)
        titles = [title.strip() for title in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: not a CSV file in UTF-8: {error}") from None
    if len(titles) < 11 or not rows:
        raise ValueError(f"{file}: expected a line of at least 11 titles, then one line per epoch")
    values = np.empty((len(rows), len(titles)))
    for i, (line, row) in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(f"{file}:{line}: expected {len(titles)} numbers, got {len(row)}")
        try:
            values[i] = [float(value) for value in row]
        except ValueError as error:
            raise ValueError(f"{file}:{line}: {error}") from None
    values[np.abs(values) > np.finfo(np.float32).max] = np.inf  # no axis spans such numbers
    return ResultTable(titles, values)


# --- curves over epochs -----------------------------------------------------------------------------------------------

# Columns of results.csv that share a panel: one each in results.png as in v6.1, train beside val on a page
PANELS = ((1,), (2,), (3,), (4,), (5,), (11, 12, 13), (8,), (9,), (10,), (6,), (7,))
PAIRED_PANELS = {
    "box loss": (1, 8), "objectness loss": (2, 9), "class loss": (3, 10), "precision and recall": (4, 5),
    "mAP": (6, 7), "learning rate": (11, 12, 13),
}  # fmt: skip


def plot_results(file: str | Path) -> Path:
    """Writes results.png beside results.csv: losses, metrics, learning rates and fitness by epoch, the best marked.

    It has every results*.csv in that folder.
    """
    folder = Path(file).parent
    files = sorted(folder.glob("results*.csv"))
    if not files:
        raise FileNotFoundError(f"{folder}: there is no results*.csv; give a folder that train.py wrote")
    path = folder / "results.png"
    save_figure(draw_results({csv_file.stem: read_results(csv_file) for csv_file in files}), path, dpi=200)
    return path


def draw_results(tables: Mapping[str, ResultTable]) -> "Figure":
    """Draws a panel for each quantity in results.csv, with a line for each table, and for fitness."""
    figure = new_figure(14.4, 6.3)
    axes = figure.subplots(2, 6).ravel()
    for ax, columns in zip(axes, PANELS):
        draw_panel(ax, tables, columns)
    draw_panel(axes[11], tables, ())
    for ax in axes[6:]:
        ax.set_xlabel("epoch")
    if len(tables) == 1 and axes[5].lines:
        axes[5].legend(fontsize=8, framealpha=0.7)
    family = font_family(list(tables))
    handles, labels = axes[11].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, frameon=False, prop={"family": family, "size": 10}
    )
    return figure


def draw_panel(ax: "Axes", tables: Mapping[str, ResultTable], columns: Sequence[int], title: str = "") -> None:
    """Draws columns of results.csv over the epochs, a line for each table, with a ring at the best epoch.

    columns: none for the fitness. Columns that a table does not have are left out, as the learning rates of old files.
    """
    alone = len(tables) == 1
    titles = [""]
    for k, (name, table) in enumerate(tables.items()):
        known = [c for c in columns if c < len(table.titles)]
        titles = [table.titles[c] for c in known] or titles
        curves = [table.curve(c) for c in (known if columns else [None])]
        labels = _short(titles) if alone else [plain_text(name)] + [None] * len(curves)
        for j, (curve, label) in enumerate(zip(curves, labels)):
            look = j if alone else k
            ax.plot(
                table.values[:, 0], curve, STYLES[look % len(STYLES)], color=line_rgb(look + 4 * alone), linewidth=1.8,
                marker="." if len(curve) <= 50 else "", label=label,
            )  # fmt: skip
            _ring(ax, table, curve, BEST if alone else "black")  # which no run has
    if alone and ax.lines:
        ax.axvline(table.values[table.best, 0], color=BEST, linewidth=0.8, linestyle="--", alpha=0.7, zorder=0)
    if rings := [line for line in ax.lines if line.get_marker() == "o"]:
        rings[-1].set_label(f"best epoch {table.values[table.best, 0]:.0f}" if alone else "best epoch of each")
    ax.set_title(title or (titles[0] if len(columns) == 1 else "learning rate" if columns else "fitness"), fontsize=11)
    ax.grid(alpha=0.3)
    ax.ticklabel_format(axis="y", style="plain", useOffset=False)
    ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    low, high = ax.get_xlim()
    if high - low < 1:  # a single epoch
        ax.set_xlim(low - 0.5, high + 0.5)


def _ring(ax: "Axes", table: ResultTable, curve: np.ndarray, color: str) -> None:
    look = {"markersize": 8, "markerfacecolor": "none", "markeredgecolor": color, "markeredgewidth": 1.8}
    ax.plot(table.values[table.best, 0], curve[table.best], "o", zorder=5, **look)


def _short(titles: Sequence[str]) -> list[str | None]:
    """Returns what tells titles of one panel apart: train and val of their losses, or the name after the slash."""
    if len(titles) == 1:
        return [None]
    first, last = zip(*(title.rpartition("/")[::2] for title in titles))
    return list(first if len(set(last)) == 1 else last)


def panel_figures(table: ResultTable) -> list[tuple[str, "Figure"]]:
    """Returns a small figure with its title for each of PAIRED_PANELS, which a phone can show too."""
    figures = []
    for title, columns in PAIRED_PANELS.items():
        if columns[0] < len(table.titles):
            figure = new_figure(4.4, 3.1)
            axes = figure.subplots()
            draw_panel(axes, {"": table}, columns, title)
            axes.set_xlabel("epoch")
            axes.legend(fontsize=8, framealpha=0.7)
            figures.append((title, figure))
    return figures


def overlaid_figures(tables: Mapping[str, ResultTable]) -> list[tuple[str, "Figure"]]:
    """Returns a small figure with its title for each quantity in results.csv and for fitness, a line for each table."""
    figures = []
    for columns in ((6,), (7,), (), *(c for c in PANELS if c not in ((6,), (7,)))):
        if columns and all(columns[0] >= len(table.titles) for table in tables.values()):
            continue
        figure = new_figure(4.4, 3.1)
        axes = figure.subplots()
        draw_panel(axes, tables, columns)
        axes.set_xlabel("epoch")
        axes.legend(prop={"family": font_family(list(tables)), "size": 8}, framealpha=0.7)
        figures.append((axes.get_title(), figure))
    return figures


def line_rgb(i: int) -> tuple[float, ...]:
    """Returns the colour of class i for a line on white: that of its boxes, darker where white would swallow it."""
    rgb = class_rgb(i)
    light = float(np.dot((0.2, 0.6, 0.2), rgb))
    return tuple(channel * min(1.0, 0.55 / max(light, 1e-9)) for channel in rgb)


# --- a search for hyper-parameters, a study ---------------------------------------------------------------------------


def plot_evolution(file: str | Path) -> Path:
    """Writes evolve.png beside evolve.csv: fitness by hyper-parameter, later trials darker, the best ringed."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    file = Path(file)
    titles, values = read_results(file)
    fit = fitness(values)
    best = int(fit.argmax())
    names, columns = titles[7:], values[:, 7:].T
    rows = math.ceil(len(names) / 5)
    figure = new_figure(11, 2 * rows + 0.6)
    axes = figure.subplots(rows, 5, sharey=True, squeeze=False).ravel()
    for ax, name, column in zip(axes, names, columns):
        points = ax.scatter(
            column, fit, c=range(1, len(fit) + 1), cmap="cividis_r", s=22, linewidths=0.4, edgecolors="k"
        )
        (ring,) = ax.plot(column[best], fit[best], "o", ms=11, mfc="none", mec=BEST, mew=2)
        ax.set_title(f"{name} = {column[best]:.3g}", fontsize=9)
        ax.tick_params(labelsize=7)
        ax.grid(alpha=0.3)
        for axis, marks in ((ax.xaxis, 2), (ax.yaxis, 5)):
            axis.set_major_locator(MaxNLocator(marks))
            formatter = ScalarFormatter(useOffset=False)
            formatter.set_scientific(False)
            axis.set_major_formatter(formatter)
    for ax in axes[::5]:
        ax.set_ylabel("fitness", fontsize=8)
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    points.set_clim(0, max(len(fit) - 1, 1))
    figure.colorbar(points, ax=axes.tolist(), label="trial", ticks=MaxNLocator(integer=True), pad=0.01, aspect=60)
    figure.legend([ring], [f"the best: trial {best}, fitness {fit[best]:.4f}; its values are in the titles"],
                  loc="outside lower center", frameon=False, fontsize=9)  # fmt: skip
    path = file.with_suffix(".png")
    save_figure(figure, path, dpi=200)
    return path


def plot_study(files: Sequence[str | Path], path: str | Path, reference: bool = False) -> None:
    """Writes a chart of mAP against inference time from the files of `val.py --task study`, a line for each file.

    reference: add EfficientDet D0 to D7 on COCO (Tan et al., CVPR 2020, table 2: AP of val, ms on a V100, batch 1).
    """
    figure = new_figure(9, 6)
    axes = figure.subplots()
    for i, file in enumerate(files):
        rows = np.loadtxt(file, ndmin=2)
        name = Path(file).stem.removeprefix("study_")
        look = {"linestyle": STYLES[i % len(STYLES)], "color": line_rgb(i), "label": plain_text(name)}
        axes.plot(rows[:, 8], 100 * rows[:, 3], marker=".", linewidth=2, markersize=8, **look)
    if reference:
        ms, ap = (10.2, 13.5, 17.7, 28.0, 42.8, 72.5, 92.8, 122.0), (34.3, 40.2, 43.5, 46.8, 49.3, 51.2, 52.1, 53.4)
        axes.plot(ms, ap, "k.-", linewidth=2, markersize=8, alpha=0.25, label="EfficientDet, V100")
    axes.set(xlabel="inference, ms per image", ylabel="mAP@.5:.95, %", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, Path(path), dpi=200)


# --- precision, recall, F1 --------------------------------------------------------------------------------------------


def plot_curves(metrics: ClassMetrics, save_dir: str | Path, names: Names | None = None) -> None:
    """Writes PR_curve.png, F1_curve.png, P_curve.png and R_curve.png."""
    save_dir = Path(save_dir)
    ap50 = metrics.ap50
    labels = [f"{class_name(names, c, 24)} {ap:.3f}" for c, ap in zip(metrics.classes, ap50)]
    mean = f"all classes {ap50.mean() if len(ap50) else 0:.3f} mAP@0.5"
    _plot_curve(save_dir / "PR_curve.png", RECALL_GRID, metrics.pr_curve, labels, mean, ("Recall", "Precision"))

    labels = [class_name(names, c, 24) for c in metrics.classes]
    for stem, title, curve in (
        ("F1", "F1", metrics.f1_curve),
        ("P", "Precision", metrics.p_curve),
        ("R", "Recall", metrics.r_curve),
    ):
        average = curve.mean(0) if len(curve) else np.zeros_like(CONFIDENCE_GRID)
        mean = f"all classes {average.max():.2f} at {CONFIDENCE_GRID[average.argmax()]:.3f}"
        _plot_curve(save_dir / f"{stem}_curve.png", CONFIDENCE_GRID, curve, labels, mean, ("Confidence", title))


def _plot_curve(
    path: Path, x: np.ndarray, curves: np.ndarray, labels: list[str], mean_label: str, axis_labels: tuple[str, str]
) -> None:
    """Draws a line per class (C, 1000), named in the legend if there are few, and a bold black one for the mean."""
    figure = new_figure(9, 6)
    axes = figure.subplots()
    if len(curves) <= MOST_NAMED:
        for i, (curve, label) in enumerate(zip(curves, labels)):
            look = {"linestyle": STYLES[i % len(STYLES)], "color": line_rgb(i)}
            axes.plot(x, curve, linewidth=1.5, label=plain_text(label), **look)
    else:
        first, *_ = axes.plot(x, curves.T, linewidth=0.8, color="grey", alpha=0.5)
        first.set_label(f"each of {len(curves)} classes")
    if len(curves):
        axes.plot(x, curves.mean(0), linewidth=3, color="black", label=mean_label)
        family = font_family(labels if len(curves) <= MOST_NAMED else [])
        axes.legend(
            bbox_to_anchor=(1.02, 1),
            loc="upper left",
            prop={"family": family, "size": 9},
            handlelength=3,
            frameon=False,
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=axis_labels[0], ylabel=axis_labels[1])
    axes.set_title(f"{axis_labels[1]} over {axis_labels[0].lower()}, IoU 0.5")
    axes.grid(alpha=0.3)
    save_figure(figure, path, dpi=250)


# --- the confusion matrix ---------------------------------------------------------------------------------------------


def plot_confusion_matrix(confusion: ConfusionMatrix, save_dir: str | Path, names: Names | None = None) -> None:
    """Writes confusion_matrix.png, of the objects of each class (column) the share predicted as each class (row), and
    confusion_matrix_counts.png, the numbers of boxes."""
    rule = f"boxes of confidence above {confusion.conf:g}, IoU above {confusion.iou_thres:g}"
    shares, counts = confusion.normalized(), confusion.matrix.copy()
    shares[shares < 0.005] = np.nan  # blank
    counts[counts == 0] = np.nan
    _plot_matrix(shares, f"Confusion matrix, normalised: each column adds up to 1\n{rule}",
                 Path(save_dir) / "confusion_matrix.png", names, ".2f")  # fmt: skip
    _plot_matrix(counts, f"Confusion matrix, numbers of boxes\n{rule}",
                 Path(save_dir) / "confusion_matrix_counts.png", names, ".0f")  # fmt: skip


def _plot_matrix(matrix: np.ndarray, title: str, path: Path, names: Names | None, digits: str) -> None:
    """Draws a matrix (nc + 1, nc + 1), in which NaN stays blank; digits: the format of a number in it."""
    from matplotlib.colors import LogNorm, Normalize

    nc = len(matrix) - 1
    counted = digits == ".0f"
    norm = LogNorm(1, max(np.nan_to_num(matrix).max(), 10)) if counted else Normalize(0, 1)
    figure = new_figure(12, 9)
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="Blues", norm=norm, aspect="auto")
    figure.colorbar(image, ax=axes, pad=0.02, format="{x:g}")
    if nc < 30:
        size = min(12, 300 / (nc + 1))
        for row, column in np.argwhere(~np.isnan(matrix)):
            value = matrix[row, column]
            colour = "white" if norm(value) > 0.5 else "black"
            axes.text(column, row, f"{value:{digits}}", ha="center", va="center", fontsize=size, color=colour)
    axes.set(xlabel="True class", ylabel="Predicted class")
    axes.set_title(title, fontsize=12)
    if names is not None and len(names) == nc < 99:
        ticks = [plain_text(class_name(names, i, 20)) for i in range(nc)]
        style = {"fontsize": min(11, 420 / (nc + 1)), "family": font_family(ticks)}
        below = [*ticks, "background (no object)"]
        axes.set_xticks(range(nc + 1), below, rotation=tick_rotation(below, 100), **style)
        axes.set_yticks(range(nc + 1), [*ticks, "background (missed)"], **style)
    save_figure(figure, path, dpi=125 if counted else 250)
