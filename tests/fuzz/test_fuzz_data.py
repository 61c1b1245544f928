"""Whatever a label file, a data set YAML or an image file holds, it is read rightly or refused by its name.

A fixed slice here; `make fuzz` draws FUZZ_CASES other ones each. Allowed are ValueError, FileNotFoundError and OSError
that name the file. What is accepted is compared with a second, slow reader.
"""

import io
import os
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import yaml
from fuzzing import CASES, EDITS, damaged, fuzz, no_hang, refusal
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from utils.data.annotations import check_pair
from utils.data.dataset_yaml import load_dataset_yaml
from utils.data.formats.yolo import parse_labels
from utils.data.images import check_image, read_image

# --- labels -----------------------------------------------------------------------------------------------------------

WORDS = (
    "0 1 2 3 -0 01 1_0 16777217 1.00000001 2.5 0.5 .25 1. 1e-3 1e-50 -1e-50 1.0000001 0.9999999 1e999 nan inf -1 x "
    "\u0661 \uff11 + 0.5.5"
).split()
LINES = ["0 .5 .5 .25 .25\n", "1 .5 .5 .125 .25\n", "2 .1 .1 .5 .1 .5 .5\n", "1 .1 .1 .5 .1 .5 .5 .1 .6\n"]
BREAKS = ["\n", "\r\n", "\r", "\n\n", " \n", "\t", "\x0b", "\u2028", "\ufeff", "\0"]
PIECES = st.sampled_from(LINES * 8 + [" "] * 16 + ["\n"] * 8 + BREAKS + WORDS + [f"{word} " for word in WORDS] * 2)
FLOATS = st.floats(0, 1, width=32).map(repr)
LABELS = st.one_of(
    st.lists(PIECES, max_size=16).map("".join),
    st.lists(PIECES, max_size=16).map("".join),
    st.lists(st.lists(FLOATS, min_size=4, max_size=8).map(lambda row: " ".join(["1", *row])), max_size=4).map(
        "\n".join
    ),
    st.text(max_size=30),
)


def slow_labels(text):
    """The rows of a label text, number by number: [(class, x, y, w, h), ...], or None where it must be refused."""
    rows, blank_after = [], False
    for line in text.rstrip().splitlines():
        words = line.split()
        blank_after |= bool(line) and not words and bool(rows)
        if words:
            rows.append(words)
    if blank_after:
        return None
    polygons = any(len(row) == 7 or len(row) > 8 for row in rows)
    found = []
    for words in rows:
        try:
            kind, *rest = map(float, words)
            with np.errstate(over="ignore"):
                exact = kind == float(np.float32(kind))
        except ValueError:
            return None
        if not all(map(np.isfinite, [kind, *rest])) or kind < 0 or kind % 1 or not exact:
            return None
        if len(words) % 2 == 0 or (len(words) != 5 if not polygons else len(words) < 5):
            return None
        if len(rest) > 4:
            x, y = rest[::2], rest[1::2]
            rest = [(min(x) + max(x)) / 2, (min(y) + max(y)) / 2, max(x) - min(x), max(y) - min(y)]
        found.append((kind, *rest))
    return found


@fuzz
@given(LABELS, st.sampled_from([None, 3]))
def test_labels(text, nc):
    expected = slow_labels(text)
    with no_hang():
        try:
            read = parse_labels(text, "a/file.txt", nc)
        except ValueError as error:
            refusal(error, "a/file.txt")
            # refused: by the second reader too, or for a value that lies outside, where rounding to float32 decides
            assert expected is None or any(
                min(row) < 1e-7 or max(row[1:]) > 1 - 1e-6 or (nc and row[0] >= nc) for row in expected
            ), (text, str(error))
            return
    labels, polygons = read.rows, read.polygons
    assert expected is not None, (text, labels)
    assert labels.dtype == np.float32 and labels.shape[1:] == (5,)
    assert not polygons or len(polygons) == len(labels)
    assert (labels >= 0).all() and (labels[:, 1:] <= 1).all() and (nc is None or (labels[:, 0] < nc).all())
    different = {tuple(np.float32(row) + np.float32(0)) for row in expected}  # + 0: minus zero is zero
    if labels.size:  # a box around float32 corners may differ in its last bit
        near = np.array(expected, np.float32)[:, None] - labels[None]
        assert (abs(near).max(2).min(0) < 1e-6).all() and (abs(near).max(2).min(1) < 1e-6).all()
    if not polygons:
        assert len(labels) == len(different)
        if len(different) == len(expected):
            np.testing.assert_array_equal(labels, np.array(expected, np.float32).reshape(-1, 5))
    for polygon, label in zip(polygons, labels):
        if not len(polygon):  # of a box
            continue
        np.testing.assert_allclose(np.ptp(polygon, axis=0), label[3:], atol=1e-6)


@settings(fuzz, max_examples=CASES // 10)
@given(st.binary(max_size=40))
def test_label_files_of_any_bytes(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    image, label = folder / "pair.bmp", folder / "pair.txt"
    if not image.exists():
        image.write_bytes(SOUND["bmp"])
    label.write_bytes(data)
    with no_hang():
        checked = check_pair(str(image), str(label))
    if checked.corrupt:
        refusal(checked.faults[-1], label)


# --- data set YAML ----------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 5), st.floats(), st.dates(), st.binary(max_size=4), st.text(max_size=6)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.integers(0, 4) | st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)
PLACES = st.sampled_from(
    ["images", "images/", ".", "missing", "", ["images"], ["images", "missing"], "\0", "~", "~nobody-here", "a" * 300]
)
CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "path": PLACES | VALUES,
        "train": PLACES | VALUES,
        "val": PLACES | VALUES,
        "test": PLACES | VALUES,
        "nc": st.integers(1, 3) | VALUES,
        "names": st.lists(st.text(max_size=5), min_size=1, max_size=3) | VALUES,
        "download": st.text() | VALUES,
        "draw": VALUES,
    },
)
NAMES = st.lists(st.text(max_size=5) | SCALARS, min_size=1, max_size=3)
NEARLY_GOOD = st.fixed_dictionaries(
    {"train": st.just("images"), "val": st.just(["images"]), "names": NAMES | NAMES.map(lambda n: dict(enumerate(n)))},
    optional={"nc": st.integers(1, 3), "path": st.just(".")},
)
GOOD = "path: .\ntrain: images\nval: images\nnc: 2\nnames: [red, white]\n"
SCRAPS = st.sampled_from(
    "&a *a <<: ? : - [ ] { } | > % @ ` ' \" # ! !! !!int !!float !!bool !!set !!binary !!timestamp !!python/none x "
    "0x 0b 2001-99-99 1:2:3 yes ~ null .inf --- ... \n \t \\x \0 \ufeff = names: nc: 1 0 é".split(" ")
)


def _spliced(cuts):
    text = GOOD
    for place, length, scrap in cuts:
        place %= len(text) + 1
        text = text[:place] + scrap + text[place + length :]
    return text.encode()


def _doubled(levels, rule, used):
    """Every line stands for twice what the last one stands for."""
    lines = ["k0: &a0 {x: 1}", *(f"k{i}: &a{i} {rule.format(f'a{i - 1}')}" for i in range(1, levels))]
    return "\n".join([*lines, f"names: *a{levels - 1}" if used else GOOD]).encode()


YAMLS = st.one_of(
    (CONTENTS | NEARLY_GOOD).map(lambda content: yaml.safe_dump(content, allow_unicode=True).encode()),
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 4), SCRAPS), min_size=1, max_size=4).map(_spliced),
    st.lists(SCRAPS, max_size=12).map(" ".join).map(str.encode),
    st.sampled_from("[{(?-:>").flatmap(lambda c: st.sampled_from([9, 99, 400]).map(lambda n: (c * n).encode())),
    st.builds(_doubled, st.integers(1, 40), st.sampled_from(["[*{0}, *{0}]", "{{<<: [*{0}, *{0}]}}"]), st.booleans()),
    st.binary(max_size=60),
)  # fmt: skip


@pytest.fixture(scope="module")
def yaml_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "images").mkdir()
    return folder


@fuzz
@example(data=("train: images\nval: images\nnc: 1\ntest: " + 300 * "a").encode())  # too long for a name
@given(YAMLS)
def test_dataset_yaml(yaml_folder, data):
    file = yaml_folder / "data.yaml"
    file.write_bytes(data)
    with no_hang():
        try:
            content = load_dataset_yaml(file)
        except (ValueError, OSError) as error:
            assert len(refusal(error, file)) < 5000 + len(data)
            return
    raw = yaml.safe_load(data)  # what was accepted says so in so many words
    names = raw.get("names")
    names = [f"class{i}" for i in range(raw["nc"])] if names is None else names
    names = list(names.values()) if isinstance(names, dict) else names
    assert sorted(content["names"]) == sorted(map(str, names))
    assert content["nc"] == len(names) and raw.get("nc") in (None, len(names))
    for split in ("train", "val"):
        entry = content[split]
        assert all(
            os.path.isabs(place) and os.path.exists(place) for place in ([entry] if isinstance(entry, str) else entry)
        )


# --- images -----------------------------------------------------------------------------------------------------------


def _sound():
    pixels = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8), (16, 12))
    drawn = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {}
    for name, image, kind, options in (
        ("png", drawn, "PNG", {}),
        ("bmp", drawn, "BMP", {}),
        ("jpg", drawn, "JPEG", {}),
        ("tif", drawn, "TIFF", {}),
        ("turned.jpg", drawn, "JPEG", {"exif": exif}),
        ("progressive.jpg", drawn, "JPEG", {"progressive": True}),
        ("palette.png", drawn.convert("P"), "PNG", {}),
        ("grey.png", drawn.convert("L"), "PNG", {}),
        ("alpha.png", drawn.convert("RGBA"), "PNG", {}),
        ("cmyk.jpg", drawn.convert("CMYK"), "JPEG", {}),
        ("lzw.tif", drawn, "TIFF", {"compression": "tiff_lzw"}),
        ("palette.bmp", drawn.convert("P"), "BMP", {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files[name] = buffer.getvalue()
    return files


SOUND = _sound()
EXACT = ("png", "palette.png", "grey.png")


@contextmanager
def small_images(pixels=2**22):
    """Pillow's limit against decompression bombs, lowered so that a case does not fill the memory."""
    old, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = old


@pytest.mark.filterwarnings("ignore")  # Pillow's about odd files
@fuzz
@example(name="tif", edits=[("set", 72, 2)])  # over which Pillow raises a TypeError
@given(st.sampled_from(sorted(SOUND)), EDITS)
def test_images(tmp_path_factory, name, edits):
    file = tmp_path_factory.getbasetemp() / f"fuzzed.{name}"
    data = damaged(SOUND[name], edits)
    file.write_bytes(data)
    promised = None
    with no_hang(), small_images():
        try:
            promised, _ = check_image(file)
        except (ValueError, OSError) as error:
            refusal(error, file)
            if "exceeds limit" in str(error):  # a header that promises gigabytes
                return
        try:
            pixels = read_image(file)
        except (ValueError, OSError) as error:  # also after a good check, which does not decode JPEG and PNG
            refusal(error, file)
            return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    if promised:
        assert pixels.shape[1::-1] == promised
        if name in EXACT:  # which checksums guard: two readers see the same
            with Image.open(file) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
            np.testing.assert_array_equal(pixels[..., ::-1], upright)
