"""What tools/preview.py shows of a data set: the choice of images, the page and the sheet for print."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import page
from utils.data.annotations import Annotations, Entry, check_classes, scan
from utils.data.contents import class_rows, count_boxes
from utils.data.dataset_yaml import SPLITS, open_source
from utils.data.formats.shards import ShardSplit, image_of, read_shard
from utils.data.images import decode_image, read_image, viewable
from utils.drawing import Annotator, draw_labels
from utils.evaluation.plots import figure_bytes, labels_figure

BACKGROUND = -1  # stands for the class of images without labels
PAGE_BYTES, LEAST_BYTES, MOST_BYTES = 3_300_000, 8_000, 60_000  # of all photographs of a page, and of one
SIDE = 480  # pixels of the longer side of an image on the page
FAULTS_SHOWN = 12
SHEET_WIDTH, GAP, TITLE = 1240, 6, 28  # pixels: about how wide the sheet is, between its images, above a block
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
STYLE = """
.images{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(45%,250px),1fr));gap:6px 10px}
.four{max-width:760px}
"""


@dataclass(frozen=True)
class DataSet:
    """The splits of a data set, their labels checked."""

    names: list[str]
    channels: int
    entries: dict[str, Entry]
    splits: dict[str, Annotations]

    def summary(self) -> str:
        """Says how much there is."""
        counts = ", ".join(f"{len(split.images):,} {name}" for name, split in self.splits.items())
        boxes = sum(len(split.labels) for split in self.splits.values())
        return f"{counts} images, {boxes:,} boxes, {len(self.names)} classes"


Choice = dict[int, list[tuple[str, int]]]  # class -> the split and the number of each image


def read_data(source: str | Path) -> DataSet:
    """Reads the labels of all splits that a source names. Raises what `open_source` and `scan` raise."""
    data = open_source(source)
    entries = {split: data[split] for split in SPLITS if data[split]}
    splits = {split: scan(entry, f"{split}: ") for split, entry in entries.items()}
    for split in splits.values():
        check_classes(split, len(data["names"]))
    return DataSet(data["names"], data["channels"], entries, splits)


def choose(data: DataSet, classes: list[int] | None, per_class: int, seed: int) -> Choice:
    """Chooses images of each class, and images without labels, each as likely as any other.

    classes: the numbers of those to show; None for all, and for images without labels.
    """
    rng, chosen = np.random.default_rng(seed), {}
    for c in [*range(len(data.names)), BACKGROUND] if classes is None else classes:
        found = [(name, int(i)) for name, split in data.splits.items() for i in _images_with(split, c)]
        # an image of two splits is shown once
        having = list({data.splits[name].images[i]: (name, i) for name, i in reversed(found)}.values())[::-1]
        picked = np.sort(rng.choice(len(having), min(per_class, len(having)), replace=False))
        chosen[c] = [having[i] for i in picked]
    return chosen


def _images_with(split: Annotations, c: int) -> np.ndarray:
    """Returns the numbers of the images with a box of class c, or without any box for BACKGROUND."""
    counts = np.diff(split.starts)
    if c == BACKGROUND:
        return np.flatnonzero(counts == 0)
    return np.unique(np.repeat(np.arange(len(counts)), counts)[split.labels[:, 0] == c])


# --- pixels -----------------------------------------------------------------------------------------------------------


def drawn_images(data: DataSet, chosen: Choice) -> Iterator[tuple[int, str, np.ndarray]]:
    """Yields of each chosen image its class, a caption, and BGR pixels with its labels, those of the class thick."""
    wanted: dict[str, set[str]] = {name: set() for name in data.splits}
    for name, i in (image for images in chosen.values() for image in images):
        wanted[name].add(data.splits[name].images[i])
    readers = {name: _reader(entry, wanted[name], data.channels) for name, entry in data.entries.items()}
    for c, images in chosen.items():
        for name, i in images:
            split = data.splits[name]
            labels = split.labels_of(i)
            pixels = readers[name](split.images[i])
            drawn = draw_labels(pixels, labels, data.names, SIDE, np.flatnonzero(labels[:, 0] == c).tolist())
            yield c, f"{name}: {os.path.basename(split.images[i])}", drawn


def _reader(entry: Entry, wanted: set[str], channels: int) -> Callable[[str], np.ndarray]:
    """Returns a function that reads an image of an entry, BGR uint8 (h, w, 3), by its path."""
    if not isinstance(entry, ShardSplit):
        return lambda path: viewable(read_image(path, channels))
    pairs = (image_of(file, sample) for file in entry.files for sample in read_shard(file))
    found = {path: content for path, content in pairs if path in wanted}
    return lambda path: viewable(decode_image(np.frombuffer(found[path], np.uint8), path, channels))


# --- page and sheet ---------------------------------------------------------------------------------------------------


def as_html(data: DataSet, chosen: Choice, title: str) -> str:
    """Writes the page, which needs no other file."""
    parts = [page.paragraph(data.summary()), page.table(*_table(data)), *_charts(data), *_faults(data)]
    count = sum(map(len, chosen.values()))
    most = int(np.clip(PAGE_BYTES / max(count, 1), LEAST_BYTES, MOST_BYTES))
    photos: dict[int, list[str]] = {c: [] for c in chosen}
    for c, caption, image in drawn_images(data, chosen):
        photos[c].append(page.photo(image, caption, SIDE, most))
    for c, shown in photos.items():
        parts.append(page.heading(f"{_title(data, c)}: {_count(data, c)}"))
        parts.append(page.group("images", shown) if shown else page.paragraph("There is none.", note=True))
    return page.page(title, parts, STYLE)


def _title(data: DataSet, c: int) -> str:
    return "without labels" if c == BACKGROUND else data.names[c]


def _count(data: DataSet, c: int) -> str:
    images = sum(len(_images_with(split, c)) for split in data.splits.values())
    boxes = sum(int((split.labels[:, 0] == c).sum()) for split in data.splits.values())
    return f"{images:,} images" if c == BACKGROUND else f"{boxes:,} boxes in {images:,} images"


def _table(data: DataSet) -> tuple[list[str], list[list[str]]]:
    """Returns titles and rows: each class with its boxes and images by split, and the usual size of its boxes."""
    counts, sides, classes = {}, [], []
    for name, split in data.splits.items():
        owner = np.repeat(np.arange(len(split.images)), np.diff(split.starts))
        counts[name] = count_boxes(split.labels[:, 0], owner, len(data.names))
        sides.append(split.labels[:, 3:] * split.sizes[owner])
        classes.append(split.labels[:, 0])
    titles, rows = class_rows(data.names, counts)
    sides, classes = np.concatenate(sides), np.concatenate(classes)
    for c, row in enumerate(rows):
        mine = sides[classes == c]
        row.append("{:.0f} x {:.0f}".format(*np.median(mine, 0)) if len(mine) else "-")
    return [*titles, "median width x height, pixels"], rows


def _charts(data: DataSet) -> Iterator[str]:
    labels = np.concatenate([split.labels for split in data.splits.values()])
    if len(labels):
        yield page.heading("Where the objects are, and how large")
        words = "boxes by class; boxes laid on one centre; their centres, and their sides, as shares of the image"
        yield page.group("four", [page.figure(figure_bytes(labels_figure(labels, data.names), 100), words, "png")])


def _faults(data: DataSet) -> Iterator[str]:
    found = [fault for split in data.splits.values() for fault in split.faults]
    faults = [str(fault) for fault in found if fault.kind != "difficult"]
    if hard := len(found) - len(faults):
        yield page.paragraph(
            f"Objects left out because they are marked as difficult or as crowds: {hard}. "
            "`difficult: true` in the data set YAML keeps them.",
            note=True,
        )
    if faults:
        yield page.heading(f"Files and labels that cannot be used as they are: {len(faults)}")
        yield page.bullets(faults[:FAULTS_SHOWN])
        yield page.paragraph("tools/doctor.py tells of all of them, and what to do.", note=True)


def as_image(data: DataSet, chosen: Choice) -> np.ndarray:
    """Draws a sheet, BGR uint8 (h, w, 3): a block of images for each class, under its name."""
    shown: dict[int, list[np.ndarray]] = {c: [] for c, images in chosen.items() if images}
    if not shown:
        raise ValueError("none of the chosen classes has an image; leave out --classes, or name others")
    across, columns = max(len(chosen[c]) for c in shown), min(4, math.ceil(len(shown) / 8))
    cell = int(np.clip(SHEET_WIDTH / (across * columns), 110, 250))
    for c, _, image in drawn_images(data, chosen):
        shown[c].append(_tile(image, cell))
    blocks = [_block(f"{_title(data, c)}: {_count(data, c)}", tiles, across * cell) for c, tiles in shown.items()]
    blocks += [np.full_like(blocks[0], 255)] * (-len(blocks) % columns)
    return np.vstack([np.hstack(blocks[i : i + columns]) for i in range(0, len(blocks), columns)])


def _tile(image: np.ndarray, cell: int) -> np.ndarray:
    """Puts an image into the upper left corner of a white square."""
    image = page.shrunk(image, cell - GAP)
    height, width = image.shape[:2]
    return cv2.copyMakeBorder(image, 0, cell - height, 0, cell - width, cv2.BORDER_CONSTANT, value=WHITE)


def _block(title: str, tiles: list[np.ndarray], width: int) -> np.ndarray:
    """Puts tiles beside each other under a title, in a block of that many pixels."""
    row = np.hstack(tiles)
    block = cv2.copyMakeBorder(row, TITLE, 4, 0, width - row.shape[1], cv2.BORDER_CONSTANT, value=WHITE)
    annotator = Annotator(block, 1, 14, pil=True, example=title)
    annotator.text((0, 4), title, txt_color=BLACK, color=WHITE)
    return annotator.result()
