"""Mosaics: four or nine images around a corner, warped into one frame without a canvas between.

The conventions are those of utils/data/augmentations.py.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from utils.boxes import clip_boxes, points_to_pixels, xywhn_to_xyxy
from utils.data.augmentations import is_affine, warp_points
from utils.data.images import by_fours
from utils.data.letterbox import GREY


class Tile(NamedTuple):
    """One of the images of a mosaic, at its own size."""

    canvas: tuple[int, int, int, int]  # x1, y1, x2, y2 of the part of the canvas it covers, maybe none
    pad: tuple[int, int]  # x, y on the canvas of its own top left corner, negative where it is cut off


def draw_mosaic_centre(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """Draws (x, y) where the four images meet: evenly from the middle half of a canvas of 2 size x 2 size pixels."""
    x, y = rng.uniform(size - size // 2, 2 * size - size // 2, 2).astype(int).tolist()
    return x, y


def mosaic_tiles(shapes: list[tuple[int, int]], centre: tuple[int, int], size: int) -> list[Tile]:
    """Places four images of `shapes` (height, width) around `centre` on a canvas of 2 size x 2 size pixels.

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
    """Draws (x, y) in the 3 size x 3 size pixels of nine images, where the canvas of 2 size x 2 size pixels begins."""
    x, y = rng.uniform(0, size, 2).astype(int).tolist()
    return x, y


def mosaic9_tiles(shapes: list[tuple[int, int]], corner: tuple[int, int], size: int) -> list[Tile]:
    """Places nine images of `shapes` (height, width) on 3 size x 3 size pixels.

    The canvas shows 2 size x 2 size of them, from `corner` (x, y) on. The first is in the middle, the others around it
    clockwise from the one above, each touching the one before it; a later one covers an earlier one.
    """
    s = size
    (h0, w0), tiles = shapes[0], []
    hp, wp = h0, w0
    for k, (h, w) in enumerate(shapes):
        left, top = (
            (s, s), (s, s - h), (s + wp, s - h), (s + w0, s), (s + w0, s + hp),
            (s + w0 - w, s + h0), (s + w0 - wp - w, s + h0), (s - w, s + h0 - h), (s - w, s + h0 - hp - h),
        )[k]  # fmt: skip
        # what lies outside the three by three is cut off, then what lies outside the canvas
        x1, x2 = (min(max(x, 0), 3 * s) - corner[0] for x in (left, left + w))
        y1, y2 = (min(max(y, 0), 3 * s) - corner[1] for y in (top, top + h))
        x1, y1, x2, y2 = (min(max(edge, 0), 2 * s) for edge in (x1, y1, x2, y2))
        tiles.append(Tile((x1, y1, x2, y2), (left - corner[0], top - corner[1])))
        hp, wp = h, w
    return tiles


def mosaic_canvas(images: list[np.ndarray], tiles: list[Tile], size: int) -> np.ndarray:
    """Pastes images on a grey canvas of 2 size x 2 size pixels."""
    canvas = np.full((2 * size, 2 * size, images[0].shape[2]), GREY, dtype=np.uint8)
    for image, ((x1, y1, x2, y2), (left, top)) in zip(images, tiles):
        canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
    return canvas


def mosaic_labels(
    labels: list[np.ndarray], polygons: list[list[np.ndarray]], shapes: list, tiles: list[Tile], size: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Joins the labels (class and xywh 0-1) and polygons (0-1) of the images of `shapes` (height, width) on the canvas.

    Returns class and pixel xyxy, and pixel polygons, clipped to the canvas.
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
    """Returns the part of a frame of size x size pixels that each tile reaches: left, top, right, bottom, or None."""
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
    """Warps a mosaic into a frame of size x size pixels, as `warp_image` would its canvas, without painting the canvas.

    Each image goes straight to the part of the frame that its tile covers, as `tile_spans` says; one that is not
    visible there may be None. Labels are exact to a tenth of a pixel. Pixels differ from those of the canvas by
    rounding, by that tenth, where the canvas would blend two neighbours across a seam, and where an image shrinks to
    half or less: it is averaged here, not sampled. The matrix must be affine.
    """
    assert is_affine(matrix)
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
    """Fills the area within `corners` (4, 2) of a `part` with an image, mapped by an affine matrix.

    The part begins at (left, top) of a frame.
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
    """Halves an image: each pixel is the mean of 2 x 2; the last row or column of an odd number is dropped."""
    height, width = (side // 2 for side in image.shape[:2])
    even = image[: 2 * height, : 2 * width]
    return by_fours(lambda part: cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA), even)


REACH = 40  # pixels that a resize may begin before its visible area
SHIFT = 0.1  # pixels of the frame by which an image may be off its position


def _resize_into(part: np.ndarray, image: np.ndarray, matrix: np.ndarray, left: int, top: int) -> None:
    """Fills `part`, which begins at (left, top) of a frame, with an image mapped by an upright affine matrix.

    A resize is several times as fast as a warp, but starts at a whole pixel of both images. So it starts just outside
    the visible area, at an edge that falls on a whole pixel, nearly, of the frame.
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
    """Returns, along one axis, the first pixel to resize, the end of those pixels, and how many pixels to skip then.

    Pixel i of an image goes to gain i + offset. The resized pixels cover 0 to `length`, and begin so many pixels before
    0 as are to be skipped. They lie beyond the `available` ones only where necessary. None where no edges of whole
    pixels meet.
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
