"""The metrics: matching of predictions with labels, average precision, confusion matrix, fitness.

The numbers are v6.1's to the digit; an option gives a more complete number where v6.1 leaves something out.
"""

from dataclasses import dataclass

import numpy as np
import torch

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10, dtype=np.float32)
CONFIDENCE_GRID = np.linspace(0, 1, 1000)  # where the curves over confidence are sampled
RECALL_GRID = np.linspace(0, 1, 1000)  # where the precision-recall curve is sampled for its plot

_trapezoid = np.trapezoid if hasattr(np, "trapezoid") else np.trapz  # the name changed in numpy 2.0


# --- matching ---------------------------------------------------------------------------------------------------------


def match_predictions(
    predictions: torch.Tensor,
    labels: torch.Tensor,
    iou_thresholds: torch.Tensor,
    images: tuple[np.ndarray, np.ndarray] | None = None,
) -> torch.Tensor:
    """Returns whether each prediction is correct at each IoU threshold: bool (N, T), on the CPU.

    predictions:    (N, 6): x1, y1, x2, y2 in pixels, confidence, class; in descending confidence within an image.
    labels:         (M, 5): class, x1, y1, x2, y2 in pixels.
    iou_thresholds: (T,) ascending, normally 0.50, 0.55 ... 0.95.
    images:         the image of each prediction (N,) and of each label (M,), int; None where all are of one image.

    As in v6.1 each prediction claims the label of its class with which its IoU is highest (at least the first
    threshold), and a label is matched with the first prediction in the list that claims it, not with the one of highest
    IoU. Pairs are made once; a higher threshold only asks whether the IoU of the same pair reaches it.
    """
    _, iou = match_once(_array(predictions), _array(labels), float(iou_thresholds[0]), images)
    return torch.from_numpy(iou[:, None] >= _array(iou_thresholds))


def match_once(
    predictions: np.ndarray,
    labels: np.ndarray,
    iou_thres: float,
    images: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the label (N,) that v6.1's rule pairs with each prediction, or -1, and their IoU (N,), 0 without a pair.

    The arguments are those of `match_predictions`, as arrays.
    """
    image_of, label_image = _images_of(predictions, labels, images)
    prediction, label = same_group(image_of, predictions[:, 5], label_image, labels[:, 0])
    iou = iou_of_pairs(predictions[:, :4], labels[:, 1:], prediction, label)
    near = iou >= iou_thres
    prediction, label, iou = _claims(prediction[near], label[near], iou[near])
    taken, first = np.unique(label, return_index=True)  # claims are in the order of the predictions
    partner, overlap = np.full(len(predictions), -1), np.zeros(len(predictions), np.float32)
    partner[prediction[first]], overlap[prediction[first]] = taken, iou[first]
    return partner, overlap


def _array(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


def _images_of(predictions: np.ndarray, labels: np.ndarray, images: tuple | None) -> tuple[np.ndarray, np.ndarray]:
    return images if images is not None else (np.zeros(len(predictions), int), np.zeros(len(labels), int))


def same_group(
    image: np.ndarray, kind: np.ndarray | int, label_image: np.ndarray, label_kind: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of all pairs of a prediction (P,) and a label (P,) of the same image and kind."""
    kinds = 1 + int(max(np.max(kind, initial=0), np.max(label_kind, initial=0)))
    key, label_key = image * kinds + np.asarray(kind, int), label_image * kinds + np.asarray(label_kind, int)
    order = np.argsort(key, kind="stable")
    starts, ends = (np.searchsorted(key[order], label_key, side) for side in ("left", "right"))
    counts = ends - starts
    label = np.repeat(np.arange(len(label_key)), counts)
    position = np.arange(len(label)) - np.repeat(counts.cumsum() - counts, counts) + np.repeat(starts, counts)
    return order[position], label


def iou_of_pairs(boxes: np.ndarray, others: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Returns the IoU (P,) of boxes[i] (N, 4) with others[j] (M, 4), xyxy; 0 where both have no area."""
    a, b = boxes[i], others[j]
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    intersection = sides.clip(0).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)[i], (others[:, 2:] - others[:, :2]).prod(1)[j]
    union = area[0] + area[1] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union != 0)


def _claims(prediction: np.ndarray, label: np.ndarray, iou: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the pairs (P,) of each prediction with its label of highest IoU, in the order of predictions."""
    order = np.lexsort((label, iou, prediction))  # of equal IoUs v6.1 takes the later label
    last = np.flatnonzero(np.diff(prediction[order], append=-1))
    chosen = order[last]
    return prediction[chosen], label[chosen], iou[chosen]


# --- average precision ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassMetrics:
    """The metrics of the C classes that occur in the labels; row i is that of class `classes[i]`.

    p, r, f1 and the counts tp, fp are taken at one confidence, `best_confidence`, where the mean F1 curve peaks.
    """

    classes: np.ndarray  # (C,) int, ascending
    p: np.ndarray  # (C,) precision 0-1
    r: np.ndarray  # (C,) recall 0-1
    f1: np.ndarray  # (C,) 0-1
    ap: np.ndarray  # (C, T) average precision at each IoU threshold 0-1
    tp: np.ndarray  # (C,) int, correct predictions
    fp: np.ndarray  # (C,) int, wrong predictions
    best_confidence: float
    p_curve: np.ndarray  # (C, 1000) over CONFIDENCE_GRID, at the first IoU threshold
    r_curve: np.ndarray  # (C, 1000)
    f1_curve: np.ndarray  # (C, 1000)
    pr_curve: np.ndarray  # (C, 1000) precision over RECALL_GRID

    @property
    def ap50(self) -> np.ndarray:
        """Returns the average precision (C,) at the first IoU threshold."""
        return self.ap[:, 0]

    def means(self) -> tuple[float, float, float, float]:
        """Returns precision, recall, mAP at the first threshold and mAP over all thresholds; zeros without classes."""
        if not len(self.classes):
            return 0.0, 0.0, 0.0, 0.0
        return float(self.p.mean()), float(self.r.mean()), float(self.ap50.mean()), float(self.ap.mean())

    def map_per_class(self, nc: int) -> np.ndarray:
        """Returns the mAP (nc,) of every class over all thresholds; the mean over classes for one without labels."""
        per_class = np.full(nc, self.means()[3])
        per_class[self.classes] = self.ap.mean(1)
        return per_class


def precision_envelope(recall: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the curve (n,) as (n + 2,): with both ends, each precision being the maximum at its recall or above."""
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[1.0], precision, [0.0]])
    return recall, np.maximum.accumulate(precision[::-1])[::-1]


def average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Returns the area under the precision envelope at 101 recalls, by the trapezoidal rule.

    recall and precision: (n,) 0-1, recall ascending.
    """
    grid = np.linspace(0, 1, 101)
    return float(_trapezoid(np.interp(grid, *precision_envelope(recall, precision)), grid))


def ap_per_class(
    tp: np.ndarray, conf: np.ndarray, pred_cls: np.ndarray, target_cls: np.ndarray, eps: float = 1e-16
) -> ClassMetrics:
    """Returns precision, recall, F1 and average precision of each class in the labels of a data set.

    tp:         (n, T) bool, correct at each IoU threshold (`match_predictions`).
    conf:       (n,) confidence 0-1.
    pred_cls:   (n,) class of each prediction.
    target_cls: (m,) class of each label.

    Equal confidences keep their order. A class without predictions scores zero; one without labels is left out.
    """
    order = np.lexsort((-conf, pred_cls))  # class by class, in a class by descending confidence
    tp, conf, pred_cls = tp[order].astype(bool), conf[order], pred_cls[order]
    classes, labels_per_class = np.unique(target_cls, return_counts=True)
    starts, ends = np.searchsorted(pred_cls, classes, "left"), np.searchsorted(pred_cls, classes, "right")

    ap = np.zeros((len(classes), tp.shape[1]))
    p_curve, r_curve, pr_curve = np.zeros((3, len(classes), len(CONFIDENCE_GRID)))
    for c, (start, end, n_labels) in enumerate(zip(starts, ends, labels_per_class)):
        if start == end:
            continue
        right = tp[start:end].cumsum(0)  # (k, T)
        wrong = (~tp[start:end]).cumsum(0)
        recall = right / (n_labels + eps)
        precision = right / (right + wrong)

        # np.interp takes ascending positions, and confidence descends
        falling = -conf[start:end]
        r_curve[c] = np.interp(-CONFIDENCE_GRID, falling, recall[:, 0], left=0)
        p_curve[c] = np.interp(-CONFIDENCE_GRID, falling, precision[:, 0], left=1)
        pr_curve[c] = np.interp(RECALL_GRID, *precision_envelope(recall[:, 0], precision[:, 0]))
        ap[c] = [average_precision(recall[:, t], precision[:, t]) for t in range(tp.shape[1])]

    f1_curve = 2 * p_curve * r_curve / (p_curve + r_curve + eps)
    best = int(f1_curve.mean(0).argmax()) if len(classes) else 0
    p, r, f1 = p_curve[:, best], r_curve[:, best], f1_curve[:, best]
    n_right = (r * labels_per_class).round()
    n_wrong = (n_right / (p + eps) - n_right).round()
    return ClassMetrics(
        classes=classes.astype(int),
        p=p,
        r=r,
        f1=f1,
        ap=ap,
        tp=n_right.astype(int),
        fp=n_wrong.astype(int),
        best_confidence=float(CONFIDENCE_GRID[best]),
        p_curve=p_curve,
        r_curve=r_curve,
        f1_curve=f1_curve,
        pr_curve=pr_curve,
    )


def ap_by_area(
    predictions: np.ndarray,
    partner: np.ndarray,
    iou: np.ndarray,
    label_classes: np.ndarray,
    label_area: np.ndarray,
    limits: tuple[float, float],
) -> ClassMetrics:
    """Returns the metrics of the labels whose area lies within limits (low, high).

    As in COCO's metric, predictions that are paired with other labels are left out, and so are predictions without a
    pair whose own area lies outside.

    predictions, partner, iou: as in `utils.evaluation.evaluator.Boxes`.
    label_classes, label_area: (m,) of each label; areas in pixels of the original image.
    """
    low, high = limits
    area = (predictions[:, 2:4] - predictions[:, :2]).prod(1)
    paired = partner >= 0
    area[paired] = label_area[partner[paired]]
    kept, labels = (area >= low) & (area <= high), (label_area >= low) & (label_area <= high)
    correct = iou[kept, None] >= IOU_THRESHOLDS
    return ap_per_class(correct, predictions[kept, 4], predictions[kept, 5], label_classes[labels])


def fitness(results: np.ndarray) -> np.ndarray:
    """Returns the fitness (n,) of rows (n, >= 4): P, R, mAP50, mAP50-95. The best checkpoint has the highest."""
    return results[:, :4] @ np.array([0.0, 0.0, 0.1, 0.9])


# --- confusion matrix -------------------------------------------------------------------------------------------------


class ConfusionMatrix:
    """The counts of predicted class (rows) against true class (columns); number `nc` of each is the background.

    matrix:            (nc + 1, nc + 1). Column nc counts false positives, row nc missed objects.
    conf:              only predictions of higher confidence count.
    iou_thres:         a prediction and a label can be a pair if their IoU is above this.
    count_every_image: True counts all false positives, if every image is passed. v6.1 counts those of an image only if
                       a prediction in it was matched, and leaves out images without predictions.
    """

    def __init__(self, nc: int, conf: float = 0.25, iou_thres: float = 0.45, count_every_image: bool = False):
        self.nc = nc
        self.conf = conf
        self.iou_thres = iou_thres
        self.count_every_image = count_every_image
        self.matrix = np.zeros((nc + 1, nc + 1))

    def update(
        self,
        predictions: torch.Tensor,
        labels: torch.Tensor,
        images: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Adds the counts of one image or several.

        predictions: (N, 6): x1, y1, x2, y2 in pixels, confidence, class.
        labels:      (M, 5): class, x1, y1, x2, y2 in pixels.
        images:      the image of each prediction (N,) and of each label (M,), int; None where all are of one image.
        """
        predictions, labels = _array(predictions), _array(labels)
        image, label_image = _images_of(predictions, labels, images)
        confident = predictions[:, 4] > self.conf
        predictions, image = predictions[confident], image[confident]
        predicted, true = predictions[:, 5].astype(int), labels[:, 0].astype(int)
        chosen, label = self._pairs(predictions, labels, image, label_image)
        missed = np.ones(len(true), dtype=bool)
        missed[label] = False
        false_positive = np.ones(len(predicted), dtype=bool)
        false_positive[chosen] = False
        if not self.count_every_image:
            false_positive &= np.isin(image, image[chosen])

        np.add.at(self.matrix, (predicted[chosen], true[label]), 1)
        np.add.at(self.matrix, (self.nc, true[missed]), 1)
        np.add.at(self.matrix, (predicted[false_positive], self.nc), 1)

    def _pairs(
        self, predictions: np.ndarray, labels: np.ndarray, image: np.ndarray, label_image: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pairs of a prediction (k,) and a label (k,) of highest IoU, whatever their classes."""
        prediction, label = same_group(image, 0, label_image, 0)
        iou = iou_of_pairs(predictions[:, :4], labels[:, 1:], prediction, label)
        near = iou > self.iou_thres
        prediction, label, iou = _claims(prediction[near], label[near], iou[near])
        order = np.lexsort((prediction, iou, label))  # of equal IoUs v6.1 takes the later prediction
        best = order[np.flatnonzero(np.diff(label[order], append=-1))]
        return prediction[best], label[best]

    def normalized(self) -> np.ndarray:
        """Returns each column divided by its sum, the number of objects of its class (background: false positives)."""
        return self.matrix / (self.matrix.sum(0, keepdims=True) + 1e-9)
