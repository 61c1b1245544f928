"""One pass of a detector over labelled images: from loader to numbers."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from utils.boxes import xywh_to_xyxy
from utils.data.letterbox import boxes_to_original
from utils.device import Timer
from utils.evaluation.metrics import IOU_THRESHOLDS, ClassMetrics, ConfusionMatrix, ap_per_class, match_once
from utils.log import LOGGER
from utils.nms import non_max_suppression


@dataclass
class EvaluatedBatch:
    """What observers of an evaluation see of each batch. Tensors may lie on the GPU."""

    number: int  # from 0
    images: torch.Tensor  # uint8 (B, 3, H, W)
    targets: torch.Tensor  # (T, 6) image, class, x, y, w, h, 0-1 of the input
    paths: Sequence[str]
    shapes: Sequence[tuple]  # per image ((h0, w0), ((gain_h, gain_w), (pad_w, pad_h)))
    found: list[torch.Tensor]  # per image (n, 6): x1, y1, x2, y2 in pixels of the input, confidence, class
    native: list[torch.Tensor]  # the same in pixels of the original image, on the CPU


@dataclass
class Boxes:
    """What was found and what was there, of all images together, in pixels of the original images.

    Predictions of an image are in descending confidence; images are numbered as they were seen.
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
    """Numbers of one pass over a data set."""

    metrics: ClassMetrics
    confusion: ConfusionMatrix
    names: list[str]
    images: int
    images_with: np.ndarray  # (nc,) images that hold an object of each class
    labels_per_class: np.ndarray  # (nc,)
    boxes: Boxes
    loss: tuple[float, float, float] = (0.0, 0.0, 0.0)  # box, objectness, class, mean over batches
    speed: dict[str, float] = field(default_factory=dict)  # ms per image: pre-process, inference, NMS

    @property
    def results(self) -> tuple[float, ...]:
        """v6.1's seven numbers: P, R, mAP50, mAP50-95, box loss, objectness loss, class loss."""
        return (*self.metrics.means(), *self.loss)

    @property
    def class_maps(self) -> tuple[float, ...]:
        """mAP50-95 of each class; the mean over classes for one without labels."""
        maps = np.full(len(self.names), self.metrics.means()[3])
        maps[self.metrics.classes] = self.metrics.ap.mean(1)
        return tuple(maps.tolist())

    def table(self, verbose: bool = True) -> str:
        """The printed rows: all classes, then each that has labels when verbose."""
        columns = "{:>22}{:>11}{:>11}" + "{:>11.3g}" * 4
        labels = int(self.labels_per_class.sum())
        rows = [columns.format("all", self.images, labels, *self.metrics.means())]
        if verbose and len(self.names) > 1:
            m = self.metrics
            for c, *numbers in zip(m.classes, m.p, m.r, m.ap50, m.ap.mean(1)):
                rows.append(columns.format(self.names[c][:21], self.images, self.labels_per_class[c], *numbers))
        return "\n".join(rows)


HEADER = ("{:>22}" + "{:>11}" * 6).format("Class", "Images", "Labels", "P", "R", "mAP@.5", "mAP@.5:.95")


@torch.inference_mode()
def evaluate(
    model: Callable, loader: Iterable, names: list[str], device: torch.device, dtype: torch.dtype = torch.float32,
    conf_thres: float = 0.001, iou_thres: float = 0.6, max_det: int = 300, single_cls: bool = False,
    augment: bool = False, hybrid: bool = False, compute_loss: Callable | None = None,
    autocast: torch.dtype | None = None, observers: Sequence[Callable[[EvaluatedBatch], None]] = (),
    count_every_image: bool = True,
) -> Evaluation:  # fmt: skip
    """Runs a detector over a loader of `utils.data.loader` and measures it, by v6.1's rules (spec of metrics.py).

    Args:
        model: images (B, 3, H, W) of `dtype`, 0-1 -> (decoded, raw); already in eval mode. It takes `augment=True`
            where that is asked for.
        names: of the classes; with single_cls every prediction counts as class 0.
        conf_thres, iou_thres, max_det: of non-maximum suppression, several labels per box.
        hybrid: the labels take part in suppression as certain boxes (for auto-labelling; the metrics lose meaning).
        compute_loss: (raw, targets) -> (total, items), summed up beside the metrics.
        autocast: run the network in mixed precision of this type.
        observers: called with each EvaluatedBatch: writers of text and pictures.
        count_every_image: the confusion matrix leaves nothing out that v6.1's does (see `ConfusionMatrix`).
    """
    nc = len(names)
    timers = [Timer(device) for _ in range(3)]
    losses = torch.zeros(3, device=device)
    collector = _Collector(ConfusionMatrix(nc, count_every_image=count_every_image))
    mixed = torch.autocast(device.type, autocast) if autocast else nullcontext()

    progress = tqdm(loader, desc=HEADER, bar_format="{desc} {percentage:3.0f}% {elapsed}", leave=False)
    for number, (images, targets, paths, shapes) in enumerate(progress):
        with timers[0]:
            images = images.to(device, non_blocking=True)
            targets = targets.to(device)
            pixels = images.to(dtype, memory_format=torch.channels_last) / 255
        height, width = images.shape[2:]
        with timers[1], mixed:
            decoded, raw = model(pixels, augment=True) if augment else model(pixels)
        if compute_loss is not None:
            losses += compute_loss([level.float() for level in raw], targets)[1]
        labels = targets.clone()
        labels[:, 2:] *= torch.tensor([width, height, width, height], device=device)
        known = [labels[labels[:, 0] == i, 1:] for i in range(len(images))] if hybrid else ()
        with timers[2]:
            found = non_max_suppression(
                decoded, conf_thres, iou_thres, multi_label=nc > 1, agnostic=single_cls, max_det=max_det, labels=known
            )
        if single_cls:
            found = [torch.cat((boxes[:, :5], torch.zeros_like(boxes[:, 5:])), 1) for boxes in found]
        native = collector.add(found, labels.cpu().numpy(), paths, shapes)
        for observer in observers:
            observer(EvaluatedBatch(number, images, targets, paths, shapes, found, native))

    loss = tuple((losses / (number + 1)).tolist())
    per_image = [1000 * timer.total / len(collector.paths) for timer in timers]
    return collector.evaluation(names, loss, dict(zip(("pre-process", "inference", "NMS"), per_image)))


class _Collector:
    """Gathers the boxes of batch after batch and pairs them; `evaluation` makes the numbers of them."""

    def __init__(self, confusion: ConfusionMatrix):
        self.confusion = confusion
        self.paths: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.columns: list[tuple[np.ndarray, ...]] = []  # per batch; the order is that of the fields of Boxes
        self.labels = 0  # so far

    def add(
        self, found: list[torch.Tensor], targets: np.ndarray, paths: Sequence[str], shapes: Sequence[tuple]
    ) -> list[torch.Tensor]:
        """One batch: found as in EvaluatedBatch, targets (T, 6) image, class, x, y, w, h in pixels of the input.

        Returns the boxes found in pixels of the original images, on the CPU.
        """
        counts = [len(boxes) for boxes in found]
        predictions = torch.cat(found).cpu().numpy().copy()
        image = np.repeat(np.arange(len(found)), counts)
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
        if not self.confusion.count_every_image:  # v6.1 passes over images in which nothing at all was found
            seen = np.isin(label_image, image)
            labels, label_image = labels[seen], label_image[seen]
        self.confusion.update(torch.from_numpy(predictions), torch.from_numpy(labels), (image, label_image))

    def evaluation(self, names: list[str], loss: tuple[float, ...], speed: dict[str, float]) -> Evaluation:
        """The numbers of all batches."""
        nc = len(names)
        boxes = Boxes(self.paths, self.sizes, *map(np.concatenate, zip(*self.columns)))
        true = boxes.labels[:, 0].astype(int)
        if true.size and true.max() >= nc:
            raise ValueError(f"a label has class {true.max()}, but there are {nc} classes: {names}")
        correct = boxes.iou[:, None] >= IOU_THRESHOLDS
        return Evaluation(
            metrics=ap_per_class(correct, boxes.predictions[:, 4], boxes.predictions[:, 5], boxes.labels[:, 0]),
            confusion=self.confusion,
            names=names,
            images=len(self.paths),
            images_with=np.bincount(np.unique(np.stack([true, boxes.label_image]), axis=1)[0], minlength=nc),
            labels_per_class=np.bincount(true, minlength=nc),
            boxes=boxes,
            loss=loss,
            speed=speed,
        )


def log_evaluation(evaluation: Evaluation, verbose: bool = True) -> None:
    """Prints v6.1's table."""
    LOGGER.info(f"{HEADER}\n{evaluation.table(verbose)}")
    if evaluation.labels_per_class.sum() == 0:
        LOGGER.warning("no labels in this split, so the metrics are all zero")
