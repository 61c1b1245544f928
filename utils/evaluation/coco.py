"""COCO's own metric (https://cocodataset.org/#detection-eval), computed by faster-coco-eval, else by pycocotools.

Both are optional packages. What is measured is what `results` writes, rounding included, so that whoever runs
pycocotools on the written files gets the same numbers.
"""

import contextlib
import importlib.util
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.data.dataset import DetectionDataset
from utils.data.formats import CocoBox, CocoSplit
from utils.evaluation.evaluator import Boxes
from utils.files import atomic_write
from utils.inference.outputs import result_stems

# COCO numbers its 80 classes up to 90, with gaps
COCO_CATEGORIES = [
    *range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83), *range(84, 91),
]  # fmt: skip
AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # pixels of the original image
STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MAX_DETECTIONS = (1, 10, 100)  # the most confident of an image that count
PACKAGES = ("faster_coco_eval", "pycocotools")


@dataclass
class Truth:
    """The labels of a data set as COCO's metric wants them, and the names that its JSON gives to things."""

    image_ids: dict[str, int | str]  # by path, of every image of the data set
    categories: list[int | str]  # of each class
    image: list[str]  # path of each annotation's image
    classes: np.ndarray  # (m,) int
    boxes: np.ndarray  # float64 (m, 4): x, y of the top left corner, width, height in pixels
    area: np.ndarray  # (m,) pixels: of the outline where the data set knows it, else of the box
    crowd: np.ndarray  # (m,) bool: a box around many; what lies in it is neither right nor wrong


@dataclass
class CocoMetrics:
    """COCO's numbers; NaN where there is nothing to measure (pycocotools: -1)."""

    statistics: dict[str, float]  # by the names in STATISTICS, 0-1
    precision: np.ndarray  # (10, nc, 4): average over recalls at each IoU threshold, of each class and area range
    recall: np.ndarray  # (10, nc, 4): with 100 boxes an image; area ranges: all, small, medium, large
    package: str

    @property
    def class_ap(self) -> np.ndarray:
        """(nc,) AP of each class over all IoU thresholds."""
        return self.precision[:, :, 0].mean(0)


def image_ids(files: Sequence[str]) -> dict[str, int | str]:
    """How COCO JSON names the images of other data sets: by their number, as v6.1, where the name is one; by their
    name otherwise, with as much of their folder as tells them apart. Never two alike."""
    stems = [Path(file).stem for file in files]
    ids = [int(stem) if stem.isdecimal() else stem for stem in stems]
    return dict(zip(files, ids if len(set(ids)) == len(ids) else result_stems(files)))


def truth_of(dataset: DetectionDataset, entry, names: Sequence[str], single_cls: bool = False) -> Truth:
    """The labels of a data set: of COCO JSON as they stand there, with ids, crowds and areas; else from its boxes.

    entry: of the data set YAML, from which `dataset` was made.
    """
    if isinstance(entry, CocoSplit):
        ids, categories, annotations = entry.annotated()
        wanted = set(dataset.image_files)
        kept = [a for a in annotations if a.path in wanted]
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
    """COCO's own annotations of its images `files`, which are called by their ids."""
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
    """Boxes (n, 4) as x, y of the top left corner, width, height to 3 decimals, and scores (n,) to 5, as v6.1.

    predictions: (n, 6): x1, y1, x2, y2 in pixels, confidence, class.
    """
    boxes = predictions[:, :4].astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes.round(3), predictions[:, 4].astype(np.float64).round(5)


def results(boxes: Boxes, ids: dict[str, int | str], categories: Sequence[int | str]) -> list[dict]:
    """What was found in COCO's result format."""
    corners, scores = round_predictions(boxes.predictions)
    image = [ids[path] for path in boxes.paths]
    return [
        {"image_id": image[i], "category_id": categories[int(c)], "bbox": box, "score": score}
        for i, c, box, score in zip(boxes.image, boxes.predictions[:, 5], corners.tolist(), scores.tolist())
    ]


def write_truth(path: Path, truth: Truth, boxes: Boxes, names: Sequence[str]) -> None:
    """The labels as COCO's `instances` JSON, for other tools."""
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
    """The installed package that computes the metric. Raises ValueError where there is none."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            return name
    raise ValueError("COCO's metric needs a package that is not installed: pip install faster-coco-eval")


def measure(boxes: Boxes, truth: Truth, package: str | None = None) -> CocoMetrics:
    """COCO's numbers of an evaluation.

    package: one of PACKAGES; the first installed if None.
    """
    package = package or find_package()
    if package == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    number = _image_numbers(truth)
    with contextlib.redirect_stdout(io.StringIO()):  # they report to the screen
        known = COCO()
        known.dataset = _dataset(truth, number)
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(_rows(boxes, number)), "bbox") if len(boxes.predictions) else None
        if evaluation is None:
            return _nothing_found(truth, package)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]  # (10, 101, nc, 4, 3), (10, nc, 4, 3)
    precision = np.where(precision > -1, precision, np.nan)[..., -1].mean(1)
    recall = np.where(recall > -1, recall, np.nan)[..., -1]
    statistics = [value if value > -1 else np.nan for value in map(float, evaluation.stats[:12])]
    return CocoMetrics(dict(zip(STATISTICS, statistics)), precision, recall, package)


def _image_numbers(truth: Truth) -> dict[str, int]:
    """Images by number, so that ids may be anything, in the order in which pycocotools would take them."""
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
    """(n, 7): image, x, y, w, h, score, category."""
    corners, scores = round_predictions(boxes.predictions)
    image = np.array([number[path] for path in boxes.paths])[boxes.image]
    return np.column_stack([image, corners, scores, boxes.predictions[:, 5] + 1])


def _nothing_found(truth: Truth, package: str) -> CocoMetrics:
    """Zeros where there was something to find, which the packages do not take an empty list for."""
    limits = [(0, 1e10), *AREAS.values()]
    counted = np.zeros((len(truth.categories), 4))
    for column, (low, high) in enumerate(limits):
        inside = ~truth.crowd & (truth.area >= low) & (truth.area <= high)
        counted[:, column] = np.bincount(truth.classes[inside], minlength=len(truth.categories))
    nothing = np.broadcast_to(np.where(counted > 0, 0.0, np.nan), (10, *counted.shape))
    by_area = np.where((counted > 0).any(0), 0.0, np.nan)
    statistics = [*by_area[[0, 0, 0, 1, 2, 3]], *by_area[[0, 0, 0, 1, 2, 3]]]
    return CocoMetrics(dict(zip(STATISTICS, map(float, statistics))), nothing, nothing, package)
