"""Every format into every other and back: the same images, classes, boxes within rounding, and outlines where both
hold them. Wrong files are refused by file and row, and nothing of the user's is touched.
"""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from exports import EXPORTS, photographs, two_folders
from exports import NAMES as CELLS
from PIL import Image

from tools import split as splitting
from tools.convert import convert, main, parse_options, read
from utils.data.annotations import scan
from utils.data.dataset_yaml import load_dataset_yaml
from utils.data.labels import LabelledImage, LabelledObject, LabelledSplit
from utils.files import ROOT

KINDS = ("coco", "voc", "yolo", "labelme", "shards")
SOURCES = {"coco": "{}.json", "voc": "{}/Annotations", "yolo": "data.yaml", "labelme": "{}", "shards": "data.yaml"}
NAMES = ["cat", "a dog", "细胞", "unused"]
ROUNDING = {"coco": 1e-3, "voc": 0.5, "yolo": 1e-3, "labelme": 1e-3, "shards": 1e-3}  # pixels


def random_labels(folder, split, outlines, rng):
    """Three images, one in a sub-folder, one without an object; some objects with an outline."""
    images = []
    for name, (width, height), count in (
        ("a.jpg", (64, 48), 4),
        ("sub/a b.png", (50, 90), 3),
        ("none.jpg", (40, 40), 0),
    ):
        file = folder / split / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (90, 60, 30)).save(file)
        objects = []
        for i in range(count):
            if outlines and i % 2 == 0:
                corners = rng.uniform(1, np.array([width, height]) - 1, (3 + i, 2))
                box = (*corners.min(0).tolist(), *corners.max(0).tolist())
                objects.append(LabelledObject(NAMES[i % 3], box, [corners]))
            else:
                x1, y1 = rng.uniform(0, 20, 2)
                objects.append(LabelledObject(NAMES[i % 3], (x1, y1, x1 + rng.uniform(3, 15), y1 + rng.uniform(3, 15))))
        images.append(LabelledImage(name, width, height, objects, file))
    return LabelledSplit(NAMES, images)


def assert_same(a, b, tolerance, outlines):
    assert a.names == b.names
    assert sorted(image.name for image in a.images) == sorted(image.name for image in b.images)
    by_name = {image.name: image for image in b.images}
    for image in a.images:
        other = by_name[image.name]
        assert (image.width, image.height) == (other.width, other.height)
        assert len(image.objects) == len(other.objects)
        for item, twin in zip(image.objects, other.objects):
            assert item.name == twin.name
            np.testing.assert_allclose(item.box, twin.box, atol=tolerance)
            if outlines and item.polygons:
                assert len(item.polygons) == len(twin.polygons)
                for polygon, copy in zip(item.polygons, twin.polygons):
                    np.testing.assert_allclose(polygon, copy, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_are_not_utf8(tmp_path, kind):
    name = os.fsdecode(b"\xd6\xd0.png")  # as unpacked from an archive of a Chinese Windows
    Image.new("RGB", (64, 48), (90, 60, 30)).save(tmp_path / name)
    item = LabelledObject("cat", (1.0, 2.0, 30.0, 40.0))
    labels = LabelledSplit(["cat"], [LabelledImage(name, 64, 48, [item], tmp_path / name)])
    convert({"train": labels}, kind, tmp_path / "one")
    if kind != "voc":  # where the name in the XML is only for the reader
        assert_same(labels, read(tmp_path / "one" / SOURCES[kind].format("train"), "train", []), 1e-3, False)
    if kind != "shards":
        assert [file.name for file in (tmp_path / "one").rglob("*.png")] == [name]


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
        for image in end.images:  # with the same image, byte for byte
            assert Path(getattr(image.source, "tar", image.source)).is_relative_to(tmp_path / "two")
            assert image.source.read_bytes() == (tmp_path / "originals" / split / image.name).read_bytes()


def test_training_reads_what_was_written_as_yolo(tmp_path):
    labels = random_labels(tmp_path / "originals", "train", True, np.random.default_rng(1))
    convert({"train": labels}, "yolo", tmp_path / "out")
    data = load_dataset_yaml(tmp_path / "out/data.yaml", ("train",))
    annotations = scan(data["train"], use_cache=False)
    assert data["names"] == NAMES and annotations.counts["corrupt"] == 0 and not annotations.faults
    for i, image in enumerate(sorted(labels.images, key=lambda image: image.name)):
        size = np.array([image.width, image.height] * 2)
        corners = np.array([item.box for item in image.objects]).reshape(-1, 4) / size
        expected = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
        np.testing.assert_allclose(annotations.labels_of(i)[:, 1:], expected, atol=1e-5)


# --- what single formats know and others do not -----------------------------------------------------------------------


def one(*objects, width=100, height=50):
    return {"train": LabelledSplit(["cat"], [LabelledImage("a.jpg", width, height, list(objects), None)])}


def through(tmp_path, splits, kind):
    convert(splits, kind, tmp_path / kind, with_images=False)
    return read(tmp_path / kind / SOURCES[kind].format("train"), "train", []).images[0].objects


def yolo_lines(tmp_path, *objects):
    convert(one(*objects), "yolo", tmp_path / "yolo", with_images=False)
    return (tmp_path / "yolo/labels/train/a.txt").read_text().splitlines()


@pytest.mark.parametrize("kind", ["coco", "voc", "labelme"])
def test_difficult_objects_keep_their_mark(tmp_path, kind):
    objects = through(
        tmp_path, one(LabelledObject("cat", (1, 2, 30, 40), difficult=True), LabelledObject("cat", (5, 5, 9, 9))), kind
    )
    assert [item.difficult for item in objects] == [True, False]


@pytest.mark.parametrize("kind", ["coco", "labelme"])
def test_objects_of_several_parts_stay_one_object(tmp_path, kind):
    parts = [np.array([[1, 1], [9, 1], [9, 9.0]]), np.array([[20, 20], [30, 20], [30, 40.0]])]
    objects = through(
        tmp_path,
        one(LabelledObject("cat", (1, 1, 30, 40), parts), LabelledObject("cat", (1, 1, 9, 9), parts[:1])),
        kind,
    )
    assert [len(item.polygons) for item in objects] == [2, 1] and objects[0].box == (1, 1, 30, 40)


def test_yolo_by_hand(tmp_path):
    assert yolo_lines(
        tmp_path,
        LabelledObject("cat", (10, 10, 30, 20)),
        LabelledObject("cat", (90, 40, 120, 60)),  # clipped to 90, 40, 100, 50
        LabelledObject("cat", (120, 10, 130, 20)),  # outside
        LabelledObject("cat", (10, 10, 30, 20), difficult=True),
    ) == ["0 0.2 0.3 0.2 0.2", "0 0.95 0.9 0.1 0.2"]


def test_yolo_with_outlines_by_hand(tmp_path):
    triangle = np.array([[0, 0], [50, 0], [50, 25.0]])
    assert yolo_lines(
        tmp_path, LabelledObject("cat", (0, 0, 50, 25), [triangle]), LabelledObject("cat", (10, 10, 30, 20))
    ) == [
        "0 0 0 0.5 0 0.5 0.5",
        "0 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4",
    ]


def test_voc_counts_pixels_from_one(tmp_path):
    convert(one(LabelledObject("cat", (0, 9, 19.6, 29))), "voc", tmp_path / "out", with_images=False)
    text = (tmp_path / "out/train/Annotations/a.xml").read_text()
    assert (
        "<xmin>1</xmin>" in text
        and "<ymin>10</ymin>" in text
        and "<xmax>21</xmax>" in text
        and "<ymax>30</ymax>" in text
    )


def test_coco_by_hand(tmp_path):
    triangle = np.array([[0, 0], [50, 0], [50, 20.0]])
    convert(one(LabelledObject("cat", (0, 0, 50, 20), [triangle])), "coco", tmp_path / "out", with_images=False)
    content = json.loads((tmp_path / "out/train.json").read_text())
    assert content["annotations"] == [
        {
            "id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 20], "area": 500, "iscrowd": 0,
            "segmentation": [[0, 0, 50, 0, 50, 20]],
        }
    ]  # fmt: skip


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
            r"annotation 1: bbox must be 4 numbers \(x, y, width, height in pixels\), got \[1, 2, 3\]",
        ),
        (
            "annotations",
            {"bbox": [1, 2, -3, 4]},
            r"annotation 1: x2 and y2 must be finite and not below x1 and y1, got box \(1, 2, -2, 6\)",
        ),
        ("annotations", {"bbox": [1, 2, "x", 4]}, r"annotation 1: bbox .* got .*'x'"),
        (
            "annotations",
            {"bbox": [1, 2, float("nan"), 4]},
            r"annotation 1: x2 and y2 must be finite .* got box \(1, 2, nan, 6\)",
        ),
        ("annotations", {"image_id": 7}, "annotation 1: there is no image with id 7"),
        (
            "annotations",
            {"category_id": None},
            r"annotations\[0\]: 'category_id' must be a whole number or text",
        ),
        ("annotations", {"segmentation": [[1, 2, 3, 4]]}, "annotation 1: a polygon must be 3 or more pairs"),
        ("images", {"file_name": "../../etc/a.jpg"}, "image 1: a file name must lie below"),
        ("images", {"file_name": "/etc/a.jpg"}, "image 1: a file name must lie below"),
        ("images", {"file_name": None}, "image 1: a file name must lie below"),
        ("images", {"width": None}, "image 1: width and height must be whole numbers of pixels"),
        ("categories", {"name": 3}, "category 1: 'name' must be text, got 3"),
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
        ("<xmin>2</xmin>", "", r"a\.xml: object 1 \('cat'\): bndbox must be 4 numbers \(xmin, .* got None, 3, 31, 41"),
        ("<xmin>2</xmin>", "<xmin>99</xmin>", r"a\.xml: object 1 \('cat'\): x2 and y2 must be finite and not below"),
        ("<name>cat</name>", "<name> </name>", r"a\.xml: object 1 \(''\): has no name"),
        ("<width>100</width>", "", r"a\.xml: size: width and height must be whole numbers of pixels"),
        ("</annotation>", "", r"a\.xml:\d+: not valid XML: no element found"),
        ("<annotation>", '<!DOCTYPE x [<!ENTITY a "b">]><annotation>', r"a\.xml:1: a document type"),
    ],
)
def test_voc_faults_name_file_and_object(tmp_path, old, new, message):
    convert(one(LabelledObject("cat", (1, 2, 30, 40))), "voc", tmp_path / "voc", with_images=False)
    file = tmp_path / "voc/train/Annotations/a.xml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        read(file.parent, "train", [])


def test_image_of_another_size_is_an_error(tmp_path):
    Image.new("RGB", (50, 100)).save(tmp_path / "a.jpg")
    (tmp_path / "c.json").write_text(json.dumps(COCO))
    with pytest.raises(ValueError, match=r"c\.json: image 1: size 100 x 50 but .*a\.jpg has 50 x 100 pixels"):
        read(tmp_path / "c.json", "train", [])


def test_nothing_is_overwritten_and_nothing_left_behind(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(FileExistsError, match="out exists"):
        convert(one(), "yolo", out, with_images=False)
    with pytest.raises(ValueError, match=r"image a\.jpg was not found; give --images FOLDER, or --no-images"):
        convert(one(), "yolo", tmp_path / "new")
    splits = one()
    splits["train"].images.append(LabelledImage("a.png", 9, 9, [], None))
    with pytest.raises(ValueError, match=r"a\.jpg and a\.png would share a label file"):
        convert(splits, "yolo", tmp_path / "new", with_images=False)
    splits = {"train": LabelledSplit(["cat", "cat"], [])}
    with pytest.raises(ValueError, match="names of classes must differ, but two are 'cat'"):
        convert(splits, "yolo", tmp_path / "new", with_images=False)
    broken = {"train": LabelledSplit(["cat"], [LabelledImage("a.jpg", 9, 9, [], tmp_path / "gone.jpg")])}
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


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
def test_every_source_of_training_is_converted_with_its_objects(export, tmp_path):
    """Also a <filename> without suffix, and a data set YAML of Pascal VOC or COCO, as tools/split.py writes it."""
    source = export(tmp_path / "set")
    expected = [{(CELLS[c], *box) for c, *box in objects} for _, _, objects in photographs()]
    of = ["--of", "train"] if "roboflow" in export.__name__ else []
    splitting.main(splitting.parse_options([str(source), "--out", str(tmp_path / "split"), "--test", "0", *of]))
    parts = [read(tmp_path / "split" / "data.yaml", part, []) for part in ("train", "val")]
    for labels in (read(source, "train", []).images, [image for part in parts for image in part.images]):
        images = sorted(labels, key=lambda image: image.source.name)
        found = [{(item.name, *(round(v, 2) for v in item.box)) for item in image.objects} for image in images]
        assert found == expected


def test_an_image_renamed_with_its_xml_is_found_as_training_finds_it(tmp_path):
    """Each <filename> names another image than the XML: one that is gone, or the next one's."""
    root = two_folders(tmp_path / "set")
    names = sorted(path.name for path in (root / "IMAGES").iterdir())
    for i, name in enumerate(names):
        xml = (root / "ANNOTATIONS" / name).with_suffix(".xml")
        for file in (root / "IMAGES" / name, xml):
            file.rename(file.with_stem(os.fsdecode(b"caf\xe9 %d" % i) if i % 2 else file.stem))
        if not i % 2:
            xml.write_text(xml.read_text().replace(Path(name).stem, Path(names[(i + 2) % len(names)]).stem))
    labels = read(root, "train", [])
    assert all(image.source.stem == Path(image.name).stem for image in labels.images)
    found = {image.source.read_bytes(): {(o.name, *o.box) for o in image.objects} for image in labels.images}
    assert found == {path.read_bytes(): {(CELLS[c], *box) for c, *box in rows} for path, _, rows in photographs()}
