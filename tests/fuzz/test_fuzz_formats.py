"""VOC XML, COCO JSON, LabelMe JSON and tar shards are read rightly, or refused by the name of the file."""

import copy
import io
import json
import math
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from fuzzing import CHANGES, EDITS, TEXTS, changed, damaged, few, harmless, refusal
from hypothesis import example, given
from hypothesis import strategies as st

from utils.data.annotations import check_pair
from utils.data.formats import coco, labelme, shards, voc

NAMES = ("cat", "dog")
PIXELS = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8), (16, 12))
PNG = cv2.imencode(".png", PIXELS)[1].tobytes()


def check_split(split) -> None:
    """Holds a split to what conversion relies on: finite boxes, file names that stay below the folder."""
    for image in split.images:
        assert type(image.width) is type(image.height) is int and image.width > 0 and image.height > 0
        path = Path(image.name)
        assert not path.is_absolute() and ".." not in path.parts and "\0" not in image.name
        for item in image.objects:
            assert item.name in split.names and len(item.box) == 4 and all(map(math.isfinite, item.box)), item
            assert all(p.ndim == 2 and p.shape[1] == 2 and np.isfinite(p).all() for p in item.polygons)


def check_labels(checked, file) -> None:
    """Holds the rows of an image to what training relies on; a fault names the file."""
    if checked.corrupt:
        refusal(ValueError(str(checked.faults[-1])), file)
        return
    rows = checked.labels.rows
    assert rows.dtype == np.float32 and rows.shape[1:] == (5,) and np.isfinite(rows).all()
    assert ((rows[:, 1:] >= 0) & (rows[:, 1:] <= 1)).all() and set(rows[:, 0].tolist()) <= {0.0, 1.0, 2.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    for place in ("Annotations", "JPEGImages", "labelme"):
        (folder / place).mkdir()
    (folder / "JPEGImages/a.png").write_bytes(PNG)
    (folder / "labelme/a.png").write_bytes(PNG)
    return folder


def attempt(folder, file, *readers) -> None:
    """Calls readers; each gives a result or a refusal that names the file."""
    for reader in readers:
        with harmless(folder):
            try:
                reader()
            except (ValueError, OSError) as error:
                refusal(error, file)


# --- Pascal VOC -------------------------------------------------------------------------------------------------------

OBJECT = "<object><name>{}</name><difficult>0</difficult><bndbox>{}</bndbox></object>"
CORNERS = "<xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax>"
XML = (
    "<annotation><filename>a.png</filename><size><width>16</width><height>12</height><depth>3</depth></size>"
    + OBJECT.format("cat", CORNERS) + OBJECT.format("dog", CORNERS) + "</annotation>"
)  # fmt: skip
SCRAPS = st.one_of(
    st.sampled_from(
        ["<", ">", "</object>", "<object>", "<object/>", "<bndbox/>", "<name/>", "<xmin>", "&amp;", "&#0;", "&a;",
         "]]>", "<![CDATA[", "<!-- ", "-->", "<!DOCTYPE a [<!ENTITY a 'aaaa'>]>",
         '<?xml version="1.0" encoding="utf-7"?>',
         '<?xml version="1.0" encoding="utf-16"?>', "<a>" * 3000, "inf", "nan", "1e999", "9" * 5000, "\u0663", "..",
         "/", "<size/>", "<filename>../../b.png</filename>", "<width>0</width>", "\ufeff"]
    ),
    TEXTS.map(lambda text: text.encode("utf-8", "replace").decode()),
)  # fmt: skip
SPLICES = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 40), SCRAPS), min_size=1, max_size=3)


def spliced(text: str, cuts) -> bytes:
    """Returns a text with pieces of it replaced by scraps."""
    for place, length, scrap in cuts:
        place %= len(text) + 1
        text = text[:place] + scrap + text[place + length :]
    return text.encode()


@few
@given(SPLICES.map(lambda cuts: spliced(XML, cuts)) | EDITS.map(lambda edits: damaged(XML.encode(), edits)))
def test_voc(folder, data):
    file = folder / "Annotations/a.xml"
    file.write_bytes(data)
    listing = voc.VocSplit((str(file.parent),), None, NAMES).open()
    attempt(
        folder,
        file,
        lambda: check_split(voc.load(file.parent, [])),
        lambda: check_labels(check_pair(listing.images[0], listing.label_files[0], listing.read), file),
    )


# --- COCO and LabelMe -------------------------------------------------------------------------------------------------

COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 16, "height": 12},
               {"id": 2, "file_name": "b.png", "width": 9, "height": 9}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0,
         "segmentation": [[1, 2, 6, 2, 6, 8, 1, 8]]},
        {"id": 2, "image_id": 1, "category_id": 5, "bbox": [0, 0, 16, 12], "iscrowd": 1,
         "segmentation": {"counts": [1, 2], "size": [12, 16]}},
        {"id": 3, "image_id": 2, "category_id": 5, "segmentation": [[1, 2, 6, 2, 6, 8], [2, 2, 3, 3, 4, 8]]},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
}  # fmt: skip
LABELME = {
    "version": "5.0.1", "flags": {}, "imagePath": "a.png", "imageData": None, "imageHeight": 12, "imageWidth": 16,
    "shapes": [
        {"label": "cat", "points": [[1, 2], [6, 2], [6, 8]], "group_id": None, "shape_type": "polygon", "flags": {}},
        {"label": "cat", "points": [[1, 2], [6, 8]], "group_id": 1, "shape_type": "rectangle",
         "flags": {"difficult": True}},
        {"label": "dog", "points": [[5, 5], [6, 6]], "group_id": 1, "shape_type": "circle", "flags": {}},
        {"label": "dog", "points": [[5, 5]], "group_id": None, "shape_type": "point", "flags": {}},
        {"label": "dog", "points": [[1, 2], [6, 2], [6, 8]], "group_id": 2, "shape_type": "polygon", "flags": {}},
        {"label": "dog", "points": [[2, 2], [6, 2], [6, 9]], "group_id": 2, "shape_type": "polygon", "flags": {}},
    ],
}  # fmt: skip


def json_of(sound):
    """Draws JSON texts near a sound one."""
    text = json.dumps(sound)
    bytes_of = EDITS.map(lambda edits: damaged(text.encode(), [(k, place * 3, v) for k, place, v in edits]))
    deep = st.sampled_from(["[", '{"a":']).map(lambda sign: (sign * 100_000).encode())
    return CHANGES.map(lambda changes: json.dumps(changed(sound, changes)).encode()) | bytes_of | deep


def with_value(key, row, name, value):
    """Returns the COCO JSON with another value in a record."""
    content = copy.deepcopy(COCO)
    content[key][row][name] = value
    return json.dumps(content).encode()


@few
@example(with_value("images", 0, "file_name", "x" * 5000))  # too long for a name: the error did not say in which file
@example(with_value("annotations", 0, "bbox", "1234"))  # text of four numbers, over which the metric raised IndexError
@given(json_of(COCO))
def test_coco(folder, data):
    file = folder / "coco.json"
    file.write_bytes(data)
    split = coco.CocoSplit((str(file),), str(folder / "JPEGImages"), NAMES)

    def read() -> None:
        listing = split.open()
        for image, label_file in zip(listing.images, listing.label_files):
            if image == str(folder / "JPEGImages/a.png"):
                check_labels(check_pair(image, label_file, listing.read), file)

    def annotated() -> None:
        ids, categories, boxes = split.annotated()
        assert len(categories) == len(NAMES) and all(box.number in (0, 1) and box.box.shape == (4,) for box in boxes)
        assert all(type(box.area) is float and type(box.crowd) is bool and box.path in ids for box in boxes)

    attempt(
        folder,
        file,
        lambda: check_split(coco.load(file, [folder / "JPEGImages"])),
        lambda: coco.coco_names([file]),
        read,
        annotated,
    )


def with_type(kind):
    """Returns the LabelMe JSON with another type of shape."""
    content = copy.deepcopy(LABELME)
    content["shapes"][0]["shape_type"] = kind
    return json.dumps(content).encode()


@few
@example(with_type([]))
@example(with_type({"a": 1}))
@example(with_type(1))
@given(json_of(LABELME))
def test_labelme(folder, data):
    file = folder / "labelme/a.json"
    file.write_bytes(data)
    attempt(folder, file, lambda: check_split(labelme.load(file.parent)))


# --- shards -----------------------------------------------------------------------------------------------------------


def tar_of(members) -> bytes:
    """Returns a tar file of (name, content)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


BOXES = {"class": [0, 1], "boxes": [[0.5, 0.5, 0.25, 0.25], [0.25, 0.25, 0.125, 0.125]]}
TEXT = "0 .5 .5 .25 .25\n1 .25 .25 .125 .125\n"
MEMBERS = [("a.png", PNG), ("a.txt", TEXT.encode()), ("b.png", PNG), ("b.json", json.dumps(BOXES).encode())]
TAR = tar_of(MEMBERS)
HEADERS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 511), st.integers(0, 255), st.booleans()), min_size=1, max_size=3
)
STARTS = [place for place in range(0, len(TAR), 512) if TAR[place + 257 : place + 262] == b"ustar"]


def with_headers(edits) -> bytes:
    """Returns the tar file with bytes of members' headers set, and their checksums made right again."""
    data = bytearray(TAR)
    for member, place, value, mended in edits:
        start = STARTS[member]
        data[start + place] = value
        if mended:
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    return bytes(data)


@few
@example(damaged(TAR, [("set", 0, 0)]))  # over which conversion raised an error of tarfile
@given(
    HEADERS.map(with_headers)
    | EDITS.map(lambda edits: damaged(TAR, [(kind, place * 5, value) for kind, place, value in edits]))
    | CHANGES.map(lambda changes: tar_of([*MEMBERS[:3], ("b.json", json.dumps(changed(BOXES, changes)).encode())]))
)
def test_shards(folder, data):
    pytest.importorskip("webdataset")
    file = folder / "x.tar"
    file.write_bytes(data)

    def check() -> None:
        for path, checked in shards.check_shard(str(file)):
            assert path.startswith(f"{file}/")
            if checked.corrupt:
                refusal(ValueError(str(checked.faults[-1])), file)
            else:
                rows = checked.labels.rows
                assert np.isfinite(rows).all() and ((rows[:, 1:] >= 0) & (rows[:, 1:] <= 1)).all()

    attempt(folder, file, check, lambda: check_split(shards.load(shards.ShardSplit((str(file),)), NAMES)))
