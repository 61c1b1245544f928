"""Measures the time of a validation by stage, and the metrics alone against the COCO packages.

    python benchmarks/bench_val.py --weights yolov5n.pt --data coco-val128.yaml    # processor seconds by stage
    python benchmarks/bench_val.py --metrics                                       # 5,000 images x 100 random boxes

By stage: processor seconds of this process, and of the processes that read images, so that a busy machine changes
little. README.md in this folder keeps dated results.
"""

import argparse
import contextlib
import logging
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


# --- a run, by stage --------------------------------------------------------------------------------------------------


class Stages:
    """Processor seconds inside functions of modules, which are replaced by timed ones while `watch` is open."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def watch(self, **places: tuple[object, str]):
        """Times functions. places: name of the stage -> (module or class, attribute)."""
        old = {name: getattr(owner, attribute) for name, (owner, attribute) in places.items()}
        for name, (owner, attribute) in places.items():
            setattr(owner, attribute, self._timed(name, old[name]))
        try:
            yield
        finally:
            for name, (owner, attribute) in places.items():
                setattr(owner, attribute, old[name])

    def _timed(self, name: str, function):
        def run(*arguments, **options):
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] = self.seconds.get(name, 0) + time.process_time() - start

        return run


def stages_of_a_run(weights: str, data: str, augment: bool, threads: int | None) -> dict[str, float]:
    """Returns the processor seconds of each stage of one validation at 640 pixels in batches of eight."""
    import torch

    import val
    from engine import validation
    from models.backend import Backend
    from utils.evaluation import evaluator, report
    from utils.log import LOGGER

    imports = time.process_time()  # since the start of the process
    LOGGER.setLevel(logging.WARNING)
    if threads:
        torch.set_num_threads(threads)
    stages = Stages()
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder, stages.watch(
        load=(validation, "Backend"), network=(Backend, "forward"), NMS=(evaluator, "non_max_suppression"),
        mosaics=(report.MosaicWriter, "__call__"), matching=(evaluator._Collector, "add"),
        AP=(evaluator, "ap_per_class"), figures=(report, "write_figures"),
    ):  # fmt: skip
        (_, _, map50, ap, *_), _, _ = val.run(
            data, weights, batch_size=8, device="cpu", project=folder, augment=augment, workers=2
        )
    total = time.process_time() - start
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"mAP50 {map50:.4f}, mAP50-95 {ap:.4f}, {torch.get_num_threads()} threads, ", end="")
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    seconds = {"imports": imports, **stages.seconds}
    seconds["rest"] = total - sum(stages.seconds.values())
    return {**seconds, "reading images": children.ru_utime + children.ru_stime}


# --- the metrics alone ------------------------------------------------------------------------------------------------


def drawn(images: int, per_image: int, objects: int = 7, classes: int = 80):
    """Returns random objects and predictions, four of five of which are near an object, as `Boxes` of a data set."""
    from utils.evaluation.evaluator import Boxes

    rng = np.random.default_rng(0)
    label_image = np.repeat(np.arange(images), objects)
    corner, sides = rng.uniform(0, 400, (len(label_image), 2)), rng.uniform(10, 200, (len(label_image), 2))
    labels = np.column_stack([rng.integers(0, classes, len(label_image)), corner, corner + sides]).astype(np.float32)
    image = np.repeat(np.arange(images), per_image)
    near = image * objects + rng.integers(0, objects, len(image))
    boxes = labels[near, 1:] + rng.normal(0, 15, (len(image), 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    label = np.where(rng.random(len(image)) < 0.8, labels[near, 0], rng.integers(0, classes, len(image)))
    predictions = np.column_stack([boxes, rng.random(len(image)), label]).astype(np.float32)
    order = np.lexsort((-predictions[:, 4], image))
    none = np.zeros(0, int)
    paths, sizes = [f"{i}.jpg" for i in range(images)], [(640, 640)] * images
    return Boxes(paths, sizes, predictions[order], image[order], labels, label_image, none, none)


def one_by_one(boxes) -> None:
    """Pairs predictions and objects in v6.1's way: image by image, in tensors."""
    import torch

    from utils.boxes import box_iou

    thresholds = torch.linspace(0.5, 0.95, 10)
    starts = np.searchsorted(boxes.image, np.arange(len(boxes.paths) + 1))
    label_starts = np.searchsorted(boxes.label_image, np.arange(len(boxes.paths) + 1))
    predictions, labels = torch.from_numpy(boxes.predictions), torch.from_numpy(boxes.labels)
    for i in range(len(boxes.paths)):
        rows, truth = predictions[starts[i] : starts[i + 1]], labels[label_starts[i] : label_starts[i + 1]]
        iou = box_iou(truth[:, 1:], rows[:, :4])
        label, row = torch.where((iou >= 0.5) & (truth[:, :1] == rows[:, 5]))
        correct = torch.zeros(len(rows), 10, dtype=torch.bool)
        if len(label):
            pairs = torch.stack([label, row], 1).numpy()
            overlap = iou[label, row].numpy()
            pairs, overlap = pairs[overlap.argsort()[::-1]], np.sort(overlap)[::-1].copy()
            for column in (1, 0):
                first = np.unique(pairs[:, column], return_index=True)[1]
                pairs, overlap = pairs[first], overlap[first]
            correct[pairs[:, 1]] = torch.from_numpy(overlap)[:, None] >= thresholds


def metrics_alone(images: int, per_image: int) -> dict[str, float]:
    """Returns the processor seconds of pairing and averaging, ours and of the packages."""
    from utils.evaluation import coco
    from utils.evaluation.evaluator import IOU_THRESHOLDS
    from utils.evaluation.metrics import ap_per_class, match_once

    boxes = drawn(images, per_image)
    seconds = {}

    @contextlib.contextmanager
    def timed(name: str):
        start = time.process_time()
        yield
        seconds[name] = time.process_time() - start

    with timed("ours: pairing"):
        _, iou = match_once(boxes.predictions, boxes.labels, 0.5, (boxes.image, boxes.label_image))
    correct = iou[:, None] >= IOU_THRESHOLDS
    with timed("ours: AP"):
        ap_per_class(correct, boxes.predictions[:, 4], boxes.predictions[:, 5], boxes.labels[:, 0])
    with timed("image by image: pairing"):
        one_by_one(boxes)
    corners, sides = boxes.labels[:, 1:3].astype(float), (boxes.labels[:, 3:] - boxes.labels[:, 1:3]).astype(float)
    truth = coco.Truth(
        {path: i for i, path in enumerate(boxes.paths)}, list(range(80)), [boxes.paths[i] for i in boxes.label_image],
        boxes.labels[:, 0].astype(int), np.hstack([corners, sides]), sides.prod(1), np.zeros(len(sides), bool),
    )  # fmt: skip
    for package in coco.PACKAGES:
        with timed(f"{package}, loading included"):
            coco.measure(boxes, truth, package)
    return seconds


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description="Measure the time of a validation by stage.")
    parser.add_argument("--weights", help=".pt file")
    parser.add_argument("--data", help="data set YAML")
    parser.add_argument("--augment", action="store_true", help="test-time augmentation")
    parser.add_argument("--threads", type=int, help="threads of the network (default: chosen by torch)")
    parser.add_argument("--metrics", action="store_true", help="measure the metrics alone, on random boxes")
    parser.add_argument("--images", type=int, default=5000, help="for --metrics (default: %(default)s)")
    parser.add_argument(
        "--per-image", type=int, default=100, help="boxes per image for --metrics (default: %(default)s)"
    )
    opt = parser.parse_args()
    if opt.metrics:
        seconds = metrics_alone(opt.images, opt.per_image)
    else:
        seconds = stages_of_a_run(opt.weights, opt.data, opt.augment, opt.threads)
    print("\n".join(f"| {name} | {value:.2f} |" for name, value in seconds.items()))
    print(f"| sum | {sum(seconds.values()):.2f} |")


if __name__ == "__main__":
    main()
