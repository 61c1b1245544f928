"""Image files: listing them, checking that they are sound, and reading their pixels. Nothing here writes to them."""

import io
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageOps

from utils.data.faults import Fault, FaultError
from utils.data.image_header import KINDS, check_file_size, check_header, reader_of
from utils.files import MAX_LIST, read_at_most
from utils.log import LOGGER
from utils.text import decode_text

IMAGE_SUFFIXES = ("bmp", "dng", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp")
# of images that are not read, and so have to be told of: kinds that only some builds of OpenCV or Pillow decode
OTHER_SUFFIXES = (
    "arw", "avif", "cr2", "cr3", "exr", "gif", "hdr", "heic", "heif", "jfif", "jp2", "jpe", "jxl", "nef", "pbm", "pgm",
    "pnm", "ppm", "psd", "svg", "tga",
)  # fmt: skip
VIDEO_SUFFIXES = ("asf", "avi", "gif", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "webm", "wmv")

MIN_SIDE = 10  # pixels; smaller images are not trained on
ORIENTATION = 0x0112  # EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # its values that turn the image on its side

_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}

# what Pillow raises over damaged files
_IMAGE_ERRORS = (
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    LookupError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def list_images(entry: str | Path | list[str | Path]) -> list[str]:
    """Returns the paths of all images of a dataset entry, sorted, each once.

    An entry is a folder (searched with its sub-folders; hidden names are passed over), a text file with one image path
    per line (see `listed_files`), or a list of such entries. All paths are absolute: the label of `images/a.jpg` is in
    the folder labels beside images. Raises FileNotFoundError for a missing entry, ValueError where there is no image.
    """
    found: set[str] = set()
    for path in entry if isinstance(entry, list) else [entry]:
        if os.path.isdir(path):
            files = _files_below(str(Path(path).absolute()))
            tell_of_other_kinds(files, path)
        elif os.path.isfile(path):
            files = [str(Path(line).absolute()) for line in listed_files(Path(path))]
            if others := [file for file in files if not is_image(file)]:
                LOGGER.warning(
                    f"{path}: lines that name no image file, left out: {len(others)}; the first: {others[0]}"
                )
        else:
            raise FileNotFoundError(f"no such folder or list file of images: {path}")
        found.update(files)
    images = sorted(path for path in found if is_image(path))
    if not images:
        raise ValueError(f"no images in {entry}; an image file ends in {', '.join(IMAGE_SUFFIXES)}")
    return images


def tell_of_other_kinds(files: Iterable[str | Path], where: str | Path) -> None:
    """Warns of the files of a folder that are images of a kind which is not read."""
    counts = Counter(suffix for file in files if (suffix := os.path.splitext(file)[1][1:].lower()) in OTHER_SUFFIXES)
    if counts:
        kinds = ", ".join(f"{count} .{suffix}" for suffix, count in sorted(counts.items()))
        advice = "rename .jfif to .jpg" if set(counts) <= {"jfif", "jpe"} else "save them as .jpg or .png"
        LOGGER.warning(f"{where}: images of kinds that are not read, left out: {kinds}; {advice}")


def is_image(path: str | Path) -> bool:
    """Returns True if the name ends as one of IMAGE_SUFFIXES, in capitals or not."""
    return os.path.splitext(path)[1][1:].lower() in IMAGE_SUFFIXES


def _files_below(folder: str) -> list[str]:
    """Returns the files of a folder and its sub-folders. A link to a folder above is not walked, for ever, again."""
    files, waiting = [], [(folder, frozenset())]
    while waiting:
        parent, above = waiting.pop()
        real = os.path.realpath(parent)
        if real in above:
            continue
        with os.scandir(parent) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append((entry.path, above | {real}))
                else:
                    files.append(entry.path)
    return files


def listed_files(list_file: Path) -> list[str]:
    """Returns the lines of a text file without empty ones: paths, but also what else detect.py takes.

    A leading `./` means the text file's folder, another relative path the current folder, as in v6.1. Where there is no
    such file, one beside the text file, above it, or in the other of the two folders is meant.
    """
    lines = decode_text(read_at_most(list_file, MAX_LIST), errors="surrogateescape").splitlines()
    return [_find_listed(line.strip(), list_file.parent) for line in lines if line.strip()]


def _find_listed(line: str, folder: Path) -> str:
    name = line.replace("\\", "/") if os.sep == "/" and not os.path.exists(line) else line
    usual = str(folder / name[2:]) if name.startswith("./") else name
    if os.path.isabs(name) or "://" in name or not os.path.splitext(name)[1] or os.path.isfile(usual):
        return usual
    # CVAT writes data/obj_train_data/a.jpg for what is in obj_train_data beside its list
    others = [name, folder / name, folder.parent / name, folder / name.partition("/")[2]]
    return str(next((path for path in others if os.path.isfile(path)), usual if name.startswith("./") else line))


def check_image(path: str | Path, data: bytes | None = None) -> tuple[tuple[int, int], list[Fault]]:
    """Checks an image file: a sound JPEG or PNG without decoding its pixels, other kinds by reading them.

    data: the file's bytes, where they do not lie at path.

    Returns the (width, height) that `read_image` will give, and faults of the kind "odd".
    Raises FaultError, naming the file, for what cannot be trained on.
    """
    remarks = []
    try:
        if data is None:
            check_file_size(path)
        with open(path, "rb") if data is None else io.BytesIO(data) as file:
            image = open_with_pillow(file, path)
            width, height = _upright_size(image)
            image.verify()
            if image.format == "JPEG" and not _ends_as_jpeg(file):
                open_with_pillow(file, path).load()  # raises where the image itself is cut short
                remarks.append(Fault("odd", str(path), "bytes after the end of the JPEG image; read without them"))
    except FaultError:
        raise
    except _IMAGE_ERRORS as error:
        raise _unreadable(path, f"not a readable image: {error}") from None
    if image.format == "TIFF" and image.mode in ("I", "F"):
        raise _unreadable(path, "pixels of 32 bits cannot be read; save the image with 8 or 16 bits")
    if min(width, height) < MIN_SIDE:
        raise _unreadable(path, f"image is {width} x {height} pixels; each side must have at least {MIN_SIDE}")
    sound = image.format in ("JPEG", "MPO", "PNG")
    if not sound or _exif_without_orientation(image):
        content = np.fromfile(path, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        if not sound:
            # neither checksums nor an end mark show a file cut short; OpenCV passes over damaged strips of a TIFF
            _decode_with_pillow(content, path, "RGB")
        found = decode_image(content, path).shape
        if found[:2] != (height, width):  # over damaged EXIF data the two libraries differ
            raise _unreadable(path, f"size or EXIF data is damaged: {width} x {height} or {found[1]} x {found[0]}?")
    return (width, height), remarks


def open_with_pillow(file: BinaryIO, path: str | Path) -> Image.Image:
    """Opens an image with Pillow, its pixels undecoded. Raises FaultError where `check_header` does."""
    kind, _ = check_header(reader_of(file), path)
    file.seek(0)
    try:
        return KINDS[kind](file)
    except _IMAGE_ERRORS as error:
        raise _unreadable(path, f"not a readable image: {error}") from None


def _unreadable(path: str | Path, words: str) -> FaultError:
    return FaultError(Fault("image", str(path), words))


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if image.format == "TIFF":
        # some versions of Pillow have already turned `size`
        width, height = image.tag_v2[256], image.tag_v2[257]
    elif "exif" not in image.info:
        return width, height  # not asked by getexif, which would decode the pixels of a png
    sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
    return (height, width) if sideways else (width, height)


def is_turned(path: str | Path) -> bool:
    """Returns whether the EXIF data of an image file turn it on its side."""
    with open(path, "rb") as file:
        return open_with_pillow(file, path).getexif().get(ORIENTATION) in SIDEWAYS


def _exif_without_orientation(image: Image.Image) -> bool:
    return "exif" in image.info and image.getexif().get(ORIENTATION) not in range(1, 9)


def _ends_as_jpeg(file) -> bool:
    file.seek(-2, os.SEEK_END)
    return file.read() == b"\xff\xd9"


def read_image(path: str | Path, channels: int = 3, shrink: float = 1) -> np.ndarray:
    """Reads the pixels of an image file: uint8 (height, width, channels), turned upright as its EXIF data asks.

    channels: 1 for grey; 3 for colour in BGR order, where grey becomes three equal channels and transparency is
        dropped; another number for files that hold just as many, in one image or in grey pages (TIFF), in order.
    shrink: the factor by which the sides may come out smaller. A JPEG in colour is then decoded at 1/2, 1/4 or 1/8,
        but not smaller than asked for, its sides rounded up: much faster, each pixel the mean of those it stands for.

    16 bits are scaled to 8. Raises FileNotFoundError, or FaultError where the file cannot be decoded.
    """
    return decode_image(read_bytes(path), path, channels, shrink)


def read_bytes(path: str | Path) -> np.ndarray:
    """Returns the bytes of an image file, uint8 (n,). Raises FaultError where `check_file_size` does."""
    check_file_size(path)
    # and not cv2.imread, which on Windows opens no path with letters outside the local code page
    return np.fromfile(path, dtype=np.uint8)


def decode_image(data: np.ndarray, path: str | Path, channels: int = 3, shrink: float = 1) -> np.ndarray:
    """Decodes an image as `read_image` does, from the bytes of a file, uint8 (n,); path is only for messages."""
    kind, pages = check_header(reader_of(data), path)
    if kind == "PNG":
        _check_png(memoryview(data), path)
    if channels not in (1, 3):
        return _decode_pages(data, path, channels, pages)
    flag = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    if channels == 3 and shrink >= 2 and kind == "JPEG":  # of other kinds OpenCV would drop pixels
        flag = next(flag for factor, flag in _REDUCED.items() if shrink >= factor)
    try:
        image = cv2.imdecode(data, flag)
    except cv2.error:  # for a header that promises more pixels than OpenCV takes
        image = None
    if image is None:
        image = _decode_with_pillow(data, path, "RGB" if channels == 3 else "L")
    return image.reshape(*image.shape[:2], channels)


def _check_png(data: memoryview, path: str | Path) -> None:
    """Raises FaultError for a PNG with a part longer than the file: OpenCV would make room for it, before it looks."""
    position = 8
    while position < len(data) and data[position + 4 : position + 8] != b"IEND":
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    if position > len(data):
        raise _unreadable(path, "image cannot be decoded: a part of the PNG is longer than the file")


def _decode_with_pillow(data: np.ndarray, path: str | Path, mode: str) -> np.ndarray:
    """Decodes the kinds of image that OpenCV does not know."""
    try:
        with open_with_pillow(io.BytesIO(data), path) as image:
            pixels = pillow_pixels(image, mode)
    except FaultError:
        raise
    except _IMAGE_ERRORS as error:
        raise _unreadable(path, f"image cannot be decoded: {error}") from None
    return np.ascontiguousarray(pixels[..., ::-1]) if mode == "RGB" else pixels


def pillow_pixels(image: Image.Image, mode: str) -> np.ndarray:
    """Returns the pixels of a Pillow image, uint8 in `mode` (RGB or L), upright as its EXIF data asks.

    16 bits are scaled to 8, as those of a file are. Raises ValueError for pixels of 32 bits, whose range is not known.
    """
    upright = ImageOps.exif_transpose(image)
    # some versions of Pillow open a PNG of 16 bits as I
    if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format == "PNG"):
        upright = Image.fromarray((np.asarray(upright).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))
    if upright.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {upright.mode}) have no known range; convert them to 8 or 16 bits")
    return np.array(upright.convert(mode))


def _decode_pages(data: np.ndarray, path: str | Path, channels: int, count: int) -> np.ndarray:
    """Decodes an image of neither one nor three channels: all that the file holds, page by page (`count` of them)."""
    if count > channels:
        raise _unreadable(
            path, f"image has {count} pages, but the data set YAML or the weights say channels: {channels}"
        )
    try:
        pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)[1]
    except cv2.error:
        pages = ()
    if not pages:
        raise _unreadable(path, "image cannot be decoded")
    shapes = {page.shape[:2] for page in pages}
    if len(shapes) > 1:
        raise _unreadable(path, f"pages differ in size: {sorted(shapes)}; they must be channels of one image")
    image = np.dstack(pages)
    if image.shape[2] != channels:
        found = image.shape[2]
        raise _unreadable(
            path, f"image has {found} channels, but the data set YAML or the weights say channels: {channels}"
        )
    with open_with_pillow(io.BytesIO(data), path) as header:
        if header.getexif().get(ORIENTATION, 1) != 1:  # which OpenCV obeys only for grey and colour
            raise _unreadable(path, f"an image of {channels} channels must be stored upright, not turned by EXIF data")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise _unreadable(path, f"pixels must have 8 or 16 bits, got {image.dtype}")
    return image


def fit_channels(image: np.ndarray, channels: int, bgr: bool = True) -> np.ndarray:
    """Returns an image (H, W, C), or (H, W) for grey, as (H, W, channels): colour and grey become each other.

    bgr: whether colour is in BGR order, not RGB. Raises ValueError for other numbers of channels.
    """
    image = image if image.ndim == 3 else image[..., None]
    if image.shape[2] == channels:
        return image
    if (image.shape[2], channels) == (3, 1):
        return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY if bgr else cv2.COLOR_RGB2GRAY)[..., None]
    if (image.shape[2], channels) == (1, 3):
        return np.repeat(image, 3, axis=2)
    raise ValueError(f"the network takes images of {channels} channels, got {image.shape[2]}")


def viewable(image: np.ndarray) -> np.ndarray:
    """Returns three channels of an image (H, W, C) to draw on: of two the first, as grey, of more the first three."""
    return np.ascontiguousarray(image[..., :3]) if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def by_fours(operation: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """Applies an operation of OpenCV to an image (h, w, C) of any C. Several versions of OpenCV take no more than
    four channels, and all drop the axis of a single one.
    """
    if 1 < image.shape[2] <= 4:
        return operation(image)
    parts = [operation(np.ascontiguousarray(image[..., c : c + 4])) for c in range(0, image.shape[2], 4)]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], 2)
