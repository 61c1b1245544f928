"""Every image file is either read upright as 8-bit BGR, or refused by name."""

import io
import os
import subprocess

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from utils.data.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES, check_image, list_images, listed_files, read_image


def pillow_bytes(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opencv_bytes(array, suffix):
    return cv2.imencode(suffix, array)[1].tobytes()


def random_image(height=30, width=40):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


JPEG = pillow_bytes(random_image(), "JPEG")


# --- which files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "sub folder/ü.tif", ".git/c.jpg", "sub folder/d.gif"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "images"


def relative(paths, folder):
    return [os.path.relpath(path, folder) for path in paths]


def test_folder_is_searched_with_its_subfolders(folder):
    assert relative(list_images(str(folder)), folder) == ["a.PNG", "b.jpg", "sub folder/ü.tif"]


def test_list_file_names_images_beside_itself(folder):
    (folder / "dot.").mkdir()
    (folder / "dot." / "e.jpg").touch()
    list_file = folder.parent / "list.txt"
    # only the first ./ stands for the folder; blank lines, blanks around a line and other files are passed over
    list_file.write_text(f"./images/b.jpg\n\n  ./images/dot./e.jpg \n{folder}/a.PNG\n./images/notes.txt\n")
    assert relative(list_images(str(list_file)), folder) == ["a.PNG", "b.jpg", "dot./e.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_a_list(folder, encoding):
    (folder / "list.txt").write_bytes("./b.png\r\n".encode(encoding))
    assert list_images(folder / "list.txt") == [str(folder / "b.png")]


@pytest.mark.parametrize(
    "line, where",
    [
        ("images/b.jpg", ""),  # from the folder of the list
        ("images/b.jpg", "images"),  # from the folder above it
        ("set/images/b.jpg", ""),  # as CVAT writes it: another name in front
        ("./b.jpg", "images"),
        (r"images\b.jpg", ""),
        (r".\images\b.jpg", ""),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_lines_of_a_list_are_looked_for(folder, line, where, inside, monkeypatch):
    """Wherever the command is run, the image has one path, whose folder of labels can be found."""
    list_file = folder.parent / where / "list.txt"
    list_file.write_text(f"{line}\n{folder}/a.PNG\n")
    monkeypatch.chdir(folder.parent if inside else "/")
    assert [os.path.normpath(path) for path in list_images(str(list_file))] == [f"{folder}/a.PNG", f"{folder}/b.jpg"]


def test_a_list_beside_the_images_may_be_made_elsewhere(folder, monkeypatch):
    """`find . -name *.jpg > lists/train.txt` writes ./images/b.jpg, and v6.1 means a folder below lists by it."""
    (folder.parent / "lists").mkdir()
    list_file = folder.parent / "lists" / "train.txt"
    list_file.write_text("./images/b.jpg\n")
    monkeypatch.chdir(folder.parent)
    assert list_images(list_file) == [f"{folder}/b.jpg"]
    (folder.parent / "lists" / "images").mkdir()
    (folder.parent / "lists" / "images" / "b.jpg").touch()
    assert list_images(list_file) == [f"{folder.parent}/lists/images/b.jpg"]


def test_a_path_from_the_current_folder_comes_first(folder, monkeypatch, tmp_path):
    other = tmp_path / "other"
    (other / "images").mkdir(parents=True)
    (other / "images" / "b.jpg").touch()
    (folder.parent / "list.txt").write_text("images/b.jpg\nimages/gone.jpg\n0\nrtsp://host/a.mp4\n")
    monkeypatch.chdir(other)
    lines = listed_files(folder.parent / "list.txt")
    assert lines == ["images/b.jpg", "images/gone.jpg", "0", "rtsp://host/a.mp4"]
    assert list_images(folder.parent / "list.txt") == [f"{other}/images/b.jpg", f"{other}/images/gone.jpg"]


def test_images_of_other_kinds_are_told_of(folder, caplog):
    for name in ("c.avif", "sub folder/d.AVIF", "e.heic", "f.jfif"):
        (folder / name).touch()
    assert len(list_images(folder)) == 3
    assert "images of kinds that are not read, left out: 2 .avif, 1 .gif, 1 .heic, 1 .jfif; save them as" in caplog.text
    caplog.clear()
    (folder / "list.txt").write_text("./b.jpg\n./c.avif\n./none\n")
    assert len(list_images(folder / "list.txt")) == 1
    assert f"lines that name no image file, left out: 2; the first: {folder}/c.avif" in caplog.text
    caplog.clear()
    (folder / "new").mkdir()
    (folder / "new" / "f.jfif").touch()
    with pytest.raises(ValueError, match="no images in"):
        list_images(folder / "new")
    assert "1 .jfif; rename .jfif to .jpg" in caplog.text


def test_entries_are_joined_and_each_image_counts_once(folder):
    assert list_images([str(folder / "sub folder"), str(folder)]) == list_images(str(folder))


def test_links_are_followed_but_not_in_circles(folder, tmp_path):
    (folder / "again").symlink_to(folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z.bmp").touch()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert relative(list_images(str(folder)), folder) == ["a.PNG", "b.jpg", "linked/z.bmp", "sub folder/ü.tif"]


def test_two_links_to_a_folder_are_both_followed(folder, tmp_path):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "z.bmp").touch()
    for name in ("day1", "day2"):
        (folder / name).symlink_to(tmp_path / "pool")
    assert relative(list_images(str(folder)), folder)[2:4] == ["day1/z.bmp", "day2/z.bmp"]


def test_a_folder_that_cannot_be_read_is_an_error(folder, monkeypatch):
    """Else its images are left out without a word."""
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub folder"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="sub folder"):
        list_images(str(folder))


def test_brackets_in_a_folder_name_are_no_pattern(tmp_path):
    (tmp_path / "set [1]").mkdir()
    (tmp_path / "set [1]" / "a.jpg").touch()
    assert len(list_images(str(tmp_path / "set [1]"))) == 1


def test_missing_and_empty_entries_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder or list file of images: .*/gone"):
        list_images(str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"no images in .*; an image file ends in bmp, dng"):
        list_images(str(tmp_path))


def test_recorded_suffixes(parity):
    suffixes = parity("labels")["suffixes"]
    assert list(IMAGE_SUFFIXES) == suffixes["images"]
    assert sorted({*VIDEO_SUFFIXES} - {"webm"}) == suffixes["videos"]  # which OpenCV reads too


# --- pixels -----------------------------------------------------------------------------------------------------------

GREY16 = np.full((30, 40), 0xA000, np.uint16)
FLAT = Image.new("RGB", (40, 30), (200, 100, 50))


@pytest.mark.parametrize(
    "data, suffix, bgr",
    [
        (pillow_bytes(FLAT, "PNG"), "png", (50, 100, 200)),
        (pillow_bytes(FLAT, "BMP"), "bmp", (50, 100, 200)),
        (pillow_bytes(FLAT, "WEBP", lossless=True), "webp", (50, 100, 200)),
        (pillow_bytes(FLAT, "TIFF"), "tif", (50, 100, 200)),
        (pillow_bytes(FLAT.convert("L"), "PNG"), "png", (124, 124, 124)),  # grey
        (pillow_bytes(FLAT.convert("LA"), "PNG"), "png", (124, 124, 124)),  # grey and transparency
        (pillow_bytes(FLAT.convert("RGBA"), "PNG"), "png", (50, 100, 200)),  # transparency
        (pillow_bytes(FLAT.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), "png", (50, 100, 200)),  # palette
        (pillow_bytes(Image.new("1", (40, 30), 1), "PNG"), "png", (255, 255, 255)),  # one bit
        (pillow_bytes(FLAT.convert("CMYK"), "JPEG", quality=100), "jpg", (50, 100, 200)),
        (pillow_bytes(FLAT.convert("CMYK"), "TIFF"), "tiff", (50, 100, 200)),
        (opencv_bytes(GREY16, ".png"), "png", (160, 160, 160)),  # 16 bits: 0xA000 / 0xFFFF = 160 / 255
        (opencv_bytes(np.dstack([GREY16] * 3), ".png"), "png", (160, 160, 160)),
        (opencv_bytes(GREY16, ".tiff"), "tiff", (160, 160, 160)),
    ],
    ids=[
        "png",
        "bmp",
        "webp",
        "tif",
        "grey",
        "grey-alpha",
        "alpha",
        "palette",
        "bit",
        "cmyk-jpg",
        "cmyk-tiff",
        "png16-grey",
        "png16",
        "tiff16",
    ],
)
def test_every_kind_becomes_three_channels_of_eight_bits(tmp_path, data, suffix, bgr):
    path = tmp_path / f"image.{suffix}"
    path.write_bytes(data)
    assert check_image(path) == ((40, 30), [])
    image = read_image(path)
    assert image.shape == (30, 40, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - bgr).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_and_sizes_agree(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{kind.lower()}"
    path.write_bytes(pillow_bytes(random_image(), kind, exif=exif))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))[..., ::-1]
    image = read_image(path)
    assert np.array_equal(image, upright)
    assert check_image(path)[0] == image.shape[1::-1] == ((40, 30) if orientation < 5 else (30, 40))


def test_what_opencv_does_not_decode_is_left_to_pillow(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    path.write_bytes(pillow_bytes(FLAT, "PNG"))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    image = read_image(path)
    assert image.flags.c_contiguous and (image == (50, 100, 200)).all()


@pytest.mark.parametrize("name", ["plain.png", "with space.png", "Bücher 漢字.png"])
def test_any_file_name_can_be_read(tmp_path, name):
    (tmp_path / name).write_bytes(pillow_bytes(FLAT, "PNG"))
    assert read_image(str(tmp_path / name)).shape == (30, 40, 3)


# --- damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, suffix, message",
    [
        (b"", "png", "the file is empty"),
        (b"hello", "jpg", "first bytes are not those of BMP, JPEG, PNG, TIFF, WebP"),  # text
        (JPEG[: len(JPEG) // 2], "jpg", "truncated"),
        (JPEG[:-2], "jpg", "truncated"),
        (opencv_bytes(np.zeros((1, 1, 3), np.uint8), ".png"), "png", "image is 1 x 1 pixels; each side .* at least 10"),
        (opencv_bytes(np.zeros((30, 9, 3), np.uint8), ".png"), "png", "image is 9 x 30 pixels"),
        (pillow_bytes(FLAT, "GIF"), "png", "first bytes are not those of BMP"),  # the content counts, not the name
        (opencv_bytes(np.ones((30, 40), np.float32), ".tiff"), "tiff", "32 bits"),
        (pillow_bytes(Image.fromarray(np.ones((30, 40), np.int32)), "TIFF"), "tiff", "32 bits"),
    ],
    ids=["zero-bytes", "text", "half", "no-end", "one-pixel", "narrow", "gif", "tiff-float", "tiff-int32"],
)
def test_unusable_files_are_refused_by_name(tmp_path, data, suffix, message):
    path = tmp_path / f"image.{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"image\.{suffix}: .*{message}"):
        check_image(path)


def test_a_jpeg_with_bytes_behind_it_is_remarked_and_left_alone(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(JPEG + b"junk")
    size, remarks = check_image(path)
    assert size == (40, 30)
    assert len(remarks) == 1 and "image.jpg: bytes after the end" in str(remarks[0])
    assert path.read_bytes() == JPEG + b"junk"
    assert read_image(path).shape == (30, 40, 3)


def test_reading_what_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "gone.jpg")
    for name, data in (("empty.png", b""), ("text.jpg", b"hello")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: image cannot be decoded"):
            read_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of images that claim to be enormous
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "MPO"])
def test_random_damage_is_never_another_error(tmp_path, kind):
    sound = np.frombuffer(pillow_bytes(random_image(), kind), np.uint8)
    rng = np.random.default_rng(0)
    path = tmp_path / "image"
    for _ in range(150):
        damaged = sound.copy()
        damaged[rng.integers(0, min(len(sound), 300), 4)] = rng.integers(0, 256, 4)
        path.write_bytes(damaged[: rng.integers(len(sound) // 2, 2 * len(sound))].tobytes())
        try:
            check_image(path)
        except ValueError as error:
            assert str(error).startswith(str(path))


# --- damage on which Pillow and OpenCV differ -------------------------------------------------------------------------


def test_exif_that_only_one_library_reads_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(pillow_bytes(random_image(), "JPEG", exif=exif))
    data[data.index(b"Exif\0\0") + 6] = 0  # half of the byte order mark
    (tmp_path / "a.jpg").write_bytes(data)
    turned = read_image(tmp_path / "a.jpg").shape[:2] == (40, 30)
    if turned:  # or this OpenCV agrees with Pillow
        with pytest.raises(ValueError, match=r"a\.jpg: size or EXIF data is damaged: 40 x 30 or 30 x 40\?"):
            check_image(tmp_path / "a.jpg")


def test_damaged_strips_of_a_tiff_are_refused(tmp_path):
    data = bytearray(pillow_bytes(random_image(), "TIFF", compression="tiff_lzw"))
    data[8] = 0  # where the image begins
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.tif"):
        check_image(tmp_path / "a.tif")


def test_a_part_of_a_png_that_is_longer_than_the_file_is_refused(tmp_path):
    data = bytearray(pillow_bytes(random_image(), "PNG"))
    data[33:37] = b"\x7f\xff\xff\xff"  # the length of the part after the header
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.png: .*a part of the PNG is longer than the file"):
        read_image(tmp_path / "a.png")


def test_a_postscript_file_starts_no_program(tmp_path, monkeypatch):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    for read in (read_image, check_image):
        with pytest.raises(ValueError, match=r"photo\.jpg: .*first bytes are not those of BMP, JPEG, PNG, TIFF, WebP"):
            read(path)


def test_more_pages_than_channels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    pages = [Image.new("L", (40, 30), value) for value in (1, 2, 3, 4, 5)]
    (tmp_path / "a.tif").write_bytes(pillow_bytes(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert read_image(tmp_path / "a.tif", channels=5)[0, 0].tolist() == [1, 2, 3, 4, 5]
    monkeypatch.setattr(cv2, "imdecodemulti", None)
    with pytest.raises(
        ValueError, match=r"a\.tif: image has 5 pages, but the data set YAML or the weights say channels: 4"
    ):
        read_image(tmp_path / "a.tif", channels=4)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for read in (read_image, check_image):
        with pytest.raises(ValueError, match=r"a\.jpg: not a plain file"):
            read(tmp_path / "a.jpg")


# --- decoded small ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shrink, side", [(1, 200), (1.9, 200), (2, 100), (3.9, 100), (4, 50), (7.9, 50), (9, 25)])
def test_a_jpeg_may_be_decoded_small(tmp_path, shrink, side):
    path = tmp_path / "a.jpg"
    ramp = np.linspace(0, 250, 200)[None, :].repeat(2 * 200 - 3, 0).astype(np.uint8)
    path.write_bytes(cv2.imencode(".jpg", cv2.merge([ramp] * 3))[1].tobytes())
    image = read_image(path, shrink=shrink)
    factor = 200 // side
    assert image.shape == (-(-397 // factor), side, 3)
    means = ramp[0].reshape(side, factor).mean(1)
    assert np.abs(image[5, :, 1] - means).max() < 3
    assert read_image(path, shrink=1).shape == (397, 200, 3)


def test_other_kinds_are_decoded_whole(tmp_path):
    path = tmp_path / "a.jpg"  # whatever the name says
    path.write_bytes(cv2.imencode(".png", np.zeros((40, 50, 3), np.uint8))[1].tobytes())
    assert read_image(path, shrink=8).shape == (40, 50, 3)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_of_a_tiff_are_scaled_whatever_the_compression(tmp_path, compression, channels):
    grey = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1))
    file = tmp_path / "deep.tif"
    Image.fromarray(grey.astype(np.uint16) * 257).save(file, compression=compression)
    assert (read_image(file, channels) == grey[..., None]).all()


def test_pixels_of_32_bits_are_refused(tmp_path):
    for name, pixels in (("f", np.full((64, 64), 0.5, np.float32)), ("i", np.full((64, 64), 7, np.int32))):
        file = tmp_path / f"{name}.tif"
        Image.fromarray(pixels).save(file)
        with pytest.raises(ValueError, match=f"{name}.tif: .*32 bits"):
            read_image(file)
