"""COCO JSON: images, annotations and categories in one file (https://cocodataset.org/#format-data).

A `CocoSplit` stands in a dataset's entry (`train`, `val`, `test`) where a folder of images would. Training counts
crowds and leaves them out, and keeps the outline of an object that has a single part.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.faults import Fault, FaultError, Location, UnknownClassError
from utils.data.labels import (
    ImageLabels,
    LabelledObject,
    LabelledSplit,
    Listing,
    Size,
    check_box,
    check_size,
    first_file,
    hull,
    image_within,
    left_out_as_difficult,
    open_image,
    read_json,
    rows_of,
    safe_name,
    write_new,
)
from utils.log import LOGGER
from utils.text import brief

BBOX = "bbox must be 4 numbers (x, y, width, height in pixels)"
TYPES = {str: "text", int | str: "a whole number or text", list: "a list of objects"}


# --- the file ---------------------------------------------------------------------------------------------------------


@dataclass
class CocoFile:
    """The content of a COCO JSON, whose records are known to refer to each other."""

    file: str
    images: dict[int | str, dict]  # by id; an id that is written as text is the number, if it is one
    categories: dict[int | str, str]  # id -> name
    annotations: dict[int | str, list[dict]]  # of each image, crowds included
    strays: list[Fault] = field(default_factory=list)  # annotations of images that are not listed
    written: dict[tuple[str, int | str], int | str] = field(default_factory=dict)  # ids in the form that the file has

    def locate(self, annotation: dict) -> Location:
        """Returns where an annotation stands in the file."""
        return Location(self.file, f"annotation {annotation.get('id')}")


def read_file(file: str | Path) -> CocoFile:
    """Reads a COCO JSON. Raises FaultError, naming the file and the record, where it is not COCO's."""
    content = _read_records(file)
    file = str(file)
    written: dict[tuple[str, int | str], int | str] = {}
    for key, names in (("images", ("id",)), ("categories", ("id",)), ("annotations", ("image_id", "category_id"))):
        for i, record in enumerate(content[key]):
            for name in names:
                plain = _identifier(record, name, Location(file, f"{key}[{i}]"))
                if key != "annotations":
                    written.setdefault((key, plain), record[name])
                record[name] = plain
    for key in ("images", "categories"):
        if twice := [k for k, count in Counter(record["id"] for record in content[key]).items() if count > 1]:
            raise Location(file).error("format", f"several {key} have the id {twice[0]!r}")
    read = CocoFile(
        file,
        {image["id"]: image for image in content["images"]},
        {c["id"]: _value(c, "name", str, Location(file, f"category {c['id']}")) for c in content["categories"]},
        defaultdict(list),
        written=written,
    )
    for annotation in content["annotations"]:
        if annotation["category_id"] not in read.categories:
            words = f"there is no category with id {annotation['category_id']!r}"
            raise read.locate(annotation).error("class", words)
        if annotation["image_id"] in read.images:
            read.annotations[annotation["image_id"]].append(annotation)
        else:
            words = f"there is no image with id {annotation['image_id']!r}"
            read.strays.append(read.locate(annotation).fault("stray", words))
    return read


def object_of(annotation: dict, name: str, location: Location) -> tuple[LabelledObject, list[Fault]]:
    """Returns the object of an annotation, and the faults that leave its box usable.

    A mask (run-length encoded) gives no outline. Raises FaultError where there is neither a box nor an outline.
    """
    parts, polygons, faults = annotation.get("segmentation"), [], []
    for part in parts if isinstance(parts, list) else ():
        points = _numbers(part)
        if points is not None and len(points) >= 6 and len(points) % 2 == 0 and np.isfinite(points).all():
            polygons.append(points.reshape(-1, 2))
        else:
            faults = [location.fault("outline", f"a polygon must be 3 or more pairs x y, got {brief(part)}")]
    if "bbox" in annotation or not polygons:
        numbers = _numbers(annotation.get("bbox"))
        if numbers is None or len(numbers) != 4:
            raise location.error("format", f"{BBOX}, got {brief(annotation.get('bbox'))}")
        x, y, width, height = numbers.tolist()
        box = (x, y, x + width, y + height)
    else:
        box = hull(np.concatenate(polygons))
    return LabelledObject(name, box, polygons, is_crowd(annotation)), faults


def _read_records(file: str | Path) -> dict[str, list[dict]]:
    content = read_json(file)
    for key in ("images", "annotations", "categories"):
        records = content.get(key)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            words = f"not COCO JSON of boxes: {key!r} must be a list of objects"
            raise Location(str(file)).error("format", words)
    return content


def _value(record: dict, key: str, kind: Any, location: Location) -> Any:
    value = record.get(key)
    if not isinstance(value, kind):
        raise location.error("format", f"{key!r} must be {TYPES[kind]}, got {brief(value)}")
    return value


def _identifier(record: dict, key: str, location: Location) -> int | str:
    """Returns an id. Tools write 7 as "7" or 7.0 too, and not the same in images and annotations."""
    value = record.get(key)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    value = _value(record, key, int | str, location)
    plain = isinstance(value, str) and value.isascii() and value.isdecimal() and str(int(value[:18])) == value
    return int(value) if plain else value


def is_crowd(annotation: dict) -> bool:
    """Returns whether an annotation is of a crowd; some tools write iscrowd as text."""
    return str(annotation.get("iscrowd") or 0).strip().lower() not in ("0", "0.0", "false", "no", "none", "")


def _numbers(values: Any) -> np.ndarray | None:
    """Returns the numbers (n,) float64 of a list, which need not be finite; None where a value is something else."""
    if not isinstance(values, list):
        return None
    try:
        return np.array([float(value) for value in values])
    except (TypeError, ValueError, OverflowError):
        return None


# --- a split of a data set --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CocoBox:
    """One annotation of a COCO JSON, as its metric wants it."""

    path: str  # of the image
    image_id: int | str
    number: int  # of the class
    box: np.ndarray  # (4,) x, y of the top left corner, width, height in pixels
    area: float  # pixels; the box's where the file does not say
    crowd: bool


@dataclass(frozen=True)
class CocoSplit:
    """Images and boxes as COCO's `instances` JSON lists them; categories are matched to `names` by their name."""

    files: tuple[str, ...]  # of JSON
    images: str  # the folder from which `file_name` starts
    names: tuple[str, ...]  # of the classes, in order
    difficult: bool = False  # keep crowds, each as one object; training leaves them out, as COCO's own labels do

    @property
    def paths(self) -> tuple[str, ...]:
        """Returns the files of labels."""
        return self.files

    def __str__(self) -> str:
        return ", ".join(self.files)

    def open(self) -> Listing:
        """Reads the JSON. Raises FaultError where it is not COCO's, UnknownClassError for a class without a name."""
        annotated: dict[str, tuple[CocoFile, dict]] = {}
        for file in self.files:
            content = read_file(file)
            self._check_names(content)
            _report(content)
            for key, image in content.images.items():
                location = Location(file, f"image {key}")
                path = self._path_of(image, file)
                if path in annotated:
                    raise location.error("format", f"{image['file_name']} is listed twice")
                annotated[path] = content, image
        if not annotated:
            raise ValueError(f"{self}: no images are listed")
        images = sorted(annotated)
        return Listing(
            images, [annotated[path][0].file for path in images], _CocoReader(annotated, self.names, self.difficult)
        )

    def annotated(self) -> tuple[dict[str, int | str], list[int | str], list[CocoBox]]:
        """Reads what a metric needs and training does not: the ids in the files, and all annotations, crowds included.

        Returns the id of each image by its path; of each class the id of its category (a number that no category has,
        for a class that the files do not know); and the annotations, image by image.
        """
        ids, categories, boxes = {}, {}, []
        for file in self.files:
            content = read_file(file)
            self._check_names(content)
            numbers = {name: content.written["categories", key] for key, name in content.categories.items()}
            categories = {**numbers, **categories}
            for key, image in content.images.items():
                path = self._path_of(image, file)
                ids[path] = content.written["images", key]
                for annotation in content.annotations[key]:
                    boxes.append(self._metric_box(annotation, path, content))
        free = 1 + max((key for key in categories.values() if isinstance(key, int)), default=0)
        return ids, [categories.get(name, free + number) for number, name in enumerate(self.names)], boxes

    def _path_of(self, image: dict, file: str) -> str:
        location = Location(file, f"image {image['id']}")
        name = _value(image, "file_name", str, location)
        path = image_within([self.images], self.images, name, location)
        if "\\" in name and not os.path.isfile(path):  # written under Windows
            path = image_within([self.images], self.images, name.replace("\\", "/"), location)
        return path

    def _metric_box(self, annotation: dict, path: str, content: CocoFile) -> CocoBox:
        name = content.categories[annotation["category_id"]]
        x1, y1, x2, y2 = object_of(annotation, name, content.locate(annotation))[0].box
        box = np.array(annotation["bbox"], float) if "bbox" in annotation else np.array([x1, y1, x2 - x1, y2 - y1])
        stated = _numbers([annotation.get("area")])
        area = float(box[2] * box[3]) if stated is None else float(stated[0])
        crowd = is_crowd(annotation)
        image_id = content.written["images", annotation["image_id"]]
        return CocoBox(path, image_id, self.names.index(name), box, area, crowd)

    def _check_names(self, content: CocoFile) -> None:
        """Raises UnknownClassError for the first annotation of a class that is not among the names."""
        known = {key for key, name in content.categories.items() if name in self.names}
        for annotations in content.annotations.values():
            for annotation in annotations:
                if annotation["category_id"] not in known:
                    name = content.categories[annotation["category_id"]]
                    raise UnknownClassError(
                        f"{content.locate(annotation)} is of class {name!r}, which is not in names of the data set "
                        f"YAML; add it there, or leave out names and nc to use the classes of this file"
                    )


def _report(content: CocoFile) -> None:
    if content.strays:
        LOGGER.warning(
            f"{content.file}: annotations of images that are not listed, left out: {len(content.strays)}; the first: "
            f"{content.strays[0].words}"
        )


@dataclass(frozen=True)
class _CocoReader:
    annotated: dict[str, tuple[CocoFile, dict]]  # image -> its file, its record there
    names: tuple[str, ...]
    difficult: bool

    def __call__(self, image: str, label_file: str, size: Size) -> ImageLabels:
        content, record = self.annotated[image]
        stated, location = (record.get("width"), record.get("height")), Location(content.file, f"image {record['id']}")
        check_size(stated, size, image, location)
        objects, locations, faults = [], [], []
        for annotation in content.annotations.get(record["id"], ()):
            location = content.locate(annotation)
            if is_crowd(annotation) and not self.difficult:
                faults += left_out_as_difficult([location])
                continue
            item, odd = object_of(annotation, content.categories[annotation["category_id"]], location)
            objects.append(item)
            locations.append(location)
            faults += odd
        labels = rows_of(objects, [self.names.index(item.name) for item in objects], size, locations)
        labels.faults = [*faults, *labels.faults]
        return labels


def coco_names(files: Sequence[str | Path]) -> list[str]:
    """Returns the names of the categories of all files, each once, in the order of their ids.

    Where an id has different names in two files, that of the later file comes behind all others.
    """
    names: dict[int | str, str] = {}
    behind: list[str] = []
    for file in files:
        categories = read_file(file).categories
        if twice := [name for name, count in Counter(categories.values()).items() if count > 1]:
            raise ValueError(f"{file}: several categories are called {twice[0]!r}; give the names in the data set YAML")
        for key, name in categories.items():
            if name not in (*names.values(), *behind) and names.setdefault(key, name) != name:
                behind.append(name)
    ordered = [names[key] for key in sorted(names, key=lambda key: (isinstance(key, str), key))] + behind
    if not ordered:
        raise ValueError(f"{', '.join(map(str, files))}: there are no categories; give the names in the data set YAML")
    return ordered


# --- conversion -------------------------------------------------------------------------------------------------------


def load(file: Path, image_folders: Sequence[Path]) -> LabelledSplit:
    """Reads the images and objects of a COCO JSON, crowds included; classes in the order of the categories' ids.

    Images are looked for in the folders, then beside the file. Raises FaultError for whatever is wrong.
    """
    content = read_file(file)
    folders = [*image_folders, file.parent, file.parent / "images", file.parent / "images" / file.stem]
    if content.strays:
        raise FaultError(content.strays[0])
    images = []
    for key, record in content.images.items():
        location = Location(content.file, f"image {key}")
        name = safe_name(record.get("file_name"), location)
        source = first_file([folder / name for folder in folders])
        image = open_image(name, (record.get("width"), record.get("height")), source, location)
        for annotation in content.annotations[key]:
            location = content.locate(annotation)
            item, faults = object_of(annotation, content.categories[annotation["category_id"]], location)
            if faults:
                raise FaultError(faults[0])
            check_box(item.box, location)
            image.objects.append(item)
        images.append(image)
    keys = sorted(content.categories, key=lambda key: (isinstance(key, str), key))
    return LabelledSplit([content.categories[key] for key in keys], images)


def save(out: Path, splits: dict[str, LabelledSplit], names: list[str]) -> None:
    """Writes `split.json` with category ids from 1, as COCO's are, and areas of the outlines."""
    for split, labels in splits.items():
        images, annotations = [], []
        for i, image in enumerate(labels.images, 1):
            images.append({"id": i, "file_name": image.name, "width": image.width, "height": image.height})
            for item in image.objects:
                number, category = len(annotations) + 1, names.index(item.name) + 1
                annotations.append({"id": number, "image_id": i, "category_id": category, **_geometry(item)})
        categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_new(out / f"{split}.json", json.dumps(content))


def _geometry(item: LabelledObject) -> dict[str, Any]:
    x1, y1, x2, y2 = item.box
    area = sum(map(_area, item.polygons)) if item.polygons else (x2 - x1) * (y2 - y1)
    return {
        "bbox": _rounded([x1, y1, x2 - x1, y2 - y1]),
        "area": round(area, 3),
        "iscrowd": int(item.difficult),
        "segmentation": [_rounded(polygon.ravel()) for polygon in item.polygons],
    }


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), 3) for value in values]
