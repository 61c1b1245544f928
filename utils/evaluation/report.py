"""What an evaluation reports: tables, images, label files, curves."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.data.images import read_image
from utils.drawing import Annotator, class_name, write_image
from utils.evaluation.charts import plot_confusion_matrix, plot_curves
from utils.evaluation.coco import AREAS, CocoMetrics, Truth
from utils.evaluation.errors import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    CORRECT,
    DUPLICATE,
    ERROR_KINDS,
    LOCALIZATION,
    MISSED,
    Errors,
)
from utils.evaluation.evaluator import Boxes, EvaluatedBatch, Evaluation
from utils.evaluation.metrics import ap_by_area
from utils.evaluation.plots import detections_to_targets, plot_batch
from utils.inference.outputs import result_stems, write_labels

COCO_AND_V61 = (
    "COCO counts 100 detections per image, matches them again at each IoU and leaves crowds out; "
    "v6.1 counts 300, matches them once at IoU 0.5 and integrates by trapezoids"
)
ERROR_COLOURS = {  # BGR; Okabe and Ito's colours, which the colour-blind can tell apart
    CORRECT: (115, 158, 0), LOCALIZATION: (0, 159, 230), CLASSIFICATION: (167, 121, 204),
    BOTH: (0, 94, 213), DUPLICATE: (233, 180, 86),
    BACKGROUND: (66, 228, 240), MISSED: (178, 114, 0),
}  # fmt: skip
KIND_NAMES = {CORRECT: "correct", **{kind: name for kind, (name, _) in ERROR_KINDS.items()}}
ERROR_SIDE, LEGEND = 1280, 28  # pixels: longer side of the drawings, height of the strip below them


# --- tables -----------------------------------------------------------------------------------------------------------


def _row(name: str, counts: Sequence[int], numbers: Sequence[float]) -> str:
    shown = ("-" if np.isnan(number) else f"{number:.3g}" for number in numbers)
    return f"{name[:21]:>22}" + "".join(f"{text:>11}" for text in (*counts, *shown))


def size_table(result: Evaluation) -> str:
    """Returns a table of v6.1's metrics for small, medium and large objects, by box area in the original images."""
    boxes = result.boxes
    area = (boxes.labels[:, 3:] - boxes.labels[:, 1:3]).prod(1)
    rows = [f"{'By size':>22}" + "".join(f"{t:>11}" for t in ("Labels", "P", "R", "mAP@.5", "mAP@.5:.95"))]
    for name, (low, high) in AREAS.items():
        metrics = ap_by_area(boxes.predictions, boxes.partner, boxes.iou, boxes.labels[:, 0], area, (low, high))
        count = int(((area >= low) & (area <= high)).sum())
        rows.append(_row(name, [count], metrics.means() if count else [np.nan] * 4))
    return "\n".join(rows)


def coco_table(coco: CocoMetrics, truth: Truth, names: Sequence[str], verbose: bool) -> str:
    """Returns a table of COCO's numbers: all objects, by size, and when verbose each class that occurs."""
    s = coco.statistics
    titles = ("Labels", "AP", "AP50", "AP75", "AR100")
    rows = [f"{'COCO':>22}" + "".join(f"{title:>11}" for title in titles)]
    counted = ~truth.crowd
    rows.append(_row("all", [counted.sum()], [s["AP"], s["AP50"], s["AP75"], s["AR100"]]))
    for column, (name, (low, high)) in enumerate(AREAS.items(), 1):
        count = (counted & (truth.area >= low) & (truth.area <= high)).sum()
        rows.append(_row(name, [count], _coco_numbers(coco, column)))
    if verbose and len(names) > 1:
        per_class = np.bincount(truth.classes[counted], minlength=len(names))
        for c in np.flatnonzero(per_class):
            rows.append(_row(names[c], [per_class[c]], _coco_numbers(coco, 0, slice(c, c + 1))))
    return "\n".join(rows)


def _coco_numbers(coco: CocoMetrics, area: int, classes: slice = slice(None)) -> list[float]:
    """Returns AP, AP50, AP75 and AR100 of one range of areas (0 is all) and some classes; NaN without objects."""
    precision, recall = coco.precision[:, classes, area], coco.recall[:, classes, area]
    known = ~np.isnan(precision[0])
    if not known.any():
        return [np.nan] * 4
    precision, recall = precision[:, known], recall[:, known]
    return [precision.mean(), precision[0].mean(), precision[5].mean(), recall.mean()]


# --- files ------------------------------------------------------------------------------------------------------------


def mosaic_writer(save_dir: Path, names: list[str], batches: int = 3) -> Callable[[EvaluatedBatch], None]:
    """Returns an observer that writes mosaics of the labels and the predictions of the first batches."""

    def write(batch: EvaluatedBatch) -> None:
        if batch.number < batches:
            stem = save_dir / f"val_batch{batch.number}"
            plot_batch(batch.images, batch.targets, f"{stem}_labels.jpg", names, batch.paths)
            predictions = detections_to_targets(batch.detections, batch.images.shape[2:])
            plot_batch(batch.images, predictions, f"{stem}_pred.jpg", names, batch.paths)

    return write


def text_writer(folder: Path, files: Sequence[str], save_conf: bool) -> Callable[[EvaluatedBatch], None]:
    """Returns an observer that writes a label file per image with detections: class x y w h [confidence], 0-1.

    files: all images of the split, so that no two label files get the same name.
    """
    stems = dict(zip(files, result_stems(files)))

    def write(batch: EvaluatedBatch) -> None:
        for path, (shape, _), boxes in zip(batch.paths, batch.shapes, batch.native):
            write_labels(folder / f"{stems[path]}.txt", boxes, shape, save_conf)

    return write


def draw_errors(folder: Path, boxes: Boxes, errors: Errors, images: Sequence[int], names: Sequence[str]) -> list[Path]:
    """Writes drawings of these images with their errors above `errors.confidence`, and returns the files.

    Correct boxes have thin lines; the colours of the kinds of errors are explained at the bottom. A file name begins
    with the image's position in `images`. Images that are not files of their own (tar shards) are left out.
    """
    files = []
    stems = result_stems([boxes.paths[i] for i in images])
    for position, (i, stem) in enumerate(zip(images, stems), 1):
        if Path(boxes.paths[i]).is_file():
            folder.mkdir(exist_ok=True)
            drawn = drawn_errors(read_image(boxes.paths[i]), i, boxes, errors, names)
            files.append(write_image(folder / f"{position:02d}_{stem}.jpg", drawn))
    return files


def drawn_errors(
    image: np.ndarray, number: int, boxes: Boxes, errors: Errors, names: Sequence[str], side: int = ERROR_SIDE,
    legend: bool = True,
) -> np.ndarray:  # fmt: skip
    """Returns image `number` of an evaluation with its errors drawn, its longer side `side` pixels; BGR.

    legend: add a strip at the bottom that explains the colours.
    """
    scale = side / max(image.shape[:2])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    height = image.shape[0]
    image = cv2.copyMakeBorder(image, 0, LEGEND * legend, 0, 0, cv2.BORDER_CONSTANT)
    shown = np.flatnonzero((boxes.image == number) & (boxes.predictions[:, 4] > errors.confidence))
    missed = np.flatnonzero((boxes.label_image == number) & errors.missed)
    kinds = [*errors.kind[shown].tolist(), *[MISSED] * len(missed)]
    corners = np.concatenate([boxes.predictions[shown, :4], boxes.labels[missed, 1:]]) * scale
    corners[:, 1::2] = corners[:, 1::2].clip(0, height - 1)
    texts = [f"{class_name(names, int(c), 20)} {confidence:.2f}" for confidence, c in boxes.predictions[shown, 4:]]
    texts += [class_name(names, int(c), 20) for c in boxes.labels[missed, 0]]
    colours = [ERROR_COLOURS[kind] for kind in kinds]

    annotator = Annotator(image, 1, 15, pil=True, example="".join(texts))
    wrong = [k for k, kind in enumerate(kinds) if kind != CORRECT]
    for k in sorted(range(len(kinds)), key=lambda k: kinds[k] != CORRECT):  # errors on top
        annotator.line_width = 1 if kinds[k] == CORRECT else 3
        annotator.rectangle(corners[k], colours[k])
    annotator.captions([corners[k] for k in wrong], [texts[k] for k in wrong], [colours[k] for k in wrong])
    for column, (kind, name) in enumerate(KIND_NAMES.items() if legend else ()):
        at = (column * image.shape[1] // len(KIND_NAMES), height + 4)
        annotator.text(at, name, txt_color=(0, 0, 0) if sum(ERROR_COLOURS[kind]) > 350 else (255, 255, 255),
                       color=ERROR_COLOURS[kind])  # fmt: skip
    return annotator.result()


def write_figures(result: Evaluation, save_dir: Path) -> None:
    """Writes the confusion matrix and, if any prediction is correct, the precision, recall and F1 curves."""
    plot_confusion_matrix(result.confusion, save_dir, result.names)
    if result.metrics.tp.any():
        plot_curves(result.metrics, save_dir, result.names)
