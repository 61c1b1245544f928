"""Converts labels between COCO JSON, Pascal VOC XML, YOLO text, LabelMe JSON and tar shards.

python tools/convert.py --train instances_train.json --val instances_val.json --to yolo --out new_folder
python tools/convert.py --train Annotations/ --to coco --out new_folder            # VOC, a folder of XML files
python tools/convert.py --train my.yaml --val my.yaml --to labelme --out new_folder --no-images

A source is whatever train.py takes as --data, and its format is recognised: a JSON file is COCO, a folder of .xml files
is VOC, one of .json files beside images is LabelMe. --out must not exist; it appears whole or not at all, and none of
your files is changed.

    yolo     data.yaml, images/train/..., labels/train/...          coco     train.json, images/train/...
    voc      train/Annotations/..., train/JPEGImages/...            labelme  train/... (each JSON beside its image)
    shards   data.yaml, train-000000.tar, ...

VOC holds boxes in whole pixels and no polygons. YOLO text, which shards hold too, has one polygon per object (several
parts are joined), writes the boxes of a file with polygons as four corners, and cannot mark crowds and difficult
objects, which are left out.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli
from utils.data.dataset_yaml import SPLITS, load_dataset_yaml
from utils.data.formats import coco, labelme, shards, voc, yolo
from utils.data.formats.source import kind_of_json
from utils.data.labels import LabelledImage, LabelledSplit
from utils.files import check_new, new_folder
from utils.log import LOGGER

WRITERS: dict[str, tuple[Callable, str | None]] = {  # with the folder of images of a split; None: in the shards
    "coco": (coco.save, "images/{}"),
    "voc": (voc.save, "{}/JPEGImages"),
    "yolo": (yolo.save, "images/{}"),
    "labelme": (labelme.save, "{}"),
    "shards": (shards.save, None),
}


def read(source: Path, split: str, image_folders: list[Path]) -> LabelledSplit:
    """Reads a source of any format. Raises ValueError, naming file and row, for what is wrong in it.

    image_folders: where images are looked for, besides those folders in which the format has them.
    """
    if not source.exists():
        raise FileNotFoundError(f"no such file or folder of labels: {source}")
    if source.is_file() and source.suffix.lower() == ".json":
        return coco.load(source, image_folders)
    if source.is_dir() and not (source / "data.yaml").exists():
        xml = source if any(source.glob("*.xml")) else voc.folder_beside(source / "x", "annotations")
        if xml and next(xml.rglob("*.xml"), None):
            return voc.load(xml, image_folders)
        if next(source.rglob("*.xml"), None):
            return voc.load(source, image_folders)
        if (file := next(source.rglob("*.json"), None)) and kind_of_json(file) == "labelme":
            return labelme.load(source, image_folders)
    data = load_dataset_yaml(source, (split,))
    return _load(data[split], data["names"], image_folders)


def _load(entry: Any, names: list[str], image_folders: list[Path]) -> LabelledSplit:
    """Reads what a loaded data set has for a split."""
    if isinstance(entry, shards.ShardSplit):
        return shards.load(entry, names)
    if isinstance(entry, str | list):
        return yolo.load(entry, names)
    if isinstance(entry, coco.CocoSplit):
        parts = [coco.load(Path(file), [Path(entry.images), *image_folders]) for file in entry.files]
    elif isinstance(entry, voc.VocSplit):
        pairs = entry.pairs()
        homes = list(dict.fromkeys(Path(image).parent for image in pairs))
        files = [Path(file) for file in pairs.values()]
        parts = [voc.load(files[0].parent, [*homes, *image_folders], files)]
    else:
        files = [Path(file) for file in entry.open().label_files]
        parts = [labelme.load(Path(os.path.commonpath([file.parent for file in files])), image_folders, files)]
    found = [name for part in parts for name in part.names]
    return LabelledSplit(list(dict.fromkeys([*names, *found])), [image for part in parts for image in part.images])


def convert(splits: dict[str, LabelledSplit], kind: str, out: Path, with_images: bool = True) -> None:
    """Writes all splits in a format into a new folder, through a temporary one beside it.

    Raises ValueError where two images would share a label file or an image is not there to be copied, FileExistsError
    where `out` exists.
    """
    writer, image_folder = WRITERS[kind]
    check_new(out)
    if not with_images and image_folder is None:
        raise ValueError("shards hold their images; leave out --no-images")
    for split, labels in splits.items():
        _check(labels, split, kind, with_images)
    names = list(dict.fromkeys(name for labels in splits.values() for name in labels.names))
    with new_folder(out) as temporary:
        writer(temporary, splits, names)
        for split, labels in splits.items() if with_images and image_folder else ():
            for image in labels.images:
                target = temporary / image_folder.format(split) / image.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(image.source.read_bytes())


def _check(labels: LabelledSplit, split: str, kind: str, with_images: bool) -> None:
    """Raises ValueError where a split cannot be written: two equal names, or an image that was not found."""
    if twice := [name for name, count in Counter(labels.names).items() if count > 1]:
        raise ValueError(f"{split}: names of classes must differ, but two are {twice[0]!r}; rename one of them")
    owners: dict[PurePosixPath, LabelledImage] = {}
    for image in labels.images:
        other = owners.setdefault(PurePosixPath(image.name).with_suffix(""), image)
        if other is not image and (kind != "coco" or other.name == image.name):
            raise ValueError(f"{split}: {other.name} and {image.name} would share a label file; rename one of them")
        if with_images and image.source is None:
            raise ValueError(f"{split}: image {image.name} was not found; give --images FOLDER, or --no-images")


def make_parser() -> argparse.ArgumentParser:
    """States the options of convert.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=Path, metavar="SOURCE", help=f"file or folder of labels of {split}")
    parser.add_argument("--to", choices=WRITERS, required=True, help="format to write")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; it must not exist")
    parser.add_argument("--images", type=Path, nargs="+", default=[], metavar="FOLDER", help="folders of the images")
    parser.add_argument(
        "--difficult",
        action="store_true",
        help="write crowds and difficult objects as ordinary ones, which YOLO can hold",
    )
    parser.add_argument("--no-images", action="store_true", help="write the labels without a copy of the images")
    return parser


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    return make_parser().parse_args(argv)


def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    sources = {split: getattr(options, split) for split in SPLITS if getattr(options, split)}
    if not sources:
        raise ValueError("there is nothing to convert: give --train, --val or --test")
    splits = {split: read(source, split, options.images) for split, source in sources.items()}
    for image in (image for labels in splits.values() for image in labels.images if options.difficult):
        for item in image.objects:
            item.difficult = False
    convert(splits, options.to, options.out, not options.no_images)
    for split, labels in splits.items():
        objects = sum(len(image.objects) for image in labels.images)
        LOGGER.info(f"{split}: images: {len(labels.images)}, objects: {objects}, classes: {len(labels.names)}")
    LOGGER.info(f"written to {options.out}")


if __name__ == "__main__":
    cli.run(main, parse_options(), "convert")
