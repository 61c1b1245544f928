"""Any source of a data set, as its YAML would describe it, so that whatever one command reads all others read too.

    cells.yaml                        a data set YAML; also the folder that holds a data.yaml
    instances_train.json              COCO JSON, or a folder that holds some
    Annotations/                      a folder of Pascal VOC XML, or the folder above it
    ImageSets/Main/train.txt          a list of names for Pascal VOC
    images/ or train.txt              images, or a list of them, with YOLO labels beside them or in `labels/`
    photos/                           a folder of images with a LabelMe JSON beside each
    shards/train-{000000..000009}.tar WebDataset shards

A folder may hold one folder for each split (train; val, valid or validation; test), as exports have them.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from utils.class_names import checked_names
from utils.data.faults import FaultError
from utils.data.formats.coco import coco_names, read_file
from utils.data.formats.labelme import LabelMeSplit, labelme_names
from utils.data.formats.shards import check_shard
from utils.data.formats.voc import VocSplit, folder_beside, is_voc_path, voc_names
from utils.data.formats.yolo import image_to_label_path, read_label_text
from utils.data.images import is_image, list_images
from utils.data.labels import NAMES_FILE, has_labels, read_json
from utils.files import MAX_LIST, read_at_most, read_yaml
from utils.log import LOGGER
from utils.text import decode_text

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
YAML_SUFFIXES = (".yaml", ".yml")
NAME_FILES = ("classes.txt", "obj.names", NAMES_FILE)  # of class names, one a line, as labelling tools write them
LARGE_JSON = 2**26  # bytes from which a JSON is not parsed for a look: no file of a single image is so large
LEVELS = 3  # folders above the images in which the names are looked for
NAMES_SHOWN = 10
ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")  # which people unpack themselves
LABELS = (".xml", ".json", ".txt", ".tar")  # endings of files that may belong to a data set
USUAL_FOLDERS = ("images", "jpegimages", "annotations", "labels", "train")  # which mean something where they are alone
KNOWN = "a data set YAML, a COCO JSON, a list of images or of ImageSets, a tar shard, a folder of images or of XML"


def is_source(text: str | Path) -> bool:
    """Returns whether a text names a source that is not a data set YAML: a folder, or a file of labels or of names."""
    return os.path.isdir(text) or str(text).lower().endswith((".json", ".txt", ".tar", *ARCHIVES))


def describe(source: str | Path) -> tuple[Path, dict[str, Any]]:
    """Returns the file or folder to name in messages, and the mapping that a data set YAML of the source would hold.

    A source that names no splits is `train`. Class names are those of the XML files, of the COCO categories or of
    classes.txt, obj.names or data.yaml near the images; without such a file, classes have numbers.

    Raises FileNotFoundError or ValueError where there is nothing, or nothing that is a data set.
    """
    path = Path(os.path.abspath(os.path.expanduser(source)))
    if not os.path.exists(path) and "{" not in path.name:
        raise FileNotFoundError(f"no such file or folder: {source}; give {KNOWN}")
    if os.path.isdir(path) and (file := _yaml_in(path)):
        return file, read_yaml(file)
    data = _of_any(path)
    data = {"path": str(path if os.path.isdir(path) else path.parent), **data}
    kind = {"voc": "Pascal VOC", "labelme": "LabelMe"}.get(data.get("format"), "YOLO labels")
    if str(data["train"]).endswith((".json", ".tar")):
        kind = "COCO JSON" if data["train"].endswith(".json") else "tar shards"
    names = data.get("names", [])
    listed = f": {', '.join(names[:NAMES_SHOWN])}{' ...' if len(names) > NAMES_SHOWN else ''}" if names else ""
    count = f", {len(names) or data['nc']} classes" if names or "nc" in data else ""
    LOGGER.info(f"{source}: read as {kind}{count}{listed}")
    return path, data


def _yaml_in(folder: Path) -> Path | None:
    """Returns the data set YAML of a folder; None if there is none."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in YAML_SUFFIXES and file.is_file()]
    files = [file for file in files if {"train", "val", "test"} & set(read_yaml(file))]
    files = [file for file in files if file.stem in ("data", "dataset")] or files
    if len(files) > 1:
        raise ValueError(f"{folder}: holds several data set YAMLs; name one of them: {', '.join(map(str, files))}")
    return files[0] if files else None


# --- one file ---------------------------------------------------------------------------------------------------------


def _of_file(file: Path) -> dict[str, Any]:
    suffix = file.suffix.lower()
    if suffix == ".json":
        if kind_of_json(file) == "labelme":
            raise ValueError(f"{file}: the LabelMe file of one image; give the folder of all")
        return {"train": str(file), "images": str(_coco_images(file)), "names": coco_names([file])}
    if suffix == ".tar":
        found = _names_near(file.parent)
        return {"train": str(file), **(found or _numbered(lambda: _classes_in_shards([str(file)]), file))}
    if suffix in ARCHIVES:
        raise ValueError(f"{file}: an archive; unpack it and give the folder that comes out")
    if suffix != ".txt":
        raise ValueError(f"{file}: must be {KNOWN}")
    names = [line.strip() for line in decode_text(read_at_most(file, MAX_LIST), errors="surrogateescape").splitlines()]
    if not any(names):
        raise ValueError(f"{file}: names no images; it must hold a path or a name a line")
    plain = not any(map(is_image, names))
    if is_voc_path(file) or (plain and folder_beside(file, "annotations")):
        return {"train": str(file), "format": "voc", "names": voc_names(VocSplit((str(file),), None, ()))}
    return {"train": str(file), **_yolo_classes(str(file))}


def kind_of_json(file: Path) -> str:
    """Returns what labels a JSON file holds: "coco", "labelme", or "" for none."""
    if file.stat().st_size > LARGE_JSON:
        return "coco"
    content = read_json(file)
    return "labelme" if "shapes" in content else "coco" if {"images", "annotations"} & set(content) else ""


def _coco_images(file: Path) -> Path:
    """Returns the folder from which `file_name` starts: the first near the JSON that holds the first image."""
    name = next((str(image.get("file_name")) for image in read_file(file).images.values()), "")
    stem, root = file.stem.removeprefix("instances_"), file.parent.parent
    near = [file.parent, file.parent / "images", file.parent / "images" / stem, file.parent / stem]
    near += [root / "images", root / "images" / stem, root / stem, root]
    return next((folder for folder in near if os.path.isfile(folder / name)), file.parent)


# --- a folder ---------------------------------------------------------------------------------------------------------


def _of_folder(folder: Path) -> dict[str, Any]:
    folder = _where_it_was_unpacked(folder)
    found = _split_files(folder) or _split_folders(folder)
    if len(found) > 1:
        return _joined(folder, found)
    return _of_any(found["train"]) if found else _of_one_folder(folder)


def _where_it_was_unpacked(folder: Path) -> Path:
    """Returns the folder itself, or the only one in it, as archives are often unpacked into a folder of their name."""
    for _ in range(LEVELS):
        with os.scandir(folder) as entries:
            inside = [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
        folders = [entry.path for entry in inside if entry.is_dir()]
        alone = len(folders) == 1 and not any(is_image(e.name) or e.name.lower().endswith(LABELS) for e in inside)
        if not alone or os.path.basename(folders[0]).lower() in USUAL_FOLDERS:
            break
        folder = Path(folders[0])
    return folder


def _of_any(path: Path) -> dict[str, Any]:
    return _of_folder(path) if os.path.isdir(path) else _of_file(path)


def _split_files(folder: Path) -> dict[str, Path]:
    """Returns the COCO JSON or the list below ImageSets of each split."""
    if files := _coco_files(folder):
        named = {
            split: [file for file in files if any(word in file.stem.lower() for word in words)]
            for split, words in SPLIT_FOLDERS.items()
        }
        if len(files) == 1:
            return {"train": files[0]}
        if named["train"] and all(len(of) < 2 for of in named.values()):
            return {split: of[0] for split, of in named.items() if of}
        raise ValueError(f"{folder}: holds several COCO JSONs; name one of them: {', '.join(map(str, files))}")
    lists = folder / "ImageSets" / "Main"
    found = {split: lists / f"{split}.txt" for split in SPLIT_FOLDERS if os.path.isfile(lists / f"{split}.txt")}
    return found if "train" in found else {}


def _coco_files(folder: Path) -> list[Path]:
    """Returns the COCO JSONs of a folder, or of the folder annotations in it."""
    return [*_json_in(folder, "coco"), *_json_in(folder / "annotations", "coco")]


def _json_in(folder: Path, kind: str) -> list[Path]:
    """Returns the JSON files of a folder that hold labels of a kind, "coco" or "labelme"; the first tells of all."""
    files = sorted(folder.glob("*.json")) if os.path.isdir(folder) else []
    kinds = ((i, _kind_if_any(file)) for i, file in enumerate(files))
    first = next(((i, found) for i, found in kinds if found), (0, ""))  # notes of tools may come first
    return files[first[0] :] if first[1] == kind else []


def _kind_if_any(file: Path) -> str:
    try:
        return kind_of_json(file)
    except FaultError:  # a file of another tool, or a broken one, which `_strangers` names where nothing else is found
        return ""


def _split_folders(folder: Path) -> dict[str, Path]:
    """Returns the folder of each split; {} where there is none of train."""
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        near = [folder / part for name in names for part in (f"images/{name}", f"{name}/images", name)]
        if existing := [path for path in near if os.path.isdir(path)]:
            found[split] = existing[0]
    return found if "train" in found else {}


def _joined(folder: Path, sources: dict[str, Path]) -> dict[str, Any]:
    """Describes a data set of which each split is a source."""
    parts = {split: _of_any(path) for split, path in sources.items()}
    kinds = {(part.get("format"), part["train"].endswith(".json")) for part in parts.values()}
    if len(kinds) > 1:
        raise ValueError(f"{folder}: the splits have labels of several formats; give a data set YAML for each")
    data: dict[str, Any] = {}
    for split, part in parts.items():
        data[split] = part["train"]
        data |= {f"{split}_images": part["images"]} if "images" in part else {}
        data |= {"format": part["format"]} if "format" in part else {}
    if all("names" in part for part in parts.values()):
        names = list(dict.fromkeys(name for part in parts.values() for name in part["names"]))
        return {**data, "names": sorted(names) if "format" in data else names}
    return {**data, "nc": max(part.get("nc", len(part.get("names", []))) for part in parts.values())}


def _of_one_folder(folder: Path) -> dict[str, Any]:
    xml = folder if _holds(folder, ".xml") else folder_beside(folder / "x", "annotations")
    inside = folder_beside(folder / "x", "images", "jpegimages")
    if xml:
        split = VocSplit((str(xml),), None if xml == folder else str(inside or folder), ())
        images = {"images": split.images} if split.images else {}
        return {"train": str(xml), "format": "voc", **images, "names": voc_names(split)}
    if _json_in(folder, "labelme") or _labelme_beside(folder):
        return {"train": str(folder), "format": "labelme", "names": labelme_names(LabelMeSplit((str(folder),), ()))}
    images = inside or folder
    beside = folder_beside(folder, "annotations")  # of a folder of images alone
    if beside and _holds(beside, ".xml") and not _holds(folder, ".txt"):
        split = VocSplit((str(beside),), str(folder), ())
        return {"train": str(beside), "format": "voc", "images": str(folder), "names": voc_names(split)}
    return {"train": str(images), **_yolo_classes(str(images))}


def _labelme_beside(folder: Path) -> bool:
    """Returns whether images of a folder or its sub-folders have a LabelMe JSON beside; the first tells of all."""
    files = (Path(image).with_suffix(".json") for image in list_images(folder))
    first = next((file for file in files if os.path.isfile(file)), None)
    return first is not None and _kind_if_any(first) == "labelme"


def _holds(folder: Path, suffix: str) -> bool:
    """Returns whether a folder itself holds a file that ends so."""
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(suffix) for entry in entries)


# --- classes of labels that hold numbers ------------------------------------------------------------------------------


def _yolo_classes(entry: str) -> dict[str, Any]:
    """Returns names or nc of a folder or list of images with YOLO labels. Raises ValueError where no image has any."""
    images = list_images(entry)
    labels = [label for label in map(image_to_label_path, images) if has_labels(label)]
    if not labels:
        raise ValueError(
            f"{entry}: no labels were found: no XML of Pascal VOC, no COCO or LabelMe JSON, and no text file of YOLO "
            f"labels such as {image_to_label_path(images[0])}{_strangers(Path(entry))}"
        )
    above = os.path.commonpath([entry if os.path.isdir(entry) else os.path.dirname(images[0]), labels[0]])
    found = _names_near(Path(labels[0]).parent, Path(images[0]).parent, Path(above))
    return found or _numbered(lambda: _classes_in(map(read_label_text, labels)), entry)


def _strangers(path: Path) -> str:
    """Says which JSON beside the images holds labels of a tool's own kind, or none that can be read."""
    folder = path if os.path.isdir(path) else path.parent
    near = [folder, folder / "labels", folder.parent, folder.parent / "labels"]
    files = [file for home in near if os.path.isdir(home) for file in sorted(home.glob("*.json"))]
    if not files:
        return ""
    try:
        kind = kind_of_json(files[0])
    except FaultError as error:
        return f"; {error}"
    if kind == "labelme":
        return f"; {files[0]} is of LabelMe, whose JSON must lie beside its image: move them together"
    return f"; {files[0]} is neither COCO JSON nor of LabelMe: let the labelling tool export one of the formats above"


def _names_near(*folders: Path) -> dict[str, Any] | None:
    """Returns names as a file in or above one of the folders gives them, or None."""
    places = [place for folder in folders for place in (folder, *folder.parents)[:LEVELS]]
    for place in dict.fromkeys(places):
        for name in NAME_FILES:
            if os.path.isfile(place / name):
                lines = decode_text(read_at_most(place / name, MAX_LIST)).splitlines()
                if names := [line.strip() for line in lines if line.strip()]:
                    return {"names": names}
        for name in ("data.yaml", "dataset.yaml"):
            if os.path.isfile(place / name) and (found := read_yaml(place / name).get("names")):
                return {"names": checked_names(found, place / name)}
    return None


def _numbered(largest: Any, where: str | Path) -> dict[str, Any]:
    LOGGER.info(f"{where}: no file of class names near it ({', '.join(NAME_FILES)}), so classes are called by numbers")
    return {"nc": largest() + 1}


def _classes_in(texts: Iterable[str]) -> int:
    """Returns the largest class number in texts of labels; what is no number is told where the labels are checked."""
    words = (line.split(None, 1)[0] for text in texts for line in text.splitlines() if line.strip())
    return max((int(word) for word in words if word.isascii() and word.isdecimal() and len(word) < 6), default=0)


def _classes_in_shards(files: Sequence[str]) -> int:
    rows = [checked.labels.rows[:, 0] for file in files for _, checked in check_shard(file)]
    return int(max((of.max() for of in rows if len(of)), default=0))
