"""The numbers of an evaluation as files: metrics.json for programs, per_class.csv for tables, per_class.tex for papers.

It imports nothing slow, since train.py and val.py take their option `--latex` from here.
"""

import argparse
import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.files import atomic_write
from utils.text import csv_field, printable, tex_text

if TYPE_CHECKING:
    from utils.evaluation.evaluator import Evaluation

COLUMNS = ("class", "name", "images", "objects", "P", "R", "mAP50", "mAP50-95")
ALL = "all"  # the name of the first row, the means over the classes that have objects


def add_latex(group: argparse._ActionsContainer) -> None:
    """Adds --latex."""
    group.add_argument("--latex", action="store_true", help="also write the table of classes as per_class.tex")


class ClassRow(NamedTuple):
    """A row of per_class.csv; its numbers are None for a class without objects."""

    number: int | None  # of the class, None for all classes
    name: str
    images: int  # that have an object of the class; all images in the row of all classes
    objects: int
    precision: float | None  # 0-1, at the confidence where the mean F1 is highest
    recall: float | None
    map50: float | None
    map: float | None  # mAP50-95

    @property
    def scores(self) -> tuple[float | None, ...]:
        """Returns P, R, mAP50 and mAP50-95."""
        return self[4:]


def class_rows(result: "Evaluation") -> list[ClassRow]:
    """Returns a row for all classes, and one for each class, also for those without objects."""
    m = result.metrics
    measured = {int(c): (p, r, ap50, ap) for c, p, r, ap50, ap in zip(m.classes, m.p, m.r, m.ap50, m.ap.mean(1))}
    objects, images = result.labels_per_class, result.images_per_class
    means = m.means() if len(m.classes) else (None,) * 4
    rows = [ClassRow(None, ALL, result.images, int(objects.sum()), *means)]
    for c, name in enumerate(result.names):
        scores = map(float, measured[c]) if c in measured else (None,) * 4
        rows.append(ClassRow(c, str(name), int(images[c]), int(objects[c]), *scores))
    return rows


def write_numbers(
    result: "Evaluation", folder: Path, about: Mapping[str, Any], coco: Mapping[str, float] | None = None,
    latex: bool = False,
) -> None:  # fmt: skip
    """Writes metrics.json and per_class.csv, and with `latex` per_class.tex, into a folder.

    about: what was measured, such as weights and data, which becomes the beginning of metrics.json.
    coco: COCO's twelve statistics, where they were measured.
    """
    rows = class_rows(result)
    with atomic_write(folder / "metrics.json", "w") as file:
        json.dump(as_mapping(result, rows, about, coco), file, indent=1, ensure_ascii=True, allow_nan=False)
        file.write("\n")
    with atomic_write(folder / "per_class.csv", "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            number = "" if row.number is None else row.number
            writer.writerow([number, _unicode(csv_field(row.name)), row.images, row.objects, *map(_shown, row.scores)])
    if latex:
        with atomic_write(folder / "per_class.tex", "w") as file:
            file.write(as_latex(rows))


def as_mapping(
    result: "Evaluation", rows: list[ClassRow], about: Mapping[str, Any], coco: Mapping[str, float] | None
) -> dict[str, Any]:
    """Returns the content of metrics.json: text, finite numbers and null."""
    every, *classes = rows
    return {
        **about,
        **dict(zip(("images", "objects", "precision", "recall", "mAP50", "mAP50-95"), map(_finite, every[2:]))),
        "confidence": _finite(result.metrics.best_confidence),  # at which precision and recall are taken
        "loss": dict(zip(("box", "objectness", "class"), map(_finite, result.loss))),
        "milliseconds": {step: _finite(ms) for step, ms in result.speed.items()},
        **({"coco": {name: _finite(value) for name, value in coco.items()}} if coco else {}),
        "classes": [
            dict(zip(("class", "name", "images", "objects", "precision", "recall", "mAP50", "mAP50-95"),
                     (row.number, row.name, *map(_finite, row[2:]))))
            for row in classes
        ],
    }  # fmt: skip


def _finite(value: Any) -> Any:
    """Returns a number of Python with six digits after the point; None for what is no finite number."""
    if value is None or isinstance(value, int):
        return value
    return round(float(value), 6) if math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _unicode(text: str) -> str:
    """Returns text that UTF-8 can hold; the bytes of a file name that is none are shown."""
    return text.encode("utf-8", "backslashreplace").decode()


def as_latex(rows: list[ClassRow]) -> str:
    """Returns the rows as a LaTeX table that needs no package; the classes without objects are left out."""
    heads = ("Class", "Images", "Objects", "P", "R", "mAP$_{50}$", "mAP$_{50\\mbox{-}95}$")
    lines = ["\\begin{tabular}{lrrrrrr}", "\\hline", " & ".join(heads) + " \\\\", "\\hline"]
    for row in [*(row for row in rows[1:] if row.objects), rows[0]]:
        if row.number is None:
            lines.append("\\hline")
        scores = ("--" if value is None else f"{value:.3f}" for value in row.scores)
        name = tex_text(printable(_unicode(row.name), lines=False))
        lines.append(" & ".join([name, str(row.images), str(row.objects), *scores]) + " \\\\")
    return "\n".join([*lines, "\\hline", "\\end{tabular}", ""])
