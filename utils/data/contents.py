"""The contents of a data set in arrays, each image and label read once: what checks and tables of it are made of."""

import hashlib
import io
import os
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool

import numpy as np

from utils.data.alike import SIDE, thumbnail
from utils.data.annotations import list_pairs
from utils.data.dataset_yaml import SPLITS
from utils.data.faults import FaultError, UnknownClassError
from utils.data.formats.yolo import read_label_text, read_lines
from utils.data.images import ORIENTATION, check_image, decode_image, open_with_pillow, read_bytes
from utils.data.labels import Read, Size, has_labels
from utils.data.machine import usable_cores

# kind of a fault -> kind of a finding, see `utils.data.checks`
OF_FAULT = {
    "image": "image-unreadable",
    "odd": "image-odd",
    "format": "label-format",
    "class": "label-class",
    "range": "label-range",
    "size": "label-format",
    "difficult": "label-difficult",
    **dict.fromkeys(("outline", "box", "cut", "duplicate", "stray"), "label-object"),
}

NOTHING = np.zeros((0, 5)), np.zeros(0, int), ()  # what is read of labels that cannot be used: rows, lines, faults


@dataclass
class Contents:
    """A data set in arrays: n images and N boxes. Row r is a box of image owner[r] and line lines[r] of its label file.

    In a file of another format than YOLO's it is the object of that number. An image of two splits is there twice.
    Unreadable images have no rows.
    """

    names: list[str]
    images: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    label_files: list[str] = field(default_factory=list)  # of each image
    in_lines: list[bool] = field(default_factory=list)  # whether that is a text file of YOLO's, with a line per box
    sizes: np.ndarray = None  # (n, 2) int: width, height in pixels; 0, 0 where unreadable
    digests: list[str] = field(default_factory=list)  # of the bytes
    thumbnails: np.ndarray = None  # (n, SIDE, SIDE) uint8, grey; 0 where unreadable
    labels: np.ndarray = None  # (N, 5): class, x, y, width, height, 0-1
    owner: np.ndarray = None  # (N,) int
    lines: np.ndarray = None  # (N,) int
    faults: list[tuple[str, str, int]] = field(default_factory=list)  # kind of finding, text with its file, image

    def place(self, row: int) -> str:
        """Says where a row comes from."""
        image = self.owner[row]
        if self.in_lines[image]:
            return f"{self.label_files[image]}:{self.lines[row]}"
        return f"{self.label_files[image]}: {os.path.basename(self.images[image])}, object {self.lines[row]}"


@dataclass(frozen=True)
class ClassCount:
    """What a split has of each class: numbers (nc,) of boxes and of images with one."""

    boxes: np.ndarray
    images: np.ndarray


# --- reading ----------------------------------------------------------------------------------------------------------


def read_contents(data: dict) -> Contents:
    """Reads every image and label line of the splits of a loaded data set YAML; what cannot be used becomes a fault."""
    contents, readers = Contents(data["names"]), []
    for split in SPLITS:
        if data[split]:
            listing = list_pairs(data[split])
            contents.images += listing.images
            contents.label_files += listing.label_files
            contents.splits += [split] * len(listing.images)
            contents.in_lines += [isinstance(data[split], str | list)] * len(listing.images)
            readers += [listing.read] * len(listing.images)
    files = sorted(set(contents.images))
    with ThreadPool(min(8, usable_cores())) as pool:
        content = dict(zip(files, pool.imap(_read_image, files, chunksize=8)))
    read = [content[path] for path in contents.images]
    sizes, contents.digests, thumbnails, _ = map(list, zip(*read))
    contents.sizes, contents.thumbnails = np.array(sizes, int), np.stack(thumbnails)
    rows, lines, owner = [np.zeros((0, 5))], [np.zeros(0, int)], []
    for i, (path, (_, _, _, faults)) in enumerate(zip(contents.images, read)):
        label_file, readable = contents.label_files[i], contents.sizes[i].all()
        if contents.in_lines[i]:
            labels, numbers, label_faults = read_label_file(label_file, len(contents.names))
        else:
            size = tuple(contents.sizes[i].tolist())
            labels, numbers, label_faults = _read_objects(path, label_file, readers[i], size) if readable else NOTHING
        contents.faults += [(kind, text, i) for kind, text in (*faults, *label_faults)]
        if readable:
            rows.append(labels)
            lines.append(numbers)
            owner += [i] * len(labels)
    contents.labels, contents.lines = np.concatenate(rows).astype(float), np.concatenate(lines)
    contents.owner = np.array(owner, int)
    return contents


def _read_image(path: str) -> tuple[tuple[int, int], str, np.ndarray, list[tuple[str, str]]]:
    """Returns size, digest, thumbnail and (kind, text) of faults; (0, 0) for the size of an unreadable image."""
    digest = path  # where the file cannot be read
    try:
        data = read_bytes(path)
        digest = hashlib.sha256(data).hexdigest()
        size, faults = check_image(path, data)
        small = thumbnail(decode_image(data, path, shrink=min(size) / SIDE))
    except (FaultError, OSError) as error:
        return (0, 0), digest, np.zeros((SIDE, SIDE), np.uint8), [("image-unreadable", str(error))]
    found = [(OF_FAULT[fault.kind], str(fault)) for fault in faults]
    with open_with_pillow(io.BytesIO(data), path) as image:
        if image.mode not in ("L", "RGB"):
            found.append(("image-odd", f"{path}: pixels of mode {image.mode}"))
        if (turn := image.getexif().get(ORIENTATION, 1)) != 1:
            found.append(("image-rotated", f"{path}: EXIF orientation {turn}"))
    return size, digest, small, found


def read_label_file(path: str, nc: int) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
    """Returns the rows (n, 5) of the usable lines, their line numbers (n,), and (kind, text) of all faults."""
    if not has_labels(path):
        return *NOTHING[:2], [("label-missing", path)]
    try:
        found = read_lines(read_label_text(path), path, nc)
    except FaultError as error:
        return *NOTHING[:2], [("label-format", str(error))]
    return found.rows, found.lines, [(OF_FAULT[fault.kind], str(fault)) for fault in found.faults]


def _read_objects(image: str, label_file: str, read: Read, size: Size) -> tuple:
    """Does what `read_label_file` does for a file of another format; the lines are the numbers of the objects."""
    if not has_labels(label_file):
        return *NOTHING[:2], [("label-missing", label_file)]
    try:
        labels = read(image, label_file, size)
    except FaultError as error:
        return *NOTHING[:2], [(OF_FAULT[error.fault.kind], str(error))]
    except UnknownClassError as error:
        return *NOTHING[:2], [("label-class", str(error))]
    return labels.rows, np.arange(1, len(labels.rows) + 1), [(OF_FAULT[f.kind], str(f)) for f in labels.faults]


# --- counting ---------------------------------------------------------------------------------------------------------


def count_classes(contents: Contents) -> dict[str, ClassCount]:
    """Counts the boxes of each class in each split, and the images with one."""
    split_of = np.array(contents.splits)[contents.owner]
    counts = {}
    for split in dict.fromkeys(contents.splits):
        here = split_of == split
        counts[split] = count_boxes(contents.labels[here, 0], contents.owner[here], len(contents.names))
    return counts


def count_boxes(classes: np.ndarray, owner: np.ndarray, nc: int) -> ClassCount:
    """Counts boxes by their classes (N,) and the numbers (N,) of their images."""
    classes = classes.astype(int)
    once = np.unique(np.stack([owner, classes], 1), axis=0)
    return ClassCount(*(np.bincount(of, minlength=nc) for of in (classes, once[:, 1])))


def class_rows(names: list[str], counts: dict[str, ClassCount]) -> tuple[list[str], list[list[str]]]:
    """Returns the titles and the rows of a table: each class with its boxes, and the images that have one, by split."""
    titles = ["class", *(title for split in counts for title in (f"{split} boxes", "images"))]
    rows = [
        [name, *(f"{numbers[i]}" for count in counts.values() for numbers in (count.boxes, count.images))]
        for i, name in enumerate(names)
    ]
    return titles, rows
