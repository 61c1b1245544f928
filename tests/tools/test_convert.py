"""Every format into every other and back: the same pictures, classes, boxes within rounding, and outlines where both
hold them. Wrong files are refused by file and row, and nothing of the user's is touched.
"""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.convert import Labels, Picture, Thing, convert, main, parse_options, read
from utils.data.annotations import scan
from utils.data.dataset_yaml import load_dataset_yaml
from utils.files import ROOT

KINDS = ("coco", "voc", "yolo", "labelme")
SOURCES = {"coco": "{}.json", "voc": "{}/Annotations", "yolo": "data.yaml", "labelme": "{}"}
NAMES = ["cat", "a dog", "细胞", "unused"]
ROUNDING = {"coco": 1e-3, "voc": 0.5, "yolo": 1e-3, "labelme": 1e-3}  # pixels


def random_labels(folder, split, outlines, rng):
    """Three pictures, one in a sub-folder, one without an object; some objects with an outline."""
    pictures = []
    for name, (width, height), count in (
        ("a.jpg", (64, 48), 4),
        ("sub/a b.png", (50, 90), 3),
        ("none.jpg", (40, 40), 0),
    ):
        file = folder / split / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (90, 60, 30)).save(file)
        things = []
        for i in range(count):
            if outlines and i % 2 == 0:
                corners = rng.uniform(1, np.array([width, height]) - 1, (3 + i, 2))
                box = (*corners.min(0).tolist(), *corners.max(0).tolist())
                things.append(Thing(NAMES[i % 3], box, [corners]))
            else:
                x1, y1 = rng.uniform(0, 20, 2)
                things.append(Thing(NAMES[i % 3], (x1, y1, x1 + rng.uniform(3, 15), y1 + rng.uniform(3, 15))))
        pictures.append(Picture(name, width, height, things, file))
    return Labels(NAMES, pictures)


def assert_same(a, b, tolerance, outlines):
    assert a.names == b.names
    assert sorted(picture.name for picture in a.pictures) == sorted(picture.name for picture in b.pictures)
    by_name = {picture.name: picture for picture in b.pictures}
    for picture in a.pictures:
        other = by_name[picture.name]
        assert (picture.width, picture.height) == (other.width, other.height)
        assert len(picture.things) == len(other.things)
        for thing, twin in zip(picture.things, other.things):
            assert thing.name == twin.name
            np.testing.assert_allclose(thing.box, twin.box, atol=tolerance)
            if outlines and thing.polygons:
                assert len(thing.polygons) == len(twin.polygons)
                for polygon, copy in zip(thing.polygons, twin.polygons):
                    np.testing.assert_allclose(polygon, copy, atol=tolerance)


@pytest.mark.parametrize("first, second", list(product(KINDS, KINDS)))
@pytest.mark.parametrize("outlines", [False, True], ids=["boxes", "outlines"])
def test_round_trip(tmp_path, first, second, outlines):
    rng = np.random.default_rng(0)
    splits = {split: random_labels(tmp_path / "originals", split, outlines, rng) for split in ("train", "val")}
    convert(splits, first, tmp_path / "one")
    middle = {split: read(tmp_path / "one" / SOURCES[first].format(split), split, []) for split in splits}
    convert(middle, second, tmp_path / "two")
    for split, labels in splits.items():
        end = read(tmp_path / "two" / SOURCES[second].format(split), split, [])
        held = outlines and "voc" not in (first, second)
        assert_same(labels, middle[split], ROUNDING[first] + 1e-9, outlines and first != "voc")
        assert_same(labels, end, ROUNDING[first] + ROUNDING[second] + 1e-9, held)
        for picture in end.pictures:  # with the same image, byte for byte
            assert picture.source.is_relative_to(tmp_path / "two")
            assert picture.source.read_bytes() == (tmp_path / "originals" / split / picture.name).read_bytes()


def test_training_reads_what_was_written_as_yolo(tmp_path):
    labels = random_labels(tmp_path / "originals", "train", True, np.random.default_rng(1))
    convert({"train": labels}, "yolo", tmp_path / "out")
    data = load_dataset_yaml(tmp_path / "out/data.yaml", ("train",))
    annotations = scan(data["train"], use_cache=False)
    assert data["names"] == NAMES and annotations.counts["corrupt"] == 0 and not annotations.messages
    for i, picture in enumerate(sorted(labels.pictures, key=lambda picture: picture.name)):
        size = np.array([picture.width, picture.height] * 2)
        corners = np.array([thing.box for thing in picture.things]).reshape(-1, 4) / size
        expected = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
        np.testing.assert_allclose(annotations.labels_of(i)[:, 1:], expected, atol=1e-5)


# --- what single formats know and others do not -----------------------------------------------------------------------


def one(*things, width=100, height=50):
    return {"train": Labels(["cat"], [Picture("a.jpg", width, height, list(things), None)])}


def through(tmp_path, splits, kind):
    convert(splits, kind, tmp_path / kind, with_images=False)
    return read(tmp_path / kind / SOURCES[kind].format("train"), "train", []).pictures[0].things


def yolo_lines(tmp_path, *things):
    convert(one(*things), "yolo", tmp_path / "yolo", with_images=False)
    return (tmp_path / "yolo/labels/train/a.txt").read_text().splitlines()


@pytest.mark.parametrize("kind", ["coco", "voc", "labelme"])
def test_hard_objects_keep_their_mark(tmp_path, kind):
    things = through(tmp_path, one(Thing("cat", (1, 2, 30, 40), hard=True), Thing("cat", (5, 5, 9, 9))), kind)
    assert [thing.hard for thing in things] == [True, False]


@pytest.mark.parametrize("kind", ["coco", "labelme"])
def test_objects_of_several_parts_stay_one_object(tmp_path, kind):
    parts = [np.array([[1, 1], [9, 1], [9, 9.0]]), np.array([[20, 20], [30, 20], [30, 40.0]])]
    things = through(tmp_path, one(Thing("cat", (1, 1, 30, 40), parts), Thing("cat", (1, 1, 9, 9), parts[:1])), kind)
    assert [len(thing.polygons) for thing in things] == [2, 1] and things[0].box == (1, 1, 30, 40)


def test_yolo_by_hand(tmp_path):
    assert yolo_lines(
        tmp_path,
        Thing("cat", (10, 10, 30, 20)),
        Thing("cat", (90, 40, 120, 60)),  # clipped to 90, 40, 100, 50
        Thing("cat", (120, 10, 130, 20)),  # outside
        Thing("cat", (10, 10, 30, 20), hard=True),
    ) == ["0 0.2 0.3 0.2 0.2", "0 0.95 0.9 0.1 0.2"]


def test_yolo_with_outlines_by_hand(tmp_path):
    triangle = np.array([[0, 0], [50, 0], [50, 25.0]])
    assert yolo_lines(tmp_path, Thing("cat", (0, 0, 50, 25), [triangle]), Thing("cat", (10, 10, 30, 20))) == [
        "0 0 0 0.5 0 0.5 0.5",
        "0 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4",
    ]


def test_voc_counts_pixels_from_one(tmp_path):
    convert(one(Thing("cat", (0, 9, 19.6, 29))), "voc", tmp_path / "out", with_images=False)
    text = (tmp_path / "out/train/Annotations/a.xml").read_text()
    assert (
        "<xmin>1</xmin>" in text
        and "<ymin>10</ymin>" in text
        and "<xmax>21</xmax>" in text
        and "<ymax>30</ymax>" in text
    )


def test_coco_by_hand(tmp_path):
    triangle = np.array([[0, 0], [50, 0], [50, 20.0]])
    convert(one(Thing("cat", (0, 0, 50, 20), [triangle])), "coco", tmp_path / "out", with_images=False)
    content = json.loads((tmp_path / "out/train.json").read_text())
    assert content["annotations"] == [
        {
            "id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 20], "area": 500, "iscrowd": 0,
            "segmentation": [[0, 0, 50, 0, 50, 20]],
        }
    ]  # fmt: skip


def test_labelme_circle_and_other_shapes(tmp_path, capfd):
    shapes = [
        {"label": "cat", "shape_type": "circle", "points": [[50, 25], [53, 29]]},
        {"label": "cat", "shape_type": "line", "points": [[50, 25], [53, 29]]},
        {"label": "cat", "shape_type": "rectangle", "points": [[30, 29], [10, 5]]},  # drawn from the lower right
    ]
    content = {"imagePath": "..\\pictures\\x.png", "imageWidth": 100, "imageHeight": 50, "shapes": shapes}
    (tmp_path / "a.json").write_text(json.dumps(content))
    picture = read(tmp_path, "train", []).pictures[0]
    assert picture.name == "a.png" and [thing.box for thing in picture.things] == [(45, 20, 55, 30), (10, 5, 30, 29)]
    assert "a.json: shapes[1]: a line is no object; left out" in capfd.readouterr().err


# --- faults -----------------------------------------------------------------------------------------------------------

COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 50}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
}


@pytest.mark.parametrize(
    "key, row, message",
    [
        (
            "annotations",
            {"bbox": [1, 2, 3]},
            r"annotations\[0\]: bbox must be x, y, width, height in pixels, got \[1, 2, 3\]",
        ),
        ("annotations", {"bbox": [1, 2, -3, 4]}, r"annotations\[0\]: bbox .* below 0"),
        ("annotations", {"bbox": [1, 2, "x", 4]}, r"annotations\[0\]: bbox .* got 'x'"),
        ("annotations", {"bbox": [1, 2, float("nan"), 4]}, r"annotations\[0\]: bbox .* got 'nan'"),
        ("annotations", {"image_id": 7}, r"annotations\[0\]: image_id 7 is not among the ids"),
        ("annotations", {"category_id": None}, r"annotations\[0\]: category_id None is not among the ids"),
        ("annotations", {"segmentation": [[1, 2, 3, 4]]}, r"annotations\[0\]: a polygon must be 3 or more pairs"),
        ("images", {"file_name": "../../etc/a.jpg"}, r"images\[0\]: a file name must lie below"),
        ("images", {"file_name": "/etc/a.jpg"}, r"images\[0\]: a file name must lie below"),
        ("images", {"file_name": None}, r"images\[0\]: a file name must lie below"),
        ("images", {"width": None}, r"images\[0\]: width and height must be pixels"),
        ("categories", {"name": 3}, r"categories\[0\]: needs a name"),
    ],
)
def test_coco_faults_name_file_and_row(tmp_path, key, row, message):
    content = json.loads(json.dumps(COCO))
    content[key][0].update(row)
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"c\.json: {message}"):
        read(tmp_path / "c.json", "train", [])


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("<xmin>2</xmin>", "", r"a\.xml: object 1: bndbox must have xmin, .* got 'None'"),
        ("<xmin>2</xmin>", "<xmin>99</xmin>", r"a\.xml: object 1: xmin and ymin must not be beyond"),
        ("<name>cat</name>", "<name> </name>", r"a\.xml: object 1: has no name"),
        ("<width>100</width>", "", r"a\.xml: size: width and height must be pixels"),
        ("</annotation>", "", r"a\.xml: not an XML file: no element found: line \d+"),
        ("<annotation>", '<!DOCTYPE x [<!ENTITY a "b">]><annotation>', r"a\.xml: a document type"),
    ],
)
def test_voc_faults_name_file_and_object(tmp_path, old, new, message):
    convert(one(Thing("cat", (1, 2, 30, 40))), "voc", tmp_path / "voc", with_images=False)
    file = tmp_path / "voc/train/Annotations/a.xml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        read(file.parent, "train", [])


@pytest.mark.parametrize(
    "shape, message",
    [
        ({"label": ""}, r"a\.json: shapes\[0\]: needs a label"),
        ({"label": "cat", "points": [[1, 2], [3, 4]]}, r"a\.json: shapes\[0\]: points must be 3 or more pairs"),
        (
            {"label": "cat", "points": [[1, 2], [3, 4], [5, None]]},
            r"a\.json: shapes\[0\]: points must be 3 or more pairs",
        ),
        (3, r"a\.json: shapes\[0\] must be a mapping"),
    ],
)
def test_labelme_faults_name_file_and_shape(tmp_path, shape, message):
    (tmp_path / "a.json").write_text(json.dumps({"imageWidth": 9, "imageHeight": 9, "shapes": [shape]}))
    with pytest.raises(ValueError, match=message):
        read(tmp_path, "train", [])


def test_image_of_another_size_is_an_error(tmp_path):
    Image.new("RGB", (50, 100)).save(tmp_path / "a.jpg")
    (tmp_path / "c.json").write_text(json.dumps(COCO))
    with pytest.raises(ValueError, match=r"c\.json: images\[0\]: size 100 x 50 but .*a\.jpg has 50 x 100 pixels"):
        read(tmp_path / "c.json", "train", [])


def test_nothing_is_overwritten_and_nothing_left_behind(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(FileExistsError, match="out exists"):
        convert(one(), "yolo", out, with_images=False)
    with pytest.raises(ValueError, match=r"image a\.jpg was not found; give --images FOLDER, or --no-images"):
        convert(one(), "yolo", tmp_path / "new")
    splits = one()
    splits["train"].pictures.append(Picture("a.png", 9, 9, [], None))
    with pytest.raises(ValueError, match=r"a\.jpg and a\.png would share a label file"):
        convert(splits, "yolo", tmp_path / "new", with_images=False)
    splits = {"train": Labels(["cat", "cat"], [])}
    with pytest.raises(ValueError, match="two classes are called 'cat'"):
        convert(splits, "yolo", tmp_path / "new", with_images=False)
    broken = {"train": Labels(["cat"], [Picture("a.jpg", 9, 9, [], tmp_path / "gone.jpg")])}
    with pytest.raises(FileNotFoundError):  # in the middle of the writing
        convert(broken, "yolo", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not list(out.iterdir())


def test_command(tmp_path):
    Image.new("RGB", (100, 50)).save(tmp_path / "a.jpg")
    (tmp_path / "c.json").write_text(json.dumps(COCO))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    main(parse_options(["--train", str(tmp_path / "c.json"), "--to", "yolo", "--out", str(tmp_path / "out")]))
    assert (tmp_path / "out/labels/train/a.txt").read_text() == "0 0.025 0.08 0.03 0.08\n"
    assert (tmp_path / "out/images/train/a.jpg").read_bytes() == before[tmp_path / "a.jpg"]
    assert all(path.read_bytes() == content for path, content in before.items())

    command = [sys.executable, ROOT / "tools/convert.py", "--to", "yolo", "--out", tmp_path / "two"]
    run = subprocess.run([*command, "--train", tmp_path / "none.json"], capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.startswith("convert: error: no such file or folder of labels")
    assert not Path(tmp_path / "two").exists()
