"""What every label format is read into: objects in pixels for conversion, rows of numbers for training.

A box in pixels that reaches over the edge of its image is cut there, which is reported if it is by more than a pixel;
one without area, or outside the image, is left out and reported.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from utils.data.faults import Fault, FaultError, Location, UnknownClassError
from utils.data.images import check_image, is_turned
from utils.files import MAX_LIST, read_at_most, stays_below, within
from utils.text import decode_text

MAX_OVERHANG = 1.0  # pixels by which a box may reach over the edge of its image unreported: annotation tools round
NAMES_FILE = "labels.txt"  # in a folder of VOC or LabelMe files: class names in their order, one a line
MAX_LABELS = 2**26  # bytes of the labels of one image
MAX_JSON = 2**32  # bytes of a JSON of a whole data set; that of LVIS has 10^9
Size = tuple[int, int]  # width, height in pixels


# --- objects, for conversion ------------------------------------------------------------------------------------------


@dataclass
class LabelledObject:
    """One object of an image."""

    name: str  # of its class
    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels, x2 and y2 not belonging to it
    polygons: list[np.ndarray] = field(default_factory=list)  # its parts, (k, 2) in pixels; none if it is only a box
    difficult: bool = False  # VOC's difficult, COCO's iscrowd


@dataclass
class LabelledImage:
    """One image with its objects."""

    name: str  # path below the folder of images, with forward slashes
    width: int
    height: int
    objects: list[LabelledObject]
    source: Any = None  # what gives the bytes of the image by read_bytes(): a Path, or None if it was not found


@dataclass
class LabelledSplit:
    """What every format is converted from and to."""

    names: list[str]  # of the classes, in order
    images: list[LabelledImage]


def open_image(name: str, stated: tuple[Any, Any], source: Path | None, location: Location) -> LabelledImage:
    """Returns an image without objects. Its size is that of the file, or the stated one where there is no file.

    Raises FaultError where the file has another size than stated, or no size is known.
    """
    if source is not None:
        real, _ = check_image(source)
        stated = _sides(stated)
        if all(stated) and stated != real:
            raise location.error(
                "size", f"size {stated[0]} x {stated[1]} but {source} has {real[0]} x {real[1]} pixels"
            )
        return LabelledImage(name, *real, [], source)
    rule = "width and height must be whole numbers of pixels where the image is not found"
    width, height = (finite_number(side, rule, location) for side in stated)
    if min(width, height) < 1 or width % 1 or height % 1:
        raise location.error("format", f"{rule}, got {stated[0]} x {stated[1]}")
    return LabelledImage(name, int(width), int(height), [])


def finite_number(value: Any, rule: str, location: Location) -> float:
    """Returns a finite number, or raises FaultError `rule, got ...`."""
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not np.isfinite(number):
        raise location.error("format", f"{rule}, got {str(value)[:60]!r}")
    return number


def has_labels(label_file: str) -> bool:
    """Returns whether there is a label file. One that cannot be read is there: its image does not show background."""
    return os.path.lexists(label_file) or _broken_link(label_file) is not None


def read_label_bytes(label_file: str | Path) -> bytes:
    """Reads a label file. Raises FaultError where it cannot be read."""
    try:
        return read_at_most(label_file, MAX_LABELS)
    except ValueError as error:
        raise Location(str(label_file)).error("format", str(error).removeprefix(f"{label_file}: ")) from None
    except OSError as error:
        link = _broken_link(str(label_file))
        words = f"{link} is a link to {os.readlink(link)}, which does not exist" if link else error.strerror
        raise Location(str(label_file)).error("format", f"cannot be read: {words}") from None


def _broken_link(path: str) -> str | None:
    """Returns the file, or the folder above it, that is a link to nothing; None if there is none."""
    while path and not os.path.exists(path):
        if os.path.islink(path):
            return path
        path = os.path.dirname(path)
    return None


def check_box(box: Sequence[float], location: Location) -> None:
    """Raises FaultError where a corner is not finite, or the second lies above or left of the first."""
    if not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
        corners = ", ".join(f"{value:g}" for value in box)
        raise location.error("box", f"x2 and y2 must be finite and not below x1 and y1, got box ({corners})")


def read_json(file: str | Path) -> dict:
    """Reads the object in a JSON file. Raises FaultError where there is none."""
    location = Location(str(file))
    try:
        content = json.loads(read_at_most(file, MAX_JSON))
    except (ValueError, RecursionError) as error:  # of JSON, or of letters that are not UTF-8
        raise location.error("format", f"not a JSON file: {str(error).removeprefix(f'{file}: ')}") from None
    if not isinstance(content, dict):
        raise location.error("format", f"expected an object {{...}} at the top, found a {type(content).__name__}")
    return content


def hull(points: np.ndarray) -> tuple[float, float, float, float]:
    """Returns the smallest box x1, y1, x2, y2 that holds all points (k, 2)."""
    return (*points.min(0).tolist(), *points.max(0).tolist())


def safe_name(name: Any, location: Location) -> str:
    """Returns a relative file name that stays below its folder, or raises FaultError."""
    path = PurePosixPath(str(name).replace("\\", "/"))
    if not isinstance(name, str) or not stays_below(name) or ":" in path.parts[0]:
        raise location.error("format", f"a file name must lie below the folder of images, got {str(name)[:80]!r}")
    return str(path)


def image_within(folders: Sequence[str | Path], start: str | Path, name: str, location: Location) -> str:
    """Returns the path of an image that a label file names from `start`; FaultError where it is in none of folders."""
    for folder in folders:
        with suppress(ValueError):
            return within(folder, start, name)
    words = f"a file name must lie below {' or '.join(map(str, folders))}, got {name[:80]!r}"
    raise location.error("format", words)


def first_file(candidates: Sequence[Path]) -> Path | None:
    """Returns the first path that is a file, or None."""
    return next((path for path in candidates if os.path.isfile(path)), None)  # False for a name that is too long


def names_in_order(folder: Path, images: list[LabelledImage]) -> list[str]:
    """Returns class names: those of the folder's labels.txt first, then the others in alphabetical order."""
    return listed_first(folder, {item.name for image in images for item in image.objects})


def listed_first(folder: Path, names: Iterable[str]) -> list[str]:
    """Returns the names of the folder's labels.txt, if there is one, then the others in alphabetical order."""
    file = folder / NAMES_FILE
    listed = [line.strip() for line in _text_lines(file)] if file.is_file() else []
    return list(dict.fromkeys([*filter(None, listed), *sorted(names)]))


def _text_lines(file: Path) -> list[str]:
    try:
        return decode_text(read_at_most(file, MAX_LIST)).splitlines()
    except UnicodeDecodeError as error:
        raise Location(str(file)).error("format", f"not a text file in UTF-8: {error}") from None


def write_new(file: Path, text: str) -> None:
    """Writes a text file that must not exist, with its folders."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "x", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
        stream.write(text)


# --- rows, for training -----------------------------------------------------------------------------------------------


@dataclass
class ImageLabels:
    """The labels of one image as training wants them."""

    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))  # class, x, y, width, height, 0-1
    polygons: list[np.ndarray] = field(
        default_factory=list
    )  # (k, 2) corners 0-1 of each row, 0 of a box; [] for all boxes
    faults: list[Fault] = field(default_factory=list)  # that leave the image usable


Read = Callable[[str, str, Size], ImageLabels]  # from an image, its label file, and the image's size


@dataclass(frozen=True)
class Listing:
    """The images of a split, sorted and each once; the file that holds the labels of each; and how to read it.

    read(image, label_file, size) raises FaultError where the labels of an image cannot be used.
    """

    images: list[str]
    label_files: list[str]
    read: Read


def rows_of(
    objects: Sequence[LabelledObject], classes: Sequence[int], size: Size, locations: Sequence[Location]
) -> ImageLabels:
    """Returns label rows of objects in pixels; of equal rows the first. An object of one part keeps its polygon."""
    corners = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
    scaled, useful, faults = normalise_boxes(corners, size, locations)
    labels = np.column_stack([np.array(classes, np.float64), scaled]).astype(np.float32).reshape(-1, 5)
    rows: dict[bytes, int] = {}
    for i in np.flatnonzero(useful).tolist():
        first = rows.setdefault(labels[i].tobytes(), i)
        if first != i:
            row = locations[first].row
            faults.append(locations[i].fault("duplicate", f"the same box and class as {row}; left out"))
    kept = list(rows.values())
    polygons = [objects[i].polygons[0] if len(objects[i].polygons) == 1 else np.zeros((0, 2)) for i in kept]
    return ImageLabels(labels[kept], [np.clip(p / size, 0, 1).astype(np.float32) for p in polygons], faults)


def left_out_as_difficult(locations: Iterable[Location]) -> list[Fault]:
    """Returns a fault for each object that is left out because it is marked as difficult or as a crowd."""
    return [location.fault("difficult", "marked as difficult or as a crowd; left out") for location in locations]


def normalise_boxes(
    boxes: np.ndarray, size: Size, locations: Sequence[Location]
) -> tuple[np.ndarray, np.ndarray, list[Fault]]:
    """Turns boxes (n, 4) x1, y1, x2, y2 in pixels into centre x, y, width, height, 0-1 of an image of `size`.

    Returns the boxes float64 (n, 4), which of them are useful (n,), and the faults of the others.
    """
    limit = np.array([*size, *size], np.float64)
    cut = np.clip(boxes, 0, limit)  # NaN stays
    with np.errstate(invalid="ignore"):
        overhang = np.abs(boxes - cut).max(1, initial=0)
        empty = ~((boxes[:, 2:] > boxes[:, :2]).all(1) & np.isfinite(boxes).all(1))
        useful = ~empty & (cut[:, 2:] > cut[:, :2]).all(1)
    faults = []
    for location, box, is_empty, is_useful, over in zip(locations, boxes, empty, useful, overhang):
        corners = ", ".join(f"{value:g}" for value in box)
        if not is_useful:
            reason = "has no area" if is_empty else f"lies outside the image of {size[0]} x {size[1]} pixels"
            faults.append(location.fault("box", f"box ({corners}) {reason}; left out"))
        elif over > MAX_OVERHANG:
            words = f"box ({corners}) reaches over the image of {size[0]} x {size[1]} pixels; cut at its edge"
            faults.append(location.fault("cut", words))
    centre, extent = (cut[:, :2] + cut[:, 2:]) / 2, cut[:, 2:] - cut[:, :2]
    return np.concatenate([centre, extent], 1) / limit, useful, faults


def check_size(stated: tuple[Any, Any], size: Size, image: str | Path, location: Location) -> None:
    """Raises FaultError where boxes in pixels were drawn on an image of another size, and so are worthless."""
    stated = _sides(stated)
    if all(stated) and stated != size:
        words = f"says {stated[0]} x {stated[1]} pixels, but the image has {size[0]} x {size[1]}"
        if stated[::-1] == size:
            words += "; it is turned by its EXIF data" if is_turned(image) else "; width and height are exchanged"
        raise location.error("size", words)


def _sides(stated: tuple[Any, Any]) -> tuple[Any, Any]:
    """Returns width and height as a file states them; text and 640.0 as whole numbers, where they are."""
    whole = [int(side) if isinstance(side, str) and side.strip().isdecimal() else side for side in stated]
    width, height = (int(side) if isinstance(side, float) and side.is_integer() else side for side in whole)
    return width, height


# --- one image with its labels, checked -------------------------------------------------------------------------------


@dataclass
class CheckedImage:
    """An image and its labels as they were found. The image counts for training unless it is corrupt."""

    size: Size = (0, 0)
    labels: ImageLabels = field(default_factory=ImageLabels)
    found: bool = False  # there is a label file
    missing: bool = False  # there is none: the image shows background
    empty: bool = False  # the label file has no rows
    corrupt: bool = False  # image or labels are not usable
    faults: list[Fault] = field(default_factory=list)


def check_labelled_image(
    path: str, check: Callable[[], tuple[Size, list[Fault]]], read: Callable[[Size], ImageLabels] | None
) -> CheckedImage:
    """Checks an image, then reads its labels. Faults are collected; only UnknownClassError is raised.

    Args:
        path: for messages.
        check: gives the size of the image, and what is odd about it.
        read: gives the labels; None where there are none.
    """
    image = CheckedImage()
    try:
        image.size, image.faults = check()
        image.found, image.missing = read is not None, read is None
        if read is not None:
            image.labels = read(image.size)
            image.faults = [*image.faults, *image.labels.faults]
            image.empty = len(image.labels.rows) == 0
    except UnknownClassError:
        raise
    except (FaultError, OSError) as error:
        fault = error.fault if isinstance(error, FaultError) else Fault("image", path, str(error))
        image.corrupt = True
        image.faults = [*image.faults, Fault(fault.kind, fault.file, fault.words, fault.line, left_out=True)]
    return image
