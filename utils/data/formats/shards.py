"""WebDataset tar shards: for sets larger than one disk, read from front to back.

A sample is an image and its labels under one name, side by side in a shard:

    000017.jpg   000017.txt     the lines of a label file (see `utils.data.formats.yolo`), or
                 000017.json    {"class": [0, 2], "boxes": [[x, y, width, height], ...]}, centre form, 0-1

Images are named as if a shard were a folder: `train-000.tar/000017.jpg`.
"""

import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from utils.archives import LimitedFile
from utils.data.faults import Fault, FaultError, Location
from utils.data.formats.yolo import label_lines, objects_of, parse_labels, report_changes
from utils.data.image_header import MAX_BYTES_PER_PIXEL, max_pixels
from utils.data.images import IMAGE_SUFFIXES, check_image
from utils.data.labels import (
    CheckedImage,
    ImageLabels,
    LabelledImage,
    LabelledSplit,
    Size,
    check_labelled_image,
    safe_name,
)
from utils.files import stays_below, write_yaml
from utils.text import decode_text

IMAGES_PER_SHARD = 1000  # of those that `save` writes


@dataclass(frozen=True)
class ShardSplit:
    """The shards of a split; stands in a dataset's entry where a folder of images would."""

    files: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Returns the files of labels."""
        return self.files

    def __str__(self) -> str:
        return f"{self.files[0]} and {len(self.files) - 1} other shards" if len(self.files) > 1 else self.files[0]


# --- reading ----------------------------------------------------------------------------------------------------------


def read_shard(file: str) -> Iterator[dict]:
    """Reads samples {"__key__": name, "jpg": bytes, "txt": bytes, ...}. Raises FaultError for a damaged shard."""
    # not the library's own opening of files, which runs what follows `pipe:` in a shell; nor its reading of them, which
    # makes room for all that a header promises
    from webdataset.tariterators import group_by_keys

    with _damage_named(file):
        files = ({"fname": member.name, "data": read(), "__url__": file} for member, read in _files_in(file))
        yield from group_by_keys(files)


@contextmanager
def _damage_named(file: str) -> Iterator[None]:
    """Raises what reading a damaged shard raises as a FaultError with its name."""
    try:
        yield
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        words = f"the tar shard is damaged: {error.args[0] if error.args else error}"
        raise FaultError(Fault("image", file, words)) from None


def _files_in(file: str) -> Iterator[tuple[tarfile.TarInfo, Callable[[], bytes]]]:
    """Yields each plain file in a tar, and a function that reads it.

    Raises ValueError, or an error of tarfile, for a file that is stored sparsely or is larger than an image can be.
    """
    maximum = MAX_BYTES_PER_PIXEL * max_pixels()
    headers = 2 * os.path.getsize(file)  # bytes: tarfile reads some of them twice
    with open(file, "rb") as stream, tarfile.open(fileobj=LimitedFile(stream, headers, file), mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # it would keep all of them
            if not member.isreg() or re.match(r"__[^/]*__($|/)", member.name):  # the second are notes of the library
                continue
            if member.issparse() or not 0 <= member.size <= maximum:
                raise ValueError(f"{member.name!r:.80} is stored sparsely, or has more than {maximum} bytes")
            yield member, partial(_read, stream, member)


def _read(stream: IO[bytes], member: tarfile.TarInfo) -> bytes:
    stream.seek(member.offset_data)
    data = stream.read(member.size)
    if len(data) < member.size:
        raise EOFError("the file ends before its last member does")
    return data


def image_of(file: str, sample: dict) -> tuple[str, bytes]:
    """Returns the path of a sample's image, and its bytes. Raises FaultError where it has no image."""
    if not stays_below(sample["__key__"]):
        fault = Location(f"{file}/{sample['__key__']}").fault(
            "image", "a name in a shard must have no `..` and no / in front"
        )
        raise FaultError(fault)
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in sample), None)
    if suffix is None:
        words = "no image of this name; a file name must have only one dot, before a suffix such as jpg or png"
        raise FaultError(Fault("image", f"{file}/{sample['__key__']}", words))
    return f"{file}/{sample['__key__']}.{suffix}", sample[suffix]


def check_shard(file: str, clip: bool = False) -> list[tuple[str, CheckedImage]]:
    """Checks a shard: the path of every image with what was found; of a sample without an image its name.

    clip: see `utils.data.formats.yolo.parse_labels`.
    """
    return [_check_sample(file, sample, clip) for sample in read_shard(file)]


def _check_sample(file: str, sample: dict, clip: bool) -> tuple[str, CheckedImage]:
    name = f"{file}/{sample['__key__']}"
    try:
        path, data = image_of(file, sample)
    except FaultError as error:
        return name, CheckedImage(corrupt=True, faults=[error.leaving_out()])
    kind = next((kind for kind in ("txt", "json") if kind in sample), None)
    read = (lambda size: _labels_of(sample[kind], kind, name, size if clip else None)) if kind else None
    return path, check_labelled_image(path, lambda: check_image(path, data), read)


def _labels_of(data: bytes, kind: str, name: str, clip_to: Size | None) -> ImageLabels:
    return parse_labels(_text_of(data, kind, name), f"{name}.{kind}", clip_to=clip_to)


def _text_of(data: bytes, kind: str, name: str) -> str:
    """Returns the lines of a label file."""
    location = Location(f"{name}.{kind}")
    try:
        if kind == "txt":
            return decode_text(data)
        content = json.loads(data)
        rows = zip(content["class"], content["boxes"], strict=True)
        return "\n".join(" ".join(str(number) for number in (label, *box)) for label, box in rows)
    except UnicodeDecodeError as error:
        raise location.error("format", f"not text in UTF-8: {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        words = 'expected {"class": [...], "boxes": [[x, y, width, height], ...]}'
        raise location.error("format", words) from None


# --- conversion -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedFile:
    """A file inside a tar file."""

    tar: str
    start: int  # of its first byte
    size: int

    def read_bytes(self) -> bytes:
        """Returns its content."""
        with open(self.tar, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def load(split: ShardSplit, names: Sequence[str]) -> LabelledSplit:
    """Reads the images and objects of the shards. Raises FaultError for whatever cannot be used."""
    images = []
    for file in split.files:
        packed = _packed_files(file)
        for path, checked in check_shard(file):
            location = Location(path)
            if checked.corrupt:
                raise FaultError(replace(checked.faults[-1], left_out=False))
            if beyond := [int(c) for c in checked.labels.rows[:, 0] if c >= len(names)]:
                raise location.error("class", f"class {beyond[0]} but there are {len(names)} classes")
            name = path.removeprefix(f"{file}/")
            image = LabelledImage(safe_name(name, location), *checked.size, [], packed[name])
            image.objects += objects_of(checked.labels, names, checked.size)
            images.append(image)
    return LabelledSplit(list(names), images)


def _packed_files(file: str) -> dict[str, PackedFile]:
    """Lists the files in a shard by their names, with suffixes in small letters, as `read_shard` has them."""
    packed = {}
    with _damage_named(file):
        for member, _ in _files_in(file):
            stem, dot, suffix = member.name.rpartition(".")
            packed[f"{stem}{dot}{suffix.lower()}"] = PackedFile(file, member.offset_data, member.size)
    return packed


def save(out: Path, splits: dict[str, LabelledSplit], names: list[str]) -> None:
    """Writes data.yaml and `split-000000.tar` and so on, with the images in them.

    Raises ValueError where the name of an image has more than one dot.
    """
    changes, entries = Counter(), {}
    for split, labels in splits.items():
        starts = range(0, max(len(labels.images), 1), IMAGES_PER_SHARD)
        for number, start in enumerate(starts):
            out.mkdir(parents=True, exist_ok=True)
            with tarfile.open(out / f"{split}-{number:06}.tar", "x") as tar:
                for image in labels.images[start : start + IMAGES_PER_SHARD]:
                    path = PurePosixPath(image.name)
                    if "." in path.stem:
                        raise ValueError(f"{split}: {image.name}: in a shard a name has one dot only; rename the image")
                    _add(tar, image.name, image.source.read_bytes())
                    text = "".join(label_lines(image, names, changes))
                    _add(tar, str(path.with_suffix(".txt")), text.encode())
        entries[split] = f"{split}-{{000000..{len(starts) - 1:06}}}.tar"
    report_changes(changes)
    write_yaml(out / "data.yaml", {"path": ".", **entries, "nc": len(names), "names": names})


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
