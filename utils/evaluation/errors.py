"""The kinds of errors of a detector, and how much mAP each costs.

As in TIDE (Bolya et al., A General Toolbox for Identifying Object Detection Errors, ECCV 2020) each wrong prediction is
of one kind, and mAP at IoU 0.5 is measured again as if that kind of error had not been made.
"""

from dataclasses import dataclass

import numpy as np

from utils.evaluation.evaluator import Boxes
from utils.evaluation.metrics import ap_per_class, iou_of_pairs, same_group

HIGH_IOU, LOW_IOU = 0.5, 0.1  # from HIGH_IOU on a box locates the object; below LOW_IOU it does not touch it
CORRECT, LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND, BOTH = range(6)  # kinds of a prediction
MISSED = 6  # kind of a label
ERROR_KINDS = {
    LOCALIZATION: ("localization", f"right class, but IoU only {LOW_IOU} to {HIGH_IOU}"),
    CLASSIFICATION: ("classification", f"IoU {HIGH_IOU} or more with an object of another class"),
    BOTH: ("both of these", f"another class, and IoU only {LOW_IOU} to {HIGH_IOU}"),
    DUPLICATE: ("duplicate", "a more confident box matches the object"),
    BACKGROUND: ("background", f"IoU below {LOW_IOU} with every object"),
    MISSED: ("missed", "no correct box, and neither of the first two kinds"),
}
PAIRS_AT_ONCE = 2_000_000


@dataclass
class Errors:
    """The errors of an evaluation, by kind."""

    kind: np.ndarray  # (n,) of each prediction, CORRECT to BOTH
    missed: np.ndarray  # (m,) bool, of each label, among the predictions above `confidence`
    confidence: float  # only predictions above it are counted
    counts: dict[int, int]  # number of errors of each kind
    ap50: float  # mAP50 of the evaluation
    gain: dict[int, float]  # by how much mAP50 rises without the errors of a kind

    def table(self) -> str:
        """Returns rows of text: the kind, its number, its gain and what it means."""
        head = f"Errors above confidence {self.confidence:.3f}"
        rows = [f"{head:>33}{'mAP@.5':>11}"]
        for kind, (name, meaning) in ERROR_KINDS.items():
            rows.append(f"{name:>22}{self.counts[kind]:>11}{self.gain[kind]:>+11.3f}  {meaning}")
        return "\n".join(rows)


def explain_errors(boxes: Boxes, confidence: float) -> Errors:
    """Returns the kind of every wrong prediction, and the missed labels.

    confidence: only predictions above it are counted; the gains in mAP take all predictions, as mAP does.
    """
    same, same_label, other, other_label = _nearest(boxes)
    kind = np.select(
        [
            boxes.partner >= 0,
            (same >= LOW_IOU) & (same < HIGH_IOU),
            other >= HIGH_IOU,
            same >= HIGH_IOU,
            np.maximum(same, other) < LOW_IOU,
        ],
        [CORRECT, LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND],
        BOTH,
    )
    cases = [kind == CORRECT, kind == LOCALIZATION, kind == CLASSIFICATION]
    target = np.select(cases, [boxes.partner, same_label, other_label], -1)  # label of each prediction
    counted = boxes.predictions[:, 4] > confidence
    missed = ~np.isin(np.arange(len(boxes.labels)), target[counted])
    counts = np.bincount(kind[counted], minlength=MISSED + 1)
    counts[MISSED] = missed.sum()
    ap50 = _ap50(boxes, kind == CORRECT)
    gain = {error: _without(error, boxes, kind, target) - ap50 for error in ERROR_KINDS}
    counts = dict(enumerate(counts.tolist()))
    return Errors(kind=kind, missed=missed, confidence=confidence, counts=counts, ap50=ap50, gain=gain)


def _nearest(boxes: Boxes) -> tuple[np.ndarray, ...]:
    """Returns for each prediction (n,) its highest IoU with a label of its class, the number of that label, and the
    same for labels of other classes; 0 and -1 where it overlaps none."""
    highest, label = np.zeros((2, len(boxes.predictions)), np.float32), np.full((2, len(boxes.predictions)), -1)
    images = len(boxes.paths)
    pairs = np.bincount(boxes.image, minlength=images) * np.bincount(boxes.label_image, minlength=images)
    part = pairs.cumsum() // PAIRS_AT_ONCE  # of each image: pairs are formed for a part at a time
    for number in np.unique(part):
        p, q = np.flatnonzero(part[boxes.image] == number), np.flatnonzero(part[boxes.label_image] == number)
        i, j = same_group(boxes.image[p], 0, boxes.label_image[q], 0)
        i, j = p[i], q[j]
        iou = iou_of_pairs(boxes.predictions[:, :4], boxes.labels[:, 1:], i, j)
        is_other = boxes.predictions[i, 5] != boxes.labels[j, 0]
        for row, chosen in enumerate((~is_other, is_other)):
            order = np.flatnonzero(chosen & (iou > 0))
            order = order[np.lexsort((iou[order], i[order]))]  # the last of each prediction is its best
            best = order[np.flatnonzero(np.diff(i[order], append=-1))]
            highest[row, i[best]], label[row, i[best]] = iou[best], j[best]
    return highest[0], label[0], highest[1], label[1]


def _without(error: int, boxes: Boxes, kind: np.ndarray, target: np.ndarray) -> float:
    """Returns mAP50 as if one kind of error had not been made."""
    if error == MISSED:
        return _ap50(boxes, kind == CORRECT, labels=np.isin(np.arange(len(boxes.labels)), target))
    right, kept, classes = kind == CORRECT, kind != error, boxes.predictions[:, 5].copy()
    if error in (LOCALIZATION, CLASSIFICATION):
        # of an object without a correct box the most confident such box becomes correct; the others are dropped
        wrong = np.flatnonzero((kind == error) & ~np.isin(target, boxes.partner[right]))
        wrong = wrong[np.argsort(-boxes.predictions[wrong, 4], kind="stable")]
        mended = wrong[np.unique(target[wrong], return_index=True)[1]]
        right[mended] = kept[mended] = True
        classes[mended] = boxes.labels[target[mended], 0]
    return _ap50(boxes, right, kept, classes)


def _ap50(
    boxes: Boxes,
    right: np.ndarray,
    kept: np.ndarray | slice = slice(None),
    classes: np.ndarray | None = None,
    labels: np.ndarray | slice = slice(None),
) -> float:
    classes = boxes.predictions[:, 5] if classes is None else classes
    confidence = boxes.predictions[:, 4]
    return ap_per_class(right[kept, None], confidence[kept], classes[kept], boxes.labels[labels, 0]).means()[2]


def worst_images(boxes: Boxes, errors: Errors, count: int) -> list[int]:
    """Returns the numbers of up to `count` images, those with the most errors first; none without an error."""
    wrong = (errors.kind != CORRECT) & (boxes.predictions[:, 4] > errors.confidence)
    total = np.bincount(boxes.image[wrong], minlength=len(boxes.paths))
    total += np.bincount(boxes.label_image[errors.missed], minlength=len(boxes.paths))
    order = np.argsort(-total, kind="stable")[:count]
    return [int(i) for i in order if total[i]]
