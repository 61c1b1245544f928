"""Augmentation: pure functions from pictures and labels to pictures and labels.

Whatever is random is split in two: `draw_*(rng, ...)` takes a generator and returns the numbers, another function
applies numbers to a picture. The same numbers give the same picture on every machine.

Pictures are uint8 (height, width, C), with C = 3 in BGR order, and never changed in place. Labels are (n, 5): class,
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
    points_to_pixels,
    polygon_to_box,
    resample_polygons,
    xywhn_to_xyxy,
)
from utils.data.images import by_fours

GREY = 114  # of every pixel that no picture covers
FILL = (GREY, GREY, GREY, GREY)
STRIP = 64  # rows that are recoloured at a time
ALMOST_HALF = -0.499  # added before rounding to the nearest, rounds down


# --- letterbox --------------------------------------------------------------------------------------------------------


class Letterbox(NamedTuple):
    """Where a picture lies inside its padded frame."""

    inner: tuple[int, int]  # height, width of the resized picture
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
    """Fits a picture of `shape` (height, width) into `new_shape`. Options as in `letterbox`."""
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
    """Resizes a picture to fit a frame, keeping its proportions, and pads the rest with one colour.

    Args:
        new_shape: frame, one side or (height, width).
        auto: pad only up to the next multiple of `stride`, so the result may be smaller than the frame.
        stretch: fill the frame, whatever becomes of the proportions; without effect beside `auto`.
        scaleup: allow a picture smaller than the frame to be enlarged.

    Returns: the picture, ratio (width, height), and padding (left, top) in pixels, maybe x.5.
    """
    place = letterbox_geometry(image.shape[:2], new_shape, auto, stretch, scaleup, stride)
    if image.shape[:2] != place.inner:
        image = by_fours(lambda part: cv2.resize(part, place.inner[::-1], interpolation=cv2.INTER_LINEAR), image)
    image = by_fours(lambda part: cv2.copyMakeBorder(part, *place.border, cv2.BORDER_CONSTANT, value=color), image)
    return image, place.ratio, place.pad


def letterbox_planes(
    image: np.ndarray,
    new_shape: int | tuple[int, int] = 640,
    auto: bool = True,
    scaleup: bool = True,
    stride: int = 32,
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
    """`letterbox` in grey, as networks take it: uint8 (C, height, width), of three in RGB order, ratio and padding.

    The one way from a BGR picture to a network's input: for val, detect, the hub, and the checks of exported files.
    """
    place = letterbox_geometry(image.shape[:2], new_shape, auto, scaleup=scaleup, stride=stride)
    height, width = place.inner
    if image.shape[:2] != place.inner:
        image = by_fours(lambda part: cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR), image)
    top, bottom, left, right = place.border
    planes = np.full((image.shape[2], top + height + bottom, left + width + right), GREY, np.uint8)
    inner = planes[:, top : top + height, left : left + width]
    if len(planes) == 3:
        blue, green, red = inner[::-1]
        cv2.split(image, [blue, green, red])
    else:
        inner[:] = image.transpose(2, 0, 1)
    return planes, place.ratio, place.pad


# --- random perspective -----------------------------------------------------------------------------------------------


class Warp(NamedTuple):
    """One draw of a perspective transform. The default leaves a picture where it is."""

    perspective_x: float = 0.0
    perspective_y: float = 0.0
    angle: float = 0.0  # degrees, anticlockwise as seen
    scale: float = 1.0
    shear_x: float = 0.0  # degrees
    shear_y: float = 0.0
    translate_x: float = 0.5  # of the output's width, where the picture's centre goes
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
    """(3, 3) matrix from pixels of a picture of `shape` to pixels of one of `new_shape`, both (height, width).

    translation . shear . rotation and scale . perspective . centring, applied from the right.
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
    """Warps a picture and its labels (class and pixel xyxy) into a frame of `new_shape`, by default its own."""
    shape = image.shape[:2]
    new_shape = new_shape or shape
    matrix = warp_matrix(warp, shape, new_shape)
    return warp_image(image, matrix, new_shape), warp_labels(labels, polygons, matrix, new_shape, warp.scale)


def warp_image(image: np.ndarray, matrix: np.ndarray, new_shape: tuple[int, int]) -> np.ndarray:
    """The picture through `matrix` in a frame of `new_shape` (height, width), grey where it does not reach."""
    if image.shape[:2] == tuple(new_shape) and np.array_equal(matrix, np.eye(3)):
        return image
    height, width = new_shape
    if _is_affine(matrix):
        return by_fours(lambda part: cv2.warpAffine(part, matrix[:2], (width, height), borderValue=FILL), image)
    return by_fours(lambda part: cv2.warpPerspective(part, matrix, (width, height), borderValue=FILL), image)


def _is_affine(matrix: np.ndarray) -> bool:
    return matrix[2, 0] == 0 and matrix[2, 1] == 0


def warp_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Pixel points (..., 2) through a (3, 3) matrix."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    return moved[..., :2] / moved[..., 2:]


def warp_labels(
    labels: np.ndarray,
    polygons: list[np.ndarray],
    matrix: np.ndarray,
    new_shape: tuple[int, int],
    scale: float,
) -> np.ndarray:
    """Labels (class and pixel xyxy) through `matrix`; those of which too little remains in the frame are dropped.

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
    """Which of the xyxy boxes `after` (n, 4) are still worth learning: bool (n,).

    Both sides must exceed `min_side` pixels, the area `min_area` of the box `before`, and neither side may be
    `max_aspect` times the other.
    """
    before_w, before_h = before[:, 2] - before[:, 0], before[:, 3] - before[:, 1]
    width, height = after[:, 2] - after[:, 0], after[:, 3] - after[:, 1]
    aspect = np.maximum(width / (height + eps), height / (width + eps))
    area = width * height / (before_w * before_h + eps)
    return (width > min_side) & (height > min_side) & (area > min_area) & (aspect < max_aspect)


# --- mosaic -----------------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """One of the pictures of a mosaic, at its own size."""

    canvas: tuple[int, int, int, int]  # x1, y1, x2, y2 of the part of the canvas it covers, maybe none
    pad: tuple[int, int]  # x, y on the canvas of its own top left corner, negative where it is cut off


def draw_mosaic_centre(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """(x, y) where the four pictures meet: evenly from the middle half of a canvas of 2 size x 2 size pixels."""
    x, y = rng.uniform(size - size // 2, 2 * size - size // 2, 2).astype(int).tolist()
    return x, y


def mosaic_tiles(shapes: list[tuple[int, int]], centre: tuple[int, int], size: int) -> list[Tile]:
    """Places four pictures of `shapes` (height, width) around `centre` on a canvas of 2 size x 2 size pixels.

    In the order top left, top right, bottom left, bottom right; each touches the centre with one corner.
    """
    xc, yc = centre
    tiles = []
    for k, (height, width) in enumerate(shapes):
        left, top = (xc - width, xc)[k % 2], (yc - height, yc)[k // 2]
        x1, y1 = max(left, 0), max(top, 0)
        x2, y2 = min(left + width, 2 * size), min(top + height, 2 * size)
        tiles.append(Tile((x1, y1, x2, y2), (left, top)))
    return tiles


def draw_mosaic9_corner(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """(x, y) in the 3 size x 3 size pixels of nine pictures where the canvas of 2 size x 2 size pixels begins."""
    x, y = rng.uniform(0, size, 2).astype(int).tolist()
    return x, y


def mosaic9_tiles(shapes: list[tuple[int, int]], corner: tuple[int, int], size: int) -> list[Tile]:
    """Places nine pictures of `shapes` (height, width) on 3 size x 3 size pixels, of which the canvas shows 2 size x
    2 size from `corner` (x, y) on.

    The first in the middle, the others around it clockwise from the one above, each against the one before it; a later
    one lies over an earlier.
    """
    s = size
    (h0, w0), tiles = shapes[0], []
    hp, wp = h0, w0
    for k, (h, w) in enumerate(shapes):
        left, top = (
            (s, s), (s, s - h), (s + wp, s - h), (s + w0, s), (s + w0, s + hp),
            (s + w0 - w, s + h0), (s + w0 - wp - w, s + h0), (s - w, s + h0 - h), (s - w, s + h0 - hp - h),
        )[k]  # fmt: skip
        # what sticks out of the three by three is cut off, then what lies outside of the canvas
        x1, x2 = (min(max(x, 0), 3 * s) - corner[0] for x in (left, left + w))
        y1, y2 = (min(max(y, 0), 3 * s) - corner[1] for y in (top, top + h))
        x1, y1, x2, y2 = (min(max(edge, 0), 2 * s) for edge in (x1, y1, x2, y2))
        tiles.append(Tile((x1, y1, x2, y2), (left - corner[0], top - corner[1])))
        hp, wp = h, w
    return tiles


def mosaic_canvas(images: list[np.ndarray], tiles: list[Tile], size: int) -> np.ndarray:
    """Pictures pasted on a grey canvas of 2 size x 2 size pixels."""
    canvas = np.full((2 * size, 2 * size, images[0].shape[2]), GREY, dtype=np.uint8)
    for image, ((x1, y1, x2, y2), (left, top)) in zip(images, tiles):
        canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
    return canvas


def mosaic_labels(
    labels: list[np.ndarray], polygons: list[list[np.ndarray]], shapes: list, tiles: list[Tile], size: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels (class and xywh 0-1) and polygons (0-1) of the pictures of `shapes` (height, width), as one set on the
    canvas: class and pixel xyxy, and pixel polygons, clipped to the canvas.
    """
    frames = np.array([(width, height, *tile.pad) for (height, width), tile in zip(shapes, tiles)], np.float32)
    rows = np.concatenate(labels)
    boxes = xywhn_to_xyxy(rows[:, 1:], *frames.repeat([len(rows_of) for rows_of in labels], 0).T)
    outlines = []
    for polygons_of, (height, width), tile in zip(polygons, shapes, tiles) if any(map(len, polygons)) else ():
        for polygon in polygons_of:
            if len(polygon):
                polygon = points_to_pixels(polygon, width, height, *tile.pad).clip(0, 2 * size)
            outlines.append(polygon)
    return np.concatenate([rows[:, :1], clip_boxes(boxes, (2 * size, 2 * size))], 1), outlines


def tile_spans(tiles: list[Tile], matrix: np.ndarray, size: int) -> list[tuple[int, int, int, int] | None]:
    """The part of a frame of size x size pixels that each tile reaches: left, top, right, bottom; None if hidden."""
    corners = _corners(tiles, matrix)
    spans = np.ceil(np.concatenate([corners.min(1), corners.max(1)], 1)).clip(0, size).astype(int).tolist()
    return [
        (left, top, right, bottom) if left < right and top < bottom and x1 < x2 and y1 < y2 else None
        for (left, top, right, bottom), ((x1, y1, x2, y2), _) in zip(spans, tiles)
    ]


def _corners(tiles: list[Tile], matrix: np.ndarray) -> np.ndarray:
    edges = np.array([tile.canvas for tile in tiles]) - 0.5  # pixel i spans i - 0.5 to i + 0.5
    return warp_points(edges[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2), matrix)


def warp_mosaic(
    images: list[np.ndarray | None],
    tiles: list[Tile],
    spans: list[tuple[int, int, int, int] | None],
    matrix: np.ndarray,
    size: int,
) -> np.ndarray:
    """What `warp_image` would make of the canvas in a frame of size x size pixels, without painting the canvas.

    Each picture goes straight to the part of the frame that its tile covers, as `tile_spans` says; one that is hidden
    there may be None. Labels stay true to a tenth of a pixel. Pixels differ from those of the canvas by rounding, by
    that tenth, where the canvas would blend two neighbours across a seam, and where a picture shrinks to half or less:
    it is averaged here, not sampled. The matrix must be affine.
    """
    assert _is_affine(matrix)
    upright = matrix[0, 1] == matrix[1, 0] == 0 and matrix[0, 0] > 0 and matrix[1, 1] > 0
    shrink = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    channels = next((image.shape[2] for image in images if image is not None), 3)
    frame = np.full((size, size, channels), GREY, dtype=np.uint8)
    for image, tile, span in zip(images, tiles, spans):
        if span is None:
            continue
        left, top, right, bottom = span
        to_frame = matrix @ np.array([[1, 0, tile.pad[0]], [0, 1, tile.pad[1]], [0, 0, 1]])
        gain = shrink
        while gain <= 0.5 and min(image.shape[:2]) >= 4:
            image, to_frame, gain = _half(image), to_frame @ np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]]), 2 * gain
        part = frame[top:bottom, left:right]
        if upright:
            _resize_into(part, image, to_frame, left, top)
        else:
            _warp_into(part, image, to_frame, left, top, _corners([tile], matrix)[0])
    return frame


def _warp_into(
    part: np.ndarray, image: np.ndarray, matrix: np.ndarray, left: int, top: int, corners: np.ndarray
) -> None:
    """Fills what lies within the `corners` (4, 2) of a `part`, which begins at (left, top) of a frame, with an image
    under an affine matrix.
    """
    height, width, channels = part.shape
    to_part = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]]) @ matrix
    # a margin, so that nothing of the fill is blended in along the seams
    image = by_fours(lambda part: cv2.copyMakeBorder(part, 1, 1, 1, 1, cv2.BORDER_REPLICATE), image)
    patch = _warp(image, to_part @ np.array([[1, 0, -1], [0, 1, -1], [0, 0, 1]]), (width, height))
    mask = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(mask, np.round((corners - (left, top)) * 16).astype(np.int32), 255, shift=4)
    if channels == 3:
        cv2.copyTo(patch, mask, part)
    else:
        np.copyto(part, patch, where=mask[:, :, None] > 0)


def _warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], **options) -> np.ndarray:
    return by_fours(lambda part: cv2.warpAffine(part, matrix[:2], size, **options), image)


def _half(image: np.ndarray) -> np.ndarray:
    """Each pixel the mean of 2 x 2; the last row or column of an odd number is dropped."""
    height, width = (side // 2 for side in image.shape[:2])
    even = image[: 2 * height, : 2 * width]
    return by_fours(lambda part: cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA), even)


REACH = 40  # pixels that a resize may begin before what is seen of it
SHIFT = 0.1  # pixels of the frame by which a picture may be off its place


def _resize_into(part: np.ndarray, image: np.ndarray, matrix: np.ndarray, left: int, top: int) -> None:
    """Fills `part`, which begins at (left, top) of a frame, with an image under an upright affine matrix.

    A resize is several times as fast as a warp, but starts at a whole pixel of both pictures. So it starts just outside
    of what is seen, at an edge that falls on a whole pixel, nearly, of the frame.
    """
    (rows, columns), (height, width) = image.shape[:2], part.shape[:2]
    (gain_x, _, offset_x), (_, gain_y, offset_y), _ = matrix.tolist()
    x = _source_range(gain_x, offset_x - left, width, columns)
    y = _source_range(gain_y, offset_y - top, height, rows)
    if x is None or y is None:
        to_part = matrix[:2] - [[0, 0, left], [0, 0, top]]
        part[:] = _warp(image, to_part, (width, height), borderMode=cv2.BORDER_REPLICATE)
        return
    (x1, x2, skip_x), (y1, y2, skip_y) = x, y
    inside = image[max(y1, 0) : min(y2, rows), max(x1, 0) : min(x2, columns)]
    beyond = max(-y1, 0), max(y2 - rows, 0), max(-x1, 0), max(x2 - columns, 0)
    if any(beyond):
        inside = by_fours(lambda part: cv2.copyMakeBorder(part, *beyond, cv2.BORDER_REPLICATE), inside)
    resized = by_fours(lambda part: cv2.resize(part, None, fx=gain_x, fy=gain_y), inside)
    part[:] = resized[skip_y : skip_y + height, skip_x : skip_x + width]


def _source_range(gain: float, offset: float, length: int, available: int) -> tuple[int, int, int] | None:
    """Along one axis, where pixel i of a picture goes to gain i + offset: the first and the last but one of the pixels
    to resize so that the result covers 0 to `length`, and how many pixels it begins before 0.

    Beyond the `available` ones only where need be. None where no edges of whole pixels meet.
    """
    offset += 0.5 - 0.5 * gain  # of edges: pixel i lies between the edges i and i + 1
    last = math.floor(-offset / gain)
    for first in range(last, last - REACH, -1):
        skip = round(-gain * first - offset)
        if abs(gain * first + offset + skip) <= SHIFT:
            break
    else:
        return None
    count = math.ceil((skip + length - 0.5) / gain)
    if round(count * gain) < skip + length:  # as OpenCV rounds
        count += 1
    return first, max(min(first + count + 1, available), first + count), skip


# --- mixing pictures --------------------------------------------------------------------------------------------------


def draw_mixup(rng: np.random.Generator) -> float:
    """Weight of the first picture, near one half (mixup, Zhang et al., ICLR 2018, with alpha = beta = 32)."""
    return rng.beta(32.0, 32.0)


def mixup(
    image: np.ndarray, labels: np.ndarray, other_image: np.ndarray, other_labels: np.ndarray, ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """Blends two pictures of one size, `ratio` of the first, and keeps the labels of both."""
    blend = (image * ratio + other_image * (1 - ratio)).astype(np.uint8)
    return blend, np.concatenate([labels, other_labels])


def draw_copy_paste(rng: np.random.Generator, polygons: list[np.ndarray], probability: float) -> list[int]:
    """Rows to copy: that share of those that have a polygon, in random order."""
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
    """(3,) multipliers, each evenly from 1 plus or minus its gain."""
    return 1 + rng.uniform(-1, 1, 3) * (hue, saturation, value)


def adjust_hsv(image: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """Multiplies hue (which wraps around), saturation and value (which saturate). Only of pictures in colour."""
    if image.shape[2] != 3 or np.all(np.equal(multipliers, 1)):
        return image  # there and back through HSV would lose a little
    levels = np.arange(256)
    hue, saturation, value = np.multiply.outer(multipliers, levels)
    table = np.stack([hue % 180, saturation.clip(0, 255), value.clip(0, 255)], -1).astype(np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, table[None]), cv2.COLOR_HSV2BGR)


def to_planes(image: np.ndarray, multipliers: np.ndarray | None = None) -> np.ndarray:
    """The picture as networks take it, uint8 (C, height, width), of three in RGB order, whose colours are multiplied.

    Equal to `adjust_hsv` but for the rounding of one pixel in a hundred, by a level or two: hue, saturation and value
    are multiplied by arithmetic, not by a table, strip by strip while they are in the processor's cache.
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
    """Top to bottom; labels are class and xywh 0-1."""
    return by_fours(lambda part: cv2.flip(part, 0), image), _mirror(labels, 2)


def flip_left_right(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left to right; labels are class and xywh 0-1."""
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
        """A picture of the same size, each transform applied to one in a hundred."""
        for transform in self.transforms:
            if rng.random() < 0.01:
                transform.set_random_seed(int(rng.integers(2**31)))
                image = transform(image=image)["image"]
        return image
