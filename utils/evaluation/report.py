"""What an evaluation writes besides its numbers: pictures, label files, COCO JSON, curves."""

from collections.abc import Callable, Sequence
from pathlib import Path

from utils.evaluation.evaluator import EvaluatedBatch, Evaluation
from utils.evaluation.plots import found_to_targets, plot_batch, plot_confusion_matrix, plot_curves
from utils.inference.outputs import result_stems, write_labels

# COCO numbers its 80 classes up to 90, with gaps
COCO_CATEGORIES = [
    *range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83), *range(84, 91),
]  # fmt: skip


def picture_writer(save_dir: Path, names: list[str], batches: int = 3) -> Callable[[EvaluatedBatch], None]:
    """Mosaics of labels and of predictions of the first batches."""

    def write(batch: EvaluatedBatch) -> None:
        if batch.number < batches:
            stem = save_dir / f"val_batch{batch.number}"
            plot_batch(batch.images, batch.targets, f"{stem}_labels.jpg", names, batch.paths)
            predictions = found_to_targets(batch.found, batch.images.shape[2:])
            plot_batch(batch.images, predictions, f"{stem}_pred.jpg", names, batch.paths)

    return write


def text_writer(folder: Path, files: Sequence[str], save_conf: bool) -> Callable[[EvaluatedBatch], None]:
    """A label file per image with predictions: class x y w h [confidence], 0-1 of the original image.

    files: all images there are, for names of which none comes twice.
    """
    stems = dict(zip(files, result_stems(files)))

    def write(batch: EvaluatedBatch) -> None:
        for path, (shape, _), boxes in zip(batch.paths, batch.shapes, batch.native):
            write_labels(folder / f"{stems[path]}.txt", boxes, shape, save_conf)

    return write


def json_collector(predictions: list[dict], categories: Sequence[int]) -> Callable[[EvaluatedBatch], None]:
    """COCO's result format, appended to `predictions`: top-left corner and size in pixels of the original image."""

    def collect(batch: EvaluatedBatch) -> None:
        for path, boxes in zip(batch.paths, batch.native):
            stem = Path(path).stem
            for x1, y1, x2, y2, confidence, c in boxes.tolist():
                predictions.append(
                    {
                        "image_id": int(stem) if stem.isdecimal() else stem,
                        "category_id": categories[int(c)],
                        "bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
                        "score": round(confidence, 5),
                    }
                )

    return collect


def write_figures(result: Evaluation, save_dir: Path) -> None:
    """The confusion matrix and, where anything was found, the precision, recall and F1 curves."""
    plot_confusion_matrix(result.confusion, save_dir, result.names)
    if result.metrics.tp.any():
        plot_curves(result.metrics, save_dir, result.names)
