"""One pass of a detector over labelled images: from loader to numbers."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from utils.boxes import scale_boxes, xywh_to_xyxy
from utils.device import Timer
from utils.evaluation.metrics import ClassMetrics, ConfusionMatrix, ap_per_class, match_predictions
from utils.inference.nms import non_max_suppression
from utils.log import LOGGER

IOU_THRESHOLDS = torch.linspace(0.5, 0.95, 10)


@dataclass
class EvaluatedBatch:
    """What observers of an evaluation see of each batch. Tensors may lie on the GPU."""

    number: int  # from 0
    images: torch.Tensor  # uint8 (B, 3, H, W)
    targets: torch.Tensor  # (T, 6) image, class, x, y, w, h, 0-1 of the input
    paths: Sequence[str]
    shapes: Sequence[tuple]  # per image ((h0, w0), ((gain_h, gain_w), (pad_w, pad_h)))
    found: list[torch.Tensor]  # per image (n, 6): x1, y1, x2, y2 in pixels of the input, confidence, class
    native: list[torch.Tensor]  # the same in pixels of the original image


@dataclass
class Evaluation:
    """Numbers of one pass over a data set."""

    metrics: ClassMetrics
    confusion: ConfusionMatrix
    names: list[str]
    images: int
    images_with: np.ndarray  # (nc,) images that hold an object of each class
    labels_per_class: np.ndarray  # (nc,)
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
    model: Callable,
    loader: Iterable,
    names: list[str],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    conf_thres: float = 0.001,
    iou_thres: float = 0.6,
    max_det: int = 300,
    single_cls: bool = False,
    augment: bool = False,
    hybrid: bool = False,
    compute_loss: Callable | None = None,
    autocast: torch.dtype | None = None,
    observers: Sequence[Callable[[EvaluatedBatch], None]] = (),
) -> Evaluation:
    """Runs a detector over a loader of `utils.data.loader` and measures it, by v6.1's rules (spec of metrics.py).

    Args:
        model: images (B, 3, H, W) of `dtype`, 0-1 -> (decoded, raw); already in eval mode. It takes `augment=True`
            where that is asked for.
        names: of the classes; with single_cls every prediction counts as class 0.
        conf_thres, iou_thres, max_det: of non-maximum suppression, several labels per box.
        hybrid: the labels take part in suppression as certain boxes (for auto-labelling; the metrics lose meaning).
        compute_loss: (raw, targets) -> (total, items), summed up beside the metrics.
        autocast: run the network in mixed precision of this type.
        observers: called with each EvaluatedBatch: writers of text, JSON, pictures.
    """
    nc = len(names)
    timers = [Timer(device) for _ in range(3)]
    confusion = ConfusionMatrix(nc, count_every_image=True)
    thresholds = IOU_THRESHOLDS.to(device)
    losses, batches, images_seen = torch.zeros(3, device=device), 0, 0
    images_with = np.zeros(nc, dtype=int)
    statistics = []  # per image: correct (n, 10), confidence, predicted class, label class
    mixed = torch.autocast(device.type, autocast) if autocast else nullcontext()

    progress = tqdm(loader, desc=HEADER, bar_format="{desc} {percentage:3.0f}% {elapsed}", leave=False)
    for number, (images, targets, paths, shapes) in enumerate(progress):
        with timers[0]:
            images = images.to(device, non_blocking=True)
            targets = targets.to(device)
            pixels = images.to(dtype).contiguous(memory_format=torch.channels_last) / 255
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

        native = []
        for i, boxes in enumerate(found):
            original, ratio_pad = shapes[i]
            frame = (height, width)
            boxes = torch.cat((scale_boxes(boxes[:, :4], frame, original, ratio_pad), boxes[:, 4:]), 1)
            truth = labels[labels[:, 0] == i, 1:]
            truth = torch.cat((truth[:, :1], scale_boxes(xywh_to_xyxy(truth[:, 1:]), frame, original, ratio_pad)), 1)
            confusion.update(boxes, truth)
            correct = match_predictions(boxes, truth, thresholds)
            statistics.append((correct, boxes[:, 4], boxes[:, 5], truth[:, 0]))
            images_with[truth[:, 0].int().unique().cpu().numpy()] += 1
            native.append(boxes)
        for observer in observers:
            observer(EvaluatedBatch(number, images, targets, paths, shapes, found, native))
        batches, images_seen = batches + 1, images_seen + len(images)

    correct, confidence, predicted, true = (torch.cat(column).float().cpu().numpy() for column in zip(*statistics))
    if true.size and true.max() >= nc:
        raise ValueError(f"a label has class {int(true.max())}, but there are {nc} classes: {names}")
    metrics = ap_per_class(correct, confidence, predicted, true)
    per_image = [1000 * timer.total / images_seen for timer in timers]
    return Evaluation(
        metrics=metrics,
        confusion=confusion,
        names=names,
        images=images_seen,
        images_with=images_with,
        labels_per_class=np.bincount(true.astype(int), minlength=nc),
        loss=tuple((losses / batches).tolist()),
        speed=dict(zip(("pre-process", "inference", "NMS"), per_image)),
    )


def log_evaluation(evaluation: Evaluation, verbose: bool = True) -> None:
    """Prints v6.1's table."""
    LOGGER.info(f"{HEADER}\n{evaluation.table(verbose)}")
    if evaluation.labels_per_class.sum() == 0:
        LOGGER.warning("no labels in this split, so the metrics are all zero")
