"""One pass of a detector over labelled images: from loader to numbers."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch

from utils.boxes import xywh_to_xyxy
from utils.data.letterbox import boxes_to_original
from utils.device import Timer
from utils.evaluation.metrics import IOU_THRESHOLDS, ClassMetrics, ConfusionMatrix, ap_per_class, match_once
from utils.log import LOGGER
from utils.nms import non_max_suppression
from utils.progress import Bar
from utils.text import printable


@dataclass(frozen=True)
class EvaluationSettings:
    """The rules by which a pass is measured; the defaults are v6.1's."""

    conf_thres: float = 0.001  # NMS: minimum confidence, 0-1
    iou_thres: float = 0.6  # NMS: IoU above which a box is dropped, 0-1
    max_det: int = 300  # NMS: maximum number of detections per image
    single_cls: bool = False  # every prediction counts as class 0
    augment: bool = False  # test-time augmentation
    hybrid: bool = False  # labels join NMS with confidence 1: for auto-labelling; the metrics lose their meaning
    count_every_image: bool = True  # in the confusion matrix; v6.1 leaves some out (see `ConfusionMatrix`)


@dataclass(frozen=True)
class EvaluatedBatch:
    """What the observers of an evaluation see of each batch. Tensors may lie on the GPU."""

    number: int  # from 0
    images: torch.Tensor  # uint8 (B, 3, H, W)
    targets: torch.Tensor  # (T, 6) image, class, x, y, w, h, 0-1 of the input
    paths: Sequence[str]
    shapes: Sequence[tuple]  # per image ((h0, w0), ((gain_h, gain_w), (pad_w, pad_h)))
    detections: list[torch.Tensor]  # per image (n, 6): x1, y1, x2, y2 in pixels of the input, confidence, class
    native: list[torch.Tensor]  # the same in pixels of the original image, on the CPU


@dataclass
class Boxes:
    """All predictions and labels of an evaluation, in pixels of the original images.

    Predictions of an image are in descending confidence; images are numbered in the order of the loader.
    """

    paths: list[str]
    sizes: list[tuple[int, int]]  # height, width of each image
    predictions: np.ndarray  # float32 (n, 6): x1, y1, x2, y2, confidence, class
    image: np.ndarray  # (n,) of each prediction
    labels: np.ndarray  # float32 (m, 5): class, x1, y1, x2, y2
    label_image: np.ndarray  # (m,)
    partner: np.ndarray  # (n,) label that a prediction is paired with, or -1
    iou: np.ndarray  # float32 (n,) of the pair, 0 without one


@dataclass
class Evaluation:
    """The numbers of one pass over a data set."""

    metrics: ClassMetrics
    confusion: ConfusionMatrix
    names: list[str]
    images: int
    labels_per_class: np.ndarray  # (nc,)
    images_per_class: np.ndarray  # (nc,) images that have a label of the class
    boxes: Boxes
    loss: tuple[float, float, float] = (0.0, 0.0, 0.0)  # box, objectness, class: mean over batches
    speed: dict[str, float] = field(default_factory=dict)  # ms per image: pre-process, inference, NMS

    @property
    def results(self) -> tuple[float, ...]:
        """Returns v6.1's seven numbers: P, R, mAP50, mAP50-95, box loss, objectness loss, class loss."""
        return (*self.metrics.means(), *self.loss)

    @property
    def class_maps(self) -> tuple[float, ...]:
        """Returns mAP50-95 of each class; the mean over classes for one without labels."""
        return tuple(self.metrics.map_per_class(len(self.names)).tolist())

    def table(self, verbose: bool = True) -> str:
        """Returns the printed rows: one for all classes and, when verbose, one for each class that has labels.

        Images are those that have an object of the class (v6.1 prints the number of all images in each row).
        """
        columns = "{:>22}{:>11}{:>11}" + "{:>11.3g}" * 4
        labels = int(self.labels_per_class.sum())
        rows = [columns.format("all", self.images, labels, *self.metrics.means())]
        if verbose and len(self.names) > 1:
            m = self.metrics
            for c, *numbers in zip(m.classes, m.p, m.r, m.ap50, m.ap.mean(1)):
                counts = self.images_per_class[c], self.labels_per_class[c]
                rows.append(columns.format(printable(self.names[c], lines=False)[:21], *counts, *numbers))
        return "\n".join(rows)


HEADER = ("{:>22}" + "{:>11}" * 6).format("Class", "Images", "Labels", "P", "R", "mAP@.5", "mAP@.5:.95")


@torch.inference_mode()
def evaluate(
    model: Callable,
    loader: Iterable,
    names: list[str],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    settings: EvaluationSettings | None = None,
    compute_loss: Callable | None = None,
    autocast: torch.dtype | None = None,
    observers: Sequence[Callable[[EvaluatedBatch], None]] = (),
) -> Evaluation:
    """Runs a detector over a loader of `utils.data.loader` and measures it by v6.1's rules.

    Args:
        model: images (B, 3, H, W) of `dtype`, 0-1 -> (decoded, raw), in eval mode. It takes `augment=True` where the
            settings ask for it.
        names: of the classes.
        settings: the rules; None for the defaults.
        compute_loss: (raw, targets) -> (total, items); the items are averaged over the batches.
        autocast: the type of mixed precision for the network, if any.
        observers: called with each EvaluatedBatch: writers of label files and images.

    Raises ValueError for a label whose class has no name.
    """
    settings = settings or EvaluationSettings()
    timers = [Timer(device) for _ in range(3)]
    losses = torch.zeros(3, device=device)
    collector = _Collector(ConfusionMatrix(len(names), count_every_image=settings.count_every_image))
    mixed = torch.autocast(device.type, autocast) if autocast else nullcontext()

    progress = Bar(loader, desc=HEADER, bar_format="{desc} {percentage:3.0f}% {elapsed}", leave=False)
    for number, (images, targets, paths, shapes) in enumerate(progress):
        with timers[0]:
            images = images.to(device, non_blocking=True)
            targets = targets.to(device)
            pixels = images.to(dtype, memory_format=torch.channels_last) / 255
        with timers[1], mixed:
            decoded, raw = model(pixels, augment=True) if settings.augment else model(pixels)
        if compute_loss is not None:
            losses += compute_loss([level.float() for level in raw], targets)[1]
        labels = _in_pixels(targets, images.shape[2:])
        with timers[2]:
            detections = _detections(decoded, labels, settings, len(names))
        native = collector.add(detections, labels.cpu().numpy(), paths, shapes)
        for observer in observers:
            observer(
                EvaluatedBatch(
                    number=number, images=images, targets=targets, paths=paths, shapes=shapes, detections=detections,
                    native=native,
                )
            )  # fmt: skip

    loss = tuple((losses / (number + 1)).tolist())
    per_image = [1000 * timer.total / len(collector.paths) for timer in timers]
    return collector.evaluation(names, loss, dict(zip(("pre-process", "inference", "NMS"), per_image)))


def _in_pixels(targets: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Returns targets (T, 6) with their x, y, w, h in pixels of an input of shape (height, width)."""
    height, width = shape
    labels = targets.clone()
    labels[:, 2:] *= torch.tensor([width, height, width, height], device=targets.device)
    return labels


def _detections(
    decoded: torch.Tensor, labels: torch.Tensor, settings: EvaluationSettings, nc: int
) -> list[torch.Tensor]:
    """Returns the detections (n, 6) of each image of a batch; labels (T, 6) are in pixels of the input."""
    known = [labels[labels[:, 0] == i, 1:] for i in range(len(decoded))] if settings.hybrid else ()
    detections = non_max_suppression(
        decoded, settings.conf_thres, settings.iou_thres, multi_label=nc > 1, agnostic=settings.single_cls,
        max_det=settings.max_det, labels=known,
    )  # fmt: skip
    if settings.single_cls:
        return [torch.cat((boxes[:, :5], torch.zeros_like(boxes[:, 5:])), 1) for boxes in detections]
    return detections


class _Collector:
    """Gathers the boxes of all batches and pairs predictions with labels; `evaluation` computes the numbers."""

    def __init__(self, confusion: ConfusionMatrix):
        self.confusion = confusion
        self.paths: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.columns: list[tuple[np.ndarray, ...]] = []  # per batch, in the order of the fields of Boxes
        self.labels = 0  # so far

    def add(
        self, detections: list[torch.Tensor], targets: np.ndarray, paths: Sequence[str], shapes: Sequence[tuple]
    ) -> list[torch.Tensor]:
        """Adds a batch: detections as in EvaluatedBatch, targets (T, 6) image, class, x, y, w, h in input pixels.

        Returns the detections in pixels of the original images, on the CPU.
        """
        counts = [len(boxes) for boxes in detections]
        predictions = torch.cat(detections).cpu().numpy().copy()
        image = np.repeat(np.arange(len(detections)), counts)
        predictions[:, :4] = boxes_to_original(predictions[:, :4], image, shapes)
        label_image = targets[:, 0].astype(int)
        labels = np.concatenate(
            [targets[:, 1:2], boxes_to_original(xywh_to_xyxy(targets[:, 2:]), label_image, shapes)], 1
        )
        partner, iou = match_once(predictions, labels, IOU_THRESHOLDS[0], (image, label_image))
        self._confuse(predictions, labels, image, label_image)

        partner[partner >= 0] += self.labels
        first = len(self.paths)
        self.columns.append((predictions, image + first, labels, label_image + first, partner, iou))
        self.labels += len(labels)
        self.paths += paths
        self.sizes += [shape for shape, _ in shapes]
        return list(torch.from_numpy(predictions).split(counts))

    def _confuse(self, predictions: np.ndarray, labels: np.ndarray, image: np.ndarray, label_image: np.ndarray) -> None:
        if not self.confusion.count_every_image:  # v6.1 skips images without any prediction
            seen = np.isin(label_image, image)
            labels, label_image = labels[seen], label_image[seen]
        self.confusion.update(torch.from_numpy(predictions), torch.from_numpy(labels), (image, label_image))

    def evaluation(self, names: list[str], loss: tuple[float, ...], speed: dict[str, float]) -> Evaluation:
        """Computes the numbers of all batches."""
        nc = len(names)
        predictions, image, labels, label_image, partner, iou = map(np.concatenate, zip(*self.columns))
        boxes = Boxes(
            paths=self.paths, sizes=self.sizes, predictions=predictions, image=image, labels=labels,
            label_image=label_image, partner=partner, iou=iou,
        )  # fmt: skip
        true = boxes.labels[:, 0].astype(int)
        if true.size and true.max() >= nc:
            raise ValueError(f"a label has class {true.max()}, but the classes are 0 to {nc - 1}: {names}")
        correct = boxes.iou[:, None] >= IOU_THRESHOLDS
        return Evaluation(
            metrics=ap_per_class(correct, boxes.predictions[:, 4], boxes.predictions[:, 5], boxes.labels[:, 0]),
            confusion=self.confusion,
            names=names,
            images=len(self.paths),
            labels_per_class=np.bincount(true, minlength=nc),
            images_per_class=np.bincount(np.unique(label_image * nc + true) % nc, minlength=nc),
            boxes=boxes,
            loss=loss,
            speed=speed,
        )


def log_evaluation(evaluation: Evaluation, verbose: bool = True) -> None:
    """Prints v6.1's table."""
    LOGGER.info(f"{HEADER}\n{evaluation.table(verbose)}")
    if evaluation.labels_per_class.sum() == 0:
        LOGGER.warning("this split has no labels, so all metrics are zero")
