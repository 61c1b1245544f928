"""Dataset YAML: where the images are, and the names of the classes.

    path: ../datasets/cells     # root; relative to this file's folder, to the repository, or to the current folder
    train: images/train         # folder, or text file of image paths, or a list of those
    val: images/val
    nc: 3
    names: [red, white, platelet]     # or {0: red, 1: white, 2: platelet}
    channels: 3                       # of an image: 1 for grey, 3 for colour (the default), or more

A split may also be COCO JSON, whose classes are matched by name (without nc and names, its own names are used):

    train: annotations/instances_train2017.json
    train_images: images/train2017    # folder where `file_name` starts (`images`: for all splits; default: the root)

or Pascal VOC: a list below ImageSets or a folder called Annotations (with `format: voc`, any folder of XML files):

    train: VOC2007/ImageSets/Main/trainval.txt
    images: IMAGES                    # their images, where these are not in JPEGImages or images beside them
    annotations: XML                  # the XML files of a list, where these are not in Annotations beside ImageSets
    difficult: true                   # keep the objects marked as difficult (default: leave them out, as v6.1)

or LabelMe: with `format: labelme`, folders or lists of images that have a JSON beside them; or WebDataset tar shards
(`utils.data.formats.shards`): `train: shards/train-{000000..000099}.tar`.

Instead of a YAML, commands also take the labels themselves: see `utils.data.formats.source`.

Two optional keys say what to do where images are missing. `draw: shapes` draws them, in the folders where downloads may
go. `download` is fetched if the user asked for it: the name of a known set (`utils.downloads.KNOWN_SETS`), archives, or
a list of both:

    download:
      - {url: https://example.com/cells.zip, sha256: 0123...cdef, folder: images}   # folder: below the root

Any other text is shown to the user, and never executed.
"""

import difflib
import os
import re
from itertools import islice
from pathlib import Path
from typing import Any

from utils.class_names import checked_names
from utils.cli import require
from utils.data.formats.coco import CocoSplit, coco_names
from utils.data.formats.labelme import LabelMeSplit
from utils.data.formats.shards import ShardSplit
from utils.data.formats.source import KNOWN, YAML_SUFFIXES, describe, is_source
from utils.data.formats.voc import VocSplit, is_voc_path
from utils.downloads import KNOWN_SETS, Archive, check_place, download_dataset
from utils.files import MAX_CLASSES, MAX_IMAGE_CHANNELS, ROOT, find_file, home, read_yaml, with_numbers
from utils.log import LOGGER
from utils.text import brief

MAX_SHARDS = 1_000_000
SPLITS = ("train", "val", "test")


def load_dataset_yaml(
    path: str | Path, splits: tuple[str, ...] = ("train", "val"), download: bool = False, to: str = ""
) -> dict[str, Any]:
    """Reads a dataset YAML and checks that the images of the given splits exist.

    path: the YAML, or any other source that `utils.data.formats.source` describes; one that names no splits stands for
        each of them.
    download: fetch them if they do not and the YAML says from where, with checksums.
    to: folder below which they may be fetched, see `download_dataset`.

    Returns the YAML's mapping with `path` absolute, `train` / `val` / `test` absolute (a string, a list of strings, a
    split in another format, or None where the YAML leaves it out), `nc` an int, `names` a list of nc strings and
    `channels` an int.

    Raises FileNotFoundError where the YAML or a path it names is missing, ValueError where its text is wrong.
    """
    return _load(*_read(path), splits, download, to)


def open_source(source: str | Path) -> dict[str, Any]:
    """Returns what `load_dataset_yaml` returns, for all splits that a data set YAML or another source names."""
    file, data = _read(source)
    splits = tuple(split for split in SPLITS if _entry(data, split, file) is not None)
    if not splits:
        raise ValueError(f"{file}: the data set YAML names no images; give it train, val or test")
    return _load(file, data, splits)


def _load(
    file: Path, data: dict[str, Any], splits: tuple[str, ...], download: bool = False, to: str = ""
) -> dict[str, Any]:
    channels = _whole(data.get("channels", 3), "channels", "channels of an image", MAX_IMAGE_CHANNELS, file)
    entries = {split: _entry(data, split, file) for split in SPLITS}
    for split in splits:
        if split not in SPLITS:
            raise ValueError(f"a split must be one of {', '.join(SPLITS)}, got {split!r}")
        if entries[split] is None and file.suffix not in YAML_SUFFIXES and not any(entries[s] for s in SPLITS[1:]):
            entries[split] = entries["train"]
            data |= {f"{split}_images": data["images"]} if "images" in data else {}
        if entries[split] is None:
            raise ValueError(f"{file}: key '{split}' is missing; give a folder of images or a list file")

    paths = [path for split in splits for path in _as_list(entries[split])]
    annotations = [path for path in paths if _is_json(path)]
    if data.get("names") is not None or not annotations:
        _classes(data, file)  # raises for a fault before any image is looked for
    roots = _candidate_roots(data, file)
    if "draw" not in data and all(_missing(root, paths) for root in roots):
        beside = {split: _beside(entry, file) for split, entry in entries.items()}
        near = [path for split in splits for path in _as_list(beside[split])]
        if near != paths and not _missing(file.parent, near):
            LOGGER.info(f"{file}: {paths[0]} is taken as {file.parent / near[0]}, the other paths likewise")
            roots, entries, paths = [_without_dots(file.parent)], beside, near
            annotations = [path for path in paths if _is_json(path)]
    root = _choose_root(roots, paths, data)
    if "draw" in data and _missing(root, paths):
        _draw(data["draw"], root, file, to)
    archives = _archives(data.get("download"), file)
    if download and archives and _missing(root, paths):
        download_dataset(archives, root, to)
    _check_present(data, roots, root, {split: entries[split] for split in splits}, file)

    if data.get("names") is None and annotations:
        # those of train and val, whichever is asked for, so that a class has one number
        known = [path for split in ("train", "val") for path in _as_list(entries[split]) if path and _is_json(path)]
        present = [path for path in dict.fromkeys([*known, *annotations]) if os.path.isfile(root / path)]
        data["names"] = coco_names([root / path for path in present])
    nc, names = _classes(data, file)
    absolute = {split: _in_its_format(data, split, _under(root, entries[split]), root, names, file) for split in SPLITS}
    if {"train", "val"} <= set(splits) and _files_of(absolute["train"]) == _files_of(absolute["val"]):
        LOGGER.warning(
            f"{file}: train and val are the same images, so the results on val are too good; "
            "tools/split.py keeps some for val alone"
        )
    return {**data, "path": str(root), **absolute, "nc": nc, "names": names, "channels": channels}


def _read(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Returns the file to name in messages, and the mapping in it."""
    if is_source(path):
        return describe(path)
    file = _find(path)
    if not file.is_file():  # a received checkpoint can name any path
        raise ValueError(f"{file}: a data set YAML must be a plain file, and this is a pipe or a device")
    return file, read_yaml(file)


def _find(path: str | Path) -> Path:
    try:
        return find_file(path, (".yaml", ".yml"))
    except FileNotFoundError as error:
        known = {p.stem: str(p.relative_to(ROOT)) for p in sorted((ROOT / "data").glob("*.yaml"))}
        near = difflib.get_close_matches(Path(path).stem, known, n=1)
        choice = ", ".join(known.values()) or "none"
        hint = f"did you mean {known[near[0]]}?" if near else f"those in data/: {choice}"
        raise FileNotFoundError(f"{error}; {hint}; or give {KNOWN}") from None
    except ValueError as error:
        raise ValueError(f"{error}; or give {KNOWN}") from None


# --- classes ----------------------------------------------------------------------------------------------------------


def _classes(data: dict[str, Any], file: Path) -> tuple[int, list[str]]:
    """Returns (nc, names). The YAML may leave out one of them, not both."""
    nc, names = data.get("nc"), data.get("names")
    if nc is None and names is None:
        raise ValueError(f"{file}: keys 'nc' and 'names' are missing; give the number of classes and their names")
    if nc is not None:
        nc = _whole(nc, "nc", "classes", MAX_CLASSES, file)
    names = [f"class{i}" for i in range(nc)] if names is None else checked_names(names, file)
    if nc is not None and len(names) != nc:
        raise ValueError(f"{file}: nc is {nc} but names has {len(names)} entries; they must agree")
    return len(names), names


def _whole(value: Any, key: str, what: str, maximum: int, file: Path) -> int:
    value = with_numbers(value)
    whole = (
        value.is_integer()
        if isinstance(value, float)
        else isinstance(value, str) and value.isdecimal() and len(value) < 9
    )
    value = int(value) if whole else value  # as v6.1 reads '2' and 2.0
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
        raise ValueError(f"{file}: {key} must be a whole number of {what}, 1 to {maximum}, got {brief(value)}")
    return value


# --- paths ------------------------------------------------------------------------------------------------------------


def _entry(data: dict[str, Any], split: str, file: Path) -> str | list[str] | None:
    entry = data.get(split)
    if entry is None or entry == "" or entry == []:
        return None
    if not all(isinstance(path, str) for path in _as_list(entry)):
        raise ValueError(f"{file}: {split} must be a path or a list of paths, got {entry!r}")
    if any(_is_shard(path) for path in _as_list(entry)):
        return [shard for path in _as_list(entry) for shard in _expand_braces(path, f"{file}: {split}")]
    return entry


def _expand_braces(path: str, where: str) -> list[str]:
    """Expands `a-{0..2}.tar` to a-0.tar, a-1.tar, a-2.tar."""
    require("webdataset", f"{where}: a set of tar shards")
    from braceexpand import UnbalancedBracesError, braceexpand

    ends = [[int(end[:18]) for end in ends] for ends in re.findall(r"\{(-?\d+)\.\.(-?\d+)", path)]
    many = any(abs(last - first) >= MAX_SHARDS for first, last in ends)  # which the library would spell out at once
    try:
        paths = [] if many else list(islice(braceexpand(path), MAX_SHARDS + 1))
    except UnbalancedBracesError as error:
        raise ValueError(f"{where}: {error}") from None
    if many or len(paths) > MAX_SHARDS:
        raise ValueError(f"{where}: {path} means more than {MAX_SHARDS} shards, the maximum; name fewer")
    return paths


def _in_its_format(data: dict[str, Any], split: str, entry: Any, root: Path, names: list[str], file: Path) -> Any:
    """Returns the entry unchanged, or the split in another format that it names."""
    if entry is None:
        return None
    if data.get("format") not in (None, "voc", "labelme"):
        raise ValueError(f"{file}: format must be 'voc' or 'labelme' or be left out, got {data['format']!r}")
    if not isinstance(difficult := data.get("difficult", False), bool):
        raise ValueError(f"{file}: difficult must be true or false, got {difficult!r}")
    paths = tuple(_as_list(entry))
    as_coco = {_is_json(path) for path in paths}
    as_shards = {_is_shard(path) for path in paths}
    if data.get("format") == "labelme":
        return LabelMeSplit(paths, tuple(names), difficult)
    as_voc = {data.get("format") == "voc" or is_voc_path(path) for path in paths}
    if max(len(as_coco), len(as_shards), len(as_voc)) > 1:
        raise ValueError(f"{file}: all paths of {split} must have labels of one format, got {', '.join(paths)}")
    if True in as_shards:
        return ShardSplit(paths)
    folder = _folder_of(data, f"{split}_images" if f"{split}_images" in data else "images", root, file)
    if True in as_coco:
        return CocoSplit(paths, folder or str(root), tuple(names), difficult)
    if True in as_voc:
        return VocSplit(paths, folder, tuple(names), difficult, _folder_of(data, "annotations", root, file))
    return entry


def _folder_of(data: dict[str, Any], key: str, root: Path, file: Path) -> str | None:
    folder = data.get(key)
    if folder is not None and not isinstance(folder, str):
        raise ValueError(f"{file}: {key} must be a folder, got {folder!r}")
    return str(root / folder) if folder else None


def _is_shard(path: str) -> bool:
    return path.lower().endswith(".tar")


def _is_json(path: str) -> bool:
    return path.lower().endswith(".json")


def _as_list(entry: Any) -> list:
    return entry if isinstance(entry, list) else [entry]


def _candidate_roots(data: dict[str, Any], file: Path) -> list[Path]:
    """Returns where the dataset may be: `path` seen from the YAML's folder, the repository and the current folder.

    A YAML in data/ of the repository means the repository first, as in v6.1; one beside a data set that lies somewhere
    in the repository means its own folder, as anywhere else. A link is followed only where the dataset is not
    seen without: labels are found by the names of folders.
    """
    path = data.get("path", "")
    if not isinstance(path, str | None) or "\0" in (path or ""):
        raise ValueError(f"{file}: path must be the dataset's folder, got {path!r}")
    path = os.path.expanduser(path or "")  # not Path's, which raises for ~someone unknown
    bases = [file.parent, home(ROOT), Path.cwd()]
    if file.resolve().parent in (ROOT, ROOT / "data"):
        bases = [home(ROOT), file.parent, Path.cwd()]
    return list(dict.fromkeys(see(base / path) for base in bases for see in (_without_dots, Path.resolve)))


def _without_dots(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _choose_root(roots: list[Path], paths: list[str], data: dict[str, Any]) -> Path:
    """Returns the first root that holds every path; else the first that exists; else the first, or where to make it."""
    complete = [root for root in roots if not _missing(root, paths)]
    existing = [root for root in roots if os.path.isdir(root)]
    new = (
        [_without_dots(home(ROOT) / os.path.expanduser(data.get("path") or ""))]
        if {"draw", "download"} & set(data)
        else []
    )
    return (complete + existing + new + roots)[0]


def _beside(entry: str | list[str] | None, file: Path) -> str | list[str] | None:
    """Returns a split's paths as they are beside the YAML: without `../`, or the name of the YAML's folder, in front.

    Exports of Roboflow name `../train/images` or `Cells-1/train/images` where train/images is beside the YAML.
    """
    if entry is None:
        return None
    folder = re.escape(file.resolve().parent.name)
    near = [re.sub(rf"^(\.\./|(\./)?{folder}/)", "", path) for path in _as_list(entry)]
    return near if isinstance(entry, list) else near[0]


def _missing(root: Path, paths: list[str]) -> list[Path]:
    # os.path.exists returns False, and does not raise, for a name that is too long or holds a zero byte
    return [root / path for path in paths if not os.path.exists(root / path)]


def _under(root: Path, entry: str | list[str] | None) -> str | list[str] | None:
    if entry is None:
        return None
    return [str(root / path) for path in entry] if isinstance(entry, list) else str(root / entry)


def _files_of(entry: Any) -> set[str]:
    """Returns the real paths of a split."""
    paths = entry if isinstance(entry, str | list) else entry.paths
    return {os.path.realpath(path) for path in ([paths] if isinstance(paths, str) else paths)}


def _check_present(data: dict[str, Any], roots: list[Path], root: Path, entries: dict[str, Any], file: Path) -> None:
    for split, entry in entries.items():
        for lost in _missing(root, _as_list(entry)):
            message = f"{file}: {split} names {lost}, which does not exist"
            if len(roots) > 1 and not Path(str(data.get("path") or "")).is_absolute():
                places = dict.fromkeys(map(_without_dots, (file.parent, home(ROOT), Path.cwd())))
                message += f" (path {data.get('path')!r} was looked for in {', '.join(map(str, places))})"
            if _archives(data.get("download"), file):
                message += "; --download data fetches the images"
            elif data.get("download"):
                message += (
                    "; the download text of the file is never executed. After reading it, "
                    f"run this yourself:\n{str(data['download']).strip()}"
                )
            else:
                message += f"; put the images there or correct '{split}' or 'path'"
            raise FileNotFoundError(message)


def _archives(download: Any, file: Path) -> list[Archive]:
    """Returns the archives that can be fetched; none where `download` is left out or is a text for the user."""
    if not download or (isinstance(download, str) and download.strip() not in KNOWN_SETS):
        return []
    archives: list[Archive] = []
    for source in _as_list(download):
        if isinstance(source, str) and source.strip() in KNOWN_SETS:
            archives += KNOWN_SETS[source.strip()]
        elif isinstance(source, dict) and {"url", "sha256"} <= set(source) <= {"url", "sha256", "folder"}:
            try:
                archives.append(Archive(**{key: str(value) for key, value in source.items()}))
            except ValueError as error:
                raise ValueError(f"{file}: download: {error}") from None
        else:
            raise ValueError(
                f"{file}: download must be the name of a known set ({', '.join(KNOWN_SETS)}), url and sha256 (and "
                f"folder) of an archive, a list of these, or a text for the user; got {brief(source)}"
            )
    return archives


def _draw(name: Any, root: Path, file: Path, to: str | Path | None) -> None:
    if name != "shapes":
        raise ValueError(f"{file}: draw must be 'shapes', the only dataset that can be drawn, got {name!r}")
    if root != home(ROOT) / "data" / "shapes":  # the project's own
        check_place(root, to)
    from utils.data.shapes import write_dataset

    LOGGER.info(f"Drawing the images of {file.name} into {root}")
    write_dataset(root)
