"""Non-maximum suppression: from every decoded prediction to the few boxes that are reported (spec: v6.1)."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from utils.boxes import xywh_to_xyxy

MIN_SIDE, MAX_SIDE = 2, 7680  # pixels; a predicted box with a side outside this range is never kept
MAX_CANDIDATES = 30000  # (box, class) pairs an image may bring to the suppression; the most confident stay


def non_max_suppression(
    decoded: torch.Tensor,
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    labels: Sequence[torch.Tensor] = (),
    max_det: int = 300,
) -> list[torch.Tensor]:
    """The most confident boxes of each image, without those that overlap a more confident one of their class.

    decoded:     (B, N, 5 + nc): x, y, w, h in pixels; objectness; class scores 0-1. It is left as it is.
    conf_thres:  0-1. The confidence (objectness x class score) must be above it.
    iou_thres:   0-1. A box whose IoU with a kept box is above it is dropped.
    classes:     report these classes only; None for all.
    agnostic:    boxes suppress each other whatever their classes.
    multi_label: one prediction may give a box for each class above conf_thres, not only for its best one.
    labels:      known boxes, per image (m, 5): class, x, y, w, h in pixels; they take part with confidence 1.
    max_det:     at most this many boxes an image.

    Returns per image a float32 tensor (n, 6): x1, y1, x2, y2 in pixels, confidence, class; descending confidence,
    equal confidences in the order of `decoded`. Raises ValueError for a threshold outside 0-1 or a wrong shape.
    """
    _check(decoded, conf_thres, iou_thres, labels)
    # Few rows pass, so everything else is done on them alone.
    candidate = decoded[..., 4] > conf_thres
    row_index = candidate.nonzero(as_tuple=True)[1]
    rows_per_image = row_index.split(candidate.sum(1).tolist())

    found = []
    for image, rows in enumerate(rows_per_image):
        boxes = _score(decoded[image].index_select(0, rows).float(), conf_thres, multi_label)
        if len(labels) and conf_thres < 1:
            boxes = torch.cat([boxes, _certain(labels[image].to(boxes))])
        if classes is not None:
            wanted = torch.as_tensor(classes, dtype=boxes.dtype, device=boxes.device)
            boxes = boxes[torch.isin(boxes[:, 5], wanted)]
        found.append(_suppress(boxes, iou_thres, agnostic, max_det))
    return found


def _check(decoded: torch.Tensor, conf_thres: float, iou_thres: float, labels: Sequence[torch.Tensor]) -> None:
    for name, threshold in (("confidence", conf_thres), ("IoU", iou_thres)):
        if not 0 <= threshold <= 1:
            raise ValueError(f"the {name} threshold must lie between 0 and 1, got {threshold}")
    if decoded.ndim != 3 or decoded.shape[2] < 6:
        raise ValueError(f"predictions must have the shape (images, rows, 5 + classes), got {tuple(decoded.shape)}")
    if len(labels) not in (0, len(decoded)):
        raise ValueError(f"labels must be given for each of the {len(decoded)} images or not at all, got {len(labels)}")


def _score(rows: torch.Tensor, conf_thres: float, multi_label: bool) -> torch.Tensor:
    """Decoded rows (k, 5 + nc) of one image as boxes (n, 6), those above the threshold."""
    x, y, width, height = rows[:, :4].unbind(1)
    sensible = (torch.minimum(width, height) >= MIN_SIDE) & (torch.maximum(width, height) <= MAX_SIDE)
    sensible &= (x + y).isfinite()
    # (k, nc); zeros are less work than picking the rows once more
    scores = rows[:, 5:] * rows[:, 4].where(sensible, 0)[:, None]
    corners = xywh_to_xyxy(rows[:, :4])

    if multi_label:
        scores = scores.flatten()
        place = (scores > conf_thres).nonzero()[:, 0]
        row, label = place // (rows.shape[1] - 5), place % (rows.shape[1] - 5)
        return torch.cat([corners[row], scores[place, None], label[:, None]], 1)
    confidence, label = scores.max(1, keepdim=True)
    return torch.cat([corners, confidence, label], 1)[confidence[:, 0] > conf_thres]


def _certain(labels: torch.Tensor) -> torch.Tensor:
    """Known boxes (m, 5), class first and centre form, as boxes (m, 6) of confidence 1."""
    return torch.cat([xywh_to_xyxy(labels[:, 1:5]), torch.ones_like(labels[:, :1]), labels[:, :1]], 1)


def _suppress(boxes: torch.Tensor, iou_thres: float, agnostic: bool, max_det: int) -> torch.Tensor:
    """The rows of boxes (n, 6) that greedy suppression keeps, at most max_det."""
    if not len(boxes):
        return boxes
    boxes = boxes[boxes[:, 4].argsort(descending=True, stable=True)[:MAX_CANDIDATES]]
    corners, confidence, label = boxes[:, :4], boxes[:, 4], boxes[:, 5:]
    if not agnostic:
        # Each class moves to a region of its own, no further than needed: float32 has few digits to spare.
        corners = corners + label * (corners.max() - corners.min() + 1)

    # What is kept depends only on what is more confident, so the head of a long list is often enough.
    head = 10 * max_det
    kept = _nms(corners[:head], confidence[:head], iou_thres)
    while len(kept) < max_det and head < len(boxes):
        head *= 2
        kept = _nms(corners[:head], confidence[:head], iou_thres)
    return boxes[kept[:max_det]]


def _nms(corners: torch.Tensor, confidence: torch.Tensor, iou_thres: float) -> torch.Tensor:
    nms = _torchvision_nms()
    try:
        return nms(corners, confidence, iou_thres)
    except NotImplementedError:  # torchvision has it for the CPU and CUDA, not for every device
        return nms(corners.cpu(), confidence.cpu(), iou_thres).to(corners.device)


@cache
def _torchvision_nms() -> Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]:
    """torchvision's NMS, from its library of compiled operators alone where that lies where it is known to.

    `import torchvision` brings torch._dynamo and a thousand other modules, and takes longer than torch itself.
    """
    package = importlib.util.find_spec("torchvision")
    folder = Path(package.origin).parent if package and package.origin else Path()
    for library in (folder / name for name in ("_C_stable.so", "_C.so")):
        if library.is_file():
            try:
                torch.ops.load_library(library)
                return torch.ops.torchvision.nms
            except (OSError, AttributeError):  # not made for this torch, which torchvision can say better
                break
    from torchvision.ops import nms

    return nms
