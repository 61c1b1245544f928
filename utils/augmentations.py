"""Letterboxing and augmentation by v6.1's names, for programs written for it.

Nothing in the project imports this file. Random numbers are drawn from Python's generator, `random`.
"""

import random
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from utils.boxes import box_ioa as bbox_ioa
from utils.data import augmentations as _augmentations
from utils.data import letterbox as _letterbox

__all__ = [
    "augment_hsv",
    "bbox_ioa",
    "box_candidates",
    "copy_paste",
    "hist_equalize",
    "letterbox",
    "mixup",
    "random_perspective",
]


def letterbox(
    im: np.ndarray,
    new_shape: Any = (640, 640),
    color: Sequence[int] = (114, 114, 114),
    auto: bool = True,
    scaleFill: bool = False,
    scaleup: bool = True,
    stride: int = 32,
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
    """Resizes an image (H, W, C) or (H, W) to fit a frame, one side or (height, width), and pads the rest.

    auto: pad only up to the next multiple of the stride. scaleFill: fill the frame, whatever the proportions.
    scaleup: allow it to be enlarged.

    Returns the image, ratio (width, height), and padding (left, top) in pixels, maybe x.5.
    """
    grey = im.ndim == 2
    image, ratio, pad = _letterbox.letterbox(
        im[..., None] if grey else im, new_shape, tuple(color), auto, scaleFill, scaleup, int(stride)
    )
    return image[..., 0] if grey else image, ratio, pad


def random_perspective(
    im: np.ndarray, targets: np.ndarray = (), segments: Sequence[np.ndarray] = (), degrees: float = 10,
    translate: float = 0.1, scale: float = 0.1, shear: float = 10, perspective: float = 0.0,
    border: tuple[int, int] = (0, 0),
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Warps an image and its labels (n, 5), class and pixel xyxy, at random; border is added to both sides of each."""
    warp = _augmentations.draw_warp(_rng(), degrees, translate, scale, shear, perspective)
    labels = np.zeros((0, 5), np.float32) if len(targets) == 0 else targets
    new_shape = im.shape[0] + 2 * border[0], im.shape[1] + 2 * border[1]
    return _augmentations.random_perspective(im, labels, list(segments), warp, new_shape)


def augment_hsv(im: np.ndarray, hgain: float = 0.5, sgain: float = 0.5, vgain: float = 0.5) -> None:
    """Multiplies hue, saturation and value of a BGR image by random factors; changes the image."""
    im[:] = _augmentations.adjust_hsv(im, _augmentations.draw_hsv(_rng(), hgain, sgain, vgain))


def mixup(im: np.ndarray, labels: np.ndarray, im2: np.ndarray, labels2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blends two images of one size, each by about one half, and joins their labels."""
    return _augmentations.mixup(im, labels, im2, labels2, _augmentations.draw_mixup(_rng()))


def copy_paste(
    im: np.ndarray, labels: np.ndarray, segments: list[np.ndarray], p: float = 0.5
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Pastes the mirror image of a share p of the objects, which have polygons, where it hides little of the others."""
    return _augmentations.copy_paste(im, labels, segments, _augmentations.draw_copy_paste(_rng(), segments, p))


def box_candidates(
    box1: np.ndarray, box2: np.ndarray, wh_thr: float = 2, ar_thr: float = 100, area_thr: float = 0.1,
    eps: float = 1e-16,
) -> np.ndarray:  # fmt: skip
    """Returns which boxes (4, n) after a warp are still worth learning, of box1 before it and box2 after it: (n,)."""
    return _augmentations.keep_boxes(box1.T, box2.T, wh_thr, area_thr, ar_thr, eps)


def hist_equalize(im: np.ndarray, clahe: bool = True, bgr: bool = False) -> np.ndarray:
    """Returns an RGB image, BGR with `bgr`, whose brightness is spread evenly, with `clahe` in each part of it."""
    to, back = (cv2.COLOR_BGR2YUV, cv2.COLOR_YUV2BGR) if bgr else (cv2.COLOR_RGB2YUV, cv2.COLOR_YUV2RGB)
    yuv = cv2.cvtColor(im, to)
    spread = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply if clahe else cv2.equalizeHist
    yuv[..., 0] = spread(np.ascontiguousarray(yuv[..., 0]))
    return cv2.cvtColor(yuv, back)


def _rng() -> np.random.Generator:
    return np.random.default_rng(random.getrandbits(64))
