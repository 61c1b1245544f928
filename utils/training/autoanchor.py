"""Do the anchors suit the data set? If not, better ones: k-means on box sizes, refined by random mutation."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.files import write_yaml
from utils.log import LOGGER

GOOD_RECALL = 0.98  # anchors that reach this share of the boxes are kept
MAX_BOXES = 20_000  # fitting looks at a random sample of this many; the shares hardly move beyond it


class AnchorFit(NamedTuple):
    """How well anchors suit boxes, under the loss's rule that both sides differ by less than a factor `threshold`."""

    recall: float  # best possible recall: share of boxes that some anchor matches
    matches: float  # mean number of anchors that match a box
    fitness: float  # mean side ratio (0-1) of a box and its best anchor, 0 for a box that no anchor matches


class AnchorReport(NamedTuple):
    current: AnchorFit | None  # None when there are no boxes
    fitted: AnchorFit | None  # of new anchors, when they were sought and found
    replaced: bool


def anchor_fit(wh: np.ndarray, anchors: np.ndarray, threshold: float) -> AnchorFit:
    """Compares box sizes (N, 2) with anchor sizes (K, 2), both in pixels; N at least 1, threshold above 1."""
    boxes = np.ascontiguousarray(wh.T, np.float32)[:, None, :]  # (2, 1, N), laid out for speed
    anchors = np.ascontiguousarray(anchors.T, np.float32)[:, :, None]  # (2, K, 1)
    tiny = np.finfo(np.float32).tiny  # for boxes and anchors of no width: placeholders have some
    ratio = np.minimum(boxes, anchors) / np.maximum(np.maximum(boxes, anchors), tiny)
    ratio = ratio.min(0)  # (K, N), 1 is a perfect match
    matched = ratio > 1 / threshold
    best = ratio.max(0)
    found = best > 1 / threshold
    return AnchorFit(float(found.mean()), float(matched.sum(0).mean()), float((best * found).mean()))


def boxes_in_pixels(
    shapes: np.ndarray, labels: Sequence[np.ndarray], image_size: int, scale: np.ndarray | float = 1.0
) -> np.ndarray:
    """Box sizes (N, 2) in pixels once every image is resized so that its longer side is image_size.

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
    """Anchors (levels, A, 2) in pixels, with the levels reversed unless their areas rise or fall as the strides do.

    Compared are the very first anchor and the very last. Not in cells: there, anchors that grow more slowly than the
    stride would seem to shrink.
    """
    rise = anchors[-1, -1].prod() - anchors[0, 0].prod()
    agrees = np.sign(rise) == np.sign(strides[-1] - strides[0])
    return anchors.copy() if agrees else anchors[::-1].copy()


# --- fitting ----------------------------------------------------------------------------------------------------------


def kmeans(points: np.ndarray, k: int, rng: np.random.Generator, restarts: int = 10, steps: int = 100) -> np.ndarray:
    """Centres (k, D) of points (N, D), N >= k: the best of several runs of Lloyd's algorithm.

    Each starts from k-means++ seeds (Arthur and Vassilvitskii, SODA 2007) and runs until no point changes sides.
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
            taken = counts > 0  # a centre without points stays where it is
            centres[taken] = sums[taken] / counts[taken, None]
        distance = _squared_distances(points, centres).min(1).sum()
        if distance < best_distance:
            best, best_distance = centres, distance
    return best


def _seed_centres(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """k of the points, each drawn in proportion to its squared distance from those drawn before it."""
    centres = points[[rng.integers(len(points))]]
    while len(centres) < k:
        distance = _squared_distances(points, centres).min(1)
        total = distance.sum()
        chosen = rng.choice(len(points), p=distance / total if total > 0 else None)
        centres = np.concatenate([centres, points[[chosen]]])
    return centres


def _squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, k), axis by axis: summing over a last axis of two numbers would be several times slower."""
    return sum((p[:, None] - c[None]) ** 2 for p, c in zip(points.T, centres.T))


def _mutations(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random factors 0.3-3, most near 1, not all of them 1."""
    while True:
        chosen = rng.random(shape) < 0.9
        factors = (chosen * rng.random() * rng.standard_normal(shape) * 0.1 + 1).clip(0.3, 3.0)
        if (factors != 1).any():
            return factors


def fit_anchors(
    wh: np.ndarray, n: int, threshold: float, rng: np.random.Generator, generations: int = 1000
) -> np.ndarray:
    """n anchors (n, 2) in pixels for boxes wh (N, 2) in pixels, smallest area first.

    k-means on sizes divided by their standard deviation, then `generations` mutations, each kept if it raises the
    fitness of `anchor_fit`. Of fewer different sizes than n some are taken twice. Boxes with both sides below 2 pixels
    are left out. Raises ValueError if no box is left.
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
    else:  # too few different sizes to give each anchor its own: some get the same
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
    """The anchors to train with: the given ones if they suit the boxes, else fitted ones if those suit them better.

    Args:
        shapes: (images, 2) width, height in pixels.
        labels: per image (n, 5) class, x, y, w, h; 0-1 of the image.
        anchors: (levels, A, 2) in pixels.
        strides: pixels per cell, per level.
        image_size: longer side in pixels that images are trained at.
        threshold: hyper-parameter anchor_t.

    Returns:
        anchors (levels, A, 2) in pixels, a new array, and what was found.
    """
    scale = rng.uniform(0.9, 1.1, size=(len(shapes), 1))
    wh = boxes_in_pixels(shapes, labels, image_size, scale)
    if not len(wh):
        LOGGER.warning("AutoAnchor: the data set has no boxes; keeping the anchors")
        return anchors.copy(), AnchorReport(None, None, False)

    current = anchor_fit(wh, anchors.reshape(-1, 2), threshold)
    found = f"AutoAnchor: {current.matches:.2f} anchors per box, best possible recall {current.recall:.3f}"
    if current.recall > GOOD_RECALL:
        LOGGER.info(f"{found}; keeping the anchors")
        return anchors.copy(), AnchorReport(current, None, False)

    LOGGER.info(f"{found}; fitting new anchors")
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
    """Writes what `check_anchors` returned as YAML. Its entry `anchors` can be put into a model's YAML as it is."""
    fit = report.fitted if report.replaced else report.current
    content = {"anchors": [[round(float(side), 2) for side in level.ravel()] for level in anchors]}
    content["origin"] = "fitted to the data set" if report.replaced else "those of the model"
    if fit is not None:
        content["best_possible_recall"] = round(fit.recall, 5)
        content["anchors_per_box"] = round(fit.matches, 3)
    write_yaml(file, content)
