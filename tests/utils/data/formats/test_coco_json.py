"""COCO JSON gives the labels that its text files would, and no fault in it passes unnoticed."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from label_files import NAMES
from PIL import Image

from utils.data.annotations import cache_path, scan
from utils.data.formats.coco import CocoSplit, coco_names


def test_crowds_are_kept_when_asked_for(coco):
    split = coco({"bbox": [10, 10, 20, 10]}, {"bbox": [0, 0, 100, 50], "iscrowd": 1})
    assert scan(split).labels[:, 1:].tolist() == [pytest.approx([0.2, 0.3, 0.2, 0.2])]
    kept = scan(replace(split, difficult=True))  # not the cache
    assert kept.labels[1, 1:].tolist() == [0.5, 0.5, 1, 1] and not kept.faults


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
    crowd, zero, twice = map(str, found.faults)
    assert zero.endswith("instances.json: annotation 77: box (5, 5, 5, 14) has no area; left out")
    assert "annotation 5: the same box and class as" in twice and "annotation 0" in twice
    assert "annotation" in crowd and crowd.endswith("marked as difficult or as a crowd; left out")
    assert "instances.json: objects left out because they are marked as difficult or as crowds: 1" in caplog.text
    strays = "annotations of images that are not listed, left out: 1; the first: annotation 66: there is no image"
    assert strays in caplog.text


@pytest.mark.parametrize(
    "annotation, message",
    [
        ({"bbox": [1, 2, 3]}, r"annotation 0: bbox must be 4 numbers \(x, y, .*\), got \[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, None]}, "annotation 0: bbox must be 4 numbers"),
        ({"bbox": [[1], 2, 3, 4]}, "annotation 0: bbox must be 4 numbers"),
        ({"bbox": [1, 2, 3, 10**400]}, "annotation 0: bbox must be 4 numbers"),
        ({}, "annotation 0: bbox must be 4 numbers .*, got None"),
    ],
)
def test_an_image_whose_boxes_cannot_be_read_is_left_out(coco, annotation, message):
    found = scan(coco(annotation), use_cache=False)
    assert found.counts["corrupt"] == 1 and len(found.images) == 1
    assert re.search(message, str(found.faults[0]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": None}, "not COCO JSON of boxes: 'images' must be a list of objects"),
        ({"annotations": [1]}, "'annotations' must be a list of objects"),
        ({"images": [{"id": [1], "file_name": "a.png"}]}, r"images\[0\]: 'id' must be .*got \[1\]"),
        ({"images": [{"id": 11}]}, "image 11: 'file_name' must be text, got None"),
        ({"images": [{"id": 11, "file_name": n} for n in ("a.png", "b.png")]}, "several images have the id 11"),
        ({"images": [{"id": i, "file_name": "a.png"} for i in (11, 12)]}, "image 12: a.png is listed twice"),
        ({"images": []}, "no images are listed"),
        ({"categories": [{"id": 3, "name": "cat"}]}, "annotation 0: there is no category with id 7"),
        ({"categories": [{"id": 7}]}, "category 7: 'name' must be text, got None"),
        ({"categories": [{"id": 7, "name": "mouse"}]}, "annotation 0 is of class 'mouse', which is not in names"),
    ],
)
def test_json_that_is_not_coco_is_refused(coco, changes, message):
    with pytest.raises(ValueError, match=message):
        scan(coco({"bbox": [1, 2, 3, 4]}, **changes), use_cache=False)


@pytest.mark.parametrize("text", ["{", "[]", "\xff", "[" * 100000])
def test_text_that_is_not_json_is_refused(coco, tmp_path, text):
    split = coco()
    (tmp_path / "instances.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"instances.json: (not a JSON file|expected an object)"):
        scan(split, use_cache=False)


@pytest.mark.parametrize("outline", [[[1, 2, 3]], [[1, 2, 3, 4]], [1, 2, 3, 4, 5, 6], [[1, 2, 3, 4, 5, None]]])
def test_an_outline_that_cannot_be_used_leaves_the_box(coco, outline):
    found = scan(coco({"bbox": [10, 10, 20, 10], "segmentation": outline}), use_cache=False)
    assert found.counts["corrupt"] == 0 and [len(p) for p in found.polygons_of(0)] == [0]
    (fault,) = found.faults
    assert (fault.kind, fault.line) == ("outline", None)
    assert "annotation 0: a polygon must be 3 or more pairs x y, got" in str(fault)


def test_a_box_is_that_of_its_outline_where_none_is_given(coco):
    split = coco({"segmentation": [[10, 10, 30, 10, 20, 20]]})
    assert scan(split, use_cache=False).labels == pytest.approx(np.array([[1, 0.2, 0.3, 0.2, 0.2]]))
    assert split.annotated()[2][0].box.tolist() == [10, 10, 20, 10]


@pytest.mark.parametrize("area, expected", [(7, 7), (None, 200), ("x", 200), (10**400, 200)])
def test_an_area_that_is_no_number_is_that_of_the_box(coco, area, expected):
    assert coco({"bbox": [10, 10, 20, 10], "area": area}).annotated()[2][0].area == expected


def test_a_name_that_cannot_be_a_file_leaves_its_image_out(coco):
    found = scan(coco(images=[{"id": 11, "file_name": "a.png"}, {"id": 12, "file_name": "\0.png"}]), use_cache=False)
    assert found.counts["corrupt"] == 1 and [path[-5:] for path in found.images] == ["a.png"]


@pytest.mark.parametrize("name", ["../other.png", "{}/other.png", "x/../../other.png"])
def test_a_name_outside_the_folder_of_images_is_refused(coco, tmp_path, name):
    split = coco(images=[{"id": 12, "file_name": name.format(tmp_path)}])
    for read in (split.open, split.annotated):
        with pytest.raises(ValueError, match=r"instances\.json: image 12: a file name must lie below .*other"):
            read()
    inside = coco(images=[{"id": 12, "file_name": f"{split.images}/sub/../b.png"}])
    assert inside.open().images == [f"{split.images}/b.png"] == list(inside.annotated()[0])


def test_an_image_of_another_size_is_left_out(coco):
    record = {"id": 11, "file_name": "a.png", "width": 50, "height": 100}
    other = {"id": 12, "file_name": "b.png"}  # which says no size
    found = scan(coco({"bbox": [1, 2, 3, 4], "image_id": 12}, images=[record, other]), use_cache=False)
    assert [path[-5:] for path in found.images] == ["b.png"] and len(found.labels) == 1
    assert "image 11: says 50 x 100 pixels, but the image has 100 x 50; width and height are" in str(found.faults[0])


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


# --- as other tools write it ------------------------------------------------------------------------------------------

BOX = {"bbox": [10, 10, 20, 10]}
IMAGES = [{"id": 11, "file_name": "a.png"}, {"id": 12, "file_name": "b.png"}]


@pytest.mark.parametrize(
    "image, image_id", [(11, "11"), ("11", 11), ("11", "11"), (11.0, 11), (11, 11.0), (11, "11.5")]
)
def test_ids_may_be_written_as_text(coco, image, image_id):
    split = coco({**BOX, "image_id": image_id, "category_id": "7"}, images=[{**IMAGES[0], "id": image}, IMAGES[1]])
    fits = image_id != "11.5"
    assert len(scan(split, use_cache=False).labels) == fits
    ids, categories, boxes = split.annotated()
    assert [ids[path] for path in sorted(ids)] == [image, 12] and categories == [3, 7]  # as the file has them
    assert [box.image_id for box in boxes] == [image] * fits


def test_ids_that_are_no_numbers_stay_text(coco):
    images = [{"id": name, "file_name": f"{file}.png"} for name, file in (("007", "a"), ("７", "b"))]
    found = scan(coco({**BOX, "image_id": "007"}, {**BOX, "image_id": "７"}, images=images), use_cache=False)
    assert found.starts.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="several images have the id 7"):
        scan(coco(images=[{"id": value, "file_name": "a.png"} for value in (7, "7")]), use_cache=False)


@pytest.mark.parametrize("crowd", [0, "0", False, "false", None, 0.0, "0.0", "", 1, "1", True, "true", 1.0])
def test_a_crowd_may_be_written_as_text(coco, crowd):
    found = scan(coco({**BOX, "iscrowd": crowd}), use_cache=False)
    assert len(found.labels) == (crowd not in (1, "1", "true"))


@pytest.mark.parametrize("width, height", [("100", "50"), (100.0, 50.0), (None, None), ("", ""), (" 100 ", 50)])
def test_sides_may_be_written_as_text(coco, width, height):
    images = [{**IMAGES[0], "width": width, "height": height}]
    assert len(scan(coco(BOX, images=images), use_cache=False).labels) == 1


def test_sides_that_are_exchanged_are_not_blamed_on_exif(coco, tmp_path):
    images = [{**IMAGES[0], "width": "50", "height": 100}]
    with pytest.raises(ValueError, match=r"50 x 100 pixels, but the image has 100 x 50; width and height are exch"):
        scan(coco(BOX, images=images), use_cache=False)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "images" / "a.png").transpose(Image.Transpose.ROTATE_90).save(
        tmp_path / "images" / "a.png", exif=exif
    )
    with pytest.raises(ValueError, match=r"but the image has 100 x 50; it is turned by its EXIF data"):
        scan(coco(BOX, images=images), use_cache=False)


def test_names_are_those_of_all_files(tmp_path):
    def write(name, *categories):
        content = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in categories]}
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    train = write("train.json", ("2", "dog"), (1, "cat"), (9, "owl"))
    val = write("val.json", (1, "cat"), (4, "elk"), (9, "bat"), (3, "dog"))
    assert coco_names([train]) == ["cat", "dog", "owl"]
    assert coco_names([train, val]) == ["cat", "dog", "elk", "owl", "bat"]
    with pytest.raises(ValueError, match="several categories are called 'cat'"):
        coco_names([write("twice.json", (1, "cat"), (2, "cat"))])
    with pytest.raises(ValueError, match=r"none.json: there are no categories"):
        coco_names([write("none.json")])
