"""COCO JSON and Pascal VOC XML give the labels that their text files would, and no fault in them passes unnoticed."""

import json
import re

import numpy as np
import pytest

from utils.data.annotations import cache_path, list_pairs, scan
from utils.data.dataset_yaml import load_dataset_yaml
from utils.data.formats import CocoSplit, UnknownClassError, VocSplit, normalise_boxes, parse_xml
from utils.data.loader import create_dataloader
from utils.data.options import LoaderOptions

NAMES = ("cat", "dog")
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 1, "name": "unused"}]


@pytest.fixture
def images(tmp_path, write_image, noise_image):
    """Folder of a.png and b.png of 100 x 50 pixels."""
    for name in "ab":
        write_image(tmp_path / "images" / f"{name}.png", noise_image(50, 100))
    return tmp_path / "images"


@pytest.fixture
def coco(tmp_path, images):
    """`coco(annotations of image 11, ...)`: a split of a.png (11) and b.png ("x")."""

    def write(*annotations, **changes):
        content = {
            "images": [
                {"id": "x", "file_name": "b.png", "width": 100, "height": 50},
                {"id": 11, "file_name": "a.png", "width": 100, "height": 50},
            ],
            "annotations": [{"id": i, "image_id": 11, "category_id": 7, **a} for i, a in enumerate(annotations)],
            "categories": CATEGORIES,
            **changes,
        }
        (tmp_path / "instances.json").write_text(json.dumps(content))
        return CocoSplit((str(tmp_path / "instances.json"),), str(images), NAMES)

    return write


# --- boxes in pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "box, expected, message",
    [
        ((10, 10, 30, 20), (0.2, 0.3, 0.2, 0.2), None),
        ((0, 0, 100, 50), (0.5, 0.5, 1, 1), None),
        ((-0.5, 0, 100.9, 50), (0.5, 0.5, 1, 1), None),  # rounding
        ((90, 10, 110, 20), (0.95, 0.3, 0.1, 0.2), r"box \(90, 10, 110, 20\) reaches over the image of 100 x 50"),
        ((10, 10, 10, 20), None, "has no area; left out"),
        ((30, 10, 10, 20), None, "has no area; left out"),
        ((float("nan"), 10, 30, 20), None, "has no area; left out"),
        ((0, 0, float("inf"), 20), None, "has no area; left out"),
        ((100, 10, 120, 20), None, "lies outside the image of 100 x 50 pixels; left out"),
        ((0, -20, 10, -5), None, "lies outside"),
    ],
)
def test_boxes(box, expected, message):
    scaled, useful, messages = normalise_boxes(np.array([box], float), (100, 50), ["place"])
    assert useful.tolist() == [expected is not None]
    if expected:
        assert scaled[0] == pytest.approx(expected)
    assert [m.startswith("place: ") for m in messages] == ([True] if message else [])
    if message:
        assert re.search(message, messages[0])


# --- COCO JSON --------------------------------------------------------------------------------------------------------


def test_coco_by_hand(coco, caplog):
    found = scan(
        coco(
            {"bbox": [10, 10, 20, 10], "segmentation": [[10, 10, 30, 10, 20, 20]]},
            {"bbox": [0, 0, 50, 50], "category_id": 3, "segmentation": {"counts": [1], "size": [50, 100]}},  # a mask
            {"bbox": [0, 0, 99, 50], "iscrowd": 1, "segmentation": {"counts": [1], "size": [50, 100]}},
            {"bbox": [5, 5, 0, 9], "id": 77},
            {
                "bbox": [50, 20, 10, 10],
                "segmentation": [[50, 20, 60, 20, 60, 30], [50, 25, 52, 25, 52, 30]],
            },  # two parts
            {"bbox": [10, 10, 20, 10]},
            {"bbox": [1, 1, 5, 5], "image_id": 404, "id": 66},
        ),
        use_cache=False,
    )
    assert [path[-5:] for path in found.images] == ["a.png", "b.png"]
    assert found.sizes.tolist() == [[100, 50], [100, 50]]
    expected = [[1, 0.2, 0.3, 0.2, 0.2], [0, 0.25, 0.5, 0.5, 1], [1, 0.55, 0.5, 0.1, 0.2]]
    assert found.labels == pytest.approx(np.array(expected)) and found.labels.dtype == np.float32
    assert found.starts.tolist() == [0, 3, 3]
    outline = np.array([[0.1, 0.2], [0.3, 0.2], [0.2, 0.4]])
    assert found.polygons_of(0)[0] == pytest.approx(outline) and [len(p) for p in found.polygons_of(0)] == [3, 0, 0]
    assert found.counts == {"found": 2, "missing": 0, "empty": 1, "corrupt": 0, "total": 2}
    zero, twice = found.messages
    assert zero.endswith("instances.json: annotation 77: box (5, 5, 5, 14) has no area; left out")
    assert "annotation 5: the same box and class as" in twice and "annotation 0" in twice
    assert "1 crowd boxes left out" in caplog.text
    assert "1 annotations of images that are not listed, first 66; left out" in caplog.text


@pytest.mark.parametrize(
    "annotation, message",
    [
        ({"bbox": [1, 2, 3]}, r"annotation 0: bbox must be 4 numbers, got \[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, None]}, "annotation 0: bbox must be 4 numbers"),
        ({"bbox": [[1], 2, 3, 4]}, "annotation 0: bbox must be 4 numbers"),
        ({"bbox": [1, 2, 3, 10**400]}, "annotation 0: bbox must be 4 numbers"),
        ({}, "annotation 0: bbox must be 4 numbers, got None"),
        ({"bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3]]}, "annotation 0: segmentation must be an even number of"),
    ],
)
def test_an_image_whose_boxes_cannot_be_read_is_left_out(coco, annotation, message):
    found = scan(coco(annotation), use_cache=False)
    assert found.counts["corrupt"] == 1 and len(found.images) == 1
    assert re.search(message, found.messages[0])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": None}, "not COCO JSON of boxes: 'images' must be a list of objects"),
        ({"annotations": [1]}, "'annotations' must be a list of objects"),
        ({"images": [{"id": [1], "file_name": "a.png"}]}, r"images\[0\]: 'id' must be .*got \[1\]"),
        ({"images": [{"id": 11}]}, "image 11: 'file_name' must be str, got None"),
        ({"images": [{"id": 11, "file_name": n} for n in ("a.png", "b.png")]}, "2 images have the id 11"),
        ({"images": [{"id": i, "file_name": "a.png"} for i in (11, 12)]}, "image 12: a.png is listed twice"),
        ({"images": []}, "no images are listed"),
        ({"categories": [{"id": 3, "name": "cat"}]}, "annotation 0: there is no category with id 7"),
        ({"categories": [{"id": 7}]}, "category: 'name' must be str, got None"),
        ({"categories": [{"id": 7, "name": "mouse"}]}, "annotation 0 is of class 'mouse', which is none of the names"),
    ],
)
def test_json_that_is_not_coco_is_refused(coco, changes, message):
    with pytest.raises(ValueError, match=message):
        scan(coco({"bbox": [1, 2, 3, 4]}, **changes), use_cache=False)


@pytest.mark.parametrize("text", ["{", "[]", "\xff", "[" * 100000])
def test_text_that_is_not_json_is_refused(coco, tmp_path, text):
    split = coco()
    (tmp_path / "instances.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"instances.json: not (a JSON file|COCO JSON)"):
        scan(split, use_cache=False)


def test_an_image_of_another_size_is_left_out(coco):
    record = {"id": 11, "file_name": "a.png", "width": 50, "height": 100}
    other = {"id": 12, "file_name": "b.png"}  # which says no size
    found = scan(coco({"bbox": [1, 2, 3, 4], "image_id": 12}, images=[record, other]), use_cache=False)
    assert [path[-5:] for path in found.images] == ["b.png"] and len(found.labels) == 1
    assert "image 11: says 50 x 100 pixels, but the image has 100 x 50; it is turned by its EXIF" in found.messages[0]


def test_several_files_with_their_own_category_numbers(coco, tmp_path):
    first = coco({"bbox": [10, 10, 20, 10]}, images=[{"id": 11, "file_name": "a.png"}])
    (tmp_path / "instances.json").rename(tmp_path / "first.json")
    coco(
        {"bbox": [10, 10, 20, 10]},
        images=[{"id": 11, "file_name": "b.png"}],
        categories=[{"id": 7, "name": "cat"}],
    )
    both = CocoSplit((str(tmp_path / "first.json"), str(tmp_path / "instances.json")), first.images, NAMES)
    assert scan(both, use_cache=False).labels[:, 0].tolist() == [1, 0]


def test_against_pycocotools(bccd, tmp_path):
    """Photographs with their text labels written as COCO JSON: boxes are those of the text, and of pycocotools."""
    pycoco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools")
    text = scan(str(bccd / "images/train"), use_cache=False)
    content = {"images": [], "annotations": [], "categories": [{"id": 90 - c, "name": f"class{c}"} for c in range(3)]}
    for i, path in enumerate(text.images):
        width, height = text.sizes[i].tolist()
        content["images"].append({"id": i, "file_name": path.rpartition("/")[2], "width": width, "height": height})
        for c, x, y, w, h in text.labels_of(i).tolist():
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            number = len(content["annotations"])
            content["annotations"].append(
                {
                    "id": number,
                    "image_id": i,
                    "category_id": 90 - int(c),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    file = tmp_path / "val.json"
    file.write_text(json.dumps(content))
    folder = str(bccd / "images/train")
    found = scan(CocoSplit((str(file),), folder, ("class0", "class1", "class2")), use_cache=False)
    assert found.images == text.images and (found.starts == text.starts).all()
    assert np.abs(found.labels - text.labels).max() < 1e-6

    reference = pycoco.COCO(str(file))
    for i, path in enumerate(found.images):
        number = next(n for n, record in reference.imgs.items() if path.endswith(record["file_name"]))
        rows = reference.loadAnns(reference.getAnnIds(imgIds=[number]))
        expected = [[90 - row["category_id"], *row["bbox"]] for row in rows]
        labels = found.labels_of(i).astype(float)
        corner = labels[:, 1:3] - labels[:, 3:] / 2
        pixels = np.column_stack([corner, labels[:, 3:]]) * np.tile(found.sizes[i], 2)
        assert np.column_stack([labels[:, 0], pixels]) == pytest.approx(np.array(expected), abs=1e-3)


def test_cache_of_a_coco_split(coco, tmp_path, monkeypatch):
    split = coco({"bbox": [10, 10, 20, 10]})
    first = scan(split)
    assert cache_path(split) == tmp_path / "instances.cache" and cache_path(split).is_file()
    monkeypatch.setattr("utils.data.annotations._check_all", None)  # not called again
    assert (scan(split).labels == first.labels).all()
    monkeypatch.undo()
    other = CocoSplit(split.files, split.images, NAMES[::-1])  # other numbers for the same file
    assert scan(other).labels[:, 0].tolist() == [0] and first.labels[:, 0].tolist() == [1]
    assert scan(coco({"bbox": [10, 10, 20, 30]})).labels[0, 4] == pytest.approx(0.6)


# --- Pascal VOC -------------------------------------------------------------------------------------------------------


def thing(name="dog", corners=(11, 11, 31, 21), extra=""):
    bounds = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners))
    return f"<object><name>{name}</name>{extra}<bndbox>{bounds}</bndbox></object>"


@pytest.fixture
def voc(tmp_path, images):
    """`voc({"a": objects, ...})`: a folder with Annotations, JPEGImages and ImageSets/Main/train.txt."""
    images.rename(tmp_path / "JPEGImages")

    def write(objects, size="<size><width>100</width><height>50</height><depth>3</depth></size>", head=""):
        for folder in ("Annotations", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in objects.items():
            xml = f"{head}<annotation><filename>wrong.jpg</filename>{size}{text}</annotation>"
            (tmp_path / "Annotations" / f"{name}.xml").write_text(xml, encoding="utf-8")
        (tmp_path / "ImageSets/Main/train.txt").write_text("b  1\na -1\n\n")
        return VocSplit((str(tmp_path / "ImageSets/Main/train.txt"),), None, NAMES)

    return write


PART = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"


def test_voc_by_hand(voc, tmp_path):
    hard = "<difficult>1</difficult>"
    split = voc({"a": thing(extra=PART) + thing("cat", (1, 1, 101, 51)) + thing("unheard", extra=hard), "b": ""})
    for place, names in ((split.places[0], "ab"), (str(tmp_path / "Annotations"), "ab")):
        found = scan(VocSplit((place,), None, NAMES), use_cache=False)
        assert [path[-5:] for path in found.images] == [f"{name}.png" for name in names]
        # v6.1: centre (min + max) / 2 - 1, size max - min
        assert found.labels == pytest.approx(np.array([[1, 0.2, 0.3, 0.2, 0.2], [0, 0.5, 0.5, 1, 1]]))
        assert found.starts.tolist() == [0, 2, 2] and not found.messages
        assert found.counts == {"found": 2, "missing": 0, "empty": 1, "corrupt": 0, "total": 2}
        assert [len(p) for p in found.polygons_of(0)] == [0, 0]


def test_difficult_objects_are_kept_when_asked_for(voc):
    split = voc({"a": thing() + thing("cat", extra="<difficult>1</difficult>"), "b": ""})
    assert scan(split).labels[:, 0].tolist() == [1]
    assert scan(VocSplit(split.places, None, NAMES, difficult=True)).labels[:, 0].tolist() == [1, 0]  # not the cache


def test_a_class_that_is_not_named_is_an_error(voc):
    split = voc({"a": thing() + thing("bird"), "b": ""})
    with pytest.raises(UnknownClassError, match=r"Annotations/a.xml: object 2 \('bird'\) is of none of the classes"):
        scan(split)


@pytest.mark.parametrize(
    "text, head, message",
    [
        (thing(corners=(1, 1, "x", 4)), "", r"object 1 \('dog'\): bndbox must be 4 numbers"),
        ("<object><name>dog</name></object>", "", "bndbox must be 4 numbers"),
        ("<object>", "", r"a.xml:1: not valid XML: mismatched tag"),
        (thing(), '<!DOCTYPE x [<!ENTITY a "b">]>\n', r"a.xml:1: a document type \(<!DOCTYPE\) is not accepted"),
        (thing(), '<!DOCTYPE x SYSTEM "file:///etc/passwd">\n', "a document type"),
        ("&a;", "", "a.xml:1: not valid XML: undefined entity"),
    ],
)
def test_xml_that_cannot_be_used_leaves_its_image_out(voc, text, head, message):
    voc({"b": thing()})
    split = voc({"a": text}, head=head)
    found = scan(split, use_cache=False)
    assert [path[-5:] for path in found.images] == ["b.png"] and found.counts["corrupt"] == 1
    assert re.search(message, found.messages[0])


def test_a_document_type_is_refused_in_any_encoding():
    bomb = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><a>&c;</a>'
    for encoding in ("utf-8", "utf-16", "utf-8-sig"):
        with pytest.raises(ValueError, match=r"x.xml:1: a document type"):
            parse_xml(bomb.encode(encoding), "x.xml")
    assert parse_xml("<a>細</a>".encode("utf-16"), "x.xml").text == "細"
    with pytest.raises(ValueError, match=r"x.xml:1: not valid XML: no element found"):
        parse_xml(b"", "x.xml")


def test_bad_boxes_and_sizes_are_reported(voc):
    split = voc({"a": thing(corners=(30, 1, 20, 5)) + thing(corners=(90, 1, 120, 51)), "b": ""})
    found = scan(split, use_cache=False)
    assert len(found.labels) == 1 and found.labels[0, 1:] == pytest.approx([0.945, 0.5, 0.11, 1])
    assert "a.xml: object 1 ('dog'): box (29, 0, 19, 4) has no area; left out" in found.messages[0]
    assert "object 2 ('dog'): box (89, 0, 119, 50) reaches over" in found.messages[1]
    found = scan(voc({"a": thing()}, size="<size><width>200</width><height>50</height></size>"), use_cache=False)
    assert "a.xml: says 200 x 50 pixels, but the image has 100 x 50" in found.messages[0]
    for size in ("", "<size><width>0</width><height>0</height></size>"):  # as some tools leave it
        assert len(scan(voc({"a": thing()}, size=size), use_cache=False).labels) == 1


def test_images_and_files_that_are_missing(voc, tmp_path, caplog):
    split = voc({"b": thing(), "lost": thing()})
    assert scan(split, use_cache=False).counts == {"found": 1, "missing": 1, "empty": 0, "corrupt": 0, "total": 2}
    (tmp_path / "ImageSets/Main/train.txt").write_text("b\nlost\n")
    found = scan(split, use_cache=False)
    assert found.counts["corrupt"] == 1 and "JPEGImages/lost.jpg" in found.messages[0]
    scan(VocSplit((str(tmp_path / "Annotations"),), None, NAMES), use_cache=False)
    assert "1 XML files without an image, first lost.xml" in caplog.text
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes((tmp_path / "JPEGImages" / "a.png").read_bytes())
    with pytest.raises(ValueError, match=r"several images are called a, so a.xml could be of any"):
        list_pairs(split)
    with pytest.raises(FileNotFoundError, match=r"no such folder of images: .*/nowhere; name it as 'images'"):
        list_pairs(VocSplit(split.places, str(tmp_path / "nowhere"), NAMES))


def test_against_torchvision(voc, tmp_path):
    """Its reader of VOC sees the same objects."""
    datasets = pytest.importorskip("torchvision.datasets", reason="needs torchvision")
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(1, 50, (2, 6, 2, 2)), axis=2)
    corners[:, :, 1] += 1
    split = voc({n: "".join(thing(corners=box.ravel()) for box in boxes) for n, boxes in zip("ab", corners)})
    found = scan(split, use_cache=False)
    for i, name in enumerate("ab"):
        tree = datasets.VOCDetection.parse_voc_xml(parse_xml((tmp_path / f"Annotations/{name}.xml").read_bytes(), name))
        boxes = [[int(o["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax")] for o in tree["annotation"]["object"]]
        labels = found.labels_of(i).astype(float) * [1, 100, 50, 100, 50]
        mine = np.concatenate([labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 1:3] + labels[:, 3:] / 2], 1) + 1
        assert mine == pytest.approx(np.array(boxes), abs=1e-4)


# --- in a data set YAML -----------------------------------------------------------------------------------------------


@pytest.fixture
def write_yaml(tmp_path):
    def write(text):
        (tmp_path / "set.yaml").write_text(text)
        return tmp_path / "set.yaml"

    return write


def test_coco_in_a_yaml(coco, tmp_path, write_yaml):
    split = coco({"bbox": [10, 10, 20, 10]})
    places = "train: instances.json\nval: instances.json\n"
    data = load_dataset_yaml(write_yaml(places + "images: images\nnames: [cat, dog]\n"))
    assert data["train"] == data["val"] == split and data["test"] is None and data["nc"] == 2
    data = load_dataset_yaml(write_yaml(places + "images: x\ntrain_images: y\n"))
    assert data["names"] == ["unused", "cat", "dog"]  # by id
    assert data["train"].images == str(tmp_path / "y") and data["val"].images == str(tmp_path / "x")
    assert load_dataset_yaml(write_yaml(places + "nc: 3\n"))["train"].images == str(tmp_path)
    with pytest.raises(ValueError, match="nc is 2 but names has 3 entries"):
        load_dataset_yaml(write_yaml(places + "nc: 2\n"))
    coco(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}])
    with pytest.raises(ValueError, match="several categories are called 'a'; give the names"):
        load_dataset_yaml(write_yaml(places))
    coco(categories=[])
    with pytest.raises(ValueError, match="there are no categories"):
        load_dataset_yaml(write_yaml(places))


def test_voc_in_a_yaml(voc, tmp_path, write_yaml):
    split = voc({"a": thing(), "b": thing("cat")})
    rest = "val: Annotations\nnames: [cat, dog]\n"
    data = load_dataset_yaml(write_yaml("train: ImageSets/Main/train.txt\n" + rest))
    assert data["train"] == split and data["val"] == VocSplit((str(tmp_path / "Annotations"),), None, NAMES)
    data = load_dataset_yaml(write_yaml("train: [ImageSets/Main/train.txt]\ndifficult: true\nimages: p\n" + rest))
    assert data["train"] == VocSplit(split.places, str(tmp_path / "p"), NAMES, True)
    data = load_dataset_yaml(write_yaml("train: JPEGImages\nformat: voc\n" + rest))
    assert isinstance(data["train"], VocSplit)
    (tmp_path / "ImageSets/Main/train.txt").write_text("./a.png\n")  # a list of images, as ever
    data = load_dataset_yaml(write_yaml("train: ImageSets/Main/train.txt\n" + rest))
    assert data["train"] == str(tmp_path / "ImageSets/Main/train.txt")


@pytest.mark.parametrize(
    "text, message",
    [
        ("train: [x.json, images]\n", "set.yaml: train mixes formats of labels"),
        ("train: images\nformat: coco\n", "format must be 'voc' or be left out, got 'coco'"),
        ("train: images\ndifficult: 1\n", "difficult must be true or false, got 1"),
        ("train: images\nimages: [a]\n", r"images must be a folder, got \['a'\]"),
    ],
)
def test_faulty_yaml(images, tmp_path, write_yaml, text, message):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        load_dataset_yaml(write_yaml(text + "names: [a]\n"), splits=("train",))


@pytest.mark.parametrize("augment", [True, False])
def test_batches_are_those_of_text_files(voc, coco, tmp_path, hyp, augment):
    xml = voc({"a": thing() + thing("cat", (1, 1, 51, 51)), "b": thing("cat", (6, 6, 16, 26))})
    boxes = [(11, "dog", 10, 10, 20, 10), (11, "cat", 0, 0, 50, 50), ("x", "cat", 5, 5, 10, 20)]
    numbers = {"cat": 3, "dog": 7}
    rows = [{"image_id": i, "category_id": numbers[name], "bbox": box} for i, name, *box in boxes]
    instances = CocoSplit(coco(*rows).files, str(tmp_path / "JPEGImages"), NAMES)
    (tmp_path / "JPEGImages" / "a.txt").write_text("1 .2 .3 .2 .2\n0 .25 .5 .5 1\n")
    (tmp_path / "JPEGImages" / "b.txt").write_text("0 .1 .3 .1 .4\n")
    options = {"image_size": 64, "batch_size": 2, "stride": 32, "augment": augment, "hyp": hyp, "workers": 0}
    text, *others = (
        list(create_dataloader(e, LoaderOptions(nc=2, **options))[0])
        for e in (str(tmp_path / "JPEGImages"), xml, instances)
    )
    for batches in others:
        for (images, targets, paths, _), (same_images, same_targets, same_paths, _) in zip(batches, text, strict=True):
            assert (images == same_images).all() and paths == same_paths
            assert targets.numpy() == pytest.approx(same_targets.numpy(), abs=1e-5)
