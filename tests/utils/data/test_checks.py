"""Each fault, planted alone in a clean data set, is found with its place; the clean set has none."""

import json
import re

import numpy as np
import pytest
from clean_set import CLEAN, label, soft_image, write_clean_set
from PIL import Image

from utils.data.checks import (
    KINDS,
    box_checks,
    class_checks,
    examine,
    overlapping_pairs,
)
from utils.data.contents import OF_FAULT, read_contents
from utils.data.dataset_yaml import load_dataset_yaml, open_source
from utils.data.faults import FAULT_KINDS
from utils.files import ROOT, read_yaml
from utils.training.autoanchor import GOOD_RECALL, anchor_fit

ANCHORS = np.array(read_yaml(ROOT / "models/yolov5s.yaml")["anchors"], float).reshape(-1, 2)


@pytest.fixture
def clean(tmp_path):
    return write_clean_set(tmp_path)


def found(root, splits=("train", "val")):
    """{kind: finding}."""
    data = load_dataset_yaml(root / "data.yaml", splits) if splits else open_source(root / "data.yaml")
    contents = read_contents(data)
    return {finding.kind: finding for finding in examine(contents, 640, recall, GOOD_RECALL)}


def recall(sides):
    return anchor_fit(sides, ANCHORS, 4.0).recall


def replace_image(name, **options):
    def plant(root):
        image = options.pop("image", soft_image(0))
        image.save(root / "images" / name, **options)

    return plant


def copy(source, target, resize=None, labels=True):
    def plant(root):
        old, new = root / "images" / source, root / "images" / target
        if resize:
            Image.open(old).resize(resize).save(new, quality=60)
        else:
            new.write_bytes(old.read_bytes())
        (root / "labels" / target).with_suffix(".txt").write_text(CLEAN)

    return plant


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def crowd():
    grid = [(x, y) for x in np.linspace(0.05, 0.95, 20) for y in np.linspace(0.05, 0.95, 16)]
    return "".join(f"{i % 2} {x:.4f} {y:.4f} 0.04 0.05\n" for i, (x, y) in enumerate(grid))


def all_files(text):
    def plant(root):
        for file in (root / "labels").rglob("*.txt"):
            file.write_text(text)

    return plant


def only_cats(split, many=1, but=""):
    """All labels of a split but one have `many` boxes of class 0."""

    def plant(root):
        text = "".join(f"0 {x:.3f} .4 .03 .2\n" for x in np.linspace(0.1, 0.9, many))
        for file in (root / "labels" / split).glob("*.txt"):
            if f"{split}/{file.stem}" != but:
                file.write_text(text)

    return plant


def large_with_small_box(root):
    soft_image(0, 960, 1280).save(root / "images/train/0.jpg", quality=90)
    label(CLEAN + f"0 .5 .1 {5 / 1280} {5 / 960}\n")(root)


def truncate(root):
    file = root / "images/train/0.jpg"
    file.write_bytes(file.read_bytes()[:900])


def as_coco(*more, **changes):
    """Writes the clean set's labels as COCO JSON, without nc and names in the YAML, and `more` boxes into an image."""

    def plant(root):
        for split in ("train", "val"):
            files = sorted((root / "images" / split).glob("*.jpg"))
            boxes = [(0, [22.4, 14.4, 32, 28.8]), (1, [76.8, 57.6, 25.6, 19.2])]
            rows = [(i, c, box) for i in range(len(files)) for c, box in boxes]
            rows += [(1, c, box) for c, box in more] if split == "train" else []
            annotations = [
                {"id": k, "image_id": i, "category_id": 7 + c, "bbox": box, **(changes if k == 4 else {})}
                for k, (i, c, box) in enumerate(rows)
            ]
            images = [{"id": i, "file_name": f.name, "width": 128, "height": 96} for i, f in enumerate(files)]
            categories = [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}]
            content = {"images": images, "annotations": annotations, "categories": categories}
            (root / f"{split}.json").write_text(json.dumps(content))
        lines = [f"path: {root}", *(f"{s}: {s}.json\n{s}_images: images/{s}" for s in ("train", "val"))]
        (root / "data.yaml").write_text("\n".join(lines))

    return plant


# kind, how it is planted, how many, a pattern for the first place, other kinds that come with it
PLANTED = [
    ("image-unreadable", truncate, 1, r"images/train/0\.jpg: ", ()),
    ("image-rotated", replace_image("train/0.jpg", exif=exif(6)), 1, r"train/0\.jpg: EXIF orientation 6", ()),
    ("image-odd", replace_image("val/0.jpg", image=soft_image(100).convert("CMYK"), quality=95), 1, "mode CMYK", ()),
    ("label-format", label(CLEAN + "cat .5 .5 .2 .2\n0 .5 .5\n"), 2, r"train/0\.txt:3: .cat. is not a number", ()),
    ("label-class", label(CLEAN + "2 .5 .5 .2 .2\n"), 1, r"train/0\.txt:3: class must .* got 2", ()),
    ("label-range", label("\n" + CLEAN + "0 1.5 .5 .2 .2\n"), 1, r"train/0\.txt:4: x must lie in 0-1, got 1\.5", ()),
    ("label-missing", lambda root: (root / "labels/val/1.txt").unlink(), 1, r"labels/val/1\.txt", ()),
    ("label-orphan", label(CLEAN, "val/9"), 1, r"labels/val/9\.txt", ()),
    ("label-shared", copy("train/0.jpg", "train/0.png"), 1, r"train/0\.txt of .*0\.jpg, .*0\.png", ("duplicate-same",)),
    ("label-difficult", as_coco(iscrowd=1), 2, r"train\.json: annotation 4: ", ()),
    ("label-object", as_coco((0, [200, 10, 30, 30])), 1, r"train\.json: annotation 12: box .* lies outside", ()),
    ("box-degenerate", label(CLEAN + "0 .5 .1 .02 .008\n"), 1, r"train/0\.txt:3: cat, 2\.6 x 0\.8 pixels", ()),
    ("box-outside", label(CLEAN + "0 .9 .1 .3 .15\n"), 1, r"train/0\.txt:3: cat", ()),
    ("box-tiny", large_with_small_box, 1, r"train/0\.txt:3: cat, 5\.0 x 5\.0 pixels", ("anchors",)),
    ("box-huge", label("0 .5 .5 1 1\n1 .7 .7 .2 .2\n"), 1, r"train/0\.txt:1: cat, 128\.0 x 96\.0 pixels", ()),
    ("box-duplicate", label(CLEAN + "0 .3 .3 .25 .29\n"), 1, r"train/0\.txt:3: cat, .* over line 1", ()),
    ("box-conflict", label(CLEAN + "1 .3 .3 .25 .29\n"), 1, r"train/0\.txt:3: dog, .* over line 1", ()),
    ("box-overlap", label(CLEAN + "0 .33 .32 .25 .3\n"), 1, r"train/0\.txt:3: cat, .* over line 1", ()),
    ("box-crowd", label(crowd(), "val/2"), 1, r"val/2\.txt: 320 boxes", ()),
    ("leak-same", copy("train/3.jpg", "val/9.jpg"), 1, r"train/3\.jpg \(train\) and .*val/9\.jpg", ()),
    ("leak-near", copy("train/3.jpg", "val/9.jpg", (200, 150)), 1, r"train/3\.jpg \(train\) and .*val/9\.jpg", ()),
    ("duplicate-same", copy("train/3.jpg", "train/9.jpg"), 1, r"train/3\.jpg \(train\) and .*train/9\.jpg", ()),
    ("duplicate-near", copy("val/1.jpg", "val/9.jpg", (100, 80)), 1, r"val/1\.jpg \(val\) and .*val/9\.jpg", ()),
    ("class-absent", all_files("0 .3 .3 .25 .3\n"), 1, "1 dog: 0 in train, 0 in val", ()),
    ("class-untested", only_cats("val"), 1, "1 dog: 6 in train, 0 in val", ()),
    ("class-rare", only_cats("train", 20, but="train/0"), 1, "1 dog: 1 in train, 3 in val", ()),
    ("anchors", all_files("0 .3 .3 .5 .012\n1 .7 .7 .2 .2\n"), 6, r"best possible recall 0\.500 at 640", ()),
]  # fmt: skip


def test_clean_set_has_no_finding(clean):
    assert found(clean) == {}


@pytest.mark.parametrize("kind, plant, count, place, others", PLANTED, ids=[case[0] for case in PLANTED])
def test_planted_fault_is_found(clean, kind, plant, count, place, others):
    plant(clean)
    findings = found(clean)
    assert set(findings) == {kind, *others}
    assert findings[kind].count == count
    assert re.search(place, findings[kind].locations[0]), findings[kind].locations


@pytest.mark.parametrize(
    "kind, plant, place",
    [
        (
            "box-overlap",
            as_coco((0, [24, 15, 34, 30])),
            r"train\.json: 1\.jpg, object 3: cat, 34\.0 x 30\.0 .* over object 1",
        ),
        ("box-huge", as_coco((1, [0, 0, 128, 96])), r"train\.json: 1\.jpg, object 3: dog, 128\.0 x 96\.0 pixels"),
        ("label-format", as_coco(bbox="wide"), r"train\.json: annotation 4: bbox must"),
        ("image-unreadable", lambda root: (as_coco()(root), truncate(root)), r"images/train/0\.jpg: "),
    ],
)
def test_faults_of_another_format_are_found_by_file_and_object(clean, kind, plant, place):
    """And nothing else is: a file of labels that images share is no fault, and text files beside it are no orphans."""
    plant(clean)
    findings = found(clean, splits=None)
    assert set(findings) == {kind}
    assert re.search(place, findings[kind].locations[0]), findings[kind].locations


def test_coco_and_yolo_are_read_alike(clean):
    yolo = read_contents(load_dataset_yaml(clean / "data.yaml"))
    as_coco()(clean)
    coco = read_contents(open_source(clean / "data.yaml"))
    assert (coco.names, coco.images, coco.splits) == (yolo.names, yolo.images, yolo.splits)
    np.testing.assert_allclose(coco.labels, yolo.labels, atol=1e-6)
    assert coco.owner.tolist() == yolo.owner.tolist() and coco.lines.tolist() == yolo.lines.tolist() == [1, 2] * 9


def test_every_fault_is_a_finding():
    assert set(OF_FAULT) == set(FAULT_KINDS) and set(OF_FAULT.values()) <= set(KINDS)


def test_every_kind_is_planted():
    assert {case[0] for case in PLANTED} == set(KINDS)


def test_an_image_of_two_splits_is_told_once(clean):
    (clean / "data.yaml").write_text(f"path: {clean}\ntrain: images/train\nval: images/train\nnames: [cat, dog]\n")
    label(CLEAN + "0 .3 .3 .25 .29\n")(clean)
    findings = found(clean)
    assert {kind: finding.count for kind, finding in findings.items()} == {"box-duplicate": 1, "leak-same": 6}


# --- the analysis, on arrays ------------------------------------------------------------------------------------------


def test_overlapping_pairs_equal_a_slow_loop():
    rng = np.random.default_rng(1)
    boxes, owner = rng.uniform(0.2, 0.6, (60, 4)), rng.integers(0, 3, 60)
    boxes[5, 2:] = 0
    slow = {}
    for i in range(60):
        for j in range(i + 1, 60):
            if owner[i] == owner[j]:
                (ax, ay, aw, ah), (bx, by, bw, bh) = boxes[i], boxes[j]
                w = min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2)
                h = min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2)
                shared = max(w, 0) * max(h, 0)
                if shared >= 0.3 * (aw * ah + bw * bh - shared):
                    slow[i, j] = shared / (aw * ah + bw * bh - shared)
    pairs, iou = overlapping_pairs(boxes, owner, 0.3)
    quick = {tuple(sorted(pair)): value for pair, value in zip(pairs.tolist(), iou)}
    assert len(slow) > 50 and quick == pytest.approx(slow)


def test_box_checks_put_the_worst_first():
    labels = np.array(
        [[0, 0.5, 0.5, 0.02, 0.02], [0, 0.5, 0.5, 0.01, 0.01], [0, 0.5, 0.5, 1, 1], [0, 0.5, 0.5, 0.3, 0.3]]
    )
    checked = box_checks(labels, np.full((4, 2), 1000), 100)
    assert {kind: rows.tolist() for kind, rows in checked.items()} == {
        "box-degenerate": [], "box-outside": [], "box-tiny": [1, 0], "box-huge": [2],
    }  # fmt: skip


def test_class_checks():
    checked = class_checks({"train": np.array([100, 9, 0, 10]), "val": np.array([0, 1, 1, 1])})
    assert {kind: rows.tolist() for kind, rows in checked.items()} == {
        "class-absent": [2], "class-rare": [1], "class-untested": [0],
    }  # fmt: skip
