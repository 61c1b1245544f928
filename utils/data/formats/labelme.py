"""LabelMe: one JSON file beside each image; polygons, rectangles and circles in pixels."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from utils.data.faults import FaultError, Location, UnknownClassError
from utils.data.images import is_image, list_images
from utils.data.labels import (
    NAMES_FILE,
    ImageLabels,
    LabelledImage,
    LabelledObject,
    LabelledSplit,
    Listing,
    Size,
    check_size,
    finite_number,
    first_file,
    hull,
    image_within,
    left_out_as_difficult,
    listed_first,
    names_in_order,
    open_image,
    read_json,
    rows_of,
    write_new,
)
from utils.log import LOGGER

MIN_POINTS = {"polygon": 3, "rectangle": 2, "circle": 2}  # of the shapes that are objects


# --- a split of a data set --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelMeSplit:
    """Images with a JSON file beside each. A path is a folder, or a list of image files (see `list_images`)."""

    paths: tuple[str, ...]
    names: tuple[str, ...]  # of the classes, in order
    difficult: bool = False  # keep the objects that are marked as difficult

    def __str__(self) -> str:
        return ", ".join(self.paths)

    def open(self) -> Listing:
        """Lists the images. Raises what `list_images` raises."""
        images = list_images(list(self.paths))
        labels = [os.path.splitext(image)[0] + ".json" for image in images]
        return Listing(images, labels, _LabelMeReader(self.names, self.difficult))


@dataclass(frozen=True)
class _LabelMeReader:
    names: tuple[str, ...]
    difficult: bool

    def __call__(self, image: str, label_file: str, size: Size) -> ImageLabels:
        content = read_json(label_file)
        check_size((content.get("imageWidth"), content.get("imageHeight")), size, image, Location(label_file))
        objects = _objects(content, Path(label_file))
        for item in objects:
            if item.name not in self.names and (self.difficult or not item.difficult):
                words = f"{label_file}: class {item.name!r} is not in names of the data set YAML; add it there"
                raise UnknownClassError(words)
        places = [Location(label_file, f"object {i} ({item.name!r})") for i, item in enumerate(objects, 1)]
        kept = [(item, place) for item, place in zip(objects, places) if self.difficult or not item.difficult]
        classes = [self.names.index(item.name) for item, _ in kept]
        labels = rows_of([item for item, _ in kept], classes, size, [place for _, place in kept])
        hard = [place for item, place in zip(objects, places) if item.difficult]
        labels.faults += [] if self.difficult else left_out_as_difficult(hard)
        return labels


def labelme_names(split: LabelMeSplit) -> list[str]:
    """Returns the names of the classes in the JSON files of a split: those of a labels.txt first, the others sorted."""
    files = [file for file in split.open().label_files if os.path.isfile(file)]
    found: set[str] = set()
    for file in files:
        try:
            found |= {item.name for item in _objects(read_json(file), Path(file))}
        except FaultError:  # told of where the labels are read
            continue
    if not found:
        raise ValueError(f"{split}: no objects in {len(files)} LabelMe files, so there are no classes")
    return listed_first(Path(files[0]).parent, found)


# --- conversion -------------------------------------------------------------------------------------------------------


def load(folder: Path, image_folders: Sequence[Path] = (), files: Sequence[Path] | None = None) -> LabelledSplit:
    """Reads the images and objects of a folder of JSON files, searched with its sub-folders.

    Polygons of the same group_id and label are one object. An image is looked for beside its JSON file, then where that
    names it, which must be below `folder` or one of `image_folders`. files: to read of the folder; None for all. Raises
    FaultError for whatever is wrong.
    """
    images = []
    for file in sorted(folder.rglob("*.json")) if files is None else files:
        content = read_json(file)
        image = content.get("imagePath")
        suffix = PurePosixPath(str(image).replace("\\", "/")).suffix if is_image(str(image)) else ".jpg"
        name = file.relative_to(folder).with_suffix(suffix).as_posix()
        sources = [file.with_suffix(suffix)]
        if isinstance(image, str) and image and first_file(sources) is None:
            where = Location(str(file), "imagePath")
            image = image.replace("\\", "/")
            sources.append(Path(image_within([folder, *image_folders], file.parent, image, where)))
        size = (content.get("imageWidth"), content.get("imageHeight"))
        location = Location(str(file), "imageWidth, imageHeight")
        images.append(open_image(name, size, first_file(sources), location))
        images[-1].objects += _objects(content, file)
    return LabelledSplit(names_in_order(folder, images), images)


def _objects(content: dict, file: Path) -> list[LabelledObject]:
    objects: list[LabelledObject] = []
    groups: dict[Any, LabelledObject] = {}
    for row, location in _shapes(content, file):
        item, group = object_of(row, location), row.get("group_id")
        grouped = item is not None and item.polygons and isinstance(group, int | str)
        if item is None:
            LOGGER.warning(f"{location}: a shape of the type {row.get('shape_type')!r} is not an object; left out")
        elif grouped and (item.name, group) in groups:
            whole = groups[item.name, group]
            whole.polygons += item.polygons
            whole.box = hull(np.concatenate(whole.polygons))
        else:
            objects.append(item)
            if grouped:
                groups[item.name, group] = item
    return objects


def object_of(row: dict, location: Location) -> LabelledObject | None:
    """Returns the object of a shape; None for a shape that is no object, such as a line. Raises FaultError."""
    kind = row.get("shape_type") or "polygon"
    if not isinstance(row.get("label"), str) or not row["label"]:
        raise location.error("class", f"needs a label, got {row.get('label')!r}")
    if not isinstance(kind, str):
        raise location.error("format", f"shape_type must be text, got {str(kind)[:60]}")
    if kind not in MIN_POINTS:
        return None
    points = _points(row.get("points"), MIN_POINTS[kind], location)
    if kind == "circle":  # centre, and a point of the edge
        radius = np.hypot(*(points[1] - points[0]))
        points = points[0] + [[-radius, -radius], [radius, radius]]
    flags = row.get("flags") if isinstance(row.get("flags"), dict) else {}
    polygons = [points] if kind == "polygon" else []
    return LabelledObject(row["label"], hull(points), polygons, flags.get("difficult") is True)


def _points(value: Any, least: int, location: Location) -> np.ndarray:
    """Returns points (k, 2) from a list of pairs."""
    rule = f"points must be {least} or more pairs of numbers"
    if not isinstance(value, list) or len(value) < least or not all(isinstance(p, list) and len(p) == 2 for p in value):
        raise location.error("format", f"{rule}, got {str(value)[:60]}")
    return np.array([[finite_number(x, rule, location) for x in pair] for pair in value])


def _shapes(content: dict, file: Path) -> Iterator[tuple[dict, Location]]:
    shapes = content.get("shapes")
    if not isinstance(shapes, list):
        raise Location(str(file)).error("format", f"'shapes' must be a list, got {str(shapes)[:60]}")
    for i, row in enumerate(shapes):
        location = Location(str(file), f"shapes[{i}]")
        if not isinstance(row, dict):
            raise location.error("format", f"must be an object {{...}}, got {str(row)[:60]}")
        yield row, location


def save(out: Path, splits: dict[str, LabelledSplit], names: list[str]) -> None:
    """Writes `split/name.json` beside the image; the parts of one object share a group_id."""
    for split, labels in splits.items():
        write_new(out / split / NAMES_FILE, "".join(f"{name}\n" for name in names))
        for image in labels.images:
            content = {
                "version": "5.5.0",
                "flags": {},
                "shapes": _rows(image),
                "imagePath": PurePosixPath(image.name).name,
                "imageData": None,
                "imageHeight": image.height,
                "imageWidth": image.width,
            }
            file = out / split / PurePosixPath(image.name).with_suffix(".json")
            write_new(file, json.dumps(content, ensure_ascii=False, indent=1))


def _rows(image: LabelledImage) -> list[dict]:
    rows = []
    for number, item in enumerate(image.objects, 1):
        for points in item.polygons or [np.array(item.box).reshape(2, 2)]:
            rows.append(
                {
                    "label": item.name,
                    "points": [[round(float(x), 3) for x in point] for point in points],
                    "group_id": number if len(item.polygons) > 1 else None,
                    "shape_type": "polygon" if item.polygons else "rectangle",
                    "flags": {"difficult": True} if item.difficult else {},
                }
            )
    return rows
