"""YOLO label files: one text file per image, one object per line, in fractions of the image's size.

class x y width height              centre form, each 0-1
class x1 y1 x2 y2 x3 y3 ...         polygon; its box is the smallest that holds every corner

A file may hold both. (v6.1 takes a box beside polygons for two corners, and so makes another box of it.)
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from utils.data.faults import Fault, FaultError, Location
from utils.data.images import list_images
from utils.data.labels import (
    MAX_OVERHANG,
    ImageLabels,
    LabelledImage,
    LabelledObject,
    LabelledSplit,
    Listing,
    Size,
    has_labels,
    open_image,
    read_label_bytes,
    write_new,
)
from utils.files import write_yaml
from utils.log import LOGGER
from utils.text import decode_text

SLACK = 1e-3  # pixels: what float32 loses of a corner
COLUMNS = ("class", "x", "y", "width", "height")


# --- where a label file lies ------------------------------------------------------------------------------------------


def image_to_label_path(path: str | Path) -> str:
    """Returns the label path of an image: `.../images/a/b.jpg` -> `.../labels/a/b.txt`.

    The last folder called images counts. Without such a folder the label lies beside its image. Images that differ only
    in their suffix share a label file.
    """
    return os.path.splitext(labels_folder(str(path)))[0] + ".txt"


def labels_folder(path: str) -> str:
    """Replaces the last folder called images of a path by labels."""
    images, labels = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"
    return labels.join(path.rsplit(images, 1))


def read_label_text(path: str) -> str:
    """Reads the text of a label file. Raises FaultError where that is not possible."""
    try:
        return decode_text(read_label_bytes(path))
    except UnicodeDecodeError as error:
        raise FaultError(Fault("format", path, f"not a text file in UTF-8: {error}")) from None


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass
class LabelLines:
    """The lines of a label file: rows of those that can be used, and a fault for each that is odd or cannot."""

    lines: np.ndarray  # (n,) the line of each row, from 1
    rows: np.ndarray  # (n, 5) float32: class, x, y, width, height
    polygons: list[np.ndarray]  # (k, 2) float32 corners 0-1, one for each row, k = 0 for a box; [] for boxes alone
    faults: list[Fault]  # in the order of their lines

    @property
    def error(self) -> Fault | None:
        """Returns the first fault for which training cannot use the file."""
        return next(iter(self.faults), None)


def read_lines(text: str, path: str | Path, nc: int | None = None, clip_to: Size | None = None) -> LabelLines:
    """Reads the text of one label file, line by line.

    Args:
        path: only for messages.
        nc: number of classes, where a class beyond it is a fault.
        clip_to: width and height in pixels of the image, to whose edge a label is cut that reaches over it by up to a
            pixel; None: that is a fault.
    """
    path, faults = str(path), []
    lines, words = _split_lines(text, path, faults)
    as_polygons = any(len(row) == 7 or len(row) > 8 for row in words)
    kept, numbers = [], []
    for line, row in zip(lines, words):
        try:
            _check_length(row, as_polygons, Location(path, line=line))
            numbers.append(_parse_row(row, Location(path, line=line)))
            kept.append(line)
        except FaultError as error:
            faults.append(error.fault)
    outlined = [i for i, row in enumerate(numbers) if len(row) > 5]
    polygons = [row[1:].reshape(-1, 2) if len(row) > 5 else np.zeros((0, 2), np.float32) for row in numbers]
    rows = np.array([row[:5] for row in numbers], np.float32).reshape(-1, 5)
    if outlined:
        from utils.boxes import polygons_to_boxes  # brings torch, which commands that only list images do without

        rows[outlined, 1:] = polygons_to_boxes([polygons[i] for i in outlined])
    else:
        polygons = []
    if clip_to:
        _clip(rows, polygons, clip_to)
    fits = _check_values(rows, kept, path, nc, faults)
    faults.sort(key=lambda fault: fault.line)
    polygons = [polygon for polygon, good in zip(polygons, fits) if good]
    return LabelLines(np.array(kept, int)[fits], rows[fits], polygons, faults)


def parse_labels(text: str, path: str | Path, nc: int | None = None, clip_to: Size | None = None) -> ImageLabels:
    """Reads the text of one label file for training, which uses all of it or nothing; arguments as in `read_lines`.

    Equal rows are kept once, and the rows then come out sorted, as in v6.1.

    Raises FaultError `path:line: ...` at the first line that cannot be used.
    """
    found = read_lines(text, path, nc, clip_to)
    if found.error:
        raise FaultError(found.error)
    rows, polygons, faults = found.rows, found.polygons, found.faults
    if len({row.tobytes() for row in rows}) < len(rows):
        total = len(rows)
        rows, kept = np.unique(rows, axis=0, return_index=True)
        polygons = [polygons[i] for i in kept] if polygons else []
        faults = [*faults, Fault("duplicate", str(path), f"{total - len(rows)} duplicate rows removed")]
    return ImageLabels(rows, polygons, faults)


def read_labels(image: str, label_file: str, size: Size, clip: bool = False) -> ImageLabels:
    """Reads the labels of an image from its text file. clip: see `read_lines`."""
    return parse_labels(read_label_text(label_file), label_file, clip_to=size if clip else None)


def open_entry(entry: str | list[str], clip: bool = False) -> Listing:
    """Lists the images of a dataset entry (see `list_images`, also for errors) with their label files.

    Where links lead to an image by several paths, those without a label file are left out if another has one: the
    image does not show background.
    """
    pairs = [(image, image_to_label_path(image)) for image in list_images(entry)]
    real = {folder: os.path.realpath(folder) for folder in {os.path.dirname(image) for image, _ in pairs}}
    if len(set(real.values())) < len(real):
        keys = [(real[os.path.dirname(image)], os.path.basename(image)) for image, _ in pairs]
        labelled = [has_labels(label) for _, label in pairs]
        owned = {key for key, found in zip(keys, labelled) if found}
        pairs = [pair for pair, key, found in zip(pairs, keys, labelled) if found or key not in owned]
    return Listing(
        [image for image, _ in pairs],
        [label for _, label in pairs],
        partial(read_labels, clip=True) if clip else read_labels,
    )


def _split_lines(text: str, path: str, faults: list[Fault]) -> tuple[list[int], list[list[str]]]:
    """Returns numbers and words of the lines that are not empty; a line of blanks between others is a fault."""
    lines, rows = [], []
    for number, line in enumerate(text.rstrip().splitlines(), 1):
        words = line.split()
        if words:
            lines.append(number)
            rows.append(words)
        elif line and rows:
            faults.append(Fault("format", path, "the line holds only blanks; delete it", number))
    return lines, rows


def _check_length(row: list[str], as_polygons: bool, location: Location) -> None:
    """Raises FaultError for a line of the wrong number of words."""
    if not as_polygons and len(row) != 5:
        raise location.error(
            "format",
            f"a line has 5 numbers (class x y width height), or an odd number from 7 up for a polygon "
            f"(class x1 y1 x2 y2 x3 y3 ...), but this one has {len(row)}",
        )
    if as_polygons and (len(row) < 5 or len(row) % 2 == 0):
        raise location.error("format", f"a polygon is a class and pairs x y, but the line has {len(row)} numbers")


def _parse_row(words: list[str], location: Location) -> np.ndarray:
    numbers = []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError:
            raise location.error("format", f"{word!r} is not a number") from None
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which the check of values refuses
        row = np.array(numbers, dtype=np.float32) + np.float32(0)  # -0 becomes 0: rows are compared byte by byte
    if np.isfinite(row[0]) and float(row[0]) != numbers[0]:
        raise location.error("class", f"class must be a whole number below 2**24, got {words[0]}")
    return row


def _clip(rows: np.ndarray, polygons: list[np.ndarray], size: Size) -> None:
    """Cuts, in place, what reaches over an image of `size` by up to a pixel, and whose numbers are outside of 0-1."""
    limit = np.array([*size, *size], np.float64)
    for i, row in enumerate(rows):
        polygon = polygons[i] if polygons else ()
        corners = np.array([*(row[1:3] - row[3:] / 2), *(row[1:3] + row[3:] / 2)], np.float64)
        if len(polygon):
            corners = np.array([*polygon.min(0), *polygon.max(0)], np.float64)
            if (polygon >= 0).all() and (polygon <= 1).all():
                continue
        elif (row[1:] >= 0).all() and (row[1:] <= 1).all():
            continue
        cut = corners.clip(0, 1)
        if (np.abs(corners - cut) * limit <= MAX_OVERHANG + SLACK).all() and (cut[2:] > cut[:2]).all():
            rows[i, 1:] = [*(cut[:2] + cut[2:]) / 2, *cut[2:] - cut[:2]]
            if len(polygon):
                polygon.clip(0, 1, out=polygon)


def _check_values(rows: np.ndarray, lines: list[int], path: str, nc: int | None, faults: list[Fault]) -> np.ndarray:
    """Returns which rows (n,) have all values in range, and adds a fault for each other. NaN compares as false."""
    fits = (rows >= 0) & np.isfinite(rows)
    fits[:, 1:] &= rows[:, 1:] <= 1
    fits[:, 0] &= rows[:, 0] == np.floor(rows[:, 0])
    if nc is not None:
        fits[:, 0] &= rows[:, 0] < nc
    for i in np.flatnonzero(~fits.all(1)).tolist():
        column = int(np.argmin(fits[i]))
        limit = f"0 to {nc - 1}" if nc is not None else "0, 1, 2 ..."
        rule = f"class must be a whole number, {limit}" if column == 0 else f"{COLUMNS[column]} must lie in 0-1"
        kind = "range" if column else "class"
        faults.append(Fault(kind, path, f"{rule}, got {_digits(rows[i, column])}", lines[i]))
    return fits.all(1)


def _digits(value: np.float32) -> str:
    """Returns as many digits as tell the value from others, so that 1.0000001 is not shown as 1."""
    return str(value).removesuffix(".0")


# --- conversion -------------------------------------------------------------------------------------------------------


def load(entry: str | list[str], names: Sequence[str]) -> LabelledSplit:
    """Reads the images of a dataset entry (see `list_images`), and the objects in the text file of each.

    names: of the classes. Raises FaultError where a label file cannot be used.
    """
    images = []
    listing = open_entry(entry)
    for path, label in zip(listing.images, listing.label_files):
        name = Path(os.path.relpath(path, _home(path, entry))).as_posix()
        image = open_image(name, (None, None), Path(path), Location(path))
        if has_labels(label):
            labels = parse_labels(read_label_text(label), label, len(names))
            for fault in labels.faults:
                LOGGER.warning(str(fault))
            image.objects += objects_of(labels, names, (image.width, image.height))
        images.append(image)
    return LabelledSplit(list(names), images)


def _home(path: str, entry: str | list[str]) -> str:
    """Returns the folder of an entry that holds the image; the image's own where a list file names it."""
    folders = [os.path.abspath(f) for f in ([entry] if isinstance(entry, str) else entry) if os.path.isdir(f)]
    inside = (folder for folder in folders if path.startswith(folder.rstrip(os.sep) + os.sep))
    return next(inside, os.path.dirname(path))


def objects_of(labels: ImageLabels, names: Sequence[str], size: Size) -> list[LabelledObject]:
    """Returns label rows as objects in pixels of an image of `size`."""
    objects = []
    for i, row in enumerate(labels.rows.astype(float)):
        centre, half = row[1:3] * size, row[3:] * size / 2
        parts = [labels.polygons[i].astype(float) * size] if labels.polygons and len(labels.polygons[i]) else []
        box = (*(centre - half).tolist(), *(centre + half).tolist())
        objects.append(LabelledObject(names[int(row[0])], box, parts))
    return objects


def save(out: Path, splits: dict[str, LabelledSplit], names: list[str]) -> None:
    """Writes data.yaml and `labels/split/name.txt`, whose images belong in `images/split`."""
    changes = Counter()
    for split, labels in splits.items():
        for image in labels.images:
            text = "".join(label_lines(image, names, changes))
            write_new(out / "labels" / split / PurePosixPath(image.name).with_suffix(".txt"), text)
    report_changes(changes)
    entries = {split: f"images/{split}" for split in splits}
    write_yaml(out / "data.yaml", {"path": ".", **entries, "nc": len(names), "names": names})


def label_lines(image: LabelledImage, names: list[str], changes: Counter) -> list[str]:
    """Returns the lines of an image's label file; boxes are clipped to the image, and left out if nothing remains.

    changes: counts what the format cannot hold, in words.
    """
    size = np.array([image.width, image.height], float)
    outlined = any(item.polygons for item in image.objects)
    lines = []
    for item in image.objects:
        if item.difficult:
            changes["crowds or difficult objects left out"] += 1
            continue
        corners = np.array(item.box).reshape(2, 2) / size
        low, high = corners.clip(0, 1)
        changes["boxes clipped to their image"] += bool((abs(corners - [low, high]) > 1e-6).any())
        if (low >= high).any():
            changes["boxes outside their image or without a size left out"] += 1
            continue
        values = [*(low + high) / 2, *(high - low)]
        if outlined:
            changes["objects of several parts joined into one ring"] += len(item.polygons) > 1
            ring = [[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]]
            values = np.array(ring) if not item.polygons else np.concatenate(item.polygons) / size
            values = values.clip(0, 1).ravel()
        lines.append(" ".join([str(names.index(item.name)), *(f"{value:.7g}" for value in values)]) + "\n")
    return lines


def report_changes(changes: Counter) -> None:
    """Logs what `label_lines` has counted."""
    for what, count in changes.items():
        if count:
            LOGGER.warning(f"{count} {what}")
