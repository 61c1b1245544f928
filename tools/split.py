"""Splits a data set into train, val and test, with each class in its share in every part. It moves and copies nothing.

python tools/split.py my_photos --out my_split                    # a folder, an export of a labelling tool, a COCO JSON
python tools/split.py my_photos --out my_split --val 0.2 --test 0 --group-by '^(.*)_frame' --near-duplicates
python tools/split.py my_photos --out my_split --folds 5           # my_split/fold1/data.yaml ..., each once val
python train.py --data my_split/data.yaml

SOURCE is whatever train.py takes as --data. The new folder --out gets a list of images, or a JSON of a COCO JSON, for
each part, and a data.yaml; the images and labels stay where they are. Copies of one file stay in one part. The same
seed gives the same split.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli
from utils.data.annotations import Annotations, check_classes, scan
from utils.data.dataset_yaml import SPLITS, open_source
from utils.data.formats.coco import CocoSplit
from utils.data.formats.labelme import LabelMeSplit
from utils.data.formats.shards import ShardSplit
from utils.data.formats.voc import VocSplit
from utils.data.labels import read_json
from utils.data.splitting import alike_pairs, class_presence, groups_of, keys_by_name, same_pairs, stratify
from utils.files import check_new, new_folder, write_yaml
from utils.log import LOGGER
from utils.text import is_utf8


def make_parser() -> argparse.ArgumentParser:
    """States the options of split.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="data set YAML, folder of images or labels, COCO JSON, or list of images")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; it must not exist")
    parser.add_argument("--val", type=float, default=0.15, help="share of the images for val (default: %(default)s)")
    parser.add_argument("--test", type=float, default=None, help="share for test (default: 0.15; 0 with --folds)")
    parser.add_argument("--folds", type=int, default=0, metavar="K", help="make K folds, each of them once val")
    parser.add_argument("--of", choices=SPLITS, help="part of the source to split, where it names several")
    parser.add_argument(
        "--group-by",
        default="",
        metavar="REGEX",
        help="keep images together in whose file names this finds the same text (of its first group, if it has one)",
    )
    parser.add_argument("--near-duplicates", action="store_true", help="keep images together that look the same")
    parser.add_argument("--difficult", action="store_true", help="keep objects marked as difficult or as crowds")
    parser.add_argument("--seed", type=cli.whole(0), default=0, help="of the random choice (default: %(default)s)")
    return parser


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    options = cli.parse(make_parser(), argv=argv)
    if options.test is None:
        options.test = 0.0 if options.folds else 0.15
    return options


def check_options(options: argparse.Namespace) -> None:
    """Raises ValueError for shares, folds or a regular expression that cannot be."""
    cli.check_range("--val", options.val, 0, 1)
    cli.check_range("--test", options.test, 0, 1)
    if options.folds:
        cli.check_range("--folds", options.folds, 2, 100)
    if options.test + (0 if options.folds else options.val) >= 1:
        raise ValueError(f"--val and --test must leave images for train, got {options.val} and {options.test}")
    try:
        re.compile(options.group_by)
    except re.error as error:
        raise ValueError(f"--group-by must be a regular expression, got {options.group_by!r}: {error}") from None
    check_new(options.out)


# --- the parts --------------------------------------------------------------------------------------------------------


def read(options: argparse.Namespace) -> tuple[dict[str, Any], Any, Annotations]:
    """Returns the loaded source, the entry to split, and its images and labels."""
    data = open_source(options.source)
    named = [split for split in SPLITS if data[split]]
    if options.of and options.of not in named:
        raise ValueError(f"{options.source}: has no {options.of}; --of may be {', '.join(named)}")
    if len(named) > 1 and not options.of:
        raise ValueError(
            f"{options.source}: is split already, into {', '.join(named)}; say which part to split: --of train"
        )
    entry = data[options.of or named[0]]
    if isinstance(entry, ShardSplit):
        raise ValueError(
            f"{options.source}: tar shards hold many images each and cannot be listed; unpack them first: "
            f"tools/convert.py --train {options.source} --to yolo --out NEW_FOLDER"
        )
    if options.difficult and isinstance(entry, CocoSplit | VocSplit | LabelMeSplit):
        entry = replace(entry, difficult=True)
    annotations = scan(entry)
    check_classes(annotations, data["nc"])
    return data, entry, annotations


def parts_of(annotations: Annotations, nc: int, options: argparse.Namespace) -> list[dict[str, np.ndarray]]:
    """Returns the image numbers of each part, for each fold."""
    images, rng = annotations.images, np.random.default_rng(options.seed)
    keys = keys_by_name(images, options.group_by) if options.group_by else [None] * len(images)
    pairs = same_pairs(images)
    if copies := len({i for pair in pairs for i in pair}):
        LOGGER.info(f"{copies} images are copies of others, byte for byte; copies stay in one part")
    pairs += alike_pairs(annotations) if options.near_duplicates else []
    groups = groups_of(len(images), keys, pairs)
    if options.group_by or options.near_duplicates:
        LOGGER.info(f"{len(images)} images in {len(groups)} groups, the largest of {max(map(len, groups))} images")
    if missed := sum(key is None for key in keys) if options.group_by else 0:
        LOGGER.warning(f"--group-by finds nothing in the names of {missed} images, which stand alone")
    shown = class_presence(annotations, nc)
    shown = shown[:, shown.any(0)]  # of thousands of names few may occur
    if not options.folds:
        train = 1 - options.val - options.test
        part = stratify(shown, groups, (train, options.val, options.test), rng)
        return [{split: np.flatnonzero(part == i) for i, split in enumerate(SPLITS)}]
    share = (1 - options.test) / options.folds
    part = stratify(shown, groups, [options.test, *[share] * options.folds], rng)
    fold_of = [np.flatnonzero(part == i) for i in range(1, options.folds + 1)]
    return [
        {
            "train": np.sort(np.concatenate([*fold_of[:i], *fold_of[i + 1 :]])),
            "val": fold_of[i],
            "test": np.flatnonzero(part == 0),
        }
        for i in range(options.folds)
    ]


def table(annotations: Annotations, names: Sequence[str], parts: dict[str, np.ndarray]) -> str:
    """Returns a table: images and objects of each class in each part, and its share of the class's images."""
    nc = len(names)
    width = max(map(len, [*names, "all classes"]))
    shown = class_presence(annotations, nc)
    lines = [" " * width + "".join(f"{split:>24}" for split in parts)]
    lines.append(" " * width + f"{'images':>10}{'share':>6}{'objects':>8}" * len(parts))
    for number in (*range(nc), -1):
        line = f"{names[number] if number >= 0 else 'all images':<{width}}"
        for part in parts.values():
            chosen = annotations.take(part).labels[:, 0] if len(part) else np.zeros(0)
            images = int(shown[part, number].sum()) if number >= 0 else len(part)
            total = int(shown[:, number].sum()) if number >= 0 else len(shown)
            objects = int((chosen == number).sum()) if number >= 0 else len(chosen)
            line += f"{images:>10}{images / max(total, 1):>6.0%}{objects:>8}"
        lines.append(line)
    return "\n".join(lines)


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Writer:
    """Writes the lists of a split, in the format of the labels that they are of."""

    entry: Any
    data: dict[str, Any]

    def write(self, folder: Path, parts: dict[str, list[str]]) -> None:
        """Writes a file for each part that has images, and data.yaml."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {"path": "."}
        for split, images in parts.items():
            content[split] = f"{split}.json" if isinstance(self.entry, CocoSplit) else f"{split}.txt"
            text = self._subset(images) if isinstance(self.entry, CocoSplit) else self._list(images)
            (folder / content[split]).write_text(text, encoding="utf-8", errors="surrogateescape")
        write_yaml(folder / "data.yaml", {**content, **self._keys()})

    def _keys(self) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        if isinstance(self.entry, CocoSplit):
            keys["images"] = self.entry.images
        elif isinstance(self.entry, VocSplit):
            image, xml = next(iter(self.entry.pairs().items()))
            keys |= {"format": "voc", "images": self.entry.images or str(Path(image).parent)}
            keys["annotations"] = str(Path(xml).parent)
        elif isinstance(self.entry, LabelMeSplit):
            keys["format"] = "labelme"
        if getattr(self.entry, "difficult", False):
            keys["difficult"] = True
        if self.data["channels"] != 3:
            keys["channels"] = self.data["channels"]
        return {**keys, "nc": self.data["nc"], "names": list(self.data["names"])}

    def _list(self, images: list[str]) -> str:
        is_voc = isinstance(self.entry, VocSplit)
        lines = [Path(image).stem if is_voc else image for image in images]
        for image, line in zip(images, lines):
            if line.strip().splitlines() != [line]:
                raise ValueError(
                    f"{image}: a list holds no name with a line break or a blank at an end; rename it, its label too"
                )
        return "".join(f"{line}\n" for line in lines)

    def _subset(self, images: list[str]) -> str:
        """Returns the COCO JSON of some images, with all that the file says of them."""
        if len(self.entry.files) > 1:
            raise ValueError(f"{self.entry}: several COCO JSONs in one part; split each by itself")
        content = read_json(self.entry.files[0])
        chosen = set(images)
        kept = [
            r for r in content["images"] if os.path.normpath(os.path.join(self.entry.images, r["file_name"])) in chosen
        ]
        ids = {str(record["id"]) for record in kept}
        annotations = [record for record in content["annotations"] if str(record["image_id"]) in ids]
        content |= {"images": kept, "annotations": annotations}
        text = json.dumps(content, ensure_ascii=False)
        return text if is_utf8(text) else json.dumps(content)


def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    check_options(options)
    data, entry, annotations = read(options)
    writer = Writer(entry, data)
    folds = parts_of(annotations, data["nc"], options)
    wanted = {"train": True, "val": options.folds or options.val, "test": options.test}
    for parts in folds:
        for split in [split for split in SPLITS if not wanted[split]]:
            del parts[split]
        if empty := [split for split, part in parts.items() if not len(part)]:
            raise ValueError(
                f"{options.source}: none of the {len(annotations.images)} images are left for {empty[0]}; "
                "give other shares, or smaller groups"
            )
    with new_folder(options.out) as temporary:
        for i, parts in enumerate(folds, 1):
            named = {split: [annotations.images[k] for k in part] for split, part in parts.items()}
            writer.write(temporary / f"fold{i}" if options.folds else temporary, named)
    for i, parts in enumerate(folds, 1):
        cli.say((f"\nfold {i}\n" if options.folds else "") + table(annotations, data["names"], parts))
    first = options.out / ("fold1" if options.folds else "") / "data.yaml"
    LOGGER.info(f"written to {options.out}; next: python tools/doctor.py {first}, python train.py --data {first}")


if __name__ == "__main__":
    cli.run(main, parse_options, "split")
