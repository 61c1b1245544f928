"""Labels from one format into another: COCO JSON, Pascal VOC XML, YOLO text, LabelMe JSON.

python tools/convert.py --train instances_train.json --val instances_val.json --to yolo --out new_folder
python tools/convert.py --train Annotations/ --to coco --out new_folder            # VOC, a folder of XML files
python tools/convert.py --train my.yaml --val my.yaml --to labelme --out new_folder --no-images

What a source is shows in itself: a JSON file is COCO, a data set YAML is YOLO, a folder of .xml is VOC, one of .json
is LabelMe. --out must not exist; it appears whole or not at all, and no file of yours is changed.

    yolo     data.yaml, images/train/..., labels/train/...          coco     train.json, images/train/...
    voc      train/Annotations/..., train/JPEGImages/...            labelme  train/... (each JSON beside its image)

VOC holds boxes in whole pixels and no polygons. YOLO holds one ring per object (several parts are joined), gives the
boxes of a file with polygons as four corners, and has no word for crowds and difficult objects, which are left out.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli
from utils.data.dataset_yaml import SPLITS, load_dataset_yaml
from utils.data.images import check_image, is_image, list_images
from utils.data.labels import image_to_label_path, parse_labels
from utils.files import write_yaml
from utils.log import LOGGER

NAMES_FILE = "labels.txt"  # in a folder of VOC or LabelMe files: class names in their order, one a line
MIN_POINTS = {"polygon": 3, "rectangle": 2, "circle": 2}  # the LabelMe shapes that are objects


@dataclass
class Thing:
    """One object of a picture."""

    name: str  # of its class
    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels, x2 and y2 not belonging to it
    polygons: list[np.ndarray] = field(default_factory=list)  # its parts, (k, 2) in pixels; none if it is only a box
    hard: bool = False  # COCO's iscrowd, VOC's difficult


@dataclass
class Picture:
    """One image with its objects."""

    name: str  # path below the folder of images, with forward slashes
    width: int
    height: int
    things: list[Thing]
    source: Path | None  # the image file, if it was found


@dataclass
class Labels:
    """What every format is read into and written from."""

    names: list[str]  # of the classes, in order
    pictures: list[Picture]


# --- checks that all readers share ------------------------------------------------------------------------------------


def _number(value: Any, place: str, rule: str) -> float:
    """A finite number, or ValueError `place: rule, got ...`."""
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not np.isfinite(number):
        raise ValueError(f"{place}: {rule}, got {str(value)[:60]!r}")
    return number


def _points(value: Any, place: str, least: int) -> np.ndarray:
    """(k, 2) from a list of pairs."""
    rule = f"points must be {least} or more pairs of numbers"
    if not isinstance(value, list) or len(value) < least or not all(isinstance(p, list) and len(p) == 2 for p in value):
        raise ValueError(f"{place}: {rule}, got {str(value)[:60]}")
    return np.array([[_number(x, place, rule) for x in pair] for pair in value])


def _hull(points: np.ndarray) -> tuple[float, float, float, float]:
    return (*points.min(0).tolist(), *points.max(0).tolist())


def _safe_name(name: Any, place: str) -> str:
    """A relative file name that stays below its folder."""
    path = PurePosixPath(str(name).replace("\\", "/"))
    inside = isinstance(name, str) and path.name and not path.is_absolute() and ".." not in path.parts
    if not inside or ":" in path.parts[0] or "\0" in name:
        raise ValueError(f"{place}: a file name must lie below the folder of images, got {str(name)[:80]!r}")
    return str(path)


def _picture(name: str, size: tuple[Any, Any], source: Path | None, place: str) -> Picture:
    """Without objects yet. The size is that of the file where there is one; another one in the labels is an error."""
    if source is not None:
        real, _ = check_image(source)
        if all(size) and tuple(size) != real:
            raise ValueError(f"{place}: size {size[0]} x {size[1]} but {source} has {real[0]} x {real[1]} pixels")
        return Picture(name, *real, [], source)
    width, height = (_number(side, place, "width and height must be pixels (or the image be found)") for side in size)
    if min(width, height) < 1 or width % 1 or height % 1:
        raise ValueError(f"{place}: width and height must be whole numbers of pixels, got {size[0]} x {size[1]}")
    return Picture(name, int(width), int(height), [], None)


def _first_file(candidates: list[Path]) -> Path | None:
    return next((path for path in candidates if path.is_file()), None)


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError names line and column
        raise ValueError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping {{...}} at the top, found a {type(content).__name__}")
    return content


def _read_xml(path: Path) -> ET.Element:
    data = path.read_bytes()
    if b"<!DOCTYPE" in data.replace(b"\0", b""):  # it could define entities that swell without end; UTF-16 has zeros
        raise ValueError(f"{path}: a document type (<!DOCTYPE) is not accepted; delete it")
    try:
        return ET.fromstring(data)
    except (ET.ParseError, LookupError, ValueError) as error:  # of an unknown encoding, too
        raise ValueError(f"{path}: not an XML file: {error}") from None


def _rows(content: dict, key: str, path: Path) -> Iterator[tuple[dict, str]]:
    """The mappings of a list, each with its place."""
    if not isinstance(content.get(key), list):
        raise ValueError(f"{path}: '{key}' must be a list, got {str(content.get(key))[:60]}")
    for i, row in enumerate(content[key]):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: {key}[{i}] must be a mapping, got {str(row)[:60]}")
        yield row, f"{path}: {key}[{i}]"


def _names_in_order(folder: Path, pictures: list[Picture]) -> list[str]:
    """Those of the folder's labels.txt first, then the others by the alphabet."""
    file = folder / NAMES_FILE
    listed = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    found = sorted({thing.name for picture in pictures for thing in picture.things})
    return list(dict.fromkeys([*filter(None, listed), *found]))


# --- readers ----------------------------------------------------------------------------------------------------------


def read(source: Path, split: str, image_folders: list[Path]) -> Labels:
    """Reads a source of any of the four formats. Raises ValueError, naming file and row, for what is wrong in it."""
    if not source.exists():
        raise FileNotFoundError(f"no such file or folder of labels: {source}")
    if source.is_file():
        if source.suffix.lower() in (".yaml", ".yml"):
            return read_yolo(source, split)
        if source.suffix.lower() == ".json":
            return read_coco(source, image_folders)
        raise ValueError(f"{source}: must be a data set YAML, a COCO JSON, or a folder of VOC or LabelMe files")
    kinds = Counter(file.suffix.lower() for file in source.rglob("*"))
    if bool(kinds[".xml"]) == bool(kinds[".json"]):
        raise ValueError(f"{source}: must hold .xml files (VOC) or .json files (LabelMe), and not both")
    return read_voc(source, image_folders) if kinds[".xml"] else read_labelme(source)


def read_coco(path: Path, image_folders: list[Path]) -> Labels:
    """One JSON file with images, annotations, categories; classes in the order of the categories' ids."""
    content = _read_json(path)
    near = [path.parent, path.parent / "images", path.parent / "images" / path.stem]
    pictures, categories = {}, {}
    for row, place in _rows(content, "categories", path):
        if not isinstance(row.get("name"), str) or not isinstance(row.get("id"), int) or row["id"] in categories:
            raise ValueError(f"{place}: needs a name and an id of its own, got {str(row)[:80]}")
        categories[row["id"]] = row["name"]
    for row, place in _rows(content, "images", path):
        name = _safe_name(row.get("file_name"), place)
        if not isinstance(row.get("id"), int | str) or row["id"] in pictures:
            raise ValueError(f"{place}: needs an id of its own, got {row.get('id')!r}")
        source = _first_file([folder / name for folder in [*image_folders, *near]])
        pictures[row["id"]] = _picture(name, (row.get("width"), row.get("height")), source, place)
    for row, place in _rows(content, "annotations", path):
        for key, known in (("image_id", pictures), ("category_id", categories)):
            if not isinstance(row.get(key), int | str) or row[key] not in known:
                raise ValueError(f"{place}: {key} {str(row.get(key))[:40]} is not among the ids")
        thing = _coco_thing(row, categories[row["category_id"]], place)
        pictures[row["image_id"]].things.append(thing)
    return Labels([categories[i] for i in sorted(categories)], list(pictures.values()))


def _coco_thing(row: dict, name: str, place: str) -> Thing:
    parts = row.get("segmentation") or []
    if isinstance(parts, dict):  # run-length encoded: a mask, not an outline
        parts = []
    polygons = []
    for part in parts:
        if not isinstance(part, list) or len(part) % 2 or len(part) < 6:
            raise ValueError(f"{place}: a polygon must be 3 or more pairs x y, got {str(part)[:60]}")
        polygons.append(_points([part[i : i + 2] for i in range(0, len(part), 2)], place, 3))
    rule = "bbox must be x, y, width, height in pixels"
    if "bbox" not in row and polygons:
        return Thing(name, _hull(np.concatenate(polygons)), polygons, bool(row.get("iscrowd")))
    if not isinstance(row.get("bbox"), list) or len(row["bbox"]) != 4:
        raise ValueError(f"{place}: {rule}, got {str(row.get('bbox'))[:60]}")
    x, y, width, height = (_number(value, place, rule) for value in row["bbox"])
    if width < 0 or height < 0:
        raise ValueError(f"{place}: {rule}, got a width or height below 0: {row['bbox']}")
    return Thing(name, (x, y, x + width, y + height), polygons, bool(row.get("iscrowd")))


def read_voc(folder: Path, image_folders: list[Path]) -> Labels:
    """A folder of XML files, one an image, searched with its sub-folders. Their pixels count from 1."""
    pictures = []
    for file in sorted(folder.rglob("*.xml")):
        root = _read_xml(file)
        below = file.parent.relative_to(folder)
        name = _safe_name((root.findtext("filename") or f"{file.stem}.jpg").strip(), f"{file}: filename")
        name = (below / Path(name).name).as_posix()
        homes = [*image_folders, folder, folder.parent / "JPEGImages", folder.parent / "images"]
        size = [root.findtext(f"size/{key}") for key in ("width", "height")]
        size = [int(side) if (side or "").strip().isdecimal() else None for side in size]
        picture = _picture(name, tuple(size), _first_file([home / name for home in homes]), f"{file}: size")
        for i, node in enumerate(root.iter("object")):
            picture.things.append(_voc_thing(node, f"{file}: object {i + 1}"))
        pictures.append(picture)
    return Labels(_names_in_order(folder, pictures), pictures)


def _voc_thing(node: ET.Element, place: str) -> Thing:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"{place}: has no name")
    rule = "bndbox must have xmin, ymin, xmax, ymax in pixels"
    corners = [node.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    x1, y1, x2, y2 = (_number(corner, place, rule) - 1 for corner in corners)
    if x2 < x1 or y2 < y1:
        raise ValueError(f"{place}: xmin and ymin must not be beyond xmax and ymax, got {', '.join(corners)}")
    return Thing(name, (x1, y1, x2, y2), hard=(node.findtext("difficult") or "0").strip() == "1")


def read_yolo(path: Path, split: str) -> Labels:
    """The images of one split of a data set YAML, and the text file of each."""
    data = load_dataset_yaml(path, (split,))
    entry = data[split]
    if not isinstance(entry, str | list):
        raise ValueError(f"{path}: the labels of {split} are no text files; give their own files as the source")
    pictures = []
    for image in list_images(entry):
        homes = [place for place in ([entry] if isinstance(entry, str) else entry) if os.path.isdir(place)]
        home = next(
            (place for place in homes if image.startswith(place.rstrip(os.sep) + os.sep)), os.path.dirname(image)
        )
        picture = _picture(Path(os.path.relpath(image, home)).as_posix(), (None, None), Path(image), image)
        label = Path(image_to_label_path(image))
        if label.is_file():
            try:
                text = label.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{label}: not a text file in UTF-8: {error}") from None
            rows, polygons, remarks = parse_labels(text, label, data["nc"])
            for remark in remarks:
                LOGGER.warning(remark)
            size = np.array([picture.width, picture.height])
            for i, row in enumerate(rows.astype(float)):
                centre, half = row[1:3] * size, row[3:] * size / 2
                parts = [polygons[i].astype(float) * size] if polygons else []
                box = (*(centre - half).tolist(), *(centre + half).tolist())
                picture.things.append(Thing(data["names"][int(row[0])], box, parts))
        pictures.append(picture)
    return Labels(data["names"], pictures)


def read_labelme(folder: Path) -> Labels:
    """A folder of JSON files, one an image and beside it; polygons of the same group_id and label are one object."""
    pictures = []
    for file in sorted(folder.rglob("*.json")):
        content = _read_json(file)
        image = content.get("imagePath")
        suffix = PurePosixPath(str(image).replace("\\", "/")).suffix if is_image(str(image)) else ".jpg"
        name = file.relative_to(folder).with_suffix(suffix).as_posix()
        homes = [file.with_suffix(suffix)]
        if isinstance(image, str) and image and "\0" not in image:
            homes.append(file.parent / image.replace("\\", "/"))
        size = (content.get("imageWidth"), content.get("imageHeight"))
        picture = _picture(name, size, _first_file(homes), f"{file}: imageWidth, imageHeight")
        groups: dict[Any, Thing] = {}
        for row, place in _rows(content, "shapes", file):
            thing = _labelme_thing(row, place)
            group = row.get("group_id")
            if thing is None:
                LOGGER.warning(f"{place}: a {row.get('shape_type')} is no object; left out")
            elif thing.polygons and isinstance(group, int | str) and (thing.name, group) in groups:
                whole = groups[thing.name, group]
                whole.polygons += thing.polygons
                whole.box = _hull(np.concatenate(whole.polygons))
            else:
                picture.things.append(thing)
                if thing.polygons and isinstance(group, int | str):
                    groups[thing.name, group] = thing
        pictures.append(picture)
    return Labels(_names_in_order(folder, pictures), pictures)


def _labelme_thing(row: dict, place: str) -> Thing | None:
    kind = row.get("shape_type") or "polygon"
    if not isinstance(row.get("label"), str) or not row["label"]:
        raise ValueError(f"{place}: needs a label, got {row.get('label')!r}")
    if kind not in MIN_POINTS:
        return None
    points = _points(row.get("points"), place, MIN_POINTS[kind])
    if kind == "circle":  # centre, and a point of the edge
        radius = np.hypot(*(points[1] - points[0]))
        points = points[0] + [[-radius, -radius], [radius, radius]]
    flags = row.get("flags") if isinstance(row.get("flags"), dict) else {}
    return Thing(row["label"], _hull(points), [points] if kind == "polygon" else [], flags.get("difficult") is True)


# --- writers ----------------------------------------------------------------------------------------------------------


def write_coco(out: Path, splits: dict[str, Labels], names: list[str]) -> None:
    """`split.json` with category ids from 1, as COCO's are, and areas of the outlines."""
    for split, labels in splits.items():
        images, annotations = [], []
        for i, picture in enumerate(labels.pictures, 1):
            images.append({"id": i, "file_name": picture.name, "width": picture.width, "height": picture.height})
            for thing in picture.things:
                x1, y1, x2, y2 = thing.box
                area = sum(map(_area, thing.polygons)) if thing.polygons else (x2 - x1) * (y2 - y1)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i,
                        "category_id": names.index(thing.name) + 1,
                        "bbox": _rounded([x1, y1, x2 - x1, y2 - y1]),
                        "area": round(area, 3),
                        "iscrowd": int(thing.hard),
                        "segmentation": [_rounded(polygon.ravel()) for polygon in thing.polygons],
                    }
                )
        categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        _write(out / f"{split}.json", json.dumps(content))


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def _rounded(values) -> list[float]:
    return [round(float(value), 3) for value in values]


def write_voc(out: Path, splits: dict[str, Labels], names: list[str]) -> None:
    """`split/Annotations/name.xml` in whole pixels that count from 1."""
    for split, labels in splits.items():
        home = out / split / "Annotations"
        _write(home / NAMES_FILE, "".join(f"{name}\n" for name in names))
        for picture in labels.pictures:
            root = ET.Element("annotation")
            ET.SubElement(root, "filename").text = PurePosixPath(picture.name).name
            size = ET.SubElement(root, "size")
            for key, value in (("width", picture.width), ("height", picture.height), ("depth", 3)):
                ET.SubElement(size, key).text = str(value)
            for thing in picture.things:
                node = ET.SubElement(root, "object")
                ET.SubElement(node, "name").text = thing.name
                ET.SubElement(node, "difficult").text = str(int(thing.hard))
                box = ET.SubElement(node, "bndbox")
                for key, value in zip(("xmin", "ymin", "xmax", "ymax"), thing.box):
                    ET.SubElement(box, key).text = str(round(value) + 1)
            ET.indent(root)
            _write(home / PurePosixPath(picture.name).with_suffix(".xml"), ET.tostring(root, encoding="unicode") + "\n")


def write_yolo(out: Path, splits: dict[str, Labels], names: list[str]) -> None:
    """data.yaml and `labels/split/name.txt`; boxes are clipped to the image, and gone if nothing is left of them."""
    seen = Counter()
    for split, labels in splits.items():
        for picture in labels.pictures:
            size = np.array([picture.width, picture.height], float)
            outlines = any(thing.polygons for thing in picture.things)
            lines = []
            for thing in picture.things:
                if thing.hard:
                    seen["crowds or difficult objects left out"] += 1
                    continue
                corners = np.array(thing.box).reshape(2, 2) / size
                low, high = corners.clip(0, 1)
                seen["boxes clipped to their image"] += bool((abs(corners - [low, high]) > 1e-6).any())
                if (low >= high).any():
                    seen["boxes outside their image or without a size left out"] += 1
                    continue
                values = [*(low + high) / 2, *(high - low)]
                if outlines:
                    seen["objects of several parts joined into one ring"] += len(thing.polygons) > 1
                    ring = [[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]]
                    values = np.array(ring) if not thing.polygons else np.concatenate(thing.polygons) / size
                    values = values.clip(0, 1).ravel()
                lines.append(" ".join([str(names.index(thing.name)), *(f"{value:.7g}" for value in values)]) + "\n")
            _write(out / "labels" / split / PurePosixPath(picture.name).with_suffix(".txt"), "".join(lines))
    for what, count in seen.items():
        if count:
            LOGGER.warning(f"{count} {what}")
    places = {split: f"images/{split}" for split in splits}
    write_yaml(out / "data.yaml", {"path": ".", **places, "nc": len(names), "names": names})


def write_labelme(out: Path, splits: dict[str, Labels], names: list[str]) -> None:
    """`split/name.json` beside the image; the parts of one object share a group_id."""
    for split, labels in splits.items():
        _write(out / split / NAMES_FILE, "".join(f"{name}\n" for name in names))
        for picture in labels.pictures:
            shapes = []
            for number, thing in enumerate(picture.things, 1):
                corners = np.array(thing.box).reshape(2, 2)
                for points in thing.polygons or [corners]:
                    shapes.append(
                        {
                            "label": thing.name,
                            "points": [_rounded(point) for point in points],
                            "group_id": number if len(thing.polygons) > 1 else None,
                            "shape_type": "polygon" if thing.polygons else "rectangle",
                            "flags": {"difficult": True} if thing.hard else {},
                        }
                    )
            content = {
                "version": "5.5.0",
                "flags": {},
                "shapes": shapes,
                "imagePath": PurePosixPath(picture.name).name,
                "imageData": None,
                "imageHeight": picture.height,
                "imageWidth": picture.width,
            }
            file = out / split / PurePosixPath(picture.name).with_suffix(".json")
            _write(file, json.dumps(content, ensure_ascii=False, indent=1))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "x", encoding="utf-8", newline="\n") as stream:
        stream.write(text)


WRITERS: dict[str, tuple[Callable, str]] = {  # with the folder of images of a split
    "coco": (write_coco, "images/{}"),
    "voc": (write_voc, "{}/JPEGImages"),
    "yolo": (write_yolo, "images/{}"),
    "labelme": (write_labelme, "{}"),
}


# --- command line -----------------------------------------------------------------------------------------------------


def convert(splits: dict[str, Labels], kind: str, out: Path, with_images: bool = True) -> None:
    """Writes all splits in a format into a new folder, through a temporary one beside it.

    Raises ValueError where two images would share a label file or an image is not there to be copied, FileExistsError
    where `out` exists.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists; nothing of yours is overwritten, name a new folder")
    for split, labels in splits.items():
        if twice := [name for name, count in Counter(labels.names).items() if count > 1]:
            raise ValueError(f"{split}: two classes are called {twice[0]!r}; objects would change their class")
    names = list(dict.fromkeys(name for labels in splits.values() for name in labels.names))
    for split, labels in splits.items():
        owners: dict[PurePosixPath, Picture] = {}
        for picture in labels.pictures:
            other = owners.setdefault(PurePosixPath(picture.name).with_suffix(""), picture)
            if other is not picture and (kind != "coco" or other.name == picture.name):
                raise ValueError(
                    f"{split}: {other.name} and {picture.name} would share a label file; rename one of them"
                )
            if with_images and picture.source is None:
                raise ValueError(f"{split}: image {picture.name} was not found; give --images FOLDER, or --no-images")
    writer, image_folder = WRITERS[kind]
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        writer(temporary, splits, names)
        for split, labels in splits.items():
            for picture in labels.pictures if with_images else ():
                target = temporary / image_folder.format(split) / picture.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(picture.source, target)
        temporary.chmod(0o755)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=Path, metavar="SOURCE", help=f"labels of the {split} split")
    parser.add_argument("--to", choices=WRITERS, required=True, help="format to write")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--images", type=Path, nargs="+", default=[], metavar="FOLDER", help="where the images are")
    parser.add_argument("--no-images", action="store_true", help="write the labels only")
    return parser.parse_args(argv)


def main(options: argparse.Namespace) -> None:
    """The command."""
    sources = {split: getattr(options, split) for split in SPLITS if getattr(options, split)}
    if not sources:
        raise ValueError("there is nothing to convert: give --train, --val or --test")
    splits = {split: read(source, split, options.images) for split, source in sources.items()}
    convert(splits, options.to, options.out, not options.no_images)
    for split, labels in splits.items():
        boxes = sum(len(picture.things) for picture in labels.pictures)
        LOGGER.info(f"{split}: {len(labels.pictures)} images, {boxes} objects, {len(labels.names)} classes")
    LOGGER.info(f"written to {options.out}")


if __name__ == "__main__":
    cli.run(main, parse_options(), "convert")
