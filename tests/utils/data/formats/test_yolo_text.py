"""Label files are read to the last bit as recorded, or refused by file and line."""

import os

import numpy as np
import pytest

from utils.data.annotations import check_pair
from utils.data.formats.yolo import image_to_label_path, objects_of, parse_labels, read_lines

PICTURE = np.full((48, 64, 3), 90, np.uint8)
KINDS = ("missing", "found", "empty", "corrupt")

# Where this reader departs from the recorded one on purpose: name -> accepted here
DEPARTURES = {
    "fraction_class": False,  # class 1.5 is refused, not truncated later
    "triangle_alone": True,  # three corners make a polygon
    "seven_columns": True,  # and so do any other six numbers after the class
    "bom": True,  # a byte order mark is no part of the text
    "polygon_and_box": True,  # the box stays that box
    "duplicate_polygons": True,  # equal polygons are kept once, as equal boxes are
}


# --- the text of one file ---------------------------------------------------------------------------------------------


def test_recorded_texts(parity, tmp_path, write_image):
    image = write_image(tmp_path / "a.png", PICTURE)
    label = tmp_path / "a.txt"
    for case in parity("labels")["texts"]:
        label.unlink(missing_ok=True)
        if case["text"] is not None:
            label.write_text(case["text"], encoding="utf-8", newline="")
        pair = check_pair(str(image), str(label))
        name = case["name"]
        accepted = DEPARTURES.get(name, case["accepted"])
        assert not pair.corrupt == accepted, name
        assert [pair.missing, pair.found, pair.empty] == [case[kind] for kind in KINDS[:3]], name
        if accepted and name not in DEPARTURES:
            recorded = np.array(case["labels"], np.float32).reshape(-1, 5)
            assert pair.labels.rows.dtype == np.float32 and np.array_equal(pair.labels.rows, recorded), name
            assert list(pair.size) == case["shape_wh"], name
            assert len(pair.labels.polygons) == len(case["segments"]), name
            for polygon, corners in zip(pair.labels.polygons, case["segments"]):
                assert np.array_equal(polygon, np.array(corners, np.float32)), name
        if case["message"] == "duplicates_removed":
            assert any(f"{case['removed']} duplicate rows removed" in message for message in map(str, pair.faults)), (
                name
            )


def test_departures_from_the_recorded_reader():
    triangle = "0 0.1 0.1 0.5 0.2 0.3 0.6"
    found = parse_labels(triangle, "a.txt")
    np.testing.assert_allclose(found.rows, [[0, 0.3, 0.35, 0.4, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(found.polygons[0], [[0.1, 0.1], [0.5, 0.2], [0.3, 0.6]], rtol=1e-6)
    assert found.faults == []

    square = "1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n"
    found = parse_labels(square + triangle + "\n" + square, "a.txt")
    assert list(map(str, found.faults)) == ["a.txt: 1 duplicate rows removed"]
    assert found.rows[:, 0].tolist() == [0, 1]  # rows come sorted ...
    assert [len(polygon) for polygon in found.polygons] == [3, 4]  # ... and polygons with them


@pytest.mark.parametrize(
    "text, message",
    [
        ("0 .5 .5 .2 .2\n0 .5 .5 .2", "a.txt:2: a line has 5 numbers .* but this one has 4"),
        ("0 .5 .5 .2 .2 .9", "a.txt:1: .* but this one has 6"),
        ("0 .1 .1 .5 .2 .6 .7 .2 .6 .3", "a.txt:1: a polygon is a class and pairs x y, but the line has 10 numbers"),
        ("0 .1 .1 .5 .2 .6 .7 .2 .6\n0 .1 .1", "a.txt:2: a polygon is a class and pairs x y, but the line has 3"),
        ("\n\ncat .5 .5 .2 .2", "a.txt:3: 'cat' is not a number"),
        ("0 .5 .5 .2 .2\n   \n0 .3 .3 .1 .1", "a.txt:2: the line holds only blanks; delete it"),
        ("-1 .5 .5 .2 .2", "a.txt:1: class must be a whole number, 0, 1, 2 ..., got -1"),
        ("0 .5 .5 .2 .2\n1.5 .5 .5 .2 .2", "a.txt:2: class must be a whole number, .* got 1.5"),
        ("inf .5 .5 .2 .2", "a.txt:1: class must be a whole number, .* got inf"),
        ("16777217 .5 .5 .2 .2", r"a.txt:1: class must be a whole number below 2\*\*24, got 16777217"),
        ("1.00000001 .5 .5 .2 .2", "a.txt:1: class must be a whole number .* got 1.00000001"),
        ("nan .5 .5 .2 .2", "a.txt:1: class must be a whole number, .* got nan"),
        ("0 1.0000001 .5 .1 .1", "a.txt:1: x must lie in 0-1, got 1.0000001"),  # not 1
        ("0 .5 -.5 .2 .2", "a.txt:1: y must lie in 0-1, got -0.5"),
        ("0 .5 .5 1.2 .2", "a.txt:1: width must lie in 0-1, got 1.2"),
        ("0 .5 .5 .2 nan", "a.txt:1: height must lie in 0-1, got nan"),
        ("0 1e60 .5 .2 .2", "a.txt:1: x must lie in 0-1, got inf"),
        ("0 .1 .1 1.2 .2 .6 .7 .2 .6", "a.txt:1: width must lie in 0-1, got 1.1"),  # of the box around the polygon
    ],
)
def test_faults_name_file_and_line(text, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_labels(text, "a.txt")


def test_minus_zero_is_zero():
    found = parse_labels("0 .5 .5 .2 .2\n-0 .5 .5 .2 .2", "a.txt")
    assert len(found.rows) == 1 and list(map(str, found.faults)) == ["a.txt: 1 duplicate rows removed"]


def test_class_beyond_nc_names_file_line_and_range():
    assert len(parse_labels("2 .5 .5 .2 .2", "a.txt", nc=3).rows) == 1
    with pytest.raises(ValueError, match=r"a.txt:2: class must be a whole number, 0 to 2, got 3"):
        parse_labels("2 .5 .5 .2 .2\n3 .5 .5 .2 .2", "a.txt", nc=3)


def test_a_box_among_polygons_stays_that_box():
    text = "0 .1 .1 .5 .2 .6 .7 .2 .6\n1 .5 .5 .2 .3\n0 .2 .2 .4 .2 .3 .5\n1 .5 .5 .2 .3\n"
    found = parse_labels(text, "a.txt")
    expected = [[0, 0.3, 0.35, 0.2, 0.3], [0, 0.35, 0.4, 0.5, 0.6], [1, 0.5, 0.5, 0.2, 0.3]]  # sorted, each once
    np.testing.assert_allclose(found.rows, expected, rtol=1e-6)
    assert [len(polygon) for polygon in found.polygons] == [3, 4, 0] and found.rows.dtype == np.float32
    boxes = [(item.name, len(item.polygons)) for item in objects_of(found, ["a", "b"], (100, 50))]
    assert boxes == [("a", 1), ("a", 1), ("b", 0)]


def test_label_file_that_is_no_text(tmp_path, write_image):
    image = write_image(tmp_path / "a.png", PICTURE)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    pair = check_pair(str(image), str(tmp_path / "a.txt"))
    assert pair.corrupt and pair.found
    assert "a.txt: not a text file in UTF-8" in str(pair.faults[0])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_a_byte_order_mark_is_no_label(tmp_path, write_image, encoding):
    image, mark = write_image(tmp_path / "a.png", PICTURE), "\ufeff" if encoding.endswith("be") else ""
    (tmp_path / "a.txt").write_bytes(f"{mark}0 .5 .5 .2 .2\r\n1 .3 .3 .1 .1\r\n".encode(encoding))
    pair = check_pair(str(image), str(tmp_path / "a.txt"))
    assert pair.labels.rows[:, 0].tolist() == [0, 1] and not pair.faults


def test_recorded_label_paths(parity):
    for image, label in parity("labels")["label_path"]:
        assert image_to_label_path(image.replace("/", os.sep)) == label.replace("/", os.sep)


def test_every_faulty_line_is_told_and_the_others_are_read():
    text = "0 .5 .5 .2 .2\ncat .5 .5 .2 .2\n0 1.5 .5 .2 .2\n1 .5 .5\n9 .5 .5 .2 .2\n\n1 .1 .2 .3 .4\n"
    found = read_lines(text, "a.txt", nc=2)
    assert [(fault.kind, fault.file, fault.line) for fault in found.faults] == [
        ("format", "a.txt", 2), ("range", "a.txt", 3), ("format", "a.txt", 4), ("class", "a.txt", 5),
    ]  # fmt: skip
    assert found.lines.tolist() == [1, 7] and found.error == found.faults[0]
    np.testing.assert_allclose(found.rows, [[0, 0.5, 0.5, 0.2, 0.2], [1, 0.1, 0.2, 0.3, 0.4]], rtol=1e-6)
    polygons = read_lines("0 .1 .1 .5 .2 .6 .7\n0 .1 .1 1.5 .2 .6 .7\n1 .2 .2 .6 .2 .7 .8\n", "a.txt")
    assert polygons.lines.tolist() == [1, 3] and len(polygons.polygons) == 2
    np.testing.assert_allclose(polygons.polygons[1], [[0.2, 0.2], [0.6, 0.2], [0.7, 0.8]], rtol=1e-6)


# --- labels that reach over the edge ----------------------------------------------------------------------------------

OVER = [  # pixels of an image of 640 x 320: text, and the box x1, y1, x2, y2 that is left of it
    ("0 .5 .5 1.002 .5", (0, 80, 640, 240)),  # 0.64 pixels on each side
    ("0 .5 .5 .5 1.006", (160, 0, 480, 320)),  # 0.96 pixels above and below
    ("0 -.0005 .5 .002 .5", (0, 80, 0.32, 240)),
    ("0 -.001 .1 .5 .2 1.0015 .9", (0, 32, 640, 288)),
    ("0 .1 .1 .5 1.003 .3 .5", (64, 32, 320, 320)),
]


@pytest.mark.parametrize("text, box", OVER)
def test_a_label_that_reaches_over_by_a_pixel_is_cut_where_asked(text, box):
    if read_lines(text, "a.txt").polygons:  # whose box has a centre and sides in 0-1, so that v6.1 takes it as it is
        assert parse_labels(text, "a.txt").polygons[0].max() == np.float32(1.003)
    else:
        with pytest.raises(ValueError, match="must lie in 0-1"):
            parse_labels(text, "a.txt")
    found = parse_labels(text, "a.txt", clip_to=(640, 320))
    x1, y1, x2, y2 = box
    expected = [[0, (x1 + x2) / 1280, (y1 + y2) / 640, (x2 - x1) / 640, (y2 - y1) / 320]]
    np.testing.assert_allclose(found.rows, expected, atol=1e-6)
    assert found.rows.dtype == np.float32 and (found.rows >= 0).all() and (found.rows <= 1).all()
    assert all((polygon >= 0).all() and (polygon <= 1).all() for polygon in found.polygons)


@pytest.mark.parametrize(
    "text",
    [
        "0 .5 .5 1.004 .5",  # by 1.28 pixels
        "0 1.0001 .5 .1 .5",  # the box lies over the edge by 32 pixels
        "0 320 160 20 20",  # pixels, not fractions
        "0 -.001 .5 .001 .5",  # nothing is left of it
        "0 .5 .5 nan .5",
        "0 -.1 .1 .5 .2 1.002 .9",
        "-1 .5 .5 1.002 .5",
    ],
)
def test_what_reaches_over_by_more_stays_a_fault(text):
    with pytest.raises(ValueError, match=r"must (lie in 0-1|be a whole number)"):
        parse_labels(text, "a.txt", clip_to=(640, 320))


def test_labels_inside_are_not_changed_to_the_last_bit():
    text = "0 .99 .5 .1 .2\n1 .123456 .654321 .2 .3\n0 .1 .1 .5 .2 .6 .7 .2 .6\n"  # the first box reaches over
    plain, cut = parse_labels(text, "a.txt"), parse_labels(text, "a.txt", clip_to=(640, 480))
    assert np.array_equal(plain.rows, cut.rows) and all(map(np.array_equal, plain.polygons, cut.polygons))
