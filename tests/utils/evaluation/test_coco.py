"""COCO's metric against pycocotools, run by itself on files; what files say reaches it; sizes."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from utils.data.dataset import open_dataset
from utils.data.formats.coco import CocoSplit
from utils.data.options import LoaderOptions
from utils.evaluation import coco
from utils.evaluation.evaluator import IOU_THRESHOLDS, Boxes, Evaluation
from utils.evaluation.metrics import ap_per_class, match_once
from utils.evaluation.report import coco_table, size_table

pytest.importorskip("pycocotools")
PACKAGES = [
    "pycocotools",
    pytest.param("faster_coco_eval", marks=pytest.mark.skipif(coco.find_package() == "pycocotools", reason="absent")),
]


def random_boxes(rng, paths, labels_of, nc, per_image=130):
    """Predictions of which most lie near a label (x1, y1, x2, y2 and class), some of equal confidence."""
    rows, image = [], []
    for i, path in enumerate(paths):
        known = labels_of[path]
        for _ in range(per_image):
            if len(known) and rng.random() < 0.8:
                c, x1, y1, x2, y2 = known[rng.integers(len(known))]
                box = np.array([x1, y1, x2, y2]) + rng.normal(0, 0.12 * (x2 - x1), 4)
                c = c if rng.random() < 0.8 else rng.integers(nc)
            else:
                corner = rng.uniform(0, 400, 2)
                box, c = np.concatenate([corner, corner + rng.uniform(5, 200, 2)]), rng.integers(nc)
            rows.append([*np.sort(box.reshape(2, 2), 0).ravel(), rng.choice([rng.random(), 0.5], p=[0.9, 0.1]), c])
            image.append(i)
    rows, image = np.array(rows, np.float32).reshape(-1, 6), np.array(image, int)
    order = np.lexsort((-rows[:, 4], image))
    sizes = [(500, 500)] * len(paths)
    none = np.zeros(0, int)
    return Boxes(list(paths), sizes, rows[order], image[order], np.zeros((0, 5), np.float32), none, none, none)


def by_pycocotools(truth_file, predictions):
    """The twelve numbers as anyone would get them from the files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    known = COCO(str(truth_file))
    evaluation = COCOeval(known, known.loadRes(json.loads(json.dumps(predictions))), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return np.where(evaluation.stats == -1, np.nan, evaluation.stats), evaluation.eval["precision"]


@pytest.fixture
def json_set(tmp_path):
    """`json_set(ids)`: images, and a COCO JSON of them with crowds, areas below those of the boxes, gaps in its
    categories and a class without objects; and the labels by path."""

    def write(ids, seed=0):
        rng = np.random.default_rng(seed)
        (tmp_path / "images").mkdir()
        images, annotations, labels_of = [], [], {}
        for i, key in enumerate(ids):
            name = f"{rng.integers(1000)} {i}.png"
            cv2.imencode(".png", np.zeros((500, 500, 3), np.uint8))[1].tofile(tmp_path / "images" / name)
            images.append({"id": key, "file_name": name, "width": 500, "height": 500})
            rows = []
            for _ in range(rng.integers(0, 12)):
                w, h = rng.choice([12, 50, 150], p=[0.4, 0.3, 0.3]) * rng.uniform(0.7, 1.3, 2)
                x, y = rng.uniform(0, 500 - w), rng.uniform(0, 500 - h)
                c, crowd = int(rng.integers(3)), int(rng.random() < 0.15)
                annotations.append({
                    "id": 7 * len(annotations) + 3, "image_id": key, "category_id": [5, 2, 90, 11][c], "iscrowd": crowd,
                    "bbox": [x, y, w, h], "area": w * h * rng.uniform(0.3, 0.9),
                })  # fmt: skip
                rows.append([c, x, y, x + w, y + h])
            labels_of[str(tmp_path / "images" / name)] = rows
        categories = [{"id": k, "name": n} for k, n in ((2, "b"), (5, "a"), (11, "d"), (90, "c"))]
        file = tmp_path / "instances.json"
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        return CocoSplit((str(file),), str(tmp_path / "images"), ("a", "b", "c", "d")), file, labels_of

    return write


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    "ids", [[30, 4, 7, 100, 12, 11], ["x30", "b", "a4", "7", "Zoë", "100"]], ids=["numbers", "texts"]
)
def test_same_as_pycocotools_on_the_files(json_set, package, ids):
    split, file, labels_of = json_set(ids)
    dataset = open_dataset(split, LoaderOptions(image_size=64, batch_size=2, rect=True, nc=4))
    boxes = random_boxes(np.random.default_rng(1), dataset.image_files[::-1], labels_of, 4)
    truth = coco.truth_of(dataset, split, split.names)
    assert set(truth.image_ids.values()) == set(ids) and truth.categories == [5, 2, 90, 11] and truth.crowd.any()
    predictions = coco.results(boxes, truth.image_ids, truth.categories)
    expected, precision = by_pycocotools(file, predictions)
    measured = coco.measure(boxes, truth, package)
    assert measured.package == package and not np.isnan(expected).any()
    np.testing.assert_allclose(list(measured.statistics.values()), expected, atol=1e-6)
    # of each class, which the JSON's categories have in another order
    per_class = precision[:, :, [1, 0, 3], 0, 2].mean((0, 1))
    np.testing.assert_allclose(measured.class_ap, [*per_class, np.nan], atol=1e-6)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_truth_is_made_for_label_files(tmp_path, package):
    rng = np.random.default_rng(3)
    labels_of = {}
    for i in range(5):
        path = tmp_path / "images" / f"{i:04d}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imencode(".png", np.zeros((400, 500, 3), np.uint8))[1].tofile(path)
        rows = np.column_stack([rng.integers(0, 3, 6), rng.uniform(0.3, 0.7, (6, 2)), rng.uniform(0.02, 0.5, (6, 2))])
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{path.stem}.txt").write_text("\n".join(" ".join(map(str, row)) for row in rows))
        x, y, w, h = (rows[:, 1:] * (500, 400, 500, 400)).T
        labels_of[str(path)] = np.column_stack([rows[:, 0], x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    dataset = open_dataset(str(tmp_path / "images"), LoaderOptions(image_size=64, nc=3))
    boxes = random_boxes(rng, dataset.image_files, labels_of, 3)
    truth = coco.truth_of(dataset, str(tmp_path / "images"), ["a", "b", "c"])
    for path, row in zip(truth.image, truth.boxes):
        assert np.abs(labels_of[path][:, 1:3] - row[:2]).sum(1).min() < 1e-3
    coco.write_truth(tmp_path / "truth.json", truth, boxes, ["a", "b", "c"])
    expected, _ = by_pycocotools(tmp_path / "truth.json", coco.results(boxes, truth.image_ids, truth.categories))
    assert expected[0] > 0.05
    np.testing.assert_allclose(list(coco.measure(boxes, truth, package).statistics.values()), expected, atol=1e-6)


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_found_and_nothing_there(json_set, package):
    split, _, labels_of = json_set([1, 2])
    dataset = open_dataset(split, LoaderOptions(image_size=64))
    boxes = random_boxes(np.random.default_rng(0), dataset.image_files, labels_of, 4, per_image=0)
    truth = coco.truth_of(dataset, split, split.names)
    statistics = coco.measure(boxes, truth, package).statistics
    assert statistics["AP"] == statistics["AR100"] == 0
    none = np.zeros(0, int)
    empty = replace(truth, image=[], classes=none, boxes=np.zeros((0, 4)), area=none, crowd=none)
    assert np.isnan(coco.measure(boxes, empty, package).statistics["AP"])
    full = random_boxes(np.random.default_rng(0), dataset.image_files, labels_of, 4, per_image=3)
    assert np.isnan(coco.measure(full, empty, package).statistics["AP"])


def test_names_of_images():
    assert coco.image_ids(["a/000139.jpg", "a/b.jpg"]) == {"a/000139.jpg": 139, "a/b.jpg": "b"}
    ids = coco.image_ids(["x/1.jpg", "y/1.jpg", "x/01.jpg"])  # two images of one number
    assert len(set(ids.values())) == 3


def test_coco_categories_are_those_of_the_challenge():
    assert len(coco.COCO_CATEGORIES) == 80
    assert sorted(set(range(1, 91)) - set(coco.COCO_CATEGORIES)) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


def test_official_annotations_are_met_by_number(json_set, tmp_path):
    split, file, _ = json_set([139, 285])
    content = json.loads(file.read_text())
    files = [f"somewhere/{image['id']:012d}.jpg" for image in content["images"]][:1]
    truth = coco.official_truth(file, files, split.names)
    assert truth.image_ids == {files[0]: 139} and set(truth.image) <= set(files)
    assert len(truth.boxes) == sum(a["image_id"] == 139 for a in content["annotations"])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(coco, "installed", lambda name: False)
    with pytest.raises(ValueError, match="pip install faster-coco-eval"):
        coco.find_package()


# --- tables -----------------------------------------------------------------------------------------------------------


def evaluation_of(boxes, labels, label_image, nc):
    boxes.labels, boxes.label_image = labels, label_image
    boxes.partner, boxes.iou = match_once(boxes.predictions, labels, 0.5, (boxes.image, label_image))
    correct = boxes.iou[:, None] >= IOU_THRESHOLDS
    metrics = ap_per_class(correct, boxes.predictions[:, 4], boxes.predictions[:, 5], labels[:, 0])
    counts = np.bincount(labels[:, 0].astype(int), minlength=nc)
    return Evaluation(metrics, None, ["a", "b", "c"][:nc], len(boxes.paths), counts, counts, boxes)


def test_sizes_apart():
    """Three objects of 20, 60 and 200 pixels: the small one found, the middle one missed, the large one found, beside
    a false alarm of the middle size, which counts there alone."""
    labels = np.array([[0, 0, 0, 20, 20], [0, 100, 0, 160, 60], [0, 200, 200, 400, 400]], np.float32)
    found = np.array([[0, 0, 20, 20, 0.9, 0], [300, 0, 350, 60, 0.8, 0], [200, 200, 400, 400, 0.7, 0]], np.float32)
    boxes = Boxes(["a.png"], [(500, 500)], found, np.zeros(3, int), *[None] * 4)
    text = size_table(evaluation_of(boxes, labels, np.zeros(3, int), 1)).splitlines()
    assert [row.split()[:2] for row in text[1:]] == [["small", "1"], ["medium", "1"], ["large", "1"]]
    assert [float(row.split()[-1]) for row in text[1:]] == [0.995, 0, 0.995]
    assert max(map(len, text)) <= 120


def test_table_of_coco(json_set):
    split, _, labels_of = json_set([1, 2, 3])
    dataset = open_dataset(split, LoaderOptions(image_size=64))
    truth = coco.truth_of(dataset, split, split.names)
    measured = coco.measure(random_boxes(np.random.default_rng(0), dataset.image_files, labels_of, 4), truth)
    rows = [row.split() for row in coco_table(measured, truth, split.names, True).splitlines()]
    assert [row[0] for row in rows] == ["COCO", "all", "small", "medium", "large", "a", "b", "c"]
    assert sum(int(row[1]) for row in rows[5:]) == int(rows[1][1]) == (~truth.crowd).sum()
    s = measured.statistics
    for row, names in ((rows[1], ("AP", "AP50", "AP75", "AR100")), (rows[2], ("APs",)), (rows[4], ("APl",))):
        assert [float(v) for v in row[2 : 2 + len(names)]] == pytest.approx([s[n] for n in names], abs=6e-4)
    assert float(rows[3][5]) == pytest.approx(s["ARm"], abs=6e-4)
