"""The labels of a split: every image and label of a dataset entry checked, in contiguous arrays, and cached.

The result of a check is kept in `<labels folder>.cache` until the path, size or time of change of any file differs. The
cache is one line of checksums, then a numpy archive without objects; every value of it is checked, and a file of that
name that is not a cache of this user is neither read nor replaced.
"""

import hashlib
import io
import logging
import os
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from utils.data.faults import FAULT_KINDS, Fault, FaultError
from utils.data.formats.coco import CocoSplit
from utils.data.formats.labelme import LabelMeSplit
from utils.data.formats.shards import ShardSplit, check_shard
from utils.data.formats.voc import VocSplit
from utils.data.formats.yolo import (
    image_to_label_path,
    labels_folder,
    open_entry,
    read_label_text,
    read_labels,
    read_lines,
)
from utils.data.images import check_image
from utils.data.labels import CheckedImage, Listing, Read, check_labelled_image, has_labels
from utils.data.machine import usable_cores
from utils.files import atomic_write
from utils.log import LOGGER
from utils.progress import Bar

CACHE_VERSION = 4
CACHED_ARRAYS = {
    "sizes": np.int64, "labels": np.float32, "starts": np.int64, "points": np.float32, "point_starts": np.int64
}  # fmt: skip
COUNTS = ("found", "missing", "empty", "corrupt", "total")
MAX_V61 = 2**30  # bytes of a cache of v6.1, which are searched for its mark
MAX_CLASS = 2**24  # float32 holds whole numbers up to it
HEADER = re.compile(rb"labels \d+ [0-9a-f]{64} [0-9a-f]{64}\n")  # of a cache
FAULTS_SHOWN = 20
MANY_MISSING = 0.2  # share of images without a label file that is told as a warning
Entry = (
    str | list[str] | CocoSplit | VocSplit | LabelMeSplit | ShardSplit
)  # of a data set, as `utils.data.dataset_yaml` gives it


@dataclass(frozen=True)
class Annotations:
    """Every usable image of a dataset and its labels, in contiguous arrays.

    Image i owns the rows starts[i]:starts[i + 1] of `labels`; row r owns the corners
    point_starts[r]:point_starts[r + 1] of `points`, none where it was given as a box.
    """

    images: list[str]  # n paths
    sizes: np.ndarray  # (n, 2) int64: width, height in pixels
    labels: np.ndarray  # (N, 5) float32: class, x, y, width, height, 0-1
    starts: np.ndarray  # (n + 1,) int64
    points: np.ndarray  # (P, 2) float32: x, y, 0-1
    point_starts: np.ndarray  # (N + 1,) int64
    counts: dict[str, int]  # found, missing, empty, corrupt, total: images
    faults: list[Fault]

    def labels_of(self, i: int) -> np.ndarray:
        """Returns the rows (m, 5) of image i."""
        return self.labels[self.starts[i] : self.starts[i + 1]]

    def polygons_of(self, i: int) -> list[np.ndarray]:
        """Returns m arrays (k, 2) of image i, row by row; k = 0 where the row was given as a box."""
        cuts = self.point_starts[self.starts[i] : self.starts[i + 1] + 1]
        return [self.points[a:b] for a, b in pairwise(cuts)]

    def take(self, order: np.ndarray) -> "Annotations":
        """Returns the images numbered in `order`, in that order."""
        rows, starts = _ragged_rows(self.starts, order)
        corners, point_starts = _ragged_rows(self.point_starts, rows)
        return replace(
            self,
            images=[self.images[i] for i in order],
            sizes=self.sizes[order],
            labels=self.labels[rows],
            starts=starts,
            points=self.points[corners],
            point_starts=point_starts,
        )

    def choose(self, fraction: float, rng: np.random.Generator) -> "Annotations":
        """Returns a random share of the images, each as likely as any other, in the order that they had."""
        count = len(self.images)
        return self.take(np.sort(rng.choice(count, max(round(fraction * count), 1), replace=False)))

    def as_one_class(self) -> "Annotations":
        """Returns the same with every object of class 0."""
        return replace(self, labels=self.labels * np.array([0, 1, 1, 1, 1], np.float32))


def _starts(lengths: Iterable[int]) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _ragged_rows(starts: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row numbers of the pieces in `order`, one after the other, and where each piece then starts."""
    lengths = np.diff(starts)[order]
    new_starts = _starts(lengths)
    return np.arange(new_starts[-1]) + np.repeat(starts[order] - new_starts[:-1], lengths), new_starts


def scan(
    entry: Entry, prefix: str = "", use_cache: bool = True, strict: bool = False, rehash: bool = False,
    fix_labels: str = "",
) -> Annotations:  # fmt: skip
    """Checks all images and labels of a dataset entry, or takes the result from the cache; reports the counts.

    Images without labels stay as background; corrupt ones are left out and reported. Images are sorted by path, those
    of shards come in the order of the shards.

    Args:
        use_cache: False neither reads nor writes the cache file.
        strict: a corrupt image or label file is a ValueError that names them.
        fix_labels: "clip" cuts labels of YOLO text that reach over their image by up to a pixel; "" refuses them.
        rehash: every file is read again, though neither its size nor its time of change differs from the cache's.

    Raises ValueError where no image is usable, and what `list_pairs` raises.
    """
    if isinstance(entry, ShardSplit):
        files, check = list(entry.files), lambda: _check_shards(entry, fix_labels)
        starts = tuple(f"{os.path.normpath(file)}/" for file in files)

        def may_name(image: str) -> bool:
            return os.path.normpath(image).startswith(starts)

    else:
        listing = list_pairs(entry, fix_labels)
        may_name = set(listing.images).__contains__
        files, check = [*listing.images, *dict.fromkeys(listing.label_files)], lambda: _check_all(listing, prefix)
    kind = [] if isinstance(entry, str | list) else [repr(entry)]  # names and options that decide what is read
    kind += [f"fix_labels {fix_labels}"] if fix_labels else []
    digest = files_digest([*kind, *files])
    path = cache_path(entry)
    annotations = _load_cache(path, digest, may_name) if use_cache and not rehash else None
    if annotations is None:
        annotations = check()
        if (
            use_cache and annotations.images and annotations.counts["found"]
        ):  # else the user will correct a mistake first
            _save_cache(path, digest, annotations)
    if strict and annotations.counts["corrupt"]:
        _refuse(annotations, entry)
    _report(annotations, entry, prefix)
    return annotations


def list_pairs(entry: Entry, fix_labels: str = "") -> Listing:
    """Lists the images of a dataset entry, sorted, with their label files. Raises what `open_entry`, `open` raise."""
    if isinstance(entry, CocoSplit | VocSplit | LabelMeSplit):
        return entry.open()
    return open_entry(entry, clip=fix_labels == "clip")


def count_images(entry: Entry) -> int:
    """Counts the images of a dataset entry; of shards, which have to be read for it, the usable ones."""
    return len((scan(entry) if isinstance(entry, ShardSplit) else list_pairs(entry)).images)


def check_classes(annotations: Annotations, nc: int) -> None:
    """Raises ValueError for the first label whose class is `nc` or more; it names the line of a label text file."""
    classes = annotations.labels[:, 0]
    if not len(classes) or classes.max() < nc:
        return
    row = int(np.argmax(classes >= nc))
    image = annotations.images[int(np.searchsorted(annotations.starts, row, side="right")) - 1]
    label_file = image_to_label_path(image)
    if os.path.isfile(label_file):
        faults = read_lines(read_label_text(label_file), label_file, nc).faults
        if found := [fault for fault in faults if fault.kind == "class"]:
            raise FaultError(found[0])
    raise ValueError(f"{image}: class {int(classes[row])} but there are {nc} classes")


def check_pair(image: str, label_file: str, read: Read = read_labels) -> CheckedImage:
    """Checks an image file and reads its labels. Faults are collected; only UnknownClassError is raised."""
    labels = (lambda size: read(image, label_file, size)) if has_labels(label_file) else None
    return check_labelled_image(image, lambda: check_image(image), labels)


def _check_all(listing: Listing, prefix: str) -> Annotations:
    images = listing.images
    quiet = not LOGGER.isEnabledFor(logging.INFO)
    with ThreadPool(min(8, usable_cores())) as pool:
        # threads, not processes: most of the time goes into reading files, and nothing has to be sent across
        pairs = zip(images, listing.label_files)
        work = pool.imap(lambda pair: check_pair(*pair, listing.read), pairs, chunksize=16)
        checked = list(Bar(work, f"{prefix}checking labels", len(images), disable=quiet))
    return gather(images, checked)


def _check_shards(split: ShardSplit, fix_labels: str) -> Annotations:
    with ThreadPool(min(8, usable_cores())) as pool:
        shards = pool.imap(partial(check_shard, clip=fix_labels == "clip"), split.files)
        pairs = [pair for of_shard in shards for pair in of_shard]
    paths = [path for path, _ in pairs]
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise ValueError(f"{twice[0]}: the name comes twice in the shards")
    return gather(paths, [checked for _, checked in pairs])


def gather(images: list[str], checked: list[CheckedImage]) -> Annotations:
    """Puts checked images into arrays; the corrupt ones are left out."""
    used = [(path, image) for path, image in zip(images, checked) if not image.corrupt]
    labels = [image.labels for _, image in used]
    # a box has no corners, so that boxes and polygons can stand in one list
    polygons = [polygon for of in labels for polygon in of.polygons or [np.zeros((0, 2))] * len(of.rows)]
    counts = {kind: sum(getattr(image, kind) for image in checked) for kind in COUNTS[:-1]}
    return Annotations(
        images=[path for path, _ in used],
        sizes=np.array([image.size for _, image in used], np.int64).reshape(-1, 2),
        labels=np.concatenate([np.zeros((0, 5), np.float32), *(of.rows for of in labels)]),
        starts=_starts(len(of.rows) for of in labels),
        points=np.concatenate([np.zeros((0, 2)), *polygons]).astype(np.float32),
        point_starts=_starts(map(len, polygons)),
        counts={**counts, "total": len(checked)},
        faults=[fault for image in checked for fault in image.faults],
    )


def _refuse(annotations: Annotations, entry: Entry) -> None:
    faults = [str(replace(fault, left_out=False)) for fault in annotations.faults if fault.left_out]
    if len(faults) > FAULTS_SHOWN:
        faults[FAULTS_SHOWN:] = [f"... and {len(faults) - FAULTS_SHOWN} more"]
    count = f"{annotations.counts['corrupt']} of {annotations.counts['total']} images"
    raise ValueError("\n".join([f"{entry}: {count} cannot be used, which --strict forbids:", *faults]))


def _report(annotations: Annotations, entry: Entry, prefix: str) -> None:
    counts, faults = annotations.counts, [fault for fault in annotations.faults if fault.kind != "difficult"]
    LOGGER.info(
        f"{prefix}{entry}: {counts['total']} images; label files: {counts['found']} found, "
        f"{counts['missing']} missing, {counts['empty']} empty; {counts['corrupt']} corrupt"
    )
    if hard := len(annotations.faults) - len(faults):
        LOGGER.info(
            f"{prefix}{entry}: objects left out because they are marked as difficult or as crowds: {hard}; "
            "`difficult: true` in the data set YAML keeps them (tools/split.py --difficult writes one)"
        )
    for fault in faults[:FAULTS_SHOWN]:
        LOGGER.warning(f"{prefix}{fault}")
    if len(faults) > FAULTS_SHOWN:
        LOGGER.warning(f"{prefix}... and {len(faults) - FAULTS_SHOWN} more such messages")
    if outside := sum(fault.left_out and fault.kind == "range" for fault in faults):
        LOGGER.warning(
            f"{prefix}images left out for labels outside of 0-1: {outside}; --fix-labels clip keeps those that reach "
            "over their image by up to a pixel"
        )
    if not annotations.images:
        first = f"; the first fault: {faults[0]}" if faults else ""
        raise ValueError(f"{entry}: none of {counts['total']} images can be used{first}")
    if not counts["found"]:
        example = image_to_label_path(annotations.images[0])
        LOGGER.warning(f"{prefix}{entry}: no label files found; expected for example {example}")
    elif counts["missing"] > MANY_MISSING * counts["total"]:
        LOGGER.warning(
            f"{prefix}{entry}: {counts['missing']} of {counts['total']} images have no label file, so they count as "
            "background; tools/doctor.py lists them"
        )


# --- cache ------------------------------------------------------------------------------------------------------------


def cache_path(entry: Entry) -> Path:
    """Returns the cache file: `images/train` -> `labels/train.cache`, `train.txt` -> `train.cache`."""
    paths = [entry] if isinstance(entry, str) else getattr(entry, "paths", entry)
    paths = [os.path.normpath(path) for path in paths]
    first = paths[0]
    stem = labels_folder(first + os.sep).rstrip(os.sep) if os.path.isdir(first) else os.path.splitext(first)[0]
    if len(paths) > 1:
        stem += f".{zlib.crc32(os.fsencode(os.pathsep.join(paths))):08x}"
    return Path(stem + ".cache")


def files_digest(paths: list[str]) -> str:
    """Returns a checksum that changes when a file is added, removed, rewritten or moved."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except (OSError, ValueError):  # a name with a zero byte
            state = "missing"
        digest.update(os.fsencode(f"{path}\0{state}\n"))
    return digest.hexdigest()


def _own_cache(path: Path) -> bool:
    """Returns whether a file is a label cache, of this program or of v6.1, which may be read and replaced.

    It must be a plain file of this user, of root or of the owner of its folder; anything else is the user's own file.
    """
    try:
        status = path.lstat()
        owners = getattr(os, "geteuid", int)(), path.parent.stat().st_uid, 0  # 0 is everybody's on Windows
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in owners:
            return False
        with open(path, "rb") as file:
            start = file.read(200)
            of_v61 = start.startswith(b"\x93NUMPY") and b"'|O'" in start and b"version" in start + file.read(MAX_V61)
    except (OSError, ValueError):
        return False
    return not start or of_v61 or bool(HEADER.match(start))


def _save_cache(path: Path, digest: str, annotations: Annotations) -> None:
    if os.path.lexists(path) and not _own_cache(path):
        LOGGER.warning(
            f"{path} is not a label cache of yours, and is left alone; the labels are checked in each run. Rename that "
            "file to have them cached"
        )
        return
    counts = {f"count_{kind}": count for kind, count in annotations.counts.items()}
    texts = {"images": annotations.images}
    texts |= {f"fault_{name}": [getattr(f, name) for f in annotations.faults] for name in ("kind", "file", "words")}
    arrays = {name: getattr(annotations, name) for name in CACHED_ARRAYS}
    arrays["fault_line"] = np.array([fault.line or 0 for fault in annotations.faults], np.int64)
    arrays["fault_left_out"] = np.array([fault.left_out for fault in annotations.faults], bool)
    archive = io.BytesIO()
    np.savez(archive, **counts, **{name: _pack(text) for name, text in texts.items()}, **arrays)
    try:
        with atomic_write(path, sync=False) as file:
            file.write(_cache_header(digest, archive.getvalue()) + archive.getvalue())
    except OSError as error:
        LOGGER.warning(f"label cache {path} cannot be written ({error}); the next run will check the labels again")


def _load_cache(path: Path, digest: str, may_name: Callable[[str], bool]) -> Annotations | None:
    """Reads the stored result of a check; None if there is none, it is damaged or not ours, or files have changed.

    may_name: whether it may name an image of this path.

    The checksums show damage, not intent, so each value is checked too.
    """
    if not _own_cache(path):
        return None
    try:
        header, _, content = path.read_bytes().partition(b"\n")
        if header + b"\n" != _cache_header(digest, content):
            return None
        annotations = _unpacked(content)
    except (OSError, ValueError, LookupError, TypeError, EOFError, MemoryError, zipfile.BadZipFile):
        return None
    return annotations if _is_sound(annotations) and all(map(may_name, annotations.images)) else None


def _unpacked(content: bytes) -> Annotations:
    """Reads the archive of a cache. Raises ValueError, or an error of numpy or zipfile, where it is another archive."""
    if any(member.compress_type != zipfile.ZIP_STORED for member in zipfile.ZipFile(io.BytesIO(content)).infolist()):
        raise ValueError("a compressed member, which could be of any size")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        columns = [_unpack(archive[f"fault_{name}"]) for name in ("kind", "file", "words")]
        columns += [[line or None for line in archive["fault_line"].tolist()], archive["fault_left_out"].tolist()]
        if not set(columns[0]) <= set(FAULT_KINDS):
            raise ValueError("an unknown kind of fault")
        return Annotations(
            counts={name: int(archive[f"count_{name}"]) for name in COUNTS},
            images=_unpack(archive["images"]),
            faults=[
                Fault(kind=kind, file=file, words=words, line=line, left_out=left_out)
                for kind, file, words, line, left_out in zip(*columns, strict=True)
            ],
            **{name: archive[name] for name in CACHED_ARRAYS},
        )


def _is_sound(a: Annotations) -> bool:
    """Returns whether arrays have the types, shapes and ranges that a check gives, and agree with each other."""
    n, rows, corners = len(a.images), len(a.labels), len(a.points)
    shapes = {
        "sizes": (n, 2),
        "labels": (rows, 5),
        "starts": (n + 1,),
        "points": (corners, 2),
        "point_starts": (rows + 1,),
    }
    if any(
        getattr(a, name).shape != shape or getattr(a, name).dtype != CACHED_ARRAYS[name]
        for name, shape in shapes.items()
    ):
        return False
    for starts, end in ((a.starts, rows), (a.point_starts, corners)):
        if starts[0] != 0 or starts[-1] != end or (np.diff(starts) < 0).any():
            return False
    classes, boxes = a.labels[:, 0], a.labels[:, 1:]
    return bool(
        (a.sizes > 0).all()
        and ((classes >= 0) & (classes <= MAX_CLASS) & (classes % 1 == 0)).all()
        and ((boxes > -0.01) & (boxes < 1.01)).all()  # not for NaN
        and np.isfinite(a.points).all()
        and min(a.counts.values()) >= 0
        and n == a.counts["total"] - a.counts["corrupt"]
    )


def _cache_header(digest: str, archive: bytes) -> bytes:
    return f"labels {CACHE_VERSION} {digest} {hashlib.sha256(archive).hexdigest()}\n".encode()


def _pack(texts: list[str]) -> np.ndarray:
    return np.frombuffer("\0".join(texts).encode("utf-8", "surrogateescape"), np.uint8)


def _unpack(array: np.ndarray) -> list[str]:
    text = array.tobytes().decode("utf-8", "surrogateescape")
    return text.split("\0") if text else []
