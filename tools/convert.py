"""Converts labels between COCO JSON, Pascal VOC XML, YOLO text, LabelMe JSON and tar shards.

python tools/convert.py --train instances_train.json --val instances_val.json --to yolo --out new_folder
python tools/convert.py --train Annotations/ --to coco --out new_folder            # VOC, a folder of XML files
python tools/convert.py --train my.yaml --val my.yaml --to labelme --out new_folder --no-images

The format of a source is recognised: a JSON file is COCO, a data set YAML names YOLO text files or tar shards, a folder
of .xml files is VOC, one of .json files is LabelMe. --out must not exist; it appears whole or not at all, and none of
your files is changed.

    yolo     data.yaml, images/train/..., labels/train/...          coco     train.json, images/train/...
    voc      train/Annotations/..., train/JPEGImages/...            labelme  train/... (each JSON beside its image)
    shards   data.yaml, train-000000.tar, ...

VOC holds boxes in whole pixels and no polygons. YOLO text, which shards hold too, has one polygon per object (several
parts are joined), writes the boxes of a file with polygons as four corners, and cannot mark crowds and difficult
objects, which are left out.
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli
from utils.data.dataset_yaml import SPLITS, load_dataset_yaml
from utils.data.formats import coco, labelme, shards, voc, yolo
from utils.data.labels import LabelledImage, LabelledSplit
from utils.log import LOGGER

WRITERS: dict[str, tuple[Callable, str | None]] = {  # with the folder of images of a split; None: in the shards
    "coco": (coco.save, "images/{}"),
    "voc": (voc.save, "{}/JPEGImages"),
    "yolo": (yolo.save, "images/{}"),
    "labelme": (labelme.save, "{}"),
    "shards": (shards.save, None),
}


def read(source: Path, split: str, image_folders: list[Path]) -> LabelledSplit:
    """Reads a source of any format. Raises ValueError, naming file and row, for what is wrong in it."""
    if not source.exists():
        raise FileNotFoundError(f"no such file or folder of labels: {source}")
    if source.is_file():
        if source.suffix.lower() in (".yaml", ".yml"):
            return _read_yaml(source, split)
        if source.suffix.lower() == ".json":
            return coco.load(source, image_folders)
        raise ValueError(f"{source}: must be a data set YAML, a COCO JSON, or a folder of VOC or LabelMe files")
    kinds = Counter(file.suffix.lower() for file in source.rglob("*"))
    if bool(kinds[".xml"]) == bool(kinds[".json"]):
        raise ValueError(f"{source}: must hold .xml files (VOC) or .json files (LabelMe), and not both")
    return voc.load(source, image_folders) if kinds[".xml"] else labelme.load(source, image_folders)


def _read_yaml(source: Path, split: str) -> LabelledSplit:
    data = load_dataset_yaml(source, (split,))
    entry = data[split]
    if isinstance(entry, shards.ShardSplit):
        return shards.load(entry, data["names"])
    if not isinstance(entry, str | list):
        raise ValueError(
            f"{source}: the labels of {split} are not YOLO text files; give the COCO JSON or the folder of VOC files "
            f"itself: --{split} {entry.paths[0]}"
        )
    return yolo.load(entry, data["names"])


def convert(splits: dict[str, LabelledSplit], kind: str, out: Path, with_images: bool = True) -> None:
    """Writes all splits in a format into a new folder, through a temporary one beside it.

    Raises ValueError where two images would share a label file or an image is not there to be copied, FileExistsError
    where `out` exists.
    """
    writer, image_folder = WRITERS[kind]
    if out.exists():
        raise FileExistsError(f"--out must be a new folder, but {out} exists; name another")
    if not with_images and image_folder is None:
        raise ValueError("shards hold their images; leave out --no-images")
    for split, labels in splits.items():
        _check(labels, split, kind, with_images)
    names = list(dict.fromkeys(name for labels in splits.values() for name in labels.names))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        writer(temporary, splits, names)
        for split, labels in splits.items() if with_images and image_folder else ():
            for image in labels.images:
                target = temporary / image_folder.format(split) / image.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(image.source.read_bytes())
        temporary.chmod(0o755)
        temporary.rename(out)
    except BaseException:  # Ctrl-C too: no half-written folder is left
        shutil.rmtree(temporary)
        raise


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


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=Path, metavar="SOURCE", help=f"file or folder of labels of {split}")
    parser.add_argument("--to", choices=WRITERS, required=True, help="format to write")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; it must not exist")
    parser.add_argument("--images", type=Path, nargs="+", default=[], metavar="FOLDER", help="folders of the images")
    parser.add_argument("--no-images", action="store_true", help="write the labels without a copy of the images")
    return parser.parse_args(argv)


def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    sources = {split: getattr(options, split) for split in SPLITS if getattr(options, split)}
    if not sources:
        raise ValueError("there is nothing to convert: give --train, --val or --test")
    splits = {split: read(source, split, options.images) for split, source in sources.items()}
    convert(splits, options.to, options.out, not options.no_images)
    for split, labels in splits.items():
        objects = sum(len(image.objects) for image in labels.images)
        LOGGER.info(f"{split}: images: {len(labels.images)}, objects: {objects}, classes: {len(labels.names)}")
    LOGGER.info(f"written to {options.out}")


if __name__ == "__main__":
    cli.run(main, parse_options(), "convert")
