"""Label files: one text file per image, one object per line, in fractions of the image's size.

    class x y width height              centre form, each 0-1
    class x1 y1 x2 y2 x3 y3 ...         polygon; its box is the smallest that holds every corner

COCO JSON and Pascal VOC XML are read by `utils.data.formats`.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.data.formats import Labels, Read, UnknownClassError
from utils.data.images import check_image

LEFT_OUT = "; the image is left out"  # how the message about a corrupt image ends
COLUMNS = ("class", "x", "y", "width", "height")


# --- one label file ---------------------------------------------------------------------------------------------------


def image_to_label_path(path: str | Path) -> str:
    """`.../images/a/b.jpg` -> `.../labels/a/b.txt`; the last folder called images counts.

    Without such a folder the label lies beside its image. Images that differ only in their suffix share a label file.
    """
    return os.path.splitext(labels_folder(str(path)))[0] + ".txt"


def labels_folder(path: str) -> str:
    images, labels = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"
    return labels.join(path.rsplit(images, 1))


def read_labels(image: str, label_file: str, size: tuple[int, int]) -> Labels:
    """The labels of an image from its text file."""
    return parse_labels(_read_text(label_file), label_file)


def parse_labels(text: str, path: str | Path, nc: int | None = None) -> tuple[np.ndarray, list[np.ndarray], list[str]]:
    """Reads the text of one label file.

    A file is read as polygons if any line has 7 numbers, or more than 8; a line of 5 is then a polygon of two corners,
    as in v6.1. Equal rows are kept once, and the rows then come out sorted, as in v6.1.

    Args:
        path: only for messages.
        nc: number of classes, where a class beyond it is an error.

    Returns:
        labels: float32 (n, 5): class, x, y, width, height.
        polygons: for a polygon file n arrays float32 (k, 2) of corners 0-1, row by row; otherwise empty.
        messages: what was put right, naming file and line.

    Raises ValueError `path:line: ...` at the first line that is not right.
    """
    lines, rows = _split_rows(text, path)
    messages: list[str] = []
    if not rows:
        return np.zeros((0, 5), np.float32), [], messages
    if any(len(row) == 7 or len(row) > 8 for row in rows):
        labels, polygons = _polygon_rows(lines, rows, path, messages)
    else:
        labels, polygons = _box_rows(lines, rows, path), []
    _check_values(labels, lines, path, nc)

    if len({row.tobytes() for row in labels}) < len(labels):
        total = len(labels)
        labels, kept = np.unique(labels, axis=0, return_index=True)
        polygons = [polygons[i] for i in kept] if polygons else []
        messages.append(f"{path}: {total - len(labels)} duplicate rows removed")
    return labels, polygons, messages


def _split_rows(text: str, path: str | Path) -> tuple[list[int], list[list[str]]]:
    """Line numbers and words of the lines that are not empty."""
    lines, rows = [], []
    for number, line in enumerate(text.rstrip().splitlines(), 1):
        words = line.split()
        if words:
            lines.append(number)
            rows.append(words)
        elif line and rows:
            raise ValueError(f"{path}:{number}: the line holds only blanks; delete it")
    return lines, rows


def _numbers(words: list[str], place: str) -> np.ndarray:
    numbers = []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError:
            raise ValueError(f"{place}: {word!r} is not a number") from None
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which the check of values refuses
        row = np.array(numbers, dtype=np.float32) + np.float32(0)  # -0 becomes 0: rows are compared byte by byte
    if np.isfinite(row[0]) and float(row[0]) != numbers[0]:
        raise ValueError(f"{place}: class must be a whole number below 2**24, got {words[0]}")
    return row


def _box_rows(lines: list[int], rows: list[list[str]], path: str | Path) -> np.ndarray:
    for line, row in zip(lines, rows):
        if len(row) != 5:
            raise ValueError(
                f"{path}:{line}: a line has 5 numbers (class x y width height), or an odd number from 7 up for a "
                f"polygon (class x1 y1 x2 y2 x3 y3 ...), but this one has {len(row)}"
            )
    return np.stack([_numbers(row, f"{path}:{line}") for line, row in zip(lines, rows)])


def _polygon_rows(
    lines: list[int], rows: list[list[str]], path: str | Path, messages: list[str]
) -> tuple[np.ndarray, list[np.ndarray]]:
    from utils.boxes import polygons_to_boxes  # brings torch, which commands that only list images do without

    classes, polygons = [], []
    for line, row in zip(lines, rows):
        if len(row) < 5 or len(row) % 2 == 0:
            raise ValueError(f"{path}:{line}: a polygon is a class and pairs x y, but the line has {len(row)} numbers")
        if len(row) == 5:
            messages.append(f"{path}:{line}: 5 numbers in a file of polygons are read as two corners, not as a box")
        numbers = _numbers(row, f"{path}:{line}")
        classes.append(numbers[0])
        polygons.append(numbers[1:].reshape(-1, 2))
    return np.column_stack([np.array(classes), polygons_to_boxes(polygons)]), polygons


def _check_values(labels: np.ndarray, lines: list[int], path: str | Path, nc: int | None) -> None:
    """Raises ValueError for the first row with a value out of its range; comparisons are false for NaN."""
    fits = (labels >= 0) & np.isfinite(labels)
    fits[:, 1:] &= labels[:, 1:] <= 1
    fits[:, 0] &= labels[:, 0] == np.floor(labels[:, 0])
    if nc is not None:
        fits[:, 0] &= labels[:, 0] < nc
    for row, column in np.argwhere(~fits)[:1]:
        value, limit = labels[row, column], f"0 to {nc - 1}" if nc is not None else "0, 1, 2 ..."
        rule = f"class must be a whole number, {limit}" if column == 0 else f"{COLUMNS[column]} must lie in 0-1"
        raise ValueError(f"{path}:{lines[row]}: {rule}, got {value:g}")


# --- one image with its label file ------------------------------------------------------------------------------------


@dataclass
class Pair:
    """An image and its labels as found on disk. The image counts for training unless it is corrupt."""

    size: tuple[int, int] = (0, 0)  # width, height in pixels
    labels: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))
    polygons: list[np.ndarray] = field(default_factory=list)
    found: bool = False  # there is a label file
    missing: bool = False  # there is none: the image shows background
    empty: bool = False  # the label file has no rows
    corrupt: bool = False  # image or labels are not usable
    messages: list[str] = field(default_factory=list)


def verify_pair(image_path: str, label_path: str, read: Read = read_labels) -> Pair:
    """Checks an image and reads its labels. Faults end up in `messages`, none is raised but UnknownClassError, no file
    is written.
    """
    pair = Pair()
    try:
        pair.size, remarks = check_image(image_path)
        pair.messages += remarks
        pair.found = os.path.isfile(label_path)
        pair.missing = not pair.found
        if pair.found:
            pair.labels, pair.polygons, remarks = read(image_path, label_path, pair.size)
            pair.messages += remarks
            pair.empty = len(pair.labels) == 0
    except UnknownClassError:
        raise
    except (ValueError, OSError) as error:
        pair.corrupt = True
        pair.messages.append(f"{error}{LEFT_OUT}")
    return pair


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8: {error}") from None
