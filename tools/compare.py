"""Compares runs of train.py or val.py: curves in one figure, the settings that differ and the results in one table.

    python tools/compare.py runs/train/exp runs/train/exp2

The table is printed; compare.png and compare.html, a page that needs no other file, go to runs/compare/exp. Runs of
v6.1 can be compared too: results.csv, opt.yaml and hyp.yaml are read, and metrics.json where there is one.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli, page
from utils.files import atomic_write, increment_path, read_at_most, read_yaml
from utils.log import LOGGER
from utils.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from utils.evaluation.charts import ResultTable

MOST_BYTES = 1 << 26  # of a metrics.json
SCORES = ("precision", "recall", "mAP50", "mAP50-95")
OF_THE_FOLDER = {
    "save_dir",
    "project",
    "name",
    "exist_ok",
    "resume",
    "latex",
    "report",
}  # settings that differ without a meaning
MEASURED_ON = ("data", "split", "image_size", "imgsz")  # runs that differ in these were measured by different rulers
MOST_CLASSES = 40  # rows of the table
MISSING = "-"


@dataclass
class RunRecord:
    """What the folder of a run says of it."""

    name: str
    folder: Path
    settings: dict[str, str]
    scores: dict[str, float | None]  # by SCORES
    facts: dict[str, str]
    classes: dict[str, float | None] = field(default_factory=dict)  # name -> mAP50-95
    curves: "ResultTable | None" = None


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser, which states every option once: name, type, range, default, help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run of train.py or val.py; the first one is the reference"
    )
    cli.add_run_folder(parser, "runs/compare")
    return parser


def parse_opt(known: bool = False) -> cli.Options:
    """Parses the command line."""
    return cli.parse(make_parser(), known)


# --- what a run says of itself ----------------------------------------------------------------------------------------


def read_run(folder: Path, name: str) -> RunRecord:
    """Reads the folder of a run.

    Raises ValueError where it is none, or a file in it is not what train.py or val.py writes.
    """
    from utils.evaluation.charts import read_results

    files = {part: folder / part for part in ("results.csv", "metrics.json", "opt.yaml", "hyp.yaml")}
    if not any(files[part].is_file() for part in ("results.csv", "metrics.json")):
        raise ValueError(f"{folder}: must be the folder of a run, with the results.csv or the metrics.json in it")
    measured = _read_json(files["metrics.json"]) if files["metrics.json"].is_file() else {}
    curves = read_results(files["results.csv"]) if files["results.csv"].is_file() else None
    settings = read_yaml(files["opt.yaml"]) if files["opt.yaml"].is_file() else measured.get("settings", {})
    settings = {**settings, **{key: measured[key] for key in ("split", "image_size") if key in measured}}
    if files["hyp.yaml"].is_file():
        settings |= {f"hyp: {key}": value for key, value in read_yaml(files["hyp.yaml"]).items()}
    facts, scores = {}, {key: _number(measured.get(key)) for key in SCORES}
    if curves:
        best, facts = curves.values[curves.best], {"epochs done": str(len(curves.values))}
        if curves.validated[curves.best]:  # not in a run with --noval that has not come to its end
            facts["best epoch"] = f"{best[0]:.0f}"
            scores = scores if measured else dict(zip(SCORES, map(float, best[4:8])))
    rows = [row for row in measured.get("classes", []) if isinstance(row, dict)]
    settings = {str(key): page.shown(value) for key, value in settings.items() if key not in OF_THE_FOLDER}
    return RunRecord(
        name=name, folder=folder, settings=settings, scores=scores, facts=facts, curves=curves,
        classes={str(row.get("name")): _number(row.get("mAP50-95")) for row in rows},
    )  # fmt: skip


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_at_most(file, MOST_BYTES))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("settings", {}), dict):
        raise ValueError(f"{file}: must be the mapping that train.py and val.py write; move the file away")
    classes = content.get("classes", [])
    return {**content, "classes": classes if isinstance(classes, list) else []}


def _number(value: Any) -> float | None:
    """Returns a number of a metrics.json; None for what is none, and for one too large to be a share or a count."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and abs(value) < 1e9 else None


def run_names(folders: Sequence[Path]) -> list[str]:
    """Returns a short name for each folder: as many of its last parts as tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise ValueError("a run is given twice; give each folder once")
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            break
    return [printable(name, lines=False) for name in names]


# --- the table --------------------------------------------------------------------------------------------------------


def compared(runs: Sequence[RunRecord]) -> list[list[str]]:
    """Returns the rows of the table: what, and a cell for each run; the settings that differ, then the results.

    A setting that one run knows and another, of an older version, does not, is no difference.
    """
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    differ = [key for key in keys if len({run.settings[key] for run in runs if key in run.settings}) > 1]
    rows = [[key, *(run.settings.get(key, MISSING) for run in runs)] for key in differ]
    for key in ("epochs done", "best epoch"):
        rows.append([key, *(run.facts.get(key, MISSING) for run in runs)])
    for key in SCORES:
        rows.append([key, *(_score(run.scores[key]) for run in runs)])
    first = runs[0].scores["mAP50-95"]
    rows.append([f"mAP50-95 against {runs[0].name}", *(_difference(run.scores["mAP50-95"], first) for run in runs)])
    names = list(dict.fromkeys(name for run in runs for name in run.classes))
    for name in names[:MOST_CLASSES]:
        rows.append([f"mAP50-95 of {name}", *(_score(run.classes.get(name)) for run in runs)])
    return rows


def _score(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _difference(value: float | None, reference: float | None) -> str:
    return MISSING if value is None or reference is None else f"{value - reference:+.4f}"


def cautions(runs: Sequence[RunRecord]) -> list[str]:
    """Returns what a reader must know before comparing the numbers."""
    said = []
    differ = [key for key in MEASURED_ON if len({run.settings.get(key) for run in runs if key in run.settings}) > 1]
    if differ:
        said.append(
            f"The runs differ in {', '.join(differ)}: their numbers were measured on different images or sizes."
        )
    said.append(
        "One run each: another seed alone moves mAP by a few thousandths to hundredths; tools/ablate.py compares over "
        "seeds."
    )
    return said


def as_text(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns the table for a terminal, long cells cut."""
    cells = [[printable(cell, lines=False) for cell in row] for row in (heads, *rows)]
    cells = [[cell if len(cell) <= 40 else f"{cell[:38]}.." for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
        [cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths))] for row in cells
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


# --- the figure and the page ------------------------------------------------------------------------------------------


def draw_scores(runs: Sequence[RunRecord]) -> "Figure":
    """Draws precision, recall and mAP of each run as points, for runs that have no curves."""
    from utils.evaluation.charts import line_rgb
    from utils.evaluation.plots import font_family, new_figure, plain_text

    figure = new_figure(8, 2.2 + 0.35 * len(runs))
    axes = figure.subplots()
    for k, (run, marker) in enumerate(zip(runs, "os^Dv<>Pp*" * len(runs))):
        known = [(run.scores[key], y) for y, key in enumerate(SCORES) if run.scores[key] is not None]
        axes.plot(
            *zip(*known), marker, color=line_rgb(k), markersize=9, alpha=0.8, label=plain_text(run.name)
        ) if known else None
    axes.set(xlim=(-0.02, 1.02), ylim=(len(SCORES) - 0.5, -0.5))
    axes.set_yticks(range(len(SCORES)), SCORES)
    axes.grid(alpha=0.3)
    names = font_family([run.name for run in runs])
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, prop={"family": names, "size": 9})
    return figure


def write(runs: Sequence[RunRecord], folder: Path) -> None:
    """Writes compare.png and compare.html."""
    from utils.evaluation.charts import draw_results, overlaid_figures
    from utils.evaluation.plots import figure_bytes, save_figure

    curves: Mapping[str, ResultTable] = {run.name: run.curves for run in runs if run.curves}
    save_figure(draw_results(curves) if curves else draw_scores(runs), folder / "compare.png", dpi=130)
    panels = overlaid_figures(curves) if curves else [("precision, recall and mAP", draw_scores(runs))]
    parts = [
        page.table(["", *(run.name for run in runs)], compared(runs)),
        *(page.paragraph(line, note=True) for line in cautions(runs)),
        page.heading("Curves" if curves else "Results"),
        page.group("charts", (page.figure(figure_bytes(figure, 110), title, "png") for title, figure in panels)),
        page.heading("Runs"),
        page.mapping(("name", "folder"), {run.name: run.folder for run in runs}),
    ]
    with atomic_write(folder / "compare.html", "w") as file:
        file.write(page.page(f"{len(runs)} runs compared", parts))


def main(opt: cli.Options) -> None:
    """Runs the command line."""
    folders = [Path(run) for run in opt.runs]
    if len(folders) < 2:
        raise ValueError(f"at least two runs are compared, got {opt.runs[0]} alone")
    runs = [read_run(folder, name) for folder, name in zip(folders, run_names(folders))]
    folder = increment_path(Path(opt.project) / opt.name, opt.exist_ok, mkdir=True)
    write(runs, folder)
    cli.say("\n".join([as_text(["", *(run.name for run in runs)], compared(runs)), *cautions(runs)]))
    LOGGER.info(f"compare.png and compare.html in {folder}")


if __name__ == "__main__":
    cli.run(main, parse_opt, "compare")
