"""From an image of any size to the network's frame and back: resize, pad, and map boxes to the original.

Images are uint8 (height, width, C), with C = 3 in BGR order, and never changed in geometry.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch

from utils.boxes import Array, clip_boxes, columns, stack_columns
from utils.data.images import by_fours

GREY = 114  # value of the pixels outside the image
FILL = (GREY, GREY, GREY, GREY)


class Letterbox(NamedTuple):
    """Where an image lies inside its padded frame."""

    inner: tuple[int, int]  # height, width of the resized image
    border: tuple[int, int, int, int]  # top, bottom, left, right: padding in whole pixels
    ratio: tuple[float, float]  # width, height: resized over original
    pad: tuple[float, float]  # left, top before rounding: half of all padding, maybe x.5


def letterbox_geometry(
    shape: tuple[int, int],
    new_shape: int | tuple[int, int] = 640,
    auto: bool = True,
    stretch: bool = False,
    scaleup: bool = True,
    stride: int = 32,
) -> Letterbox:
    """Fits an image of `shape` (height, width) into `new_shape`. Options as in `letterbox`."""
    height, width = shape
    new_h, new_w = (new_shape, new_shape) if isinstance(new_shape, int) else new_shape
    gain = min(new_h / height, new_w / width)
    if not scaleup:
        gain = min(gain, 1.0)
    ratio = gain, gain
    inner_w, inner_h = max(round(width * gain), 1), max(round(height * gain), 1)
    pad_w, pad_h = new_w - inner_w, new_h - inner_h
    if auto:
        pad_w, pad_h = pad_w % stride, pad_h % stride
    elif stretch:
        inner_w, inner_h, pad_w, pad_h = new_w, new_h, 0, 0
        ratio = new_w / width, new_h / height
    pad_w, pad_h = pad_w / 2, pad_h / 2
    # the two sides of an odd padding differ by one pixel
    border = round(pad_h - 0.1), round(pad_h + 0.1), round(pad_w - 0.1), round(pad_w + 0.1)
    return Letterbox((inner_h, inner_w), border, ratio, (pad_w, pad_h))


def letterbox(
    image: np.ndarray,
    new_shape: int | tuple[int, int] = 640,
    color: tuple[int, ...] = FILL,
    auto: bool = True,
    stretch: bool = False,
    scaleup: bool = True,
    stride: int = 32,
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
    """Resizes an image to fit a frame, keeping its proportions, and pads the rest with one colour.

    Args:
        new_shape: frame, one side or (height, width).
        auto: pad only up to the next multiple of `stride`, so the result may be smaller than the frame.
        stretch: fill the frame, without keeping the proportions; without effect beside `auto`.
        scaleup: allow an image smaller than the frame to be enlarged.

    Returns: the image, ratio (width, height), and padding (left, top) in pixels, maybe x.5.
    """
    geometry = letterbox_geometry(image.shape[:2], new_shape, auto, stretch, scaleup, stride)
    if image.shape[:2] != geometry.inner:
        image = by_fours(lambda part: cv2.resize(part, geometry.inner[::-1], interpolation=cv2.INTER_LINEAR), image)
    image = by_fours(lambda part: cv2.copyMakeBorder(part, *geometry.border, cv2.BORDER_CONSTANT, value=color), image)
    return image, geometry.ratio, geometry.pad


def letterbox_planes(
    image: np.ndarray,
    new_shape: int | tuple[int, int] = 640,
    auto: bool = True,
    scaleup: bool = True,
    stride: int = 32,
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
    """Resizes and pads as `letterbox` does, in grey, and returns planes as networks take them, ratio and padding.

    Planes are uint8 (C, height, width), three of them in RGB order. This is the only way from a BGR image to a
    network's input: for val, detect, the hub, and the checks of exported files.
    """
    geometry = letterbox_geometry(image.shape[:2], new_shape, auto, scaleup=scaleup, stride=stride)
    height, width = geometry.inner
    if image.shape[:2] != geometry.inner:
        image = by_fours(lambda part: cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR), image)
    top, bottom, left, right = geometry.border
    planes = np.full((image.shape[2], top + height + bottom, left + width + right), GREY, np.uint8)
    inner = planes[:, top : top + height, left : left + width]
    if len(planes) == 3:
        blue, green, red = inner[::-1]
        cv2.split(image, [blue, green, red])
    else:
        inner[:] = image.transpose(2, 0, 1)
    return planes, geometry.ratio, geometry.pad


def to_input(
    image: np.ndarray, size: int | tuple[int, int], stride: int, auto: bool = True
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Returns one image as the network sees it.

    Args:
        image: BGR uint8 (H, W, 3).
        size: frame in pixels, one side or (height, width).
        auto: pad only to the next multiple of the stride.

    Returns: uint8 RGB (1, 3, h, w), and (h, w).
    """
    planes = letterbox_planes(image, size, auto=auto, stride=stride)[0]
    return torch.from_numpy(planes)[None], planes.shape[1:]


def scale_boxes(
    boxes: Array,
    from_shape: tuple[int, int],
    to_shape: tuple[int, int],
    ratio_pad: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> Array:
    """Maps xyxy boxes of the letterboxed input (height, width) to the original image (height, width) and clips them.

    ratio_pad: ((gain_h, gain_w), (pad_w, pad_h)) as the loader recorded it; worked out from the shapes when not given.
    """
    if ratio_pad is None:
        gain = min(from_shape[0] / to_shape[0], from_shape[1] / to_shape[1])
        pad_w, pad_h = (from_shape[1] - to_shape[1] * gain) / 2, (from_shape[0] - to_shape[0] * gain) / 2
    else:
        gain, (pad_w, pad_h) = ratio_pad[0][0], ratio_pad[1]
    x1, y1, x2, y2 = columns(boxes)
    original = stack_columns([(x1 - pad_w) / gain, (y1 - pad_h) / gain, (x2 - pad_w) / gain, (y2 - pad_h) / gain])
    return clip_boxes(original, to_shape)


def boxes_to_original(boxes: np.ndarray, image: np.ndarray, shapes: Sequence[tuple]) -> np.ndarray:
    """Maps xyxy boxes (n, 4) of letterboxed images to the original ones and clips them there.

    image:  (n,) of each box.
    shapes: per image ((h0, w0), ((gain_h, gain_w), (pad_w, pad_h))).
    """
    sizes = np.array([size for size, _ in shapes], np.float32)
    gains = np.array([gain for _, ((gain, _), _) in shapes], np.float32)
    pads = np.array([pad for _, (_, pad) in shapes], np.float32)
    original = (boxes - np.tile(pads[image], 2)) / gains[image, None]
    return np.clip(original, 0, np.tile(sizes[image, ::-1], 2)).astype(np.float32)
