"""The graphs that are exported: modules from images to decoded rows, or to boxes after suppression.

Each contains a copy of the detector, so that exporting does not change the caller's.
"""

from copy import deepcopy
from functools import partial

import torch
from torch import nn
from torchvision.ops import nms

from utils.boxes import xywh_to_xyxy
from utils.export.formats import Suppression
from utils.nms import MAX_BOX_SIDE, MIN_BOX_SIDE


class Decoded(nn.Module):
    """images (B, C, H, W), 0-1 -> decoded rows (B, N, 5 + nc), float32; or in training mode the raw maps."""

    def __init__(self, detector: nn.Module, train: bool = False):
        super().__init__()
        self.detector = deepcopy(detector).requires_grad_(False)
        self.train(train)

    def forward(self, images: torch.Tensor):
        outputs = self.detector(images)
        return tuple(outputs) if self.training else outputs[0]


def fix_shape(decoded: Decoded, images: torch.Tensor) -> None:
    """Makes Detect of a graph one for images of this shape (B, C, H, W): sizes and cells become constants.

    Programs with an old OpenCV read its ONNX graph: they compute no shapes, expand no constants, and know four
    dimensions.
    """
    head = decoded.detector.model[-1]
    with torch.no_grad():
        raw = decoded.detector(images)[1]
        # a row is at (2 s_xy - 0.5 + cell) stride and has sides (2 s_wh)^2 anchor; where s is 0.5, cell and anchor show
        middle = head.decode([torch.zeros_like(level[:1], dtype=torch.float32) for level in raw])
    counts = [level[0, ..., 0].numel() for level in raw]
    constants = [
        (rows[..., :2] - stride, 4 * rows[..., 2:4], 2 * stride)
        for rows, stride in zip(middle.split(counts, 1), head.stride.tolist())
    ]
    head.forward = partial(_fixed_rows, head, constants)


def _fixed_rows(
    head: nn.Module, constants: list[tuple[torch.Tensor, torch.Tensor, float]], levels: list[torch.Tensor]
) -> tuple[torch.Tensor, list]:
    """Returns (decoded (B, N, 5 + nc), []).

    constants: for each level corners and sides (1, na * ny * nx, 2), in pixels, and twice the stride.
    """
    rows = []
    for conv, level, (corner, side, step) in zip(head.m, levels, constants):
        B, count = int(level.shape[0]), corner.shape[1]
        maps = conv(level).view(B, head.na, head.no, count // head.na).transpose(2, 3)
        scores = maps.reshape(B, count, head.no).float().sigmoid()  # pixels above 512 do not fit into float16
        half = scores[..., 2:4]
        xy = scores[..., :2] * step + corner
        rows.append(torch.cat((xy, half * half * side, scores[..., 4 : head.no]), 2))
    return torch.cat(rows, 1), []


class ChannelsLast(nn.Module):
    """images (B, H, W, C), 0-1 -> decoded rows (B, N, 5 + nc) whose x, y, w, h are fractions of the frame.

    v6.1's TensorFlow formats have them so: beside values in pixels, 8 bits could not represent the scores.
    """

    def __init__(self, decoded: Decoded):
        super().__init__()
        self.decoded = decoded
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[1:3]
        rows = self.decoded(images.permute(0, 3, 1, 2))
        xy_wh = rows[..., :4] * rows.new_tensor([1 / width, 1 / height, 1 / width, 1 / height])
        return torch.cat((xy_wh, rows[..., 4:]), -1)


class EndToEnd(nn.Module):
    """images -> boxes (B, K, 4) x1, y1, x2, y2 in pixels, scores (B, K), classes (B, K) int64; K = topk_all.

    Boxes come in descending order of score, and rows without a box have score 0. Each decoded row counts for its best
    class, so the boxes are those of `detect.py`.
    """

    def __init__(self, decoded: Decoded, suppression: Suppression):
        super().__init__()
        self.decoded, self.suppression = decoded, suppression
        self.eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return suppress(self.decoded(images), self.suppression)


def suppress(rows: torch.Tensor, how: Suppression) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turns decoded rows (B, N, 5 + nc) into boxes, scores and classes as `EndToEnd` returns them, for any B and N.

    No tensor's shape depends on values, except that of the list of kept rows.
    """
    B, N = rows.shape[:2]
    corners = xywh_to_xyxy(rows[..., :4])
    scores, classes = (rows[..., 5:] * rows[..., 4:5]).max(2)
    valid = ((rows[..., 2:4] >= MIN_BOX_SIDE) & (rows[..., 2:4] <= MAX_BOX_SIDE)).all(2)
    scores = torch.where(valid & (scores > how.conf_thres), scores, torch.zeros_like(scores))

    # one call suppresses for all images and classes: each is moved to a separate region, in float64 for enough digits
    nc = rows.shape[2] - 5
    group = torch.arange(1, B + 1, device=rows.device)[:, None] * nc
    group = group + (torch.zeros_like(classes) if how.agnostic else classes)
    # all rows without a score become one and the same box, so that the first suppresses the others at once
    counts = (scores > 0)[..., None]
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64, device=rows.device)
    boxes = torch.where(counts, corners.double(), unit)
    moved = boxes + (group[..., None] * counts) * (boxes.max() - boxes.min() + 1)
    kept = nms(moved.reshape(-1, 4), scores.double().reshape(-1), how.iou_thres)
    left = torch.zeros_like(scores).reshape(-1)
    left = left.scatter(0, kept, scores.reshape(-1)[kept]).reshape(B, N)
    if how.topk_per_class < how.topk_all and not how.agnostic:
        left = _cap_classes(left, classes, nc, how.topk_per_class)

    # there may be fewer rows than K: K rows of score 0 are appended
    padded = torch.cat((left, left.new_zeros(1, how.topk_all).expand(B, -1)), 1)
    scores, index = padded.topk(how.topk_all, dim=1)
    index = torch.where(scores > 0, index, torch.zeros_like(index))
    has_box = (scores > 0)[..., None]
    boxes = corners.gather(1, index[..., None].expand(-1, -1, 4))
    classes = classes.gather(1, index)
    return torch.where(has_box, boxes, torch.zeros_like(boxes)), scores, classes * has_box[..., 0]


def _cap_classes(scores: torch.Tensor, classes: torch.Tensor, nc: int, maximum: int) -> torch.Tensor:
    """Returns scores (B, N) with 0 for all but the `maximum` highest of each class."""
    order = scores.argsort(1, descending=True)
    one_hot = nn.functional.one_hot(classes.gather(1, order), nc) * (scores.gather(1, order) > 0)[..., None]
    rank = (one_hot.cumsum(1) * one_hot).sum(2)  # 1 for the most confident of its class
    capped = torch.where(rank <= maximum, scores.gather(1, order), torch.zeros_like(scores))
    return torch.zeros_like(scores).scatter(1, order, capped)


def delicate_modules(detector: nn.Module) -> tuple[str, ...]:
    """Returns the names of the modules that stay in float32, as their classes say: SOCA and other statistics of a map,
    and Detect, whose last steps compute pixels.
    """
    return tuple(name for name, m in detector.named_modules() if getattr(m, "in_float32", False))
