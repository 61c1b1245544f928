"""Near-duplicates: which images of a data set show the same scene, though their files differ.

Two looks, both at local contrast, which is free of brightness, of lighting that changes across the image and of how
strong an edge is: pixels minus their surroundings, divided by the local spread. The first look compares all images at
24 x 24 pixels, as one product of matrices; the second only the pairs that passed, at 64 x 64 and moved onto each other
(phase correlation; Kuglin and Hines, 1975). A few lines of numpy and OpenCV: the hashes of the imagehash library take
two steel plates under one lamp, or two microscope slides, for copies of each other.
"""

from collections import defaultdict
from multiprocessing.pool import ThreadPool

import cv2
import numpy as np

from utils.data.machine import usable_cores

SIDE = 64  # pixels of a thumbnail
FIRST_SIDE, FIRST_CORRELATION = 24, 0.5  # of the first look
CORRELATION = 0.75  # of the second: the same scene has 0.8-1, other images of one kind of steel below 0.7
CANDIDATES = 4  # for the second look, of each image
MAX_SHIFT = SIDE // 8  # pixels of a thumbnail
BLUR, LEAST_SPREAD = 2.0, 2.0  # pixels; grey levels, below which noise is not amplified
LEAST_CONTRAST = 2.0  # standard deviation in grey levels: of a flat image nothing can be said


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Returns a BGR image (h, w, 3) as a grey thumbnail, uint8 (SIDE, SIDE)."""
    return cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def near_pairs(thumbnails: np.ndarray, splits: np.ndarray, block: int | None = None) -> np.ndarray:
    """Finds pairs (m, 2), i < j, of grey thumbnails (n, SIDE, SIDE), uint8, that show the same.

    For each j they are one i of its own split and one of another, so that a thousand frames of a fixed camera are a
    thousand pairs and not half a million; `group_pairs` joins them. block: thumbnails compared at a time.
    """
    varied = thumbnails.reshape(len(thumbnails), -1).std(1) >= LEAST_CONTRAST
    small = [cv2.resize(t, (FIRST_SIDE, FIRST_SIDE), interpolation=cv2.INTER_AREA) for t in thumbnails]
    rows = np.stack([_unit(_local_contrast(image)).ravel() for image in small]) * varied[:, None]
    with ThreadPool(min(8, usable_cores())) as pool:
        found = pool.imap(lambda work: _first_alike(thumbnails, *work), _candidates(rows, splits, block), chunksize=16)
        pairs = [pair for pair in found if pair]
    return np.array(pairs, int).reshape(-1, 2)


def group_pairs(pairs: np.ndarray) -> list[list[int]]:
    """Joins pairs (m, 2) that share a member into groups of two or more, each in ascending order, as they come."""
    leader: dict[int, int] = {}

    def find(i: int) -> int:
        while (above := leader.setdefault(i, i)) != i:
            leader[i] = leader[above]
            i = above
        return i

    for i, j in pairs:
        first, second = sorted((find(int(i)), find(int(j))))
        leader[second] = first
    groups = defaultdict(list)
    for i in sorted(leader):
        groups[find(i)].append(i)
    return list(groups.values())


def _local_contrast(grey: np.ndarray) -> np.ndarray:
    """Returns what differs from the surroundings, in units of the local spread; float32, of the shape of `grey`."""
    grey = grey.astype(np.float32)
    detail = grey - cv2.GaussianBlur(grey, (0, 0), BLUR)
    spread = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), 2 * BLUR))
    return detail / (spread + LEAST_SPREAD)


def _unit(values: np.ndarray) -> np.ndarray:
    """Returns values without their mean, of length 1, so that a product of two is their correlation; 0 if constant."""
    values = values - values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-6)


def _candidates(rows: np.ndarray, splits: np.ndarray, block: int | None):
    """Yields (j, the most similar i < j of its own split), then the same of other splits, as the first look sees it."""
    n = len(rows)
    block = block or max(2**24 // n, 1)  # 64 MiB of correlations
    for start in range(0, n, block):
        numbers = np.arange(start, min(start + block, n))
        similar = rows[numbers] @ rows[: numbers[-1] + 1].T
        similar[np.arange(similar.shape[1]) >= numbers[:, None]] = -1
        own = splits[numbers, None] == splits[: similar.shape[1]]
        for side in (own, ~own):
            passed = side & (similar >= FIRST_CORRELATION)
            for row in np.flatnonzero(passed.any(1)):
                columns = np.flatnonzero(passed[row])
                best = np.argsort(-similar[row, columns], kind="stable")[:CANDIDATES]
                yield int(numbers[row]), columns[best].tolist()


def _first_alike(thumbnails: np.ndarray, j: int, candidates: list[int]) -> tuple[int, int] | None:
    second = _local_contrast(thumbnails[j])
    for i in candidates:
        if aligned_correlation(_local_contrast(thumbnails[i]), second) >= CORRELATION:
            return i, j
    return None


def aligned_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the correlation, -1 to 1, of two maps (h, w), float32, as they lie or moved onto each other."""
    unmoved = float((_unit(first) * _unit(second)).sum())
    if unmoved >= CORRELATION:
        return unmoved
    window = cv2.createHanningWindow(first.shape[::-1], cv2.CV_32F)
    x, y = (round(shift) for shift in cv2.phaseCorrelate(first, second, window)[0])
    if not 0 < max(abs(x), abs(y)) <= MAX_SHIFT:
        return unmoved
    height, width = first.shape
    first = first[max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)]
    second = second[max(y, 0) : height - max(-y, 0), max(x, 0) : width - max(-x, 0)]
    return max(unmoved, float((_unit(first) * _unit(second)).sum()))
