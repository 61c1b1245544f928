"""Augmentation: pure functions from images and labels to images and labels.

Randomness is kept apart: `draw_*(rng, ...)` takes a generator and returns numbers, another function applies the numbers
to an image. The same numbers give the same image on every machine.

Images are uint8 (height, width, C), with C = 3 in BGR order, and never changed in place. Labels are (n, 5): class,
then a box whose format each function names. Polygons are a list of n arrays (k, 2), one per label row, empty (k = 0)
where the row has only a box; an empty list says the same for all rows.
"""

import math
import os
from typing import NamedTuple

import cv2
import numpy as np

from utils.boxes import (
    box_ioa,
    clip_boxes,
    polygon_to_box,
    resample_polygons,
)
from utils.data.images import by_fours
from utils.data.letterbox import FILL

ALMOST_HALF = -0.499  # added before rounding to the nearest, rounds down
STRIP = 64  # rows that are recoloured at a time


# --- random perspective -----------------------------------------------------------------------------------------------


class Warp(NamedTuple):
    """One draw of a perspective transform. The default changes nothing."""

    perspective_x: float = 0.0
    perspective_y: float = 0.0
    angle: float = 0.0  # degrees, anticlockwise as seen
    scale: float = 1.0
    shear_x: float = 0.0  # degrees
    shear_y: float = 0.0
    translate_x: float = 0.5  # of the output's width, where the image's centre goes
    translate_y: float = 0.5


def draw_warp(
    rng: np.random.Generator,
    degrees: float = 0.0,
    translate: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    perspective: float = 0.0,
) -> Warp:
    """Draws each part evenly from its centre plus or minus the given range."""
    low_high = np.array([perspective, perspective, degrees, scale, shear, shear, translate, translate])
    return Warp(*(np.array(Warp()) + rng.uniform(-low_high, low_high)).tolist())


def warp_matrix(warp: Warp, shape: tuple[int, int], new_shape: tuple[int, int]) -> np.ndarray:
    """Returns the (3, 3) matrix from pixels of an image of `shape` to those of `new_shape`, both (height, width).

    It is translation . shear . rotation and scale . perspective . centring, applied from the right.
    """
    height, width = shape
    centre = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    perspective = np.array([[1, 0, 0], [0, 1, 0], [warp.perspective_x, warp.perspective_y, 1]])
    a, b = (warp.scale * f(math.radians(warp.angle)) for f in (math.cos, math.sin))
    rotation = np.array([[a, b, 0], [-b, a, 0], [0, 0, 1]])
    shear_x, shear_y = (math.tan(math.radians(degrees)) for degrees in (warp.shear_x, warp.shear_y))
    shear = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
    new_height, new_width = new_shape
    translation = np.array([[1, 0, warp.translate_x * new_width], [0, 1, warp.translate_y * new_height], [0, 0, 1]])
    return translation @ shear @ rotation @ perspective @ centre


def random_perspective(
    image: np.ndarray,
    labels: np.ndarray,
    polygons: list[np.ndarray],
    warp: Warp,
    new_shape: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Warps an image and its labels (class and pixel xyxy) into a frame of `new_shape`, by default its own."""
    shape = image.shape[:2]
    new_shape = new_shape or shape
    matrix = warp_matrix(warp, shape, new_shape)
    return warp_image(image, matrix, new_shape), warp_labels(labels, polygons, matrix, new_shape, warp.scale)


def warp_image(image: np.ndarray, matrix: np.ndarray, new_shape: tuple[int, int]) -> np.ndarray:
    """Warps an image by `matrix` into a frame of `new_shape` (height, width), which is grey outside the image."""
    if image.shape[:2] == tuple(new_shape) and np.array_equal(matrix, np.eye(3)):
        return image
    height, width = new_shape
    if is_affine(matrix):
        return by_fours(lambda part: cv2.warpAffine(part, matrix[:2], (width, height), borderValue=FILL), image)
    return by_fours(lambda part: cv2.warpPerspective(part, matrix, (width, height), borderValue=FILL), image)


def is_affine(matrix: np.ndarray) -> bool:
    return matrix[2, 0] == 0 and matrix[2, 1] == 0


def warp_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Maps pixel points (..., 2) by a (3, 3) matrix."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    return moved[..., :2] / moved[..., 2:]


def warp_labels(
    labels: np.ndarray,
    polygons: list[np.ndarray],
    matrix: np.ndarray,
    new_shape: tuple[int, int],
    scale: float,
) -> np.ndarray:
    """Maps labels (class and pixel xyxy) by `matrix`; those of which too little remains in the frame are dropped.

    A box becomes the box around its four moved corners. A polygon becomes the box around those of 1000 points along
    its moved outline that lie in the frame, which is tighter, so less of its area has to remain.
    """
    if not len(labels):
        return labels
    height, width = new_shape
    boxes = labels[:, 1:].astype(np.float64)
    corners = warp_points(boxes[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(-1, 4, 2), matrix)
    moved = clip_boxes(np.concatenate([corners.min(1), corners.max(1)], 1), new_shape)

    min_area: float | np.ndarray = 0.10
    outlined = [row for row, polygon in enumerate(polygons) if len(polygon)]
    if outlined:
        min_area = np.full(len(labels), min_area)
        min_area[outlined] = 0.01
        for row, outline in zip(outlined, resample_polygons([polygons[row] for row in outlined])):
            moved[row] = polygon_to_box(warp_points(outline, matrix), width, height)
    keep = keep_boxes(boxes * scale, moved, min_area=min_area)
    return np.concatenate([labels[keep, :1], moved[keep]], 1).astype(labels.dtype)


def keep_boxes(
    before: np.ndarray,
    after: np.ndarray,
    min_side: float = 2,
    min_area: float | np.ndarray = 0.1,
    max_aspect: float = 100,
    eps: float = 1e-16,
) -> np.ndarray:
    """Returns which of the xyxy boxes `after` (n, 4) are still worth learning: bool (n,).

    Both sides must exceed `min_side` pixels, the area `min_area` of the box `before`, and neither side may be
    `max_aspect` times the other.
    """
    before_w, before_h = before[:, 2] - before[:, 0], before[:, 3] - before[:, 1]
    width, height = after[:, 2] - after[:, 0], after[:, 3] - after[:, 1]
    aspect = np.maximum(width / (height + eps), height / (width + eps))
    area = width * height / (before_w * before_h + eps)
    return (width > min_side) & (height > min_side) & (area > min_area) & (aspect < max_aspect)


# --- mixing images ----------------------------------------------------------------------------------------------------


def draw_mixup(rng: np.random.Generator) -> float:
    """Draws the weight of the first image, near one half (mixup, Zhang et al., ICLR 2018, with alpha = beta = 32)."""
    return rng.beta(32.0, 32.0)


def mixup(
    image: np.ndarray, labels: np.ndarray, other_image: np.ndarray, other_labels: np.ndarray, ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """Blends two images of one size, `ratio` of the first, and keeps the labels of both."""
    blend = (image * ratio + other_image * (1 - ratio)).astype(np.uint8)
    return blend, np.concatenate([labels, other_labels])


def draw_copy_paste(rng: np.random.Generator, polygons: list[np.ndarray], probability: float) -> list[int]:
    """Draws the rows to copy: a share `probability` of those that have a polygon, in random order."""
    outlined = [row for row, polygon in enumerate(polygons) if len(polygon)] if probability else []
    return rng.permutation(outlined)[: round(probability * len(outlined))].tolist()


def copy_paste(
    image: np.ndarray, labels: np.ndarray, polygons: list[np.ndarray], picked: list[int]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Pastes the mirror image of the objects in rows `picked` where it hides less than 30 % of every other object.

    Labels are class and pixel xyxy, polygons in pixels (Copy-Paste, Ghiasi et al., CVPR 2021).
    """
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    polygons = list(polygons)
    for row in picked:
        x1, y1, x2, y2 = labels[row, 1:]
        mirrored = np.array([width - x2, y1, width - x1, y2])
        if (box_ioa(mirrored, labels[:, 1:]) < 0.30).all():
            added = np.array([[labels[row, 0], *mirrored]], labels.dtype)
            labels = np.concatenate([labels, added])
            polygons.append(np.stack([width - polygons[row][:, 0], polygons[row][:, 1]], 1))
            cv2.drawContours(mask, [polygons[row].astype(np.int32)], -1, 255, cv2.FILLED)
    if mask.any():
        pasted = np.where(mask[..., None] > 0, image, 0)[:, ::-1]
        # as in v6.1 channel by channel: a channel that is 0 in the object lets the background through
        image = np.where(pasted > 0, pasted, image)
    return image, labels, polygons


# --- colour and mirror ------------------------------------------------------------------------------------------------


def draw_hsv(rng: np.random.Generator, hue: float, saturation: float, value: float) -> np.ndarray:
    """Draws (3,) multipliers, each evenly from 1 plus or minus its gain."""
    return 1 + rng.uniform(-1, 1, 3) * (hue, saturation, value)


def adjust_hsv(image: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """Multiplies hue (which wraps around), saturation and value (which saturate). Only of images in colour."""
    if image.shape[2] != 3 or np.all(np.equal(multipliers, 1)):
        return image  # there and back through HSV would lose a little
    levels = np.arange(256)
    hue, saturation, value = np.multiply.outer(multipliers, levels)
    table = np.stack([hue % 180, saturation.clip(0, 255), value.clip(0, 255)], -1).astype(np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, table[None]), cv2.COLOR_HSV2BGR)


def to_planes(image: np.ndarray, multipliers: np.ndarray | None = None) -> np.ndarray:
    """Multiplies colours and returns the image as networks take it: uint8 (C, height, width), three in RGB order.

    Equal to `adjust_hsv` except for the rounding of one pixel in a hundred, by a level or two: hue, saturation and
    value are multiplied by arithmetic, not by a table, strip by strip while they are in the processor's cache.
    """
    height, width, channels = image.shape
    if channels != 3:
        return np.ascontiguousarray(image.transpose(2, 0, 1))
    planes = np.empty((3, height, width), np.uint8)
    if multipliers is None or np.all(np.equal(multipliers, 1)):
        cv2.split(image, [planes[2], planes[1], planes[0]])
        return planes
    if multipliers[0] * 179 > 255:  # which the arithmetic below could not wrap around
        return to_planes(adjust_hsv(image, multipliers))
    matrix = np.column_stack([np.diag(multipliers), [ALMOST_HALF] * 3])
    strip, scaled = (np.empty((min(STRIP, height), width, 3), np.uint8) for _ in range(2))
    for top in range(0, height, STRIP):
        rows = slice(top, min(top + STRIP, height))
        strip, scaled = strip[: rows.stop - top], scaled[: rows.stop - top]
        cv2.cvtColor(image[rows], cv2.COLOR_BGR2HSV, dst=strip)
        cv2.transform(strip, matrix, dst=scaled)
        cv2.cvtColor(scaled, cv2.COLOR_HSV2RGB, dst=strip)
        cv2.split(strip, list(planes[:, rows]))
    return planes


def flip_up_down(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors an image top to bottom; labels are class and xywh 0-1."""
    return by_fours(lambda part: cv2.flip(part, 0), image), _mirror(labels, 2)


def flip_left_right(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors an image left to right; labels are class and xywh 0-1."""
    return by_fours(lambda part: cv2.flip(part, 1), image), _mirror(labels, 1)


def _mirror(labels: np.ndarray, column: int) -> np.ndarray:
    labels = labels.copy()
    labels[:, column] = 1 - labels[:, column]
    return labels


# --- a library's augmentations ----------------------------------------------------------------------------------------


class Albumentations:
    """The light blurs and greys that v6.1 applies where the library Albumentations is installed.

    They change pixels only. Raises ValueError where the library is not installed.
    """

    def __init__(self):
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for a newer version
        try:
            import albumentations
        except ImportError:
            raise ValueError(
                "albumentations is above 0 in the hyper-parameters, but the library is not installed: "
                "pip install 'albumentations>=2' (MIT licence), or set it to 0"
            ) from None
        kinds = ("Blur", "MedianBlur", "ToGray", "CLAHE")
        self.transforms = [albumentations.Compose([getattr(albumentations, kind)(p=1)]) for kind in kinds]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns an image of the same size; each transform is applied to one image in a hundred."""
        for transform in self.transforms:
            if rng.random() < 0.01:
                transform.set_random_seed(int(rng.integers(2**31)))
                image = transform(image=image)["image"]
        return image
