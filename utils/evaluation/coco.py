"""COCO's own metric (https://cocodataset.org/#detection-eval), computed by faster-coco-eval or pycocotools.

Both are optional packages. The detections are rounded as `results` writes them, so that pycocotools gives the same
numbers for the written files.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.cli import installed
from utils.data.dataset import DetectionDataset
from utils.data.formats.coco import CocoBox, CocoSplit
from utils.evaluation.evaluator import Boxes
from utils.files import atomic_write
from utils.inference.outputs import number_stems, result_stems

# COCO numbers its 80 classes up to 90, with gaps
COCO_CATEGORIES = [
    *range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83), *range(84, 91),
]  # fmt: skip
AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # pixels of the original image
STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
PACKAGES = ("faster_coco_eval", "pycocotools")


@dataclass
class Truth:
    """The labels of a data set in the form that COCO's metric takes, with the ids of its JSON."""

    image_ids: dict[str, int | str]  # COCO id of every image of the data set, by path
    categories: list[int | str]  # COCO id of each class
    image: list[str]  # path of each annotation's image
    classes: np.ndarray  # (m,) int
    boxes: np.ndarray  # float64 (m, 4): x, y of the top left corner, width, height in pixels
    area: np.ndarray  # (m,) pixels: of the outline where the data set has it, else of the box
    crowd: np.ndarray  # (m,) bool: a box around a group; a detection inside is neither right nor wrong


@dataclass
class CocoMetrics:
    """The numbers of COCO's metric; NaN where there is nothing to measure (pycocotools: -1)."""

    statistics: dict[str, float]  # by the names in STATISTICS, 0-1
    precision: np.ndarray  # (10, nc, 4): average over recalls at each IoU threshold, of each class and area range
    recall: np.ndarray  # (10, nc, 4): with 100 detections per image; area ranges: all, small, medium, large
    package: str

    @property
    def class_ap(self) -> np.ndarray:
        """Returns the AP (nc,) of each class over all IoU thresholds."""
        return self.precision[:, :, 0].mean(0)


def image_ids(files: Sequence[str]) -> dict[str, int | str]:
    """Returns a unique COCO id for each image of a data set without ids: the number that its file name is, as in v6.1,
    else its file name, preceded by its folder's where several files share it."""
    ids = number_stems([Path(file).stem for file in files])
    return dict(zip(files, result_stems(files) if ids is None else ids))


def truth_of(dataset: DetectionDataset, entry, names: Sequence[str], single_cls: bool = False) -> Truth:
    """Returns the labels of a data set: those of COCO JSON with its ids, crowds and areas; else made of the boxes.

    entry: the split's entry in the data set YAML, from which `dataset` was made.
    """
    if isinstance(entry, CocoSplit):
        ids, categories, annotations = entry.annotated()
        used = set(dataset.image_files)
        kept = [a for a in annotations if a.path in used]
        truth = _from_annotations({path: ids[path] for path in dataset.image_files}, categories, kept)
        return replace(truth, categories=[0], classes=truth.classes * 0) if single_cls else truth
    counts = [len(dataset.labels_of(i)) for i in range(len(dataset))]
    labels = dataset.labels.astype(np.float64)
    boxes = labels[:, 1:] * np.tile(np.repeat(dataset.shapes, counts, 0), 2)
    boxes[:, :2] -= boxes[:, 2:] / 2
    return Truth(
        image_ids=image_ids(dataset.image_files),
        categories=list(range(len(names))),
        image=[path for path, count in zip(dataset.image_files, counts) for _ in range(count)],
        classes=labels[:, 0].astype(int),
        boxes=boxes,
        area=boxes[:, 2] * boxes[:, 3],
        crowd=np.zeros(len(labels), bool),
    )


def official_truth(file: str | Path, files: Sequence[str], names: Sequence[str]) -> Truth:
    """Reads COCO's own annotations of its images `files`, whose names are their ids."""
    _, _, annotations = CocoSplit((str(file),), "", tuple(names)).annotated()
    path_of = {int(Path(path).stem): path for path in files}
    kept = [replace(a, path=path_of[a.image_id]) for a in annotations if a.image_id in path_of]
    return _from_annotations({path: key for key, path in path_of.items()}, COCO_CATEGORIES, kept)


def _from_annotations(ids: dict[str, int | str], categories: list, annotations: list[CocoBox]) -> Truth:
    return Truth(
        image_ids=ids,
        categories=categories,
        image=[a.path for a in annotations],
        classes=np.array([a.number for a in annotations], int),
        boxes=np.array([a.box for a in annotations], np.float64).reshape(-1, 4),
        area=np.array([a.area for a in annotations], np.float64),
        crowd=np.array([a.crowd for a in annotations], bool),
    )


# --- files ------------------------------------------------------------------------------------------------------------


def round_predictions(predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes (n, 4), x, y of the top left corner, width, height to 3 decimals, and scores (n,) to 5, as v6.1.

    predictions: (n, 6): x1, y1, x2, y2 in pixels, confidence, class.
    """
    boxes = predictions[:, :4].astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes.round(3), predictions[:, 4].astype(np.float64).round(5)


def results(boxes: Boxes, ids: dict[str, int | str], categories: Sequence[int | str]) -> list[dict]:
    """Returns the detections in COCO's result format."""
    corners, scores = round_predictions(boxes.predictions)
    image = [ids[path] for path in boxes.paths]
    return [
        {"image_id": image[i], "category_id": categories[int(c)], "bbox": box, "score": score}
        for i, c, box, score in zip(boxes.image, boxes.predictions[:, 5], corners.tolist(), scores.tolist())
    ]


def write_truth(path: Path, truth: Truth, boxes: Boxes, names: Sequence[str]) -> None:
    """Writes the labels as COCO's `instances` JSON, for other tools."""
    content = {
        "images": [
            {"id": truth.image_ids[file], "file_name": Path(file).name, "height": height, "width": width}
            for file, (height, width) in zip(boxes.paths, boxes.sizes)
        ],
        "categories": [{"id": key, "name": name} for key, name in zip(truth.categories, names)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": truth.image_ids[truth.image[i]],
                "category_id": truth.categories[truth.classes[i]],
                "bbox": truth.boxes[i].tolist(),
                "area": float(truth.area[i]),
                "iscrowd": int(truth.crowd[i]),
            }
            for i in range(len(truth.boxes))
        ],
    }
    with atomic_write(path, "w") as file:
        json.dump(content, file)


# --- the metric -------------------------------------------------------------------------------------------------------


def find_package() -> str:
    """Returns the installed package that computes the metric. Raises ValueError where there is none."""
    for name in PACKAGES:
        if installed(name):
            return name
    raise ValueError("--metrics coco needs a package that is not installed: pip install faster-coco-eval")


def measure(boxes: Boxes, truth: Truth, package: str | None = None) -> CocoMetrics:
    """Measures an evaluation by COCO's metric.

    package: one of PACKAGES; None for the first that is installed.

    Raises ValueError where none is installed.
    """
    package = package or find_package()
    if package == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    number = _image_numbers(truth)
    with contextlib.redirect_stdout(io.StringIO()):  # they print
        known = COCO()
        known.dataset = _dataset(truth, number)
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(_rows(boxes, number)), "bbox") if len(boxes.predictions) else None
        if evaluation is None:
            return _without_detections(truth, package)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]  # (10, 101, nc, 4, 3), (10, nc, 4, 3)
    precision = np.where(precision > -1, precision, np.nan)[..., -1].mean(1)
    recall = np.where(recall > -1, recall, np.nan)[..., -1]
    statistics = [value if value > -1 else np.nan for value in map(float, evaluation.stats[:12])]
    return CocoMetrics(dict(zip(STATISTICS, statistics)), precision, recall, package)


def _image_numbers(truth: Truth) -> dict[str, int]:
    """Returns a number for each image, since ids may be text, in the order in which pycocotools takes the ids."""
    ids = truth.image_ids
    paths = sorted(ids, key=lambda path: (str(ids[path]) if isinstance(ids[path], str) else "", ids[path]))
    return {path: number for number, path in enumerate(paths, 1)}


def _dataset(truth: Truth, number: dict[str, int]) -> dict:
    columns = zip(truth.image, truth.classes.tolist(), truth.boxes.tolist(), truth.area.tolist(), truth.crowd.tolist())
    return {
        "info": {},
        "images": [{"id": i} for i in number.values()],
        "categories": [{"id": c + 1} for c in range(len(truth.categories))],
        "annotations": [
            {"id": i, "image_id": number[path], "category_id": c + 1, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for i, (path, c, box, area, crowd) in enumerate(columns, 1)
        ],
    }


def _rows(boxes: Boxes, number: dict[str, int]) -> np.ndarray:
    """Returns the detections as rows (n, 7): image, x, y, w, h, score, category."""
    corners, scores = round_predictions(boxes.predictions)
    image = np.array([number[path] for path in boxes.paths])[boxes.image]
    return np.column_stack([image, corners, scores, boxes.predictions[:, 5] + 1])


def _without_detections(truth: Truth, package: str) -> CocoMetrics:
    """Returns the numbers without any detection, which the packages refuse: zero where there are labels."""
    limits = [(0, 1e10), *AREAS.values()]
    counted = np.zeros((len(truth.categories), 4))
    for column, (low, high) in enumerate(limits):
        inside = ~truth.crowd & (truth.area >= low) & (truth.area <= high)
        counted[:, column] = np.bincount(truth.classes[inside], minlength=len(truth.categories))
    nothing = np.broadcast_to(np.where(counted > 0, 0.0, np.nan), (10, *counted.shape))
    by_area = np.where((counted > 0).any(0), 0.0, np.nan)
    statistics = [*by_area[[0, 0, 0, 1, 2, 3]], *by_area[[0, 0, 0, 1, 2, 3]]]
    return CocoMetrics(dict(zip(STATISTICS, map(float, statistics))), nothing, nothing, package)
