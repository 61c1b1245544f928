"""The metrics by v6.1's names, for programs written for it: `from utils.metrics import ap_per_class`.

Nothing in the project imports this file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.boxes import box_ioa as bbox_ioa
from utils.boxes import box_iou, paired_iou
from utils.evaluation import metrics as _metrics
from utils.evaluation.metrics import fitness

__all__ = ["ConfusionMatrix", "ap_per_class", "bbox_ioa", "bbox_iou", "box_iou", "compute_ap", "fitness"]


def bbox_iou(
    box1: torch.Tensor, box2: torch.Tensor, x1y1x2y2: bool = True, GIoU: bool = False, DIoU: bool = False,
    CIoU: bool = False, eps: float = 1e-7,
) -> torch.Tensor:  # fmt: skip
    """Returns the overlap (n,) of box1, (4,) or (4, n), with box2 (n, 4): corners, or centre form without x1y1x2y2."""
    kind = "ciou" if CIoU else "diou" if DIoU else "giou" if GIoU else "iou"
    return paired_iou(box1.T if box1.ndim == 2 else box1, box2, kind, xywh=not x1y1x2y2, eps=eps)


def compute_ap(recall: Sequence[float], precision: Sequence[float]) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns the average precision of a curve, and the curve's precision envelope and recall with both ends."""
    recall, precision = np.asarray(recall), np.asarray(precision)
    ends, envelope = _metrics.precision_envelope(recall, precision)
    return _metrics.average_precision(recall, precision), envelope, ends


def ap_per_class(
    tp: np.ndarray, conf: np.ndarray, pred_cls: np.ndarray, target_cls: np.ndarray, plot: bool = False,
    save_dir: str | Path = ".", names: Any = (), eps: float = 1e-16,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Returns tp, fp, precision, recall, F1 (C,), AP (C, T) and the numbers (C,) of the classes that have labels.

    The arguments are those of `utils.evaluation.metrics`; with `plot` the curves are drawn in save_dir.
    """
    metrics = _metrics.ap_per_class(tp, conf, pred_cls, target_cls, eps)
    if plot:
        from utils.evaluation.charts import plot_curves

        plot_curves(metrics, Path(save_dir), names or None)
    return metrics.tp, metrics.fp, metrics.p, metrics.r, metrics.f1, metrics.ap, metrics.classes


class ConfusionMatrix(_metrics.ConfusionMatrix):
    """The counts of predicted class (rows) against true class (columns), the background last."""

    def __init__(self, nc: int, conf: float = 0.25, iou_thres: float = 0.45):
        super().__init__(nc, conf, iou_thres)

    def process_batch(self, detections: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds one image: detections (N, 6) xyxy, confidence, class; labels (M, 5) class, xyxy; in pixels."""
        self.update(detections, labels)

    def tp_fp(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the correct and the wrong predictions (nc,) of each class."""
        right = self.matrix.diagonal()
        return right[:-1], (self.matrix.sum(1) - right)[:-1]

    def plot(self, normalize: bool = True, save_dir: str | Path = "", names: Any = ()) -> None:
        """Draws the matrix in save_dir, normalised and in counts; normalize: accepted for v6.1's sake."""
        from utils.evaluation.charts import plot_confusion_matrix

        plot_confusion_matrix(self, Path(save_dir), names or None)

    def print(self) -> None:
        """Prints the rows of the matrix."""
        for row in self.matrix:
            print(" ".join(map(str, row)))
