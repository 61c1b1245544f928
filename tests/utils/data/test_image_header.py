"""Kind and size of an image are known from its header, against what Pillow wrote, before a pixel is decoded."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.data.image_header import LIMIT_VARIABLE, MAX_PIXELS, check_header, max_pixels, reader_of
from utils.data.images import check_image, read_image


def written(kind, size=(70, 50), mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new(mode, size, 100).save(buffer, kind, **options)
    return bytearray(buffer.getvalue())


def header(data):
    return check_header(reader_of(np.frombuffer(bytes(data), np.uint8)), "a.jpg")


KINDS = {
    "bmp": ("BMP", written("BMP")),
    "jpeg": ("JPEG", written("JPEG")),
    "progressive": ("JPEG", written("JPEG", progressive=True)),
    "mpo": ("JPEG", written("MPO")),
    "exif": ("JPEG", written("JPEG", exif=b"Exif\0\0" + bytes(60_000))),
    "png": ("PNG", written("PNG")),
    "tiff": ("TIFF", written("TIFF")),
    "tiff-big-endian": ("TIFF", written("TIFF", mode="I;16B")),
    "bigtiff": ("TIFF", written("TIFF", big_tiff=True)),
    "webp": ("WebP", written("WEBP")),
    "webp-lossless": ("WebP", written("WEBP", lossless=True)),
    "webp-extended": ("WebP", written("WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_size_is_what_was_written(name, monkeypatch):
    kind, data = KINDS[name]
    monkeypatch.setenv(LIMIT_VARIABLE, "3500")
    assert header(data) == (kind, 1)
    monkeypatch.setenv(LIMIT_VARIABLE, "3499")
    with pytest.raises(
        ValueError, match=rf"a\.jpg: the header states 70 x 50 pixels, more than 3499; .*{LIMIT_VARIABLE}"
    ):
        header(data)


def jpeg_of(width, height):
    data = written("JPEG")
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return data


def png_of(width, height):
    data = written("PNG")
    data[16:24] = struct.pack(">II", width, height)
    return data


def bmp_of(width, height):
    data = written("BMP")
    data[18:26] = struct.pack("<ii", width, -height)
    return data


def webp_of(width, height):
    data = KINDS["webp-extended"][1].copy()
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return data


def tiff_of(width, height, **more):
    """A page of the tags ImageWidth, ImageLength and, with `tile`, TileWidth and TileLength."""
    tags = {256: width, 257: height, **dict(zip((322, 323), more.get("tile", ())))}
    return (
        b"II*\0"
        + struct.pack("<IH", 8, len(tags))
        + b"".join(struct.pack("<HHII", t, 4, 1, n) for t, n in tags.items())
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [jpeg_of, png_of, bmp_of, webp_of, tiff_of])
def test_one_maximum_for_all_kinds_before_anything_is_decoded(make, tmp_path, monkeypatch):
    assert header(make(13_000, 14_000))[1] == 1
    assert header(make(2**14, 2**14))[1] == 1 and 2**14 * 2**14 == MAX_PIXELS
    (tmp_path / "a.jpg").write_bytes(make(30_000, 30_000))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    for read in (read_image, check_image):
        with pytest.raises(ValueError, match=r"a\.jpg: the header states 30000 x 30000 pixels"):
            read(tmp_path / "a.jpg")


def test_the_sides_of_a_tile_count_as_well():
    assert header(tiff_of(64, 64, tile=(256, 256))) == ("TIFF", 1)
    with pytest.raises(ValueError, match="40000 x 40000"):
        header(tiff_of(64, 64, tile=(40_000, 40_000)))


def test_the_largest_page_counts(monkeypatch):
    pages = [Image.new("L", (20, 10)), Image.new("L", (300, 200))]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    assert header(buffer.getvalue()) == ("TIFF", 2)
    monkeypatch.setenv(LIMIT_VARIABLE, "50000")
    with pytest.raises(ValueError, match="300 x 200"):
        header(buffer.getvalue())


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"GIF89a" + bytes(50),
        b"P6 10 10 255\n" + bytes(300),
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"#?RADIANCE\n",
        b"v/1\x01" + bytes(40),
        b"\0\0\0\x1cftypavif" + bytes(40),
        b"BM\0\x10ftypavif" + bytes(40),  # an AVIF for OpenCV
        b"RIFF\0\0\0\0AVI " + bytes(40),
    ],
)
def test_no_other_kind_is_decoded(data):
    with pytest.raises(
        ValueError, match=r"a\.jpg: image cannot be decoded: its first bytes are not those of BMP, JPEG, PNG"
    ):
        header(data)


def test_an_empty_file_is_said_to_be_empty():
    with pytest.raises(ValueError, match=r"a\.jpg: image cannot be decoded: the file is empty$"):
        header(b"")


@pytest.mark.parametrize("name", KINDS)
def test_a_header_cut_short_is_refused(name):
    with pytest.raises(ValueError, match=r"a\.jpg: image cannot be decoded: its header holds no valid size"):
        header(KINDS[name][1][:20])


def test_pages_in_a_circle_are_refused():
    data = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0) + struct.pack("<I", 8)
    with pytest.raises(ValueError, match="holds no valid size"):
        header(data)


def test_the_maximum_of_the_environment_is_a_number(monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "1e9")
    with pytest.raises(ValueError, match=rf"{LIMIT_VARIABLE} must be a whole number of pixels, 1 or more, got '1e9'"):
        max_pixels()
