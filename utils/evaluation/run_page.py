"""The page of a run of train.py or val.py, report.html: how the run went, what it reached, where the detector errs."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from utils import page
from utils.data.images import read_image
from utils.drawing import class_name, draw_boxes
from utils.evaluation.charts import panel_figures, read_results
from utils.evaluation.errors import ERROR_KINDS, Errors, explain_errors, worst_images
from utils.evaluation.evaluator import Boxes, Evaluation
from utils.evaluation.numbers import class_rows
from utils.evaluation.plots import figure_bytes
from utils.evaluation.report import ERROR_COLOURS, KIND_NAMES, drawn_errors
from utils.files import atomic_write

WORST, PAIRS, SIDE = 6, 6, 640  # images with the most errors, images beside their labels, pixels of their longer side
MOST_CLASSES = 150  # rows of the table
STYLE = """
.kind{display:inline-block;padding:0 .5em;margin:0 .5em .3em 0;border-radius:3px;font-size:13px}
.errors tr>:last-child{text-align:left}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,500px),1fr));gap:10px}.two>div{min-width:0}
"""
CHARTS = {
    "PR_curve.png": "precision over recall of each class",
    "F1_curve.png": "F1 over confidence: the highest point of the black curve is the confidence to detect with",
    "confusion_matrix.png": "what the objects of each class are taken for, in shares",
    "confusion_matrix_counts.png": "the same in numbers of boxes",
}


@dataclass(frozen=True)
class About:
    """What the page says of a run besides its numbers."""

    title: str
    given: Mapping[str, Any]  # the options that were given
    options: Mapping[str, Any]  # all of them
    data: Mapping[str, Any]  # of the data set: what, and how much
    hyp: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)  # beside precision, recall and mAP


def write_run_page(folder: Path, about: About, result: Evaluation) -> Path:
    """Writes report.html into the folder of a run, from its evaluation and the charts that are there."""
    errors = explain_errors(result.boxes, result.metrics.best_confidence)
    parts = [
        _facts(about, result),
        *_curves(folder / "results.csv"),
        *_classes(result),
        *_charts(folder),
        *_errors(result, errors),
        *_pairs(result),
        *_data(folder, about),
        page.heading("Settings"),
        page.mapping(("option", "given"), about.given) if about.given else page.paragraph("No option was given."),
        page.details("All options", [page.mapping(("option", "value"), about.options)]),
        page.details("Hyper-parameters", [page.mapping(("name", "value"), about.hyp)]) if about.hyp else "",
        page.heading("Files"),
        page.files(folder),
        page.paragraph(f"Written {time.strftime('%Y-%m-%d %H:%M')} with torch {torch.__version__}.", note=True),
    ]
    with atomic_write(folder / page.REPORT, "w") as file:
        file.write(page.page(about.title, parts, STYLE))
    return folder / page.REPORT


def _facts(about: About, result: Evaluation) -> str:
    p, r, map50, ap = result.metrics.means()
    numbers = {"mAP50-95": f"{ap:.3f}", "mAP50": f"{map50:.3f}", "precision": f"{p:.3f}", "recall": f"{r:.3f}"}
    numbers |= {"at confidence": f"{result.metrics.best_confidence:.3f}", **about.facts}
    return page.group("facts", (f"<p><em>{page.escape(v)}</em>{page.escape(k)}</p>" for k, v in numbers.items()))


def _curves(file: Path) -> Iterator[str]:
    if not file.is_file():
        return
    yield page.heading("Curves")
    yield page.paragraph("The ring and the dashed line are the epoch of best.pt: the highest 0.1 mAP50 + 0.9 mAP50-95.")
    panels = panel_figures(read_results(file))
    yield page.group(
        "charts", (page.figure(figure_bytes(figure, 110), f"{title} by epoch", "png") for title, figure in panels)
    )


def _classes(result: Evaluation) -> Iterator[str]:
    every, *classes = class_rows(result)
    seen = [row for row in classes if row.objects]
    chosen = sorted(seen, key=lambda row: row.map)[:MOST_CLASSES] if len(seen) > MOST_CLASSES else seen
    rows = []  # what matters most first: a phone shows four columns
    for row in (every, *chosen):
        scores = ("-" if value is None else f"{value:.3f}" for value in reversed(row.scores))
        rows.append([row.name, *scores, f"{row.images:,}", f"{row.objects:,}"])
    yield page.heading("Classes")
    yield page.table(("class", "mAP50-95", "mAP50", "recall", "precision", "images", "objects"), rows)
    if len(chosen) < len(seen):
        yield page.paragraph(f"The {MOST_CLASSES} classes of the lowest mAP50-95; per_class.csv has all.", note=True)
    if missing := len(classes) - len(seen):
        yield page.paragraph(f"{missing} of {len(classes)} classes have no object in these images.", note=True)


def _charts(folder: Path) -> Iterator[str]:
    there = {name: words for name, words in CHARTS.items() if (folder / name).is_file()}
    if there:
        yield page.heading("Precision, recall, confusion")
        charts = (page.group("wide", [page.chart(folder / name, words)]) for name, words in there.items())
        yield page.group("two", charts)


# --- images -----------------------------------------------------------------------------------------------------------


def _errors(result: Evaluation, errors: Errors) -> Iterator[str]:
    yield page.heading("Errors")
    rows = [
        [name, f"{errors.gain[kind]:+.3f}", f"{errors.counts[kind]:,}", meaning]
        for kind, (name, meaning) in ERROR_KINDS.items()
    ]
    yield page.group("errors", [page.table(("kind", "gain in mAP50", "number", "what it is"), rows)])
    yield page.paragraph(
        f"Boxes of confidence above {errors.confidence:.3f}, where the mean F1 is highest. The gain is what mAP50 "
        "would rise by if that kind of error had not been made.",
        note=True,
    )
    figures = []
    for i in worst_images(result.boxes, errors, WORST):
        if (image := _read(result.boxes, i)) is not None:
            drawn = drawn_errors(image, i, result.boxes, errors, result.names, SIDE, legend=False)
            figures.append(page.photo(drawn, Path(result.boxes.paths[i]).name, SIDE))
    if figures:
        yield page.heading("Images with the most errors", 3)
        yield "<p>" + "".join(map(_kind, KIND_NAMES)) + "</p>"
        yield page.group("charts", figures)


def _kind(kind: int) -> str:
    """Returns the name of a kind of error in its colour."""
    blue, green, red = ERROR_COLOURS[kind]
    ink = "#000" if blue + green + red > 350 else "#fff"
    style = f"background:rgb({red},{green},{blue});color:{ink}"
    return f"<span class=kind style='{style}'>{page.escape(KIND_NAMES[kind])}</span>"


def _pairs(result: Evaluation) -> Iterator[str]:
    """Returns images spread over the split, with their labels, and beside it with what was predicted."""
    boxes, names, confidence = result.boxes, result.names, result.metrics.best_confidence
    labelled = np.unique(boxes.label_image)
    figures = []
    for i in labelled[np.linspace(0, len(labelled) - 1, min(PAIRS, len(labelled))).round().astype(int)].tolist():
        if (image := _read(boxes, i)) is None:
            continue
        scale = SIDE / max(image.shape[:2])
        image = cv2.resize(
            image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        labels = boxes.labels[boxes.label_image == i]
        true = np.concatenate([labels[:, 1:] * scale, np.ones_like(labels[:, :1]), labels[:, :1]], 1)
        found = boxes.predictions[(boxes.image == i) & (boxes.predictions[:, 4] > confidence)] * [*[scale] * 4, 1, 1]
        name = Path(boxes.paths[i]).name
        figures.append(
            page.group("pair", [
                page.photo(_drawn(image, true, names, hide_conf=True), f"{name}: labels, {len(true)}", SIDE, 60_000),
                page.photo(_drawn(image, found, names), f"{name}: predictions, {len(found)}", SIDE, 60_000),
            ])
        )  # fmt: skip
    if figures:
        yield page.heading("Predictions beside labels")
        words = f"Images spread over the split; predictions of confidence above {confidence:.3f}."
        yield page.paragraph(words, note=True)
        yield from figures


def _drawn(image: np.ndarray, rows: np.ndarray, names: list[str], hide_conf: bool = False) -> np.ndarray:
    short = [class_name(names, i, 20) for i in range(len(names))]
    return draw_boxes(image, torch.from_numpy(rows), short, 2, hide_conf=hide_conf)


def _read(boxes: Boxes, number: int) -> np.ndarray | None:
    """Returns the pixels of an image; None where it is no file of its own (tar shards), or is gone."""
    try:
        return read_image(boxes.paths[number]) if Path(boxes.paths[number]).is_file() else None
    except (OSError, ValueError):
        return None


def _data(folder: Path, about: About) -> Iterator[str]:
    yield page.heading("Data")
    yield page.mapping(("what", "value"), about.data)
    if (folder / "labels.jpg").is_file():
        words = "the labels of the training images: objects of each class, boxes, where they are, how large they are"
        yield page.group("wide", [page.photo(read_image(folder / "labels.jpg"), words, 1000, 160_000)])
