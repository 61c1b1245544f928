"""Geometry of boxes: conversions, clipping, overlaps.

Formats, named in every function: `xyxy` = x1, y1, x2, y2 with x1 <= x2, y1 <= y2 in pixels; `xywh` = centre x,
centre y, width, height in pixels; `xywhn` = the same divided by image width and height (0-1).

Functions take torch tensors or numpy arrays of shape (..., 4), return the same kind, and never change their argument.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from utils.log import LOGGER

Array = torch.Tensor | np.ndarray


def stack_columns(columns: Sequence[Array]) -> Array:
    """Returns columns, each (...), side by side: (..., k)."""
    if isinstance(columns[0], torch.Tensor):
        return torch.stack(columns, -1)
    stacked = np.empty((*np.shape(columns[0]), len(columns)), np.result_type(*columns))
    for k, column in enumerate(columns):  # np.stack takes several times as long for the boxes of one image
        stacked[..., k] = column
    return stacked


def columns(boxes: Array) -> tuple[Array, Array, Array, Array]:
    """Returns the four columns of boxes (..., 4), each (...)."""
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


# --- conversions ------------------------------------------------------------------------------------------------------


def xyxy_to_xywh(boxes: Array) -> Array:
    """Converts corners to centre form."""
    x1, y1, x2, y2 = columns(boxes)
    return stack_columns([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])


def xywh_to_xyxy(boxes: Array) -> Array:
    """Converts centre form to corners."""
    x, y, w, h = columns(boxes)
    return stack_columns([x - w / 2, y - h / 2, x + w / 2, y + h / 2])


def xywhn_to_xyxy(boxes: Array, width: float, height: float, pad_w: float = 0, pad_h: float = 0) -> Array:
    """Converts normalised centre form to pixel corners in an image of (width, height) that lies at (pad_w, pad_h).

    Each of the four is a number, or an array with a number per box.
    """
    x, y, w, h = columns(boxes)
    return stack_columns(
        [
            width * (x - w / 2) + pad_w,
            height * (y - h / 2) + pad_h,
            width * (x + w / 2) + pad_w,
            height * (y + h / 2) + pad_h,
        ]
    )


def xyxy_to_xywhn(boxes: Array, width: float, height: float, clip: bool = False, eps: float = 0.0) -> Array:
    """Converts pixel corners to normalised centre form; `clip` clips them first, to width - eps, height - eps."""
    if clip:
        boxes = clip_boxes(boxes, (height - eps, width - eps))
    x, y, w, h = columns(xyxy_to_xywh(boxes))
    return stack_columns([x / width, y / height, w / width, h / height])


def points_to_pixels(points: Array, width: float, height: float, pad_w: float = 0, pad_h: float = 0) -> Array:
    """Converts normalised points (..., 2) to pixels in an image of (width, height) that lies at (pad_w, pad_h)."""
    return stack_columns([width * points[..., 0] + pad_w, height * points[..., 1] + pad_h])


# --- polygons ---------------------------------------------------------------------------------------------------------


def polygon_to_box(polygon: np.ndarray, width: float, height: float) -> np.ndarray:
    """Returns the xyxy box (4,) around the points of a pixel polygon (k, 2) inside the image; zeros without any."""
    x, y = polygon.T
    inside = (x >= 0) & (y >= 0) & (x <= width) & (y <= height)
    x, y = x[inside], y[inside]
    # v6.1 tests whether any such x is nonzero, so a polygon on the left border vanishes; its numbers depend on that
    if not x.any():
        return np.zeros(4)
    return np.array([x.min(), y.min(), x.max(), y.max()])


def polygons_to_boxes(polygons: list[np.ndarray]) -> np.ndarray:
    """Returns the xywh boxes (n, 4) around polygons, each (k, 2)."""
    corners = [np.concatenate([polygon.min(0), polygon.max(0)]) for polygon in polygons]
    return xyxy_to_xywh(np.array(corners).reshape(-1, 4))


def resample_polygons(polygons: list[np.ndarray], n: int = 1000) -> list[np.ndarray]:
    """Returns each polygon with n points, interpolated by point number (not by arc length)."""
    resampled = []
    for polygon in polygons:
        position = np.linspace(0, len(polygon) - 1, n)
        known = np.arange(len(polygon))
        resampled.append(np.stack([np.interp(position, known, polygon[:, axis]) for axis in (0, 1)], -1))
    return resampled


# --- images -----------------------------------------------------------------------------------------------------------


def clip_boxes(boxes: Array, shape: tuple[float, float]) -> Array:
    """Clips xyxy boxes to an image of shape (height, width)."""
    height, width = shape
    if isinstance(boxes, np.ndarray):
        return np.minimum(np.maximum(boxes, 0), np.array([width, height, width, height], boxes.dtype))
    x1, y1, x2, y2 = columns(boxes)
    return stack_columns([x1.clip(0, width), y1.clip(0, height), x2.clip(0, width), y2.clip(0, height)])


def round_up(x: float, divisor: int) -> int:
    """Returns the smallest multiple of divisor that is not below x."""
    return math.ceil(x / divisor) * divisor


def check_image_size(size: int | list[int], stride: int = 32, floor: int = 0) -> int | list[int]:
    """Returns an image size rounded up to a multiple of the stride, and to at least `floor`; logs what was changed.

    `size` is one number or [height, width], in pixels. Raises ValueError for one below 1.
    """
    sizes = [size] if isinstance(size, int) else list(size)
    if any(s < 1 for s in sizes):
        raise ValueError(f"image size must be positive, got {size}; give --imgsz a multiple of {stride}, such as 640")
    rounded = [max(round_up(s, stride), floor) for s in sizes]
    result = rounded[0] if isinstance(size, int) else rounded
    rules = [f"not a multiple of the model's stride {stride}"] if any(s % stride for s in sizes) else []
    rules += [f"less than {floor}, {floor // stride} times the stride"] if min(sizes) < floor else []
    if rules:
        LOGGER.warning(f"image size {size} is {' and '.join(rules)}; using {result}")
    return result


# --- overlaps ---------------------------------------------------------------------------------------------------------


def box_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns the IoU (N, M), 0-1, of every xyxy box of a (N, 4) with every box of b (M, 4)."""
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:4], b[None, :, 2:4])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    area_a = (a[:, 2:4] - a[:, :2]).prod(-1)
    area_b = (b[:, 2:4] - b[:, :2]).prod(-1)
    return intersection / (area_a[:, None] + area_b[None] - intersection)


def box_ioa(box: np.ndarray, boxes: np.ndarray, eps: float = 1e-7) -> np.ndarray:
    """Returns the intersection of one xyxy box (4,) with each of boxes (n, 4), over the area of the latter: (n,)."""
    x1, y1, x2, y2 = columns(boxes)
    width = (np.minimum(box[2], x2) - np.maximum(box[0], x1)).clip(0)
    height = (np.minimum(box[3], y2) - np.maximum(box[1], y1)).clip(0)
    return width * height / ((x2 - x1) * (y2 - y1) + eps)


def paired_iou(a: torch.Tensor, b: torch.Tensor, kind: str = "ciou", xywh: bool = True, eps: float = 1e-7):
    """Returns the overlap (...) of box i of a with box i of b, both (..., 4) and broadcastable.

    kind: "iou", "giou" (Rezatofighi et al., CVPR 2019), "diou" or "ciou" (Zheng et al., AAAI 2020).
    As in v6.1 eps is added to heights and denominators only, and CIoU's weight alpha has no gradient.

    Raises ValueError for another kind.
    """
    if kind not in ("iou", "giou", "diou", "ciou"):
        raise ValueError(f"the kind of IoU must be iou, giou, diou or ciou, got {kind!r}")
    ax1, ay1, ax2, ay2 = columns(xywh_to_xyxy(a) if xywh else a)
    bx1, by1, bx2, by2 = columns(xywh_to_xyxy(b) if xywh else b)

    overlap_w = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    overlap_h = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    intersection = overlap_w * overlap_h
    aw, ah, bw, bh = ax2 - ax1, ay2 - ay1 + eps, bx2 - bx1, by2 - by1 + eps
    union = aw * ah + bw * bh - intersection + eps
    iou = intersection / union
    if kind == "iou":
        return iou

    # the smallest box around both
    cw = torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)
    ch = torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    if kind == "giou":
        hull = cw * ch + eps
        return iou - (hull - union) / hull

    diagonal2 = cw**2 + ch**2 + eps
    centre2 = ((bx1 + bx2 - ax1 - ax2) ** 2 + (by1 + by2 - ay1 - ay2) ** 2) / 4
    if kind == "diou":
        return iou - centre2 / diagonal2

    v = (4 / math.pi**2) * (torch.atan(bw / bh) - torch.atan(aw / ah)) ** 2
    with torch.no_grad():
        alpha = v / (v - iou + (1 + eps))
    return iou - (centre2 / diagonal2 + v * alpha)
