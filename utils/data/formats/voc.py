"""Pascal VOC: one XML file per image, boxes in pixels that count from 1 (http://host.robots.ox.ac.uk/pascal/VOC).

A `VocSplit` stands in a dataset's entry (`train`, `val`, `test`) where a folder of images would.
"""

import codecs
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.parsers import expat

from utils.data.faults import FaultError, Location, UnknownClassError
from utils.data.images import IMAGE_SUFFIXES, is_image, list_images
from utils.data.labels import (
    NAMES_FILE,
    ImageLabels,
    LabelledObject,
    LabelledSplit,
    Listing,
    Size,
    check_box,
    check_size,
    first_file,
    left_out_as_difficult,
    listed_first,
    names_in_order,
    open_image,
    read_label_bytes,
    rows_of,
    safe_name,
    write_new,
)
from utils.files import MAX_LIST, read_at_most
from utils.log import LOGGER
from utils.text import decode_text, printable, xml_can_hold

_DECLARATION = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z][\w.:-]*)["']""")
_FLAG = re.compile(r"\s+(-1|0|1)$")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


# --- the file ---------------------------------------------------------------------------------------------------------


def parse_xml(data: bytes, path: str | Path) -> ET.Element:
    """Parses an XML text, in the encoding that it declares or its byte order mark says, and returns its root.

    A text that declares a document type is refused: it could define entities, which make a small text endless or read
    other files.

    Raises FaultError `path:line: ...`.
    """
    text = _decode_xml(data, Location(str(path), line=1))
    tree, parser = ET.TreeBuilder(), expat.ParserCreate("utf-8")  # whatever it declares

    def refuse(*_: Any) -> None:
        location = Location(str(path), line=parser.CurrentLineNumber)
        raise location.error("format", "a document type (<!DOCTYPE) is not accepted; delete it")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = tree.start, tree.end, tree.data
    try:
        parser.Parse(text.encode(errors="surrogatepass"), True)
    except expat.ExpatError as error:
        words = f"not valid XML: {expat.ErrorString(error.code)}"
        raise Location(str(path), line=error.lineno).error("format", words) from None
    root = tree.close()
    if root.tag == "annotations":  # of all images in one file
        words = "not Pascal VOC, but CVAT's own XML; export it from CVAT as COCO 1.0, Pascal VOC or YOLO 1.1"
        raise Location(str(path)).error("format", words)
    return root


def _decode_xml(data: bytes, location: Location) -> str:
    """Returns an XML text. expat knows no encodings of several bytes, such as the GBK of a Chinese Windows."""
    declared = _DECLARATION.match(data)
    encoding = declared[1].decode() if declared else "utf-8"
    try:
        if not codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):  # these begin with a mark or are no bytes
            return decode_text(data, encoding)
        return decode_text(data)
    except UnicodeError as error:
        advice = 'its first line must say in which encoding it is, such as <?xml version="1.0" encoding="GBK"?>'
        raise location.error("format", f"not valid XML: not a text in {encoding}; {advice} ({error})") from None
    except LookupError:
        raise location.error("format", f"not valid XML: unknown encoding {encoding!r:.40}") from None


def objects_of(root: ET.Element, path: str | Path) -> list[tuple[ET.Element, Location]]:
    """Returns the elements of all objects, with their locations."""
    nodes = root.iterfind("object")
    return [(node, Location(str(path), f"object {i} ({_name(node)!r})")) for i, node in enumerate(nodes, 1)]


def object_of(node: ET.Element, location: Location) -> LabelledObject:
    """Returns the object of an element. Raises FaultError where a corner of its box is no number."""
    corners = [node.findtext(f"bndbox/{key}") for key in CORNERS]
    try:
        # pixels count from 1, and v6.1 makes of the box from pixel a to pixel b one of the width b - a
        x1, y1, x2, y2 = (float(corner) - 1 for corner in corners)
    except (TypeError, ValueError):
        rule = f"bndbox must be 4 numbers ({', '.join(CORNERS)} in pixels)"
        raise location.error("format", f"{rule}, got {', '.join(map(str, corners))}") from None
    return LabelledObject(_name(node), (x1, y1, x2, y2), difficult=is_difficult(node))


def is_difficult(node: ET.Element) -> bool:
    """Returns True for an object that is marked as difficult."""
    return (node.findtext("difficult") or "0").strip().lower() in ("1", "true", "yes")


def stated_size(root: ET.Element) -> tuple[int | None, int | None]:
    """Returns width and height in pixels as the file states them, None where it does not."""
    texts = [(root.findtext(f"size/{key}") or "").strip() for key in ("width", "height")]
    width, height = (int(text) if text.isdecimal() else None for text in texts)
    return width, height


def _name(node: ET.Element) -> str:
    return (node.findtext("name") or "").strip()


# --- a split of a data set --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VocSplit:
    """Images with an XML file each.

    A path is a list `ImageSets/Main/train.txt` of names without suffix, beside whose ImageSets lie the folders
    Annotations and JPEGImages; or a folder of XML files, whose images are in `images`, else in the folder JPEGImages
    or images beside it, else in itself.
    """

    paths: tuple[str, ...]
    images: str | None
    names: tuple[str, ...]  # of the classes, in order
    difficult: bool = False  # keep the objects that are marked as difficult; v6.1 leaves them out
    annotations: str | None = None  # folder of the XML files of a list, if it is not the one beside ImageSets

    def __str__(self) -> str:
        return ", ".join(self.paths)

    def pairs(self) -> dict[str, str]:
        """Returns the XML file of each image, sorted. Raises FileNotFoundError where a folder is missing."""
        pairs: dict[str, str] = {}
        for path in self.paths:
            if os.path.isfile(path):
                pairs.update(_list_file(Path(path), self.images, self.annotations))
            else:
                pairs.update(_folder(path, self.images))
        return dict(sorted(pairs.items()))

    def open(self) -> Listing:
        """Lists the images. Raises what `pairs` raises."""
        pairs = self.pairs()
        return Listing(list(pairs), list(pairs.values()), _VocReader(self.names, self.difficult))


def is_voc_path(path: str | Path) -> bool:
    """Returns True for a list of names (not of image files) below ImageSets, and for a folder called Annotations."""
    path = Path(path)
    if os.path.isdir(path):  # not Path's own methods, which raise for a name that is too long
        return path.name.lower() == "annotations"
    return (
        os.path.isfile(path)
        and "ImageSets" in path.parts[:-1]
        and not any(is_image(name) for _, name in _listed_names(path)[:1])
    )


def _listed_names(file: Path, is_name: Callable[[str], bool] = lambda _: False) -> list[tuple[int, str]]:
    """Returns the names in a list, each with its line, from 1.

    A number behind one says whether a class is in the image; it may be of a name.
    """
    lines = enumerate(decode_text(read_at_most(file, MAX_LIST), errors="surrogateescape").splitlines(), 1)
    names = [(i, line.strip()) for i, line in lines if line.strip()]
    return [(i, name if is_name(name) else _FLAG.sub("", name)) for i, name in names]


def folder_beside(path: str | Path, *names: str) -> Path | None:
    """Returns the first folder beside a path that has one of the names, in capitals or not; None if none has."""
    with os.scandir(os.path.dirname(os.path.abspath(path))) as entries:
        folders = {entry.name.lower(): entry.path for entry in entries if entry.is_dir()}
    return next((Path(folders[name]) for name in names if name in folders), None)


def _list_file(file: Path, images: str | None, annotations: str | None) -> dict[str, str]:
    """Maps images to XML files, for the names in a list; a name without an image gets a path that does not exist."""
    root = next((parent.parent for parent in file.parents if parent.name == "ImageSets"), file.parent)
    folder = Path(images or folder_beside(root / "x", "jpegimages", "images") or root / "JPEGImages")
    labels = annotations or folder_beside(root / "x", "annotations") or root / "Annotations"
    by_stem = _images_by_stem(folder)
    lines = _listed_names(file, by_stem.__contains__)
    names = [safe_name(name, Location(str(file), line=line)) for line, name in lines]
    return {by_stem.get(name, str(folder / f"{name}.jpg")): os.path.join(labels, f"{name}.xml") for name in names}


def _folder(folder: str, images: str | None) -> dict[str, str]:
    """Maps images to XML files, for the images of a folder of XML files."""
    beside = folder_beside(os.path.normpath(folder), "jpegimages", "images")
    if beside and os.path.samefile(beside, folder):
        beside = None
    by_stem = _images_by_stem(Path(images or beside or folder))
    stems = {Path(name).stem for name in os.listdir(folder) if name.lower().endswith(".xml")}
    if without := sorted(stems - set(by_stem)):
        LOGGER.warning(f"{folder}: XML files without an image: {len(without)}; the first: {without[0]}.xml")
    return {image: os.path.join(folder, f"{stem}.xml") for stem, image in by_stem.items()}


def _images_by_stem(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of images: {folder}; name it as 'images' in the data set YAML")
    paths = list_images(folder)
    stems = {Path(path).stem: path for path in paths}
    if len(stems) < len(paths):
        twice = Counter(Path(path).stem for path in paths).most_common(1)[0][0]
        raise ValueError(
            f"{folder}: several images are called {twice}, and {twice}.xml could belong to any of them; rename one"
        )
    return stems


@dataclass(frozen=True)
class _VocReader:
    names: tuple[str, ...]
    difficult: bool

    def __call__(self, image: str, label_file: str, size: Size) -> ImageLabels:
        root = parse_xml(read_label_bytes(label_file), label_file)
        check_size(stated_size(root), size, image, Location(label_file))
        found = objects_of(root, label_file)
        nodes = [pair for pair in found if self.difficult or not is_difficult(pair[0])]
        for node, location in nodes:
            if _name(node) not in self.names:
                raise UnknownClassError(f"the class of {location} is not in names of the data set YAML; add it there")
        objects = [object_of(node, location) for node, location in nodes]
        classes = [self.names.index(item.name) for item in objects]
        labels = rows_of(objects, classes, size, [location for _, location in nodes])
        if len(nodes) < len(found):
            labels.faults += left_out_as_difficult(location for node, location in found if is_difficult(node))
        return labels


def voc_names(split: VocSplit) -> list[str]:
    """Returns the names of the classes in the XML files of a split: those of a labels.txt first, the others sorted."""
    found: set[str] = set()
    files = [file for file in split.pairs().values() if os.path.isfile(file)]
    for file in files:
        try:
            root = parse_xml(read_label_bytes(file), file)
        except FaultError:  # told of where the labels are read
            continue
        found |= {_name(node) for node, _ in objects_of(root, file)} - {""}
    if not found:
        for file in (
            file for path in split.paths if os.path.isdir(path) for file in sorted(Path(path).glob("*.xml"))[:1]
        ):
            parse_xml(read_label_bytes(file), file)  # says of what kind it is, if it is not of VOC
        raise ValueError(f"{split}: no objects in {len(files)} XML files, so there are no classes")
    return listed_first(Path(files[0]).parent, found)


# --- conversion -------------------------------------------------------------------------------------------------------


def load(folder: Path, image_folders: Sequence[Path], files: Sequence[Path] | None = None) -> LabelledSplit:
    """Reads the images and objects of a folder of XML files, searched with its sub-folders.

    Images are looked for in the folders, then in the folder itself, JPEGImages and images beside it. files: to read of
    the folder; None for all. Raises FaultError for whatever is wrong.
    """
    images = []
    beside = folder_beside(folder, "jpegimages"), folder_beside(folder, "images")
    folders = [*image_folders, folder, *filter(None, beside)]
    for file in sorted(folder.rglob("*.xml")) if files is None else files:
        root, location = parse_xml(read_label_bytes(file), file), Location(str(file))
        name = (root.findtext("filename") or f"{file.stem}.jpg").strip()
        name = safe_name(name, Location(str(file), "filename"))
        name = (file.parent.relative_to(folder) / Path(name).name).as_posix()
        suffixes = ("jpg", *IMAGE_SUFFIXES)
        named = [name] if is_image(name) else [f"{name}.{suffix}" for suffix in suffixes]  # some tools leave it out
        stem = file.relative_to(folder).with_suffix("").as_posix()
        # as training, which looks at the XML's own name: that of an image which was renamed with its XML
        beside = [f"{stem}.{suffix}" for suffix in (PurePosixPath(name).suffix[1:] or "jpg", *suffixes)]
        there = ((each, first_file([home / each for home in folders])) for each in (*beside, *named))
        name, source = next((pair for pair in there if pair[1]), (named[0], None))
        image = open_image(name, stated_size(root), source, Location(str(file), "size"))
        for node, location in objects_of(root, file):
            item = object_of(node, location)
            if not item.name:
                raise location.error("format", "has no name")
            check_box(item.box, location)
            image.objects.append(item)
        images.append(image)
    return LabelledSplit(names_in_order(folder, images), images)


def save(out: Path, splits: dict[str, LabelledSplit], names: list[str]) -> None:
    """Writes `split/Annotations/name.xml` in whole pixels that count from 1; ValueError for a name XML cannot hold."""
    for name in names:
        if not xml_can_hold(name):
            raise ValueError(f"class {name!r} has characters that XML cannot hold; rename the class")
    for split, labels in splits.items():
        folder = out / split / "Annotations"
        write_new(folder / NAMES_FILE, "".join(f"{name}\n" for name in names))
        for image in labels.images:
            root = ET.Element("annotation")
            ET.SubElement(root, "filename").text = printable(PurePosixPath(image.name).name, lines=False)
            size = ET.SubElement(root, "size")
            for key, value in (("width", image.width), ("height", image.height), ("depth", 3)):
                ET.SubElement(size, key).text = str(value)
            for item in image.objects:
                node = ET.SubElement(root, "object")
                ET.SubElement(node, "name").text = item.name
                ET.SubElement(node, "difficult").text = str(int(item.difficult))
                box = ET.SubElement(node, "bndbox")
                for key, value in zip(CORNERS, item.box):
                    ET.SubElement(box, key).text = str(round(value) + 1)
            ET.indent(root)
            text = ET.tostring(root, encoding="unicode") + "\n"
            write_new(folder / PurePosixPath(image.name).with_suffix(".xml"), text)
