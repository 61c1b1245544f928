"""Checks whether the anchors suit a data set, and fits better ones: k-means on box sizes, refined by mutation."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.files import write_yaml
from utils.log import LOGGER

GOOD_RECALL = 0.98  # anchors with a best possible recall above this are kept
MAX_BOXES = 20_000  # fitting uses a random sample of this many boxes; more hardly change the result


class AnchorFit(NamedTuple):
    """How well anchors suit boxes. An anchor matches a box if both sides differ by less than a factor `threshold`."""

    recall: float  # best possible recall: part of the boxes that at least one anchor matches
    matches: float  # mean number of anchors that match a box
    fitness: float  # mean side ratio (0-1) of a box and its best anchor, 0 for a box that no anchor matches


class AnchorReport(NamedTuple):
    """What `check_anchors` measured and did."""

    current: AnchorFit | None  # of the given anchors; None where there are no boxes
    fitted: AnchorFit | None  # of new anchors; None where none were fitted
    replaced: bool


def anchor_fit(wh: np.ndarray, anchors: np.ndarray, threshold: float) -> AnchorFit:
    """Returns how well anchors (K, 2) suit boxes (N, 2), both in pixels; N at least 1, threshold above 1."""
    boxes = np.ascontiguousarray(wh.T, np.float32)[:, None, :]  # (2, 1, N), laid out for speed
    anchors = np.ascontiguousarray(anchors.T, np.float32)[:, :, None]  # (2, K, 1)
    tiny = np.finfo(np.float32).tiny  # boxes and placeholder anchors may have no width
    ratio = np.minimum(boxes, anchors) / np.maximum(np.maximum(boxes, anchors), tiny)
    ratio = ratio.min(0)  # (K, N), 1 is a perfect match
    matched = ratio > 1 / threshold
    best = ratio.max(0)
    reached = best > 1 / threshold
    return AnchorFit(float(reached.mean()), float(matched.sum(0).mean()), float((best * reached).mean()))


def boxes_in_pixels(
    shapes: np.ndarray, labels: Sequence[np.ndarray], image_size: int, scale: np.ndarray | float = 1.0
) -> np.ndarray:
    """Returns the box sizes (N, 2) in pixels of images whose longer side is resized to image_size.

    Args:
        shapes: (images, 2) width, height.
        labels: per image (n, 5) class, x, y, w, h; 0-1 of the image.
        scale: further zoom, one number or (images, 1).
    """
    shapes = np.asarray(shapes, dtype=np.float64)
    resized = image_size * shapes / shapes.max(1, keepdims=True) * scale
    wh = [image[:, 3:5] * size for image, size in zip(labels, resized)]
    return np.concatenate([np.zeros((0, 2)), *wh]).astype(np.float32)


def order_anchors(anchors: np.ndarray, strides: Sequence[float]) -> np.ndarray:
    """Returns anchors (levels, A, 2) in pixels, with the levels reversed unless areas and strides rise together.

    The areas of the first anchor and the last one are compared in pixels. In cells, anchors that grow more slowly than
    the stride would seem to shrink.
    """
    rise = anchors[-1, -1].prod() - anchors[0, 0].prod()
    agrees = np.sign(rise) == np.sign(strides[-1] - strides[0])
    return anchors.copy() if agrees else anchors[::-1].copy()


# --- fitting ----------------------------------------------------------------------------------------------------------


def kmeans(points: np.ndarray, k: int, rng: np.random.Generator, restarts: int = 10, steps: int = 100) -> np.ndarray:
    """Returns the centres (k, D) of points (N, D), N >= k: the best of several runs of Lloyd's algorithm.

    Each run starts from k-means++ seeds (Arthur and Vassilvitskii, SODA 2007), and ends when no point changes its
    centre.
    """
    best, best_distance = points[:k], np.inf
    for _ in range(restarts):
        centres = _seed_centres(points, k, rng)
        owner = None
        for _ in range(steps):
            distances = _squared_distances(points, centres)  # (N, k)
            previous, owner = owner, distances.argmin(1)
            if previous is not None and (owner == previous).all():
                break
            counts = np.bincount(owner, minlength=k)
            sums = np.stack([np.bincount(owner, weights=column, minlength=k) for column in points.T], 1)
            used = counts > 0  # a centre without points stays where it is
            centres[used] = sums[used] / counts[used, None]
        distance = _squared_distances(points, centres).min(1).sum()
        if distance < best_distance:
            best, best_distance = centres, distance
    return best


def _seed_centres(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Draws k of the points, each in proportion to its squared distance from those drawn before it."""
    centres = points[[rng.integers(len(points))]]
    while len(centres) < k:
        distance = _squared_distances(points, centres).min(1)
        total = distance.sum()
        chosen = rng.choice(len(points), p=distance / total if total > 0 else None)
        centres = np.concatenate([centres, points[[chosen]]])
    return centres


def _squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Returns (N, k), added up axis by axis: a sum over a last axis of two numbers is several times slower."""
    return sum((p[:, None] - c[None]) ** 2 for p, c in zip(points.T, centres.T))


def _mutations(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draws random factors of 0.3-3, most of them near 1, not all of them 1."""
    while True:
        chosen = rng.random(shape) < 0.9
        factors = (chosen * rng.random() * rng.standard_normal(shape) * 0.1 + 1).clip(0.3, 3.0)
        if (factors != 1).any():
            return factors


def fit_anchors(
    wh: np.ndarray, n: int, threshold: float, rng: np.random.Generator, generations: int = 1000
) -> np.ndarray:
    """Fits n anchors (n, 2) in pixels to boxes wh (N, 2) in pixels; the smallest area comes first.

    k-means on sizes divided by their standard deviation, then `generations` mutations, each kept if it raises the
    fitness of `anchor_fit`. Where there are fewer different sizes than n, some are used twice. Boxes with both sides
    below 2 pixels are left out. Raises ValueError if no box is left.
    """
    wh = wh[(wh >= 2).any(1)].astype(np.float64)
    if not len(wh):
        raise ValueError("there is no box with a side of 2 pixels or more to fit anchors to")
    if len(wh) > MAX_BOXES:
        wh = rng.choice(wh, MAX_BOXES, replace=False)

    sizes = np.unique(wh, axis=0)
    if len(sizes) >= n:
        spread = wh.std(0)
        spread[spread == 0] = 1
        anchors = kmeans(wh / spread, n, rng) * spread
    else:  # fewer different sizes than anchors: some anchors are the same
        anchors = np.resize(sizes, (n, 2)).clip(2.0)

    fitness = anchor_fit(wh, anchors, threshold).fitness
    for _ in range(generations):
        candidate = (anchors * _mutations(anchors.shape, rng)).clip(2.0)
        candidate_fitness = anchor_fit(wh, candidate, threshold).fitness
        if candidate_fitness > fitness:
            anchors, fitness = candidate, candidate_fitness
    return anchors[anchors.prod(1).argsort()].astype(np.float32)


def check_anchors(
    shapes: np.ndarray,
    labels: Sequence[np.ndarray],
    anchors: np.ndarray,
    strides: Sequence[float],
    image_size: int,
    threshold: float,
    rng: np.random.Generator,
    generations: int = 1000,
) -> tuple[np.ndarray, AnchorReport]:
    """Returns the anchors to train with: the given ones if they suit the boxes, else fitted ones if they are better.

    Args:
        shapes: (images, 2) width, height in pixels.
        labels: per image (n, 5) class, x, y, w, h; 0-1 of the image.
        anchors: (levels, A, 2) in pixels.
        strides: pixels per cell, per level.
        image_size: longer side in pixels that images are trained at.
        threshold: hyper-parameter anchor_t.

    Returns:
        The anchors (levels, A, 2) in pixels as a new array, and what was measured.
    """
    scale = rng.uniform(0.9, 1.1, size=(len(shapes), 1))
    wh = boxes_in_pixels(shapes, labels, image_size, scale)
    if not len(wh):
        LOGGER.warning("AutoAnchor: the data set has no boxes; keeping the anchors")
        return anchors.copy(), AnchorReport(None, None, False)

    current = anchor_fit(wh, anchors.reshape(-1, 2), threshold)
    measured = f"AutoAnchor: {current.matches:.2f} anchors per box, best possible recall {current.recall:.3f}"
    if current.recall > GOOD_RECALL:
        LOGGER.info(f"{measured}; keeping the anchors")
        return anchors.copy(), AnchorReport(current, None, False)

    LOGGER.info(f"{measured}; fitting new anchors")
    exact = boxes_in_pixels(shapes, labels, image_size)
    if tiny := int((exact < 3).any(1).sum()):
        LOGGER.warning(f"AutoAnchor: {tiny} of {len(exact)} boxes have a side below 3 pixels at size {image_size}")
    try:
        new = fit_anchors(exact, anchors.size // 2, threshold, rng, generations)
    except ValueError as error:
        LOGGER.warning(f"AutoAnchor: {error}; keeping the anchors")
        return anchors.copy(), AnchorReport(current, None, False)

    fitted = anchor_fit(wh, new, threshold)
    better = fitted.recall > current.recall
    LOGGER.info(
        f"AutoAnchor: {'using' if better else 'not using'} the new anchors: {fitted.matches:.2f} per box, "
        f"best possible recall {fitted.recall:.3f}: {' '.join(f'{w:.0f}x{h:.0f}' for w, h in new)}"
    )
    if not better:
        return anchors.copy(), AnchorReport(current, fitted, False)
    return order_anchors(new.reshape(anchors.shape), strides), AnchorReport(current, fitted, True)


def save_anchors(file: str | Path, anchors: np.ndarray, report: AnchorReport) -> None:
    """Writes what `check_anchors` returned as YAML. The entry `anchors` can be copied into the YAML of a model."""
    fit = report.fitted if report.replaced else report.current
    content = {"anchors": [[round(float(side), 2) for side in level.ravel()] for level in anchors]}
    content["origin"] = "fitted to the data set" if report.replaced else "those of the model"
    if fit is not None:
        content["best_possible_recall"] = round(fit.recall, 5)
        content["anchors_per_box"] = round(fit.matches, 3)
    write_yaml(file, content)
