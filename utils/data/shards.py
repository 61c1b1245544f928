"""WebDataset tar shards, for sets larger than one disk: read from front to back, never by index.

A sample is an image and its labels under one name, side by side in a shard:

    000017.jpg   000017.txt     the lines of a label file (see `utils.data.labels`), or
                 000017.json    {"class": [0, 2], "boxes": [[x, y, width, height], ...]}, centre form, 0-1
"""

import json
import tarfile
from collections.abc import Iterator

from utils.data.images import IMAGE_SUFFIXES, check_image
from utils.data.labels import Pair, parse_labels


def read_shard(file: str) -> Iterator[dict]:
    """The samples of a shard: {"__key__": name, "jpg": bytes, "txt": bytes, ...}. ValueError for a damaged one."""
    # not the library's own opening of files, which runs what follows `pipe:` in a shell
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with open(file, "rb") as stream:
        try:
            yield from group_by_keys(tar_file_expander([{"url": file, "stream": stream}]))
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise ValueError(f"{file}: not a sound tar shard: {error.args[0] if error.args else error}") from None


def image_of(file: str, sample: dict) -> tuple[str, bytes]:
    """Path of a sample's image, as if the shard were a folder, and its bytes. ValueError where there is none."""
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in sample), None)
    if suffix is None:
        raise ValueError(
            f"{file}/{sample['__key__']}: no image; a name has one dot, before a suffix such as jpg or png"
        )
    return f"{file}/{sample['__key__']}.{suffix}", sample[suffix]


def _labels_text(data: bytes, kind: str, place: str) -> str:
    """The lines of a label file."""
    try:
        if kind == "txt":
            return data.decode()
        content = json.loads(data)
        rows = zip(content["class"], content["boxes"], strict=True)
        return "\n".join(" ".join(str(number) for number in (label, *box)) for label, box in rows)
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}.{kind}: not text in UTF-8: {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f'{place}.json: expected {{"class": [...], "boxes": [[x, y, width, height], ...]}}') from None


def check_shard(file: str) -> list[tuple[str, Pair]]:
    """Image paths of a shard, with what was found of each."""
    found = []
    for sample in read_shard(file):
        pair, place = Pair(), f"{file}/{sample['__key__']}"
        path = place
        try:
            path, data = image_of(file, sample)
            pair.size, remarks = check_image(path, data)
            pair.messages += remarks
            kind = next((kind for kind in ("txt", "json") if kind in sample), None)
            pair.found, pair.missing = kind is not None, kind is None
            if kind:
                text = _labels_text(sample[kind], kind, place)
                pair.labels, pair.polygons, remarks = parse_labels(text, f"{place}.{kind}")
                pair.messages += remarks
                pair.empty = len(pair.labels) == 0
        except ValueError as error:
            pair.corrupt = True
            pair.messages.append(f"{error}; the image is left out")
        found.append((path, pair))
    return found
