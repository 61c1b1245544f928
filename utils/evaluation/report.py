"""What an evaluation reports: tables, images, label files, curves."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from utils.data.images import read_image
from utils.data.letterbox import GREY
from utils.drawing import Annotator, class_name, rescaled, write_image
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
from utils.evaluation.plots import MOSAIC_IMAGES, detections_to_targets, plot_batch
from utils.inference.outputs import result_stems, write_labels
from utils.text import printable

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
    return f"{printable(name, lines=False)[:21]:>22}" + "".join(f"{text:>11}" for text in (*counts, *shown))


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


class MosaicWriter:
    """An observer that writes mosaics of labels and of predictions, val_batch0_labels.jpg, val_batch0_pred.jpg and on.

    Each shows images from all over the split, where v6.1 shows the first batches: those of a data set that is sorted
    are all of one class. There are as many as v6.1 writes: three, or as many as there are batches.

    loader: of the pass, with its length, in batches, and the length of its dataset, in images.
    """

    def __init__(self, save_dir: Path, names: list[str], loader: Any):
        images, batches = len(loader.dataset), len(loader)
        self.save_dir, self.names, self.mosaics, self.last = save_dir, names, min(3, batches), batches - 1
        count = min(images, MOSAIC_IMAGES * self.mosaics)
        self.positions = np.linspace(0, images - 1, count).round().astype(int)
        self.seen, self.kept = 0, []  # kept: image, labels, predictions, path

    def __call__(self, batch: EvaluatedBatch) -> None:
        """Keeps the chosen images of a batch; after the last one writes the files."""
        for i in self.positions[(self.positions >= self.seen) & (self.positions < self.seen + len(batch.paths))]:
            i = int(i) - self.seen
            labels = batch.targets[batch.targets[:, 0] == i].cpu() * torch.tensor([0, 1, 1, 1, 1, 1])
            predictions = detections_to_targets(batch.detections[i : i + 1], batch.images.shape[2:])
            self.kept.append((batch.images[i].cpu(), labels, predictions, batch.paths[i]))
        self.seen += len(batch.paths)
        if batch.number == self.last:
            for number in range(self.mosaics):
                self._write(self.save_dir / f"val_batch{number}", self.kept[number :: self.mosaics])

    def _write(self, stem: Path, chosen: list[tuple]) -> None:
        if chosen:
            images, labels, predictions, paths = map(list, zip(*chosen))
            for kind, targets in (("labels", labels), ("pred", predictions)):
                plot_batch(*join_images(images, targets), f"{stem}_{kind}.jpg", self.names, paths)


def join_images(images: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins images (C, h, w) of several sizes into a batch (B, C, H, W), in the middle of grey, for `plot_batch`.

    targets: of each image (t, 6 or 7): 0, class, x, y, w, h, 0-1 of the image, and a confidence if any; returned as
        rows (T, 6 or 7) of the batch, 0-1 of its sides.
    """
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    batch = images[0].new_full((len(images), len(images[0]), height, width), GREY)
    rows = []
    for i, (image, target) in enumerate(zip(images, targets)):
        h, w = image.shape[1:]
        top, left = (height - h) // 2, (width - w) // 2
        batch[i, :, top : top + h, left : left + w] = image
        row = target.clone()
        row[:, 0] = i
        row[:, 2:6] = row[:, 2:6] * torch.tensor([w, h, w, h]) + torch.tensor([left, top, 0, 0])
        row[:, 2:6] /= torch.tensor([width, height, width, height])
        rows.append(row)
    return batch, torch.cat(rows)


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
    image = rescaled(image, scale)
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
