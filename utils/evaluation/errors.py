"""What kind of errors cost how much: missed, background, wrong class, badly placed, duplicate.

In the manner of TIDE (Bolya et al., A General Toolbox for Identifying Object Detection Errors, ECCV 2020): each wrong
prediction is of one kind, and the mAP at IoU 0.5 is measured again as if that kind of error were not made.
"""

from dataclasses import dataclass

import numpy as np

from utils.evaluation.evaluator import Boxes
from utils.evaluation.metrics import ap_per_class, iou_of_pairs, same_group

NEAR, FAR = 0.5, 0.1  # IoU from which a box is on an object, and below which it has nothing to do with it
RIGHT, PLACED, CLASS, DUPLICATE, BACKGROUND, BOTH = range(6)  # kinds of a prediction
MISSED = 6  # a label
KINDS = {
    PLACED: ("badly placed", f"the right class, IoU {FAR} to {NEAR}"),
    CLASS: ("wrong class", f"IoU {NEAR} or more with an object of another class"),
    BOTH: ("both of these", f"another class, IoU {FAR} to {NEAR}"),
    DUPLICATE: ("duplicate", "of an object that a more confident box has"),
    BACKGROUND: ("background", f"IoU below {FAR} with every object"),
    MISSED: ("missed", "an object that no box is near to"),
}
PAIRS_AT_ONCE = 2_000_000


@dataclass
class Errors:
    """The kinds of the errors of an evaluation."""

    kind: np.ndarray  # (n,) of each prediction, RIGHT to BOTH
    missed: np.ndarray  # (m,) bool, of each label: not even a badly placed or wrongly classed box, at `confidence`
    confidence: float  # what is counted lies above it
    counts: dict[int, int]  # by kind, above that confidence
    ap50: float  # of the evaluation
    gain: dict[int, float]  # by kind: by how much mAP50 rises without those errors

    def table(self) -> str:
        """Rows of text: kind, number, gain, what the kind means."""
        head = f"Errors above confidence {self.confidence:.3f}"
        rows = [f"{head:>33}{'mAP@.5':>11}"]
        for kind, (name, meaning) in KINDS.items():
            rows.append(f"{name:>22}{self.counts[kind]:>11}{self.gain[kind]:>+11.3f}  {meaning}")
        return "\n".join(rows)


def explain_errors(boxes: Boxes, confidence: float) -> Errors:
    """Sorts all wrong predictions, and the labels that none is near to, by their kind.

    confidence: what is counted lies above it; the gains in mAP are of all predictions, as mAP is.
    """
    same, same_label, other, other_label = _nearest(boxes)
    kind = np.select(
        [boxes.partner >= 0, (same >= FAR) & (same < NEAR), other >= NEAR, same >= NEAR, np.maximum(same, other) < FAR],
        [RIGHT, PLACED, CLASS, DUPLICATE, BACKGROUND],
        BOTH,
    )
    target = np.select([kind == RIGHT, kind == PLACED, kind == CLASS], [boxes.partner, same_label, other_label], -1)
    counted = boxes.predictions[:, 4] > confidence
    missed = ~np.isin(np.arange(len(boxes.labels)), target[counted])
    counts = np.bincount(kind[counted], minlength=MISSED + 1)
    counts[MISSED] = missed.sum()
    ap50 = _ap50(boxes, kind == RIGHT)
    gain = {error: _without(error, boxes, kind, target) - ap50 for error in KINDS}
    return Errors(kind, missed, confidence, dict(enumerate(counts.tolist())), ap50, gain)


def _nearest(boxes: Boxes) -> tuple[np.ndarray, ...]:
    """Of each prediction (n,): IoU with the label of its class that it overlaps most, that label, and the same for
    other classes; 0 and -1 where it overlaps none."""
    found = np.zeros((2, len(boxes.predictions)), np.float32), np.full((2, len(boxes.predictions)), -1)
    images = len(boxes.paths)
    pairs = np.bincount(boxes.image, minlength=images) * np.bincount(boxes.label_image, minlength=images)
    part = pairs.cumsum() // PAIRS_AT_ONCE  # of each image
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
            found[0][row, i[best]], found[1][row, i[best]] = iou[best], j[best]
    (same, other), (same_label, other_label) = found
    return same, same_label, other, other_label


def _without(error: int, boxes: Boxes, kind: np.ndarray, target: np.ndarray) -> float:
    """mAP50 had one kind of error not been made."""
    if error == MISSED:
        return _ap50(boxes, kind == RIGHT, labels=np.isin(np.arange(len(boxes.labels)), target))
    right, kept, classes = kind == RIGHT, kind != error, boxes.predictions[:, 5].copy()
    if error in (PLACED, CLASS):
        # the most confident such box of an object that no box has becomes right, the others go
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
    """Numbers of the images with most errors, the worst first; none without an error."""
    wrong = (errors.kind != RIGHT) & (boxes.predictions[:, 4] > errors.confidence)
    total = np.bincount(boxes.image[wrong], minlength=len(boxes.paths))
    total += np.bincount(boxes.label_image[errors.missed], minlength=len(boxes.paths))
    order = np.argsort(-total, kind="stable")[:count]
    return [int(i) for i in order if total[i]]
