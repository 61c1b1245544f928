"""Non-maximum suppression (NMS) by v6.1's rules: from all decoded predictions to the detections of each image."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from utils.boxes import xywh_to_xyxy

MIN_BOX_SIDE, MAX_BOX_SIDE = 2, 7680  # pixels; a predicted box with a side outside this range is dropped
MAX_CANDIDATES = 30000  # maximum number of (box, class) pairs per image; the most confident are kept


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
    """Returns the detections of each image: its most confident boxes that no more confident one suppresses.

    decoded:     (B, N, 5 + nc): x, y, w, h in pixels; objectness; class scores 0-1. It is not changed.
    conf_thres:  0-1. Boxes whose confidence (objectness x class score) is not above it are dropped.
    iou_thres:   0-1. A box whose IoU with a kept box of its class is above it is dropped.
    classes:     the classes to return; None for all.
    agnostic:    class-agnostic: a kept box suppresses boxes of all classes.
    multi_label: one prediction gives a box for each class above conf_thres, instead of one for its best class.
    labels:      known boxes per image (m, 5): class, x, y, w, h in pixels; they take part with confidence 1.
    max_det:     maximum number of detections per image.

    The detections are float32 (n, 6): x1, y1, x2, y2 in pixels, confidence, class, by descending confidence; equal
    confidences are in the order of `decoded`.

    Raises ValueError for a threshold outside 0-1 or a wrong shape.
    """
    _check_arguments(decoded, conf_thres, iou_thres, labels)
    # few rows pass, so everything else is done on them alone
    candidate = decoded[..., 4] > conf_thres
    row_index = candidate.nonzero(as_tuple=True)[1]
    rows_per_image = row_index.split(candidate.sum(1).tolist())

    detections = []
    for image, rows in enumerate(rows_per_image):
        boxes = _score(decoded[image].index_select(0, rows).float(), conf_thres, multi_label)
        if len(labels) and conf_thres < 1:
            boxes = torch.cat([boxes, _known_boxes(labels[image].to(boxes))])
        if classes is not None:
            kept_classes = torch.as_tensor(classes, dtype=boxes.dtype, device=boxes.device)
            boxes = boxes[torch.isin(boxes[:, 5], kept_classes)]
        detections.append(_suppress(boxes, iou_thres, agnostic, max_det))
    return detections


def _check_arguments(
    decoded: torch.Tensor, conf_thres: float, iou_thres: float, labels: Sequence[torch.Tensor]
) -> None:
    for name, threshold in (("confidence", conf_thres), ("IoU", iou_thres)):
        if not 0 <= threshold <= 1:
            raise ValueError(f"the {name} threshold must be between 0 and 1, got {threshold}")
    if decoded.ndim != 3 or decoded.shape[2] < 6:
        raise ValueError(f"predictions must have the shape (images, rows, 5 + classes), got {tuple(decoded.shape)}")
    if len(labels) not in (0, len(decoded)):
        raise ValueError(f"labels must be given for all of the {len(decoded)} images or for none, got {len(labels)}")


def _score(rows: torch.Tensor, conf_thres: float, multi_label: bool) -> torch.Tensor:
    """Returns the decoded rows (k, 5 + nc) of one image that are above the threshold as boxes (n, 6)."""
    x, y, width, height = rows[:, :4].unbind(1)
    valid = (torch.minimum(width, height) >= MIN_BOX_SIDE) & (torch.maximum(width, height) <= MAX_BOX_SIDE)
    valid &= (x + y).isfinite()
    # (k, nc); zeros cost less than selecting the rows again
    scores = rows[:, 5:] * rows[:, 4].where(valid, 0)[:, None]
    corners = xywh_to_xyxy(rows[:, :4])

    if multi_label:
        scores = scores.flatten()
        index = (scores > conf_thres).nonzero()[:, 0]
        row, label = index // (rows.shape[1] - 5), index % (rows.shape[1] - 5)
        return torch.cat([corners[row], scores[index, None], label[:, None]], 1)
    confidence, label = scores.max(1, keepdim=True)
    return torch.cat([corners, confidence, label], 1)[confidence[:, 0] > conf_thres]


def _known_boxes(labels: torch.Tensor) -> torch.Tensor:
    """Returns known boxes (m, 5), class first and centre form, as boxes (m, 6) of confidence 1."""
    return torch.cat([xywh_to_xyxy(labels[:, 1:5]), torch.ones_like(labels[:, :1]), labels[:, :1]], 1)


def _suppress(boxes: torch.Tensor, iou_thres: float, agnostic: bool, max_det: int) -> torch.Tensor:
    """Returns the rows of boxes (n, 6) that greedy suppression keeps, up to max_det."""
    if not len(boxes):
        return boxes
    boxes = boxes[boxes[:, 4].argsort(descending=True, stable=True)[:MAX_CANDIDATES]]
    corners, confidence, label = boxes[:, :4], boxes[:, 4], boxes[:, 5:]
    if not agnostic:
        # each class is moved to a region of its own, no further than necessary: float32 has few digits to spare
        corners = corners + label * (corners.max() - corners.min() + 1)

    # whether a box is kept depends only on more confident ones, so the head of a long list is often enough
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
    except NotImplementedError:  # torchvision has no NMS for some devices
        return nms(corners.cpu(), confidence.cpu(), iou_thres).to(corners.device)


@cache
def _torchvision_nms() -> Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]:
    """Returns torchvision's NMS, from its library of compiled operators alone if that is in a known place.

    `import torchvision` imports torch._dynamo and a thousand other modules, and takes longer than importing torch.
    """
    package = importlib.util.find_spec("torchvision")
    folder = Path(package.origin).parent if package and package.origin else Path()
    for library in (folder / name for name in ("_C_stable.so", "_C.so")):
        if library.is_file():
            try:
                torch.ops.load_library(library)
                return torch.ops.torchvision.nms
            except (OSError, AttributeError):  # built for another torch; torchvision's own error is clearer
                break
    from torchvision.ops import nms

    return nms
