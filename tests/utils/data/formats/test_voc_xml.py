"""Pascal VOC XML gives the labels that its text files would, and no fault in it passes unnoticed."""

import re

import numpy as np
import pytest
from label_files import NAMES, voc_object

from utils.data.annotations import list_pairs, scan
from utils.data.faults import FaultError, UnknownClassError
from utils.data.formats.voc import VocSplit, parse_xml

PART = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"


def test_voc_by_hand(voc, tmp_path):
    hard = "<difficult>1</difficult>"
    split = voc(
        {"a": voc_object(extra=PART) + voc_object("cat", (1, 1, 101, 51)) + voc_object("unheard", extra=hard), "b": ""}
    )
    for path, names in ((split.paths[0], "ab"), (str(tmp_path / "Annotations"), "ab")):
        found = scan(VocSplit((path,), None, NAMES), use_cache=False)
        assert [path[-5:] for path in found.images] == [f"{name}.png" for name in names]
        # v6.1: centre (min + max) / 2 - 1, size max - min
        assert found.labels == pytest.approx(np.array([[1, 0.2, 0.3, 0.2, 0.2], [0, 0.5, 0.5, 1, 1]]))
        assert found.starts.tolist() == [0, 2, 2]
        assert [fault.words for fault in found.faults] == [
            "object 3 ('unheard'): marked as difficult or as a crowd; left out"
        ]
        assert found.counts == {"found": 2, "missing": 0, "empty": 1, "corrupt": 0, "total": 2}
        assert [len(p) for p in found.polygons_of(0)] == [0, 0]


def test_difficult_objects_are_kept_when_asked_for(voc):
    split = voc({"a": voc_object() + voc_object("cat", extra="<difficult>1</difficult>"), "b": ""})
    assert scan(split).labels[:, 0].tolist() == [1]
    assert scan(VocSplit(split.paths, None, NAMES, difficult=True)).labels[:, 0].tolist() == [1, 0]  # not the cache


def test_a_class_that_is_not_named_is_an_error(voc):
    split = voc({"a": voc_object() + voc_object("bird"), "b": ""})
    with pytest.raises(
        UnknownClassError, match=r"the class of .*Annotations/a.xml: object 2 \('bird'\) is not in names"
    ):
        scan(split)


@pytest.mark.parametrize(
    "text, head, message",
    [
        (voc_object(corners=(1, 1, "x", 4)), "", r"object 1 \('dog'\): bndbox must be 4 numbers"),
        ("<object><name>dog</name></object>", "", "bndbox must be 4 numbers"),
        ("<object>", "", r"a.xml:1: not valid XML: mismatched tag"),
        (voc_object(), '<!DOCTYPE x [<!ENTITY a "b">]>\n', r"a.xml:1: a document type \(<!DOCTYPE\) is not accepted"),
        (voc_object(), '<!DOCTYPE x SYSTEM "file:///etc/passwd">\n', "a document type"),
        ("&a;", "", "a.xml:1: not valid XML: undefined entity"),
    ],
)
def test_xml_that_cannot_be_used_leaves_its_image_out(voc, text, head, message):
    voc({"b": voc_object()})
    split = voc({"a": text}, head=head)
    found = scan(split, use_cache=False)
    assert [path[-5:] for path in found.images] == ["b.png"] and found.counts["corrupt"] == 1
    assert re.search(message, str(found.faults[0]))


def test_a_document_type_is_refused_in_any_encoding():
    bomb = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><a>&c;</a>'
    for encoding in ("utf-8", "utf-16", "utf-8-sig"):
        with pytest.raises(ValueError, match=r"x.xml:1: a document type"):
            parse_xml(bomb.encode(encoding), "x.xml")
    assert parse_xml("<a>細</a>".encode("utf-16"), "x.xml").text == "細"
    with pytest.raises(ValueError, match=r"x.xml:1: not valid XML: no element found"):
        parse_xml(b"", "x.xml")
    for encoding in ("klingon", "hex", "idna"):  # which Python does not know, or which are none of a text
        with pytest.raises(ValueError, match=r"x.xml:1: not valid XML"):
            parse_xml(f"<?xml version='1.0' encoding='{encoding}'?><a>..\u4f60</a>".encode(), "x.xml")


def test_the_encoding_is_the_one_declared():
    text = "<?xml version='1.0' encoding='{}'?>\n<a>細菌</a>"
    for encoding in ("GBK", "gb18030", "big5", "shift_jis", "euc-kr", "utf-8"):
        assert parse_xml(text.format(encoding).encode(encoding), "x.xml").text == "細菌"
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):  # a byte order mark counts, not the words behind it
        for declared in ("utf-8", "utf-16", "GBK"):
            assert parse_xml(text.format(declared).encode(encoding), "x.xml").text == "細菌"
    # as programs for .NET write it into files that are UTF-8
    assert parse_xml(text.format("utf-16").encode(), "x.xml").text == "細菌"
    assert parse_xml("<a>caf\xe9</a>".encode(), "x.xml").text == "caf\xe9"


@pytest.mark.parametrize("head", ["", "<?xml version='1.0'?>", "<?xml version='1.0' encoding='UTF-8'?>"])
def test_an_encoding_that_is_not_declared_names_the_file(head):
    with pytest.raises(FaultError, match=r"^dir/7.xml:1: not valid XML: not a text in .*its first line must"):
        parse_xml(f"{head}<a>細菌</a>".encode("gbk"), "dir/7.xml")


def test_names_with_blanks_and_numbers(voc, tmp_path):
    split = voc({"a": voc_object(), "b": voc_object("cat")})
    for old, new in (("a", "my image"), ("b", "my image 1")):
        (tmp_path / f"JPEGImages/{old}.png").rename(tmp_path / f"JPEGImages/{new}.png")
        (tmp_path / f"Annotations/{old}.xml").rename(tmp_path / f"Annotations/{new}.xml")
    for lines in ("my image\nmy image 1\n", "my image -1\r\nmy image 1  0\r\n", "\ufeffmy image  0\nmy image 1 1\n"):
        (tmp_path / "ImageSets/Main/train.txt").write_text(lines, encoding="utf-8", newline="")
        found = scan(split, use_cache=False)
        assert found.labels[:, 0].tolist() == [0, 1] and found.counts["found"] == 2, lines


def test_bad_boxes_and_sizes_are_reported(voc):
    split = voc({"a": voc_object(corners=(30, 1, 20, 5)) + voc_object(corners=(90, 1, 120, 51)), "b": ""})
    found = scan(split, use_cache=False)
    assert len(found.labels) == 1 and found.labels[0, 1:] == pytest.approx([0.945, 0.5, 0.11, 1])
    assert "a.xml: object 1 ('dog'): box (29, 0, 19, 4) has no area; left out" in str(found.faults[0])
    assert "object 2 ('dog'): box (89, 0, 119, 50) reaches over" in str(found.faults[1])
    found = scan(voc({"a": voc_object()}, size="<size><width>200</width><height>50</height></size>"), use_cache=False)
    assert "a.xml: says 200 x 50 pixels, but the image has 100 x 50" in str(found.faults[0])
    for size in ("", "<size><width>0</width><height>0</height></size>"):  # as some tools leave it
        assert len(scan(voc({"a": voc_object()}, size=size), use_cache=False).labels) == 1


def test_images_and_files_that_are_missing(voc, tmp_path, caplog):
    split = voc({"b": voc_object(), "lost": voc_object()})
    assert scan(split, use_cache=False).counts == {"found": 1, "missing": 1, "empty": 0, "corrupt": 0, "total": 2}
    (tmp_path / "ImageSets/Main/train.txt").write_text("b\nlost\n")
    found = scan(split, use_cache=False)
    assert found.counts["corrupt"] == 1 and "JPEGImages/lost.jpg" in str(found.faults[0])
    scan(VocSplit((str(tmp_path / "Annotations"),), None, NAMES), use_cache=False)
    assert "XML files without an image: 1; the first: lost.xml" in caplog.text
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes((tmp_path / "JPEGImages" / "a.png").read_bytes())
    with pytest.raises(ValueError, match=r"several images are called a, and a.xml could belong to any"):
        list_pairs(split)
    with pytest.raises(FileNotFoundError, match=r"no such folder of images: .*/nowhere; name it as 'images'"):
        list_pairs(VocSplit(split.paths, str(tmp_path / "nowhere"), NAMES))


@pytest.mark.parametrize("name", ["../b", "x/../../b", "/etc/b", "C:\\b"])
def test_a_list_names_files_of_its_own_set_only(voc, tmp_path, name):
    split = voc({"b": voc_object()})
    (tmp_path / "ImageSets/Main/train.txt").write_text(f"b\n{name} 1\n")
    with pytest.raises(ValueError, match=r"Main/train\.txt:2: a file name must lie below .*, got "):
        list_pairs(split)


def test_against_torchvision(voc, tmp_path):
    """Its reader of VOC sees the same objects."""
    datasets = pytest.importorskip("torchvision.datasets", reason="needs torchvision")
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(1, 50, (2, 6, 2, 2)), axis=2)
    corners[:, :, 1] += 1
    split = voc({n: "".join(voc_object(corners=box.ravel()) for box in boxes) for n, boxes in zip("ab", corners)})
    found = scan(split, use_cache=False)
    for i, name in enumerate("ab"):
        tree = datasets.VOCDetection.parse_voc_xml(parse_xml((tmp_path / f"Annotations/{name}.xml").read_bytes(), name))
        boxes = [[int(o["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax")] for o in tree["annotation"]["object"]]
        labels = found.labels_of(i).astype(float) * [1, 100, 50, 100, 50]
        mine = np.concatenate([labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 1:3] + labels[:, 3:] / 2], 1) + 1
        assert mine == pytest.approx(np.array(boxes), abs=1e-4)
