"""Label files: one text file per image, one object per line, in fractions of the image's size.

    class x y width height              centre form, each 0-1
    class x1 y1 x2 y2 x3 y3 ...         polygon; its box is the smallest that holds every corner

COCO JSON and Pascal VOC XML are read by `utils.data.formats`. `scan` verifies every image and label of a dataset entry,
keeps them in contiguous arrays, and remembers the result in `<labels folder>.cache` until the path, size or time of
change of any file differs. The cache is one line of checksums, then a numpy archive without objects, so a foreign one
can do no harm.
"""

import hashlib
import io
import logging
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.formats import CocoSplit, Labels, Listing, Read, ShardSplit, UnknownClassError, VocSplit
from utils.data.images import check_image, list_images
from utils.files import atomic_write
from utils.log import LOGGER

CACHE_VERSION = 1
CACHED_ARRAYS = ("sizes", "labels", "starts", "points", "point_starts")
MESSAGES_SHOWN = 20
LEFT_OUT = "; the image is left out"  # how the message about a corrupt image ends
Entry = str | list[str] | CocoSplit | VocSplit | ShardSplit  # of a data set, as `utils.data.dataset_yaml` gives it
COLUMNS = ("class", "x", "y", "width", "height")


# --- one label file ---------------------------------------------------------------------------------------------------


def image_to_label_path(path: str | Path) -> str:
    """`.../images/a/b.jpg` -> `.../labels/a/b.txt`; the last folder called images counts.

    Without such a folder the label lies beside its image. Images that differ only in their suffix share a label file.
    """
    return os.path.splitext(_labels_folder(str(path)))[0] + ".txt"


def _labels_folder(path: str) -> str:
    images, labels = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"
    return labels.join(path.rsplit(images, 1))


def list_pairs(entry: Entry) -> Listing:
    """The images of a dataset entry, sorted, with their label files; raises what `list_images` and `open` raise."""
    if isinstance(entry, CocoSplit | VocSplit):
        return entry.open()
    images = list_images(entry)
    return Listing(images, [image_to_label_path(path) for path in images], read_labels)


def read_labels(image: str, label_file: str, size: tuple[int, int]) -> Labels:
    """The labels of an image from its text file."""
    return parse_labels(_read_text(label_file), label_file)


def parse_labels(text: str, path: str | Path, nc: int | None = None) -> tuple[np.ndarray, list[np.ndarray], list[str]]:
    """Reads the text of one label file.

    A file is read as polygons if any line has 7 numbers, or more than 8; a line of 5 is then a polygon of two corners,
    as in v6.1. Equal rows are kept once, and the rows then come out sorted, as in v6.1.

    Args:
        path: only for messages.
        nc: number of classes, where a class beyond it is an error.

    Returns:
        labels: float32 (n, 5): class, x, y, width, height.
        polygons: for a polygon file n arrays float32 (k, 2) of corners 0-1, row by row; otherwise empty.
        messages: what was put right, naming file and line.

    Raises ValueError `path:line: ...` at the first line that is not right.
    """
    lines, rows = _split_rows(text, path)
    messages: list[str] = []
    if not rows:
        return np.zeros((0, 5), np.float32), [], messages
    if any(len(row) == 7 or len(row) > 8 for row in rows):
        labels, polygons = _polygon_rows(lines, rows, path, messages)
    else:
        labels, polygons = _box_rows(lines, rows, path), []
    _check_values(labels, lines, path, nc)

    if len({row.tobytes() for row in labels}) < len(labels):
        total = len(labels)
        labels, kept = np.unique(labels, axis=0, return_index=True)
        polygons = [polygons[i] for i in kept] if polygons else []
        messages.append(f"{path}: {total - len(labels)} duplicate rows removed")
    return labels, polygons, messages


def _split_rows(text: str, path: str | Path) -> tuple[list[int], list[list[str]]]:
    """Line numbers and words of the lines that are not empty."""
    lines, rows = [], []
    for number, line in enumerate(text.rstrip().splitlines(), 1):
        words = line.split()
        if words:
            lines.append(number)
            rows.append(words)
        elif line and rows:
            raise ValueError(f"{path}:{number}: the line holds only blanks; delete it")
    return lines, rows


def _numbers(words: list[str], place: str) -> np.ndarray:
    numbers = []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError:
            raise ValueError(f"{place}: {word!r} is not a number") from None
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which the check of values refuses
        row = np.array(numbers, dtype=np.float32) + np.float32(0)  # -0 becomes 0: rows are compared byte by byte
    if np.isfinite(row[0]) and float(row[0]) != numbers[0]:
        raise ValueError(f"{place}: class must be a whole number below 2**24, got {words[0]}")
    return row


def _box_rows(lines: list[int], rows: list[list[str]], path: str | Path) -> np.ndarray:
    for line, row in zip(lines, rows):
        if len(row) != 5:
            raise ValueError(
                f"{path}:{line}: a line has 5 numbers (class x y width height), or an odd number from 7 up for a "
                f"polygon (class x1 y1 x2 y2 x3 y3 ...), but this one has {len(row)}"
            )
    return np.stack([_numbers(row, f"{path}:{line}") for line, row in zip(lines, rows)])


def _polygon_rows(
    lines: list[int], rows: list[list[str]], path: str | Path, messages: list[str]
) -> tuple[np.ndarray, list[np.ndarray]]:
    from utils.boxes import polygons_to_boxes  # brings torch, which commands that only list images do without

    classes, polygons = [], []
    for line, row in zip(lines, rows):
        if len(row) < 5 or len(row) % 2 == 0:
            raise ValueError(f"{path}:{line}: a polygon is a class and pairs x y, but the line has {len(row)} numbers")
        if len(row) == 5:
            messages.append(f"{path}:{line}: 5 numbers in a file of polygons are read as two corners, not as a box")
        numbers = _numbers(row, f"{path}:{line}")
        classes.append(numbers[0])
        polygons.append(numbers[1:].reshape(-1, 2))
    return np.column_stack([np.array(classes), polygons_to_boxes(polygons)]), polygons


def _check_values(labels: np.ndarray, lines: list[int], path: str | Path, nc: int | None) -> None:
    """Raises ValueError for the first row with a value out of its range; comparisons are false for NaN."""
    fits = (labels >= 0) & np.isfinite(labels)
    fits[:, 1:] &= labels[:, 1:] <= 1
    fits[:, 0] &= labels[:, 0] == np.floor(labels[:, 0])
    if nc is not None:
        fits[:, 0] &= labels[:, 0] < nc
    for row, column in np.argwhere(~fits)[:1]:
        value, limit = labels[row, column], f"0 to {nc - 1}" if nc is not None else "0, 1, 2 ..."
        rule = f"class must be a whole number, {limit}" if column == 0 else f"{COLUMNS[column]} must lie in 0-1"
        raise ValueError(f"{path}:{lines[row]}: {rule}, got {value:g}")


# --- one image with its label file ------------------------------------------------------------------------------------


@dataclass
class Pair:
    """An image and its labels as found on disk. The image counts for training unless it is corrupt."""

    size: tuple[int, int] = (0, 0)  # width, height in pixels
    labels: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))
    polygons: list[np.ndarray] = field(default_factory=list)
    found: bool = False  # there is a label file
    missing: bool = False  # there is none: the image shows background
    empty: bool = False  # the label file has no rows
    corrupt: bool = False  # image or labels are not usable
    messages: list[str] = field(default_factory=list)


def verify_pair(image_path: str, label_path: str, read: Read = read_labels) -> Pair:
    """Checks an image and reads its labels. Faults end up in `messages`, none is raised but UnknownClassError, no file
    is written.
    """
    pair = Pair()
    try:
        pair.size, remarks = check_image(image_path)
        pair.messages += remarks
        pair.found = os.path.isfile(label_path)
        pair.missing = not pair.found
        if pair.found:
            pair.labels, pair.polygons, remarks = read(image_path, label_path, pair.size)
            pair.messages += remarks
            pair.empty = len(pair.labels) == 0
    except UnknownClassError:
        raise
    except (ValueError, OSError) as error:
        pair.corrupt = True
        pair.messages.append(f"{error}{LEFT_OUT}")
    return pair


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8: {error}") from None


# --- a whole dataset --------------------------------------------------------------------------------------------------


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
    messages: list[str]

    def labels_of(self, i: int) -> np.ndarray:
        """(m, 5) rows of image i."""
        return self.labels[self.starts[i] : self.starts[i + 1]]

    def polygons_of(self, i: int) -> list[np.ndarray]:
        """m arrays (k, 2), row by row; k = 0 where the row was given as a box."""
        cuts = self.point_starts[self.starts[i] : self.starts[i + 1] + 1]
        return [self.points[a:b] for a, b in pairwise(cuts)]

    def take(self, order: np.ndarray) -> "Annotations":
        """The images numbered in `order`, in that order."""
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


def _starts(lengths: Iterable[int]) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _ragged_rows(starts: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the pieces in `order` laid end to end, and where each piece then starts."""
    lengths = np.diff(starts)[order]
    new_starts = _starts(lengths)
    return np.arange(new_starts[-1]) + np.repeat(starts[order] - new_starts[:-1], lengths), new_starts


def scan(
    entry: Entry, prefix: str = "", use_cache: bool = True, strict: bool = False, rehash: bool = False
) -> Annotations:
    """Verifies all images and labels of a dataset entry (see `list_pairs`), or takes the result from the cache.

    Images without labels stay as background; corrupt ones are left out and reported. Raises ValueError where no image
    is usable, and what `list_pairs` raises.

    Args:
        use_cache: False neither reads nor writes the cache file.
        strict: a corrupt image or label file is a ValueError that names them.
        rehash: every file is read again, though neither its size nor its time of change differs from the cache's.
    """
    listing = list_pairs(entry)
    files = [*listing.images, *dict.fromkeys(listing.label_files)]
    return cached(entry, files, lambda: _verify_all(listing, prefix), prefix, use_cache, strict, rehash)


def cached(
    entry: Entry,
    files: list[str],
    check: Callable[[], Annotations],
    prefix: str = "",
    use_cache: bool = True,
    strict: bool = False,
    rehash: bool = False,
) -> Annotations:
    """What check() finds in the files of an entry, or the same from the cache; the counts are reported either way."""
    kind = [] if isinstance(entry, str | list) else [repr(entry)]  # names and options that decide what is read
    digest = files_digest([*kind, *files])
    path = cache_path(entry)
    annotations = _load_cache(path, digest) if use_cache and not rehash else None
    if annotations is None:
        annotations = check()
        if use_cache and annotations.images and annotations.counts["found"]:  # else it is a mistake to be mended
            _save_cache(path, digest, annotations)
    if strict and annotations.counts["corrupt"]:
        _refuse(annotations, entry)
    _report(annotations, entry, prefix)
    return annotations


def _verify_all(listing: Listing, prefix: str) -> Annotations:
    images, label_files = listing.images, listing.label_files
    workers = min(8, os.cpu_count() or 1)
    quiet = not LOGGER.isEnabledFor(logging.INFO)
    with ThreadPool(workers) as pool:
        # threads, not processes: most of the time goes into reading files, and nothing has to be sent across
        work = pool.imap(lambda files: verify_pair(*files, listing.read), zip(images, label_files), chunksize=16)
        pairs = list(tqdm(work, f"{prefix}checking labels", len(images), disable=quiet))
    return gather(images, pairs)


def gather(images: list[str], pairs: list[Pair]) -> Annotations:
    """Images, each with what was found of it, in arrays; the corrupt ones are left out."""
    used = [(path, pair) for path, pair in zip(images, pairs) if not pair.corrupt]
    labels = [pair.labels for _, pair in used]
    # a box has no corners, so that boxes and polygons can stand in one list
    polygons = [polygon for _, pair in used for polygon in pair.polygons or [np.zeros((0, 2))] * len(pair.labels)]
    counts = {kind: sum(getattr(pair, kind) for pair in pairs) for kind in ("found", "missing", "empty", "corrupt")}
    return Annotations(
        images=[path for path, _ in used],
        sizes=np.array([pair.size for _, pair in used], np.int64).reshape(-1, 2),
        labels=np.concatenate([np.zeros((0, 5), np.float32), *labels]),
        starts=_starts(map(len, labels)),
        points=np.concatenate([np.zeros((0, 2)), *polygons]).astype(np.float32),
        point_starts=_starts(map(len, polygons)),
        counts={**counts, "total": len(pairs)},
        messages=[message for pair in pairs for message in pair.messages],
    )


def _refuse(annotations: Annotations, entry: Entry) -> None:
    faults = [message.removesuffix(LEFT_OUT) for message in annotations.messages if message.endswith(LEFT_OUT)]
    if len(faults) > MESSAGES_SHOWN:
        faults[MESSAGES_SHOWN:] = [f"... and {len(faults) - MESSAGES_SHOWN} more"]
    count = f"{annotations.counts['corrupt']} of {annotations.counts['total']} images"
    raise ValueError("\n".join([f"{entry}: {count} cannot be used, which --strict forbids:", *faults]))


def _report(annotations: Annotations, entry: Entry, prefix: str) -> None:
    counts, messages = annotations.counts, annotations.messages
    LOGGER.info(
        f"{prefix}{entry}: {counts['total']} images; label files: {counts['found']} found, "
        f"{counts['missing']} missing, {counts['empty']} empty; {counts['corrupt']} corrupt"
    )
    for message in messages[:MESSAGES_SHOWN]:
        LOGGER.warning(f"{prefix}{message}")
    if len(messages) > MESSAGES_SHOWN:
        LOGGER.warning(f"{prefix}... and {len(messages) - MESSAGES_SHOWN} more such messages")
    if not annotations.images:
        first = f"; the first fault: {messages[0]}" if messages else ""
        raise ValueError(f"{entry}: none of {counts['total']} images can be used{first}")
    if not counts["found"]:
        example = image_to_label_path(annotations.images[0])
        LOGGER.warning(f"{prefix}{entry}: no label files found; expected for example {example}")


# --- cache ------------------------------------------------------------------------------------------------------------


def cache_path(entry: Entry) -> Path:
    """`images/train` -> `labels/train.cache`, `train.txt` -> `train.cache`; several entries get a name of their own."""
    places = [
        os.path.normpath(place) for place in ([entry] if isinstance(entry, str) else getattr(entry, "places", entry))
    ]
    first = places[0]
    stem = _labels_folder(first + os.sep).rstrip(os.sep) if os.path.isdir(first) else os.path.splitext(first)[0]
    if len(places) > 1:
        stem += f".{zlib.crc32(os.fsencode(os.pathsep.join(places))):08x}"
    return Path(stem + ".cache")


def files_digest(paths: list[str]) -> str:
    """Changes when a file is added, removed, rewritten or moved."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(os.fsencode(f"{path}\0{state}\n"))
    return digest.hexdigest()


def _save_cache(path: Path, digest: str, annotations: Annotations) -> None:
    counts = {f"count_{kind}": count for kind, count in annotations.counts.items()}
    texts = {name: _pack(getattr(annotations, name)) for name in ("images", "messages")}
    arrays = {name: getattr(annotations, name) for name in CACHED_ARRAYS}
    archive = io.BytesIO()
    np.savez(archive, **counts, **texts, **arrays)
    try:
        with atomic_write(path, sync=False) as file:
            file.write(_cache_header(digest, archive.getvalue()) + archive.getvalue())
    except OSError as error:
        LOGGER.warning(f"label cache {path} cannot be written ({error}); the next run will check the labels again")


def _load_cache(path: Path, digest: str) -> Annotations | None:
    """The stored scan; None if there is none, it is damaged or not ours, or it was made from other files."""
    try:
        header, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if header + b"\n" != _cache_header(digest, content):
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return Annotations(
            counts={name[6:]: int(archive[name]) for name in archive.files if name.startswith("count_")},
            images=_unpack(archive["images"]),
            messages=_unpack(archive["messages"]),
            **{name: archive[name] for name in CACHED_ARRAYS},
        )


def _cache_header(digest: str, archive: bytes) -> bytes:
    return f"labels {CACHE_VERSION} {digest} {hashlib.sha256(archive).hexdigest()}\n".encode()


def _pack(texts: list[str]) -> np.ndarray:
    return np.frombuffer("\0".join(texts).encode("utf-8", "surrogateescape"), np.uint8)


def _unpack(array: np.ndarray) -> list[str]:
    text = array.tobytes().decode("utf-8", "surrogateescape")
    return text.split("\0") if text else []
