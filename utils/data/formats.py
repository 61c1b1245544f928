"""Data sets whose labels are not text files: COCO JSON and Pascal VOC XML, read as they are published.

A `CocoSplit` or `VocSplit` stands in a dataset's entry (`train`, `val`, `test`) where a folder of images would. Its
`open()` lists images with the file that holds the labels of each, and gives the function that reads them; the rest
(checking images, caching, arrays) is that of `utils.data.labels.scan`.

Boxes come in pixels. One that reaches over the edge of its image is cut there, and reported if by more than a pixel;
one without area, or outside, is left out and reported. Classes are numbered as the names of the YAML are.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from utils.data.images import is_image, list_images
from utils.log import LOGGER

EDGE = 1.0  # pixels by which a box may reach over the edge of its image unreported: annotation tools round

Labels = tuple[np.ndarray, list[np.ndarray], list[str]]  # as `utils.data.labels.parse_labels` returns them
Read = Callable[[str, str, tuple[int, int]], Labels]  # image, its label file, its width and height in pixels


class UnknownClassError(ValueError):
    """A class that the data set YAML does not name: a fault of the YAML, not of the image where it is met."""


@dataclass(frozen=True)
class Listing:
    """The images of a split, sorted and each once; the file that holds the labels of each; and how to read it.

    read(image, label_file, size) raises ValueError, naming the place, where the labels of an image cannot be used.
    """

    images: list[str]
    label_files: list[str]
    read: Read


# --- boxes in pixels --------------------------------------------------------------------------------------------------


def normalise_boxes(
    boxes: np.ndarray, size: tuple[int, int], places: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Boxes (n, 4) x1, y1, x2, y2 in pixels to centre x, y, width, height as 0-1 of an image of `size` (width, height).

    Returns the boxes float64 (n, 4), which of them are of use (n,), and messages that start with the box's place.
    """
    limit = np.array([*size, *size], np.float64)
    cut = np.clip(boxes, 0, limit)  # NaN stays
    with np.errstate(invalid="ignore"):
        overhang = np.abs(boxes - cut).max(1, initial=0)
        empty = ~((boxes[:, 2:] > boxes[:, :2]).all(1) & np.isfinite(boxes).all(1))
        useful = ~empty & (cut[:, 2:] > cut[:, :2]).all(1)
    messages = []
    for place, box, is_empty, is_useful, over in zip(places, boxes, empty, useful, overhang):
        corners = ", ".join(f"{value:g}" for value in box)
        if not is_useful:
            fault = "has no area" if is_empty else f"lies outside the image of {size[0]} x {size[1]} pixels"
            messages.append(f"{place}: box ({corners}) {fault}; left out")
        elif over > EDGE:
            messages.append(
                f"{place}: box ({corners}) reaches over the image of {size[0]} x {size[1]} pixels; cut there"
            )
    centre, extent = (cut[:, :2] + cut[:, 2:]) / 2, cut[:, 2:] - cut[:, :2]
    return np.concatenate([centre, extent], 1) / limit, useful, messages


def _assemble(
    classes: Sequence[int],
    boxes: Sequence[Sequence[float]],
    polygons: Sequence[np.ndarray],
    size: tuple[int, int],
    places: Sequence[str],
) -> Labels:
    """Label rows from boxes (x1, y1, x2, y2) and polygons in pixels; the first of equal rows is kept."""
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    scaled, useful, messages = normalise_boxes(corners, size, places)
    labels = np.column_stack([np.array(classes, np.float64), scaled]).astype(np.float32).reshape(-1, 5)
    rows: dict[bytes, int] = {}
    for i in np.flatnonzero(useful).tolist():
        first = rows.setdefault(labels[i].tobytes(), i)
        if first != i:
            messages.append(f"{places[i]}: the same box and class as {places[first]}; left out")
    kept = list(rows.values())
    outlines = [np.clip(polygons[i] / size, 0, 1).astype(np.float32) for i in kept]
    return labels[kept], outlines, messages


def _check_size(stated: tuple[Any, Any], size: tuple[int, int], place: str) -> None:
    """Boxes in pixels are worthless where the image is not the one they were drawn on."""
    if all(stated) and tuple(stated) != size:
        turned = "; it is turned by its EXIF data" if tuple(stated)[::-1] == size else ""
        raise ValueError(
            f"{place}: says {stated[0]} x {stated[1]} pixels, but the image has {size[0]} x {size[1]}{turned}"
        )


# --- COCO JSON --------------------------------------------------------------------------------------------------------


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
    """Images and boxes as COCO's `instances` JSON lists them (https://cocodataset.org/#format-data).

    Categories are matched to `names` by their name. Crowd boxes are left out and counted. An annotation's polygon is
    kept where it is one single outline.
    """

    files: tuple[str, ...]  # of JSON
    images: str  # the folder from which `file_name` starts
    names: tuple[str, ...]  # of the classes, in order

    @property
    def places(self) -> tuple[str, ...]:
        return self.files

    def __str__(self) -> str:
        return ", ".join(self.files)

    def open(self) -> Listing:
        """Reads the JSON. Raises ValueError, naming the file and the image or annotation, where it is not COCO's."""
        annotated: dict[str, tuple[str, dict, list[dict]]] = {}
        class_of: dict[tuple[str, Any], int] = {}
        for file in self.files:
            content = _read_json(file)
            class_of.update({(file, key): number for key, number in self._class_numbers(content, file).items()})
            by_image = self._by_image(content, file)
            for image in content["images"]:
                name = _value(image, "file_name", str, f"{file}: image {image['id']}")
                path = os.path.join(self.images, name)
                if path in annotated:
                    raise ValueError(f"{file}: image {image['id']}: {name} is listed twice")
                annotated[path] = file, image, by_image.get(image["id"], [])
        if not annotated:
            raise ValueError(f"{self}: no images are listed")
        images = sorted(annotated)
        return Listing(images, [annotated[path][0] for path in images], _CocoReader(annotated, class_of))

    def annotated(self) -> tuple[dict[str, int | str], list[int | str], list["CocoBox"]]:
        """What a metric needs and training does not: the ids in the files, and all annotations, crowds included.

        Returns the id of each image by its path; of each class the id of its category (a number that no category has,
        for a class that the files do not know); and the annotations in their order.
        """
        ids, categories, annotations = {}, {}, []
        for file in self.files:
            content = _read_json(file)
            path_of = {image["id"]: os.path.join(self.images, image["file_name"]) for image in content["images"]}
            ids.update({path: key for key, path in path_of.items()})
            class_of = self._class_numbers(content, file)
            categories = {**{category["name"]: category["id"] for category in content["categories"]}, **categories}
            for record in content["annotations"]:
                if record["image_id"] in path_of:
                    box = _numbers(record.get("bbox"), 4, f"{file}: annotation {record.get('id')}: bbox")
                    area = record.get("area")
                    area = float(area) if isinstance(area, int | float) else float(box[2] * box[3])
                    number, crowd = class_of[record["category_id"]], bool(record.get("iscrowd"))
                    annotations.append(
                        CocoBox(path_of[record["image_id"]], record["image_id"], number, box, area, crowd)
                    )
        free = 1 + max((key for key in categories.values() if isinstance(key, int)), default=0)
        return ids, [categories.get(name, free + number) for number, name in enumerate(self.names)], annotations

    def _class_numbers(self, content: dict, file: str) -> dict[Any, int]:
        """Category id -> number of its class, of those that annotations use."""
        used = Counter(annotation.get("category_id") for annotation in content["annotations"])
        known = {
            category["id"]: _value(category, "name", str, f"{file}: category") for category in content["categories"]
        }
        numbers = {name: number for number, name in enumerate(self.names)}
        for key in used:
            first = next(a.get("id") for a in content["annotations"] if a.get("category_id") == key)
            if key not in known:
                raise ValueError(f"{file}: annotation {first}: there is no category with id {key!r}")
            if known[key] not in numbers:
                raise UnknownClassError(
                    f"{file}: annotation {first} is of class {known[key]!r}, which is none of the names of the data "
                    f"set YAML; add it, or leave out names and nc to take those of the file"
                )
        return {key: numbers[known[key]] for key in used}

    def _by_image(self, content: dict, file: str) -> dict[Any, list[dict]]:
        """Annotations of each image id, without those of crowds and of images that are not listed."""
        listed = Counter(image["id"] for image in content["images"])
        if twice := [key for key, count in listed.items() if count > 1]:
            raise ValueError(f"{file}: {listed[twice[0]]} images have the id {twice[0]!r}")
        by_image, crowds, strays = defaultdict(list), 0, []
        for annotation in content["annotations"]:
            if annotation.get("image_id") not in listed:
                strays.append(annotation.get("id"))
            elif annotation.get("iscrowd"):
                crowds += 1
            else:
                by_image[annotation["image_id"]].append(annotation)
        if crowds:
            LOGGER.info(f"{file}: {crowds} crowd boxes left out")
        if strays:
            LOGGER.warning(
                f"{file}: {len(strays)} annotations of images that are not listed, first {strays[0]}; left out"
            )
        return by_image


@dataclass(frozen=True)
class _CocoReader:
    annotated: dict[str, tuple[str, dict, list[dict]]]  # image -> JSON file, its record there, its annotations
    class_of: dict[tuple[str, Any], int]  # by file and category id

    def __call__(self, image: str, label_file: str, size: tuple[int, int]) -> Labels:
        file, record, annotations = self.annotated[image]
        _check_size((record.get("width"), record.get("height")), size, f"{file}: image {record['id']}")
        places = [f"{file}: annotation {annotation.get('id')}" for annotation in annotations]
        boxes, polygons = [], []
        for annotation, place in zip(annotations, places):
            x, y, width, height = _numbers(annotation.get("bbox"), 4, f"{place}: bbox")
            boxes.append((x, y, x + width, y + height))
            polygons.append(_outline(annotation.get("segmentation"), place))
        classes = [self.class_of[file, annotation["category_id"]] for annotation in annotations]
        return _assemble(classes, boxes, polygons, size, places)


def coco_names(file: str | Path) -> list[str]:
    """The names of a COCO JSON's categories in the order of their ids."""
    categories = _read_json(file)["categories"]
    categories.sort(key=lambda category: (isinstance(category["id"], str), category["id"]))
    names = [_value(category, "name", str, f"{file}: category") for category in categories]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{file}: several categories are called {twice[0]!r}; give the names in the data set YAML")
    if not names:
        raise ValueError(f"{file}: there are no categories; give the names in the data set YAML")
    return names


def _read_json(file: str | Path) -> dict[str, list[dict]]:
    try:
        content = json.loads(Path(file).read_bytes())
    except (ValueError, RecursionError) as error:  # of JSON, or of letters that are not UTF-8
        raise ValueError(f"{file}: not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not COCO JSON: expected an object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        records = content.get(key)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise ValueError(f"{file}: not COCO JSON of boxes: {key!r} must be a list of objects")
    for key, names in (("images", ("id",)), ("categories", ("id",)), ("annotations", ("image_id", "category_id"))):
        for i, record in enumerate(content[key]):
            for name in names:
                _value(record, name, int | str, f"{file}: {key}[{i}]")
    return content


def _value(record: dict, key: str, kind: Any, place: str) -> Any:
    value = record.get(key)
    if not isinstance(value, kind):
        raise ValueError(f"{place}: {key!r} must be {kind if kind == int | str else kind.__name__}, got {value!r:.80}")
    return value


def _numbers(values: Any, count: int | None, place: str) -> np.ndarray:
    try:
        numbers = np.array([float(value) for value in values])
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty(1)
    if len(numbers) != count if count else len(numbers) % 2:
        raise ValueError(f"{place} must be {count or 'an even number of'} numbers, got {values!r:.80}")
    return numbers


def _outline(segmentation: Any, place: str) -> np.ndarray:
    """(k, 2) corners in pixels of an object of one part; none where it has several, or a mask instead."""
    none = np.zeros((0, 2))
    if not isinstance(segmentation, list) or len(segmentation) != 1:
        return none
    points = _numbers(segmentation[0], None, f"{place}: segmentation").reshape(-1, 2)
    return points if len(points) >= 3 and np.isfinite(points).all() else none


# --- WebDataset -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardSplit:
    """Tar shards (see `utils.data.shards`)."""

    files: tuple[str, ...]

    @property
    def places(self) -> tuple[str, ...]:
        return self.files

    def __str__(self) -> str:
        return f"{self.files[0]} and {len(self.files) - 1} other shards" if len(self.files) > 1 else self.files[0]


# --- Pascal VOC XML ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VocSplit:
    """Images with an XML file each, as Pascal VOC has them (http://host.robots.ox.ac.uk/pascal/VOC).

    A place is a list `ImageSets/Main/train.txt` of names without suffix, beside whose ImageSets lie the folders
    Annotations and JPEGImages; or a folder of XML files, whose images are in `images`, else in the folder JPEGImages
    beside it, else in itself.
    """

    places: tuple[str, ...]
    images: str | None
    names: tuple[str, ...]  # of the classes, in order
    difficult: bool = False  # keep the objects that are marked as difficult; v6.1 leaves them out

    def __str__(self) -> str:
        return ", ".join(self.places)

    def open(self) -> Listing:
        """Lists the images. Raises FileNotFoundError where a folder is missing."""
        pairs: dict[str, str] = {}
        for place in self.places:
            pairs.update(
                _voc_list(Path(place), self.images) if os.path.isfile(place) else _voc_folder(place, self.images)
            )
        images = sorted(pairs)
        return Listing(images, [pairs[path] for path in images], _VocReader(self.names, self.difficult))


def is_voc_place(place: str | Path) -> bool:
    """True for a list of names (not of image files) below ImageSets, and for a folder called Annotations."""
    place = Path(place)
    if os.path.isdir(place):  # not its own methods, which raise for a name that is too long
        return place.name == "Annotations"
    return (
        os.path.isfile(place) and "ImageSets" in place.parts[:-1] and not any(map(is_image, _listed_names(place)[:1]))
    )


def _listed_names(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return [line.split()[0] for line in lines if line.strip()]  # a second word says whether a class is in the image


def _voc_list(file: Path, images: str | None) -> dict[str, str]:
    """Image -> XML file, of the names in a list; a name without image is given one that the check will miss."""
    root = next((parent.parent for parent in file.parents if parent.name == "ImageSets"), file.parent)
    folder = Path(images) if images else root / "JPEGImages"
    by_stem = _images_by_stem(folder)
    return {
        by_stem.get(name, str(folder / f"{name}.jpg")): str(root / "Annotations" / f"{name}.xml")
        for name in _listed_names(file)
    }


def _voc_folder(folder: str, images: str | None) -> dict[str, str]:
    beside = os.path.join(os.path.dirname(os.path.normpath(folder)), "JPEGImages")
    by_stem = _images_by_stem(Path(images or (beside if os.path.isdir(beside) else folder)))
    lonely = sorted({Path(name).stem for name in os.listdir(folder) if name.lower().endswith(".xml")} - set(by_stem))
    if lonely:
        LOGGER.warning(f"{folder}: {len(lonely)} XML files without an image, first {lonely[0]}.xml")
    return {image: os.path.join(folder, f"{stem}.xml") for stem, image in by_stem.items()}


def _images_by_stem(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of images: {folder}; name it as 'images' in the data set YAML")
    paths = list_images(folder)
    stems = {Path(path).stem: path for path in paths}
    if len(stems) < len(paths):
        twice = Counter(Path(path).stem for path in paths).most_common(1)[0][0]
        raise ValueError(f"{folder}: several images are called {twice}, so {twice}.xml could be of any of them")
    return stems


@dataclass(frozen=True)
class _VocReader:
    names: tuple[str, ...]
    difficult: bool

    def __call__(self, image: str, label_file: str, size: tuple[int, int]) -> Labels:
        root = parse_xml(Path(label_file).read_bytes(), label_file)
        stated = root.find("size")
        if stated is not None:
            _check_size((_count(stated, "width"), _count(stated, "height")), size, label_file)
        classes, boxes, places = [], [], []
        for number, thing in enumerate(root.iterfind("object"), 1):
            name = (thing.findtext("name") or "").strip()
            place = f"{label_file}: object {number} ({name!r})"
            if (thing.findtext("difficult") or "0").strip() == "1" and not self.difficult:
                continue
            if name not in self.names:
                raise UnknownClassError(
                    f"{place} is of none of the classes that the data set YAML names; add it to names"
                )
            bounds = thing.find("bndbox")
            corners = [bounds.findtext(key) if bounds is not None else None for key in ("xmin", "ymin", "xmax", "ymax")]
            classes.append(self.names.index(name))
            # pixels count from 1, and v6.1 makes of the box from pixel a to pixel b one of the width b - a
            boxes.append(_numbers(corners, 4, f"{place}: bndbox") - 1)
            places.append(place)
        return _assemble(classes, boxes, [np.zeros((0, 2))] * len(boxes), size, places)


def _count(parent: Element, key: str) -> int | None:
    text = (parent.findtext(key) or "").strip()
    return int(text) if text.isdecimal() else None


def parse_xml(data: bytes, path: str | Path) -> Element:
    """The root of an XML text. One that declares a document type is refused: it could define entities, which blow a
    small text up without end or read other files.

    Raises ValueError `path:line: ...`.
    """
    tree, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise ValueError(f"{path}:{parser.CurrentLineNumber}: a document type (<!DOCTYPE) is not accepted; delete it")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = tree.start, tree.end, tree.data
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"{path}:{error.lineno}: not valid XML: {expat.ErrorString(error.code)}") from None
    return tree.close()
