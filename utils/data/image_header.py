"""What the first bytes of an image file say: its kind, and its size before a pixel is decoded.

Only the kinds in `KINDS` are ever decoded, whatever a file is called, and only up to `max_pixels()`.
"""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from utils.data.faults import Fault, FaultError

MAX_PIXELS = 2**28  # of one image: 16384 x 16384, 805 MB in colour
LIMIT_VARIABLE = "YOLOv5_MAX_IMAGE_PIXELS"  # of the environment: another maximum
MAX_BYTES_PER_PIXEL = 16  # of a file, against MAX_PIXELS: more than any image without compression
MAX_PAGES = 10_000  # of a TIFF
MAX_SEGMENTS = 100_000  # of a JPEG, before its pixels

# What Pillow opens each kind with. `Image.open` would try kinds that run other programs, such as PostScript; and its
# own maximum, lower than OpenCV's, is a setting of the whole process.
KINDS: dict[str, Callable[[BinaryIO], Image.Image]] = {
    "BMP": BmpImagePlugin.BmpImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,  # MPO too
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,  # DNG too
    "WebP": WebPImagePlugin.WebPImageFile,
}

Reader = Callable[[int, int], bytes]  # (position, n) -> up to n bytes of the file


def max_pixels() -> int:
    """Returns how many pixels an image may have: MAX_PIXELS, or what the environment says."""
    text = os.environ.get(LIMIT_VARIABLE, str(MAX_PIXELS))
    if not text.isascii() or not text.isdecimal() or len(text) > 15 or int(text) < 1:
        raise ValueError(f"{LIMIT_VARIABLE} must be a whole number of pixels, 1 or more, got {text!r:.80}")
    return int(text)


def reader_of(source: BinaryIO | np.ndarray) -> Reader:
    """Returns a reader of a file, or of bytes uint8 (n,)."""
    if isinstance(source, np.ndarray):
        return lambda position, n: source[position : position + n].tobytes()

    def read(position: int, n: int) -> bytes:
        if position >= 2**63:  # more than a file can have
            return b""
        source.seek(position)
        return source.read(n)

    return read


def check_file_size(path: str | Path) -> None:
    """Raises FaultError where path is no plain file, or is larger than an image of `max_pixels()` can be."""
    status = os.stat(path)
    if not os.path.isfile(path):  # a pipe or a device, which may have no end
        raise _fault(path, "not a plain file")
    if status.st_size > MAX_BYTES_PER_PIXEL * max_pixels():
        raise _fault(path, f"the file has {status.st_size} bytes, too many for an image")


def check_header(read: Reader, path: str | Path) -> tuple[str, int]:
    """Returns the kind of an image file, a key of KINDS, and the number of its pages (1, but for a TIFF).

    Raises FaultError where it is of another kind, states no size, or states more than `max_pixels()` for a page.
    """
    start = read(0, 12)
    if not start:
        raise _fault(path, "image cannot be decoded: the file is empty")
    kind = _kind(start)
    if kind is None:
        raise _fault(path, f"image cannot be decoded: its first bytes are not those of {', '.join(KINDS)}")
    try:
        sizes, pages = _SIZES[kind](read)
    except (ValueError, struct.error):  # the file ends before, or there are more parts than any program writes
        sizes, pages = [], 0
    if not sizes:
        raise _fault(path, f"image cannot be decoded: its header holds no valid size of a {kind} image")
    limit = max_pixels()
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    if width * height > limit:
        raise _fault(
            path,
            f"the header states {width} x {height} pixels, more than {limit}; for larger images, set "
            f"{LIMIT_VARIABLE} in the environment",
        )
    return kind, pages


def _fault(path: str | Path, words: str) -> FaultError:
    return FaultError(Fault("image", str(path), words))


def _kind(start: bytes) -> str | None:
    if start[4:8] == b"ftyp":  # by which OpenCV knows AVIF, however it begins
        return None
    if start[:4] == b"RIFF":
        return "WebP" if start[8:12] == b"WEBP" else None
    starts = {b"BM": "BMP", b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
    starts |= dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF")
    return next((kind for first, kind in starts.items() if start.startswith(first)), None)


# --- the sizes that a file states, and its number of pages ------------------------------------------------------------

Sizes = tuple[list[tuple[int, int]], int]


def _bmp(read: Reader) -> Sizes:
    (length,) = struct.unpack("<I", read(14, 4))
    width, height = struct.unpack("<HH", read(18, 4)) if length == 12 else struct.unpack("<ii", read(18, 8))
    return [(abs(width), abs(height))], 1  # a negative height: rows from top to bottom


def _png(read: Reader) -> Sizes:
    return [struct.unpack(">II", read(16, 8))], 1


def _webp(read: Reader) -> Sizes:
    chunk = read(12, 18)
    if len(chunk) < 18:
        return [], 1
    if chunk[:4] == b"VP8X":
        return [(1 + int.from_bytes(chunk[12:15], "little"), 1 + int.from_bytes(chunk[15:18], "little"))], 1
    if chunk[:4] == b"VP8L":
        (bits,) = struct.unpack("<I", chunk[9:13])
        return [(1 + bits % 2**14, 1 + (bits >> 14) % 2**14)], 1
    width, height = struct.unpack("<HH", chunk[14:18])
    return ([(width % 2**14, height % 2**14)] if chunk[:4] == b"VP8 " else []), 1


def _jpeg(read: Reader) -> Sizes:
    """Walks from segment to segment to the first scan."""
    sizes, position = [], 2
    for _ in range(MAX_SEGMENTS):
        head = read(position, 9)
        if head[:1] != b"\xff":  # bytes between segments are passed over, as the decoders do
            ahead = read(position, 2**16)
            position += ahead.find(b"\xff") if b"\xff" in ahead else len(ahead)
            if not ahead:
                return sizes, 1
        elif head[1:2] == b"\xff":  # padding
            position += 1
        elif len(head) < 4 or head[1] == 0xDA:
            return sizes, 1
        elif head[1] in (0x00, 0x01, *range(0xD0, 0xDA)):  # without a length
            position += 2
        else:
            if 0xC0 <= head[1] <= 0xCF and head[1] not in (0xC4, 0xC8, 0xCC):  # start of frame
                height, width = struct.unpack(">HH", head[5:9])
                sizes.append((width, height))
            position += 2 + struct.unpack(">H", head[2:4])[0]
    raise ValueError(f"more than {MAX_SEGMENTS} segments")


def _tiff(read: Reader) -> Sizes:
    """Walks from page to page, of a TIFF or a BigTIFF. The sides of tiles count as sizes: they are decoded whole."""
    order, big = ("<" if read(0, 2) == b"II" else ">"), b"+" in read(2, 2)
    word, short, length, head = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    entry = np.dtype(
        [("tag", f"{order}u2"), ("type", f"{order}u2"), ("count", f"{order}u{head}"), ("value", "V", head)]
    )
    sizes, seen = [], set()
    (position,) = struct.unpack(order + word, read(head, head))
    while position:
        if position in seen or len(seen) >= MAX_PAGES:
            raise ValueError(f"pages in a circle, or more than {MAX_PAGES}")
        seen.add(position)
        width_of_count = struct.calcsize(order + short)
        count = min(struct.unpack(order + short, read(position, width_of_count))[0], 2**16)
        data = read(position + width_of_count, count * length)
        entries = np.frombuffer(data[: len(data) // length * length], entry)
        sides: dict[int, int] = {}
        for row in entries[np.isin(entries["tag"], (256, 257, 322, 323))]:
            tag, value = int(row["tag"]), _whole(row, order, big)
            sides[tag] = max(value, sides.get(tag, 0))
        sizes.append((sides[256], sides[257]) if {256, 257} <= set(sides) else (0, 0))
        sizes.append((sides.get(322, 0), sides.get(323, 0)))
        following = read(position + width_of_count + count * length, head)
        position = struct.unpack(order + word, following)[0] if len(following) == head else 0
    return (sizes if sizes and sizes[0] != (0, 0) else []), len(seen)


def _whole(row: np.void, order: str, big: bool) -> int:
    letters = {1: "B", 3: "H", 4: "I", **({16: "Q"} if big else {})}
    if row["count"] != 1 or int(row["type"]) not in letters:
        raise ValueError("the side of an image must be one whole number")
    form = order + letters[int(row["type"])]
    return struct.unpack(form, row["value"].tobytes()[: struct.calcsize(form)])[0]


_SIZES = {"BMP": _bmp, "JPEG": _jpeg, "PNG": _png, "TIFF": _tiff, "WebP": _webp}
