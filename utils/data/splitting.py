"""Splits a data set: each class in its share in every part, and images that belong together in one part.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas, On the Stratification of Multi-Label Data, 2011): the class
that has the fewest images left is dealt out first, each of its images to the part that lacks it most.
"""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from utils.data.alike import SIDE, group_pairs, near_pairs, thumbnail
from utils.data.annotations import Annotations
from utils.data.images import read_bytes, read_image
from utils.data.machine import usable_cores


def class_presence(annotations: Annotations, nc: int) -> np.ndarray:
    """Returns which classes each image shows: (n, nc) uint8, 0 or 1."""
    owner = np.repeat(np.arange(len(annotations.images)), np.diff(annotations.starts))
    shown = np.zeros((len(annotations.images), nc), np.uint8)
    shown[owner, annotations.labels[:, 0].astype(int)] = 1
    return shown


def stratify(
    shown: np.ndarray, groups: Sequence[Sequence[int]], shares: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Deals images out to parts, group by group.

    Args:
        shown: (n, nc), which classes each image shows. Images without an object are dealt out last, by their number.
        groups: of image numbers; each image is in one of them, and no group is divided.
        shares: of the images that each part is to get; they add up to 1.

    Returns the part (n,) of each image.
    """
    order = rng.permutation(len(groups))
    groups = sorted((groups[i] for i in order), key=len, reverse=True)  # large ones first, while all parts have room
    sums = np.array([shown[group].sum(0, dtype=np.int32) for group in groups]).reshape(len(groups), -1)
    sizes = np.array([len(group) for group in groups])
    wanted = np.outer(shares, sums.sum(0)).astype(float)  # (parts, nc) images of each class
    room = np.array(shares, float) * sizes.sum()  # images
    part_of, waiting = np.full(len(shown), -1), np.ones(len(groups), bool)

    def give(number: int, lack: np.ndarray) -> None:
        best = np.flatnonzero(lack >= lack.max() - 1e-9)  # of equals the one with most room
        part = best[np.argmax(room[best])]
        part_of[list(groups[number])] = part
        wanted[part] -= sums[number]
        room[part] -= sizes[number]
        waiting[number] = False

    while (left := sums[waiting].sum(0)).any():
        rarest = int(np.argmin(np.where(left > 0, left, np.inf)))
        for number in np.flatnonzero(waiting & (sums[:, rarest] > 0)):
            give(number, wanted[:, rarest])
    for number in np.flatnonzero(waiting):
        give(number, room)
    return part_of


def groups_of(count: int, keys: Sequence[str | None], pairs: Iterable[tuple[int, int]] = ()) -> list[list[int]]:
    """Returns the images 0 to count - 1 in groups: those of one key (None for none), and those that a pair joins."""
    by_key = defaultdict(list)
    for i, key in enumerate(keys):
        if key is not None:
            by_key[key].append(i)
    linked = [(same[0], other) for same in by_key.values() for other in same[1:]]
    joined = group_pairs(np.array([*linked, *pairs], int).reshape(-1, 2))
    alone = set(range(count)) - {i for group in joined for i in group}
    return sorted([*joined, *([i] for i in alone)])


def keys_by_name(images: Sequence[str], pattern: str) -> list[str | None]:
    """Returns what a regular expression finds in each file name: its first group, else all of it; None for nothing."""
    found = [re.search(pattern, Path(image).name) for image in images]
    return [None if match is None else match[1] if match.re.groups else match[0] for match in found]


def same_pairs(images: Sequence[str]) -> list[tuple[int, int]]:
    """Returns pairs that join the images whose files are the same byte for byte; links to one file are too."""
    by_size, by_content = defaultdict(list), defaultdict(list)
    for i, image in enumerate(images):
        by_size[os.path.getsize(image)].append(i)
    for i in (i for same in by_size.values() if len(same) > 1 for i in same):
        by_content[hashlib.sha256(read_bytes(images[i])).digest()].append(i)
    return [(same[0], other) for same in by_content.values() for other in same[1:]]


def alike_pairs(annotations: Annotations) -> list[tuple[int, int]]:
    """Returns pairs of images that show the same, by both looks of `utils.data.alike`."""

    def small(i: int) -> np.ndarray:
        return thumbnail(read_image(annotations.images[i], shrink=min(annotations.sizes[i]) / SIDE))

    with ThreadPool(min(8, usable_cores())) as pool:
        thumbnails = np.stack(pool.map(small, range(len(annotations.images)), chunksize=8))
    return near_pairs(thumbnails, np.zeros(len(thumbnails), int)).tolist()
