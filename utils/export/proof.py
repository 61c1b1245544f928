"""Whether an exported file computes what PyTorch computes: it is opened, run on images, and compared.

All outputs are compared, on frames and batches of several sizes, and so are the boxes that are left after suppression.
A file that differs by more than its precision allows is wrong.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import nn

from utils.boxes import box_iou
from utils.nms import non_max_suppression
from utils.runtimes.base import Metadata, Runtime

CONFIDENCE = 0.25  # of the boxes that are compared
REPEATS = 7  # timed runs
LOGIT_RANGE = 10  # raw maps are logits, whose range is about ten times as wide as that of scores


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a file may be from PyTorch in float32.

    pixels, relative: a side or coordinate v may differ by pixels + relative |v|.
    score:            an objectness, a class score or a confidence may differ by this.
    iou, fraction:    this fraction of PyTorch's boxes must have a box of the same class with at least this IoU.
    """

    pixels: float
    relative: float
    score: float
    iou: float
    fraction: float


TOLERANCES = {
    "float32": Tolerance(pixels=0.05, relative=1e-4, score=1e-3, iou=0.99, fraction=0.98),
    "float16": Tolerance(pixels=2.0, relative=2e-2, score=3e-2, iou=0.9, fraction=0.9),
    "int8": Tolerance(pixels=math.inf, relative=math.inf, score=math.inf, iou=0.7, fraction=0.8),
}


def precision(metadata: Metadata) -> str:
    """Returns the key of TOLERANCES for a file."""
    return "int8" if metadata.int8 else "float16" if metadata.half else "float32"


@dataclass
class Proof:
    """The differences that were measured when a file ran beside PyTorch."""

    pixels: float = 0.0  # largest of a coordinate or side, in pixels
    score: float = 0.0  # largest of an objectness, a class score or a raw value
    boxes: int = 0  # that PyTorch detects
    matched: int = 0  # of these, the number that the file detects too
    box_pixels: float = 0.0  # largest of a corner of these, in pixels
    confidence: float = 0.0  # largest of their confidence
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # (B, C, H, W) of the batches
    milliseconds: tuple[float, float] = (0.0, 0.0)  # per image: PyTorch, the file
    faults: list[str] = field(default_factory=list)  # beyond the tolerance

    def describe(self) -> str:
        """Returns all of it as one line."""
        counts = {shape: self.shapes.count(shape) for shape in self.shapes}
        shapes = ", ".join(
            f"{B} x {H} x {W}" + (f" ({n} times)" if n > 1 else "") for (B, _, H, W), n in counts.items()
        )
        eager, file = self.milliseconds
        boxes = f"{self.matched} of {self.boxes} boxes agree"
        if self.matched:
            boxes += f" (corners within {self.box_pixels:.2g} px, confidence within {self.confidence:.2g})"
        return (
            f"verified on {shapes}; largest difference {self.pixels:.2g} px, {self.score:.2g} in scores; {boxes}; "
            f"{file:.1f} ms per image, PyTorch {eager:.1f}: {eager / file:.2f} times as fast"
        )


@torch.no_grad()
def prove(runtime: Runtime, reference: nn.Module, batches: Sequence[torch.Tensor]) -> Proof:
    """Runs an opened file, and the graph in float32 that it was made from, on batches (B, C, H, W), 0-1."""
    proof = Proof()
    limits = TOLERANCES[precision(runtime.metadata)]
    for images in batches:
        proof.shapes.append(tuple(images.shape))
        images = images.to(runtime.device)
        expected, outputs = reference(images), runtime.run(images.to(runtime.dtype))
        if runtime.metadata.train:
            _compare_maps(proof, expected, outputs)
        elif runtime.metadata.nms:
            _compare_boxes(proof, _boxes(expected), _boxes(outputs), limits)
        else:
            _compare_rows(proof, expected, outputs[0].float(), limits)
            pair = (non_max_suppression(rows.float(), CONFIDENCE) for rows in (expected, outputs[0]))
            _compare_boxes(proof, *pair, limits)
    _judge(proof, limits, runtime.metadata)
    proof.milliseconds = _race(runtime, reference, batches[0])
    return proof


def _boxes(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns (n, 6) per image, from the outputs boxes, scores, classes."""
    boxes, scores, classes = (output.float() for output in outputs)
    rows = torch.cat((boxes, scores[..., None], classes[..., None]), 2)
    return [row[score > 0] for row, score in zip(rows, scores)]


def _compare_rows(proof: Proof, expected: torch.Tensor, rows: torch.Tensor, limits: Tolerance) -> None:
    if expected.shape != rows.shape:
        proof.faults.append(f"its output has the shape {tuple(rows.shape)}, PyTorch's has {tuple(expected.shape)}")
        return
    difference = (expected - rows).abs()
    if not difference.isfinite().all():
        proof.faults.append("its output is not finite")
        return
    pixels, scores = difference[..., :4], difference[..., 4:]
    proof.pixels = max(proof.pixels, pixels.max().item())
    proof.score = max(proof.score, scores.max().item())
    excess = (pixels - limits.pixels - limits.relative * expected[..., :4].abs()).max().item()
    if excess > 0:
        proof.faults.append(f"coordinates differ by {pixels.max():.3g} px, {excess:.3g} px more than allowed")


def _compare_maps(proof: Proof, expected: Sequence[torch.Tensor], maps: Sequence[torch.Tensor]) -> None:
    if [tuple(m.shape) for m in expected] != [tuple(m.shape) for m in maps]:
        proof.faults.append(f"its maps have the shapes {[tuple(m.shape) for m in maps]}")
        return
    proof.score = max(proof.score, *((a - b.float()).abs().max().item() for a, b in zip(expected, maps)))


def _compare_boxes(proof: Proof, expected: list, boxes: list, limits: Tolerance) -> None:
    """Looks for each expected box, except those whose confidence is within the tolerance of the threshold."""
    margin = limits.score if math.isfinite(limits.score) else 0.1
    for theirs, ours in zip(expected, boxes):
        theirs = theirs[theirs[:, 4] > CONFIDENCE + margin]
        proof.boxes += len(theirs)
        if not len(theirs) or not len(ours):
            continue
        overlap = box_iou(theirs[:, :4], ours[:, :4]) * (theirs[:, None, 5] == ours[None, :, 5])
        best, partner = overlap.max(1)
        pairs = best >= limits.iou
        proof.matched += int(pairs.sum())
        if pairs.any():
            difference = (theirs - ours[partner])[pairs].abs()
            proof.box_pixels = max(proof.box_pixels, difference[:, :4].max().item())
            proof.confidence = max(proof.confidence, difference[:, 4].max().item())


def _judge(proof: Proof, limits: Tolerance, metadata: Metadata) -> None:
    score = proof.score / (LOGIT_RANGE if metadata.train else 1)
    if score > limits.score or proof.confidence > limits.score:
        difference = max(proof.score, proof.confidence)
        proof.faults.append(f"scores differ by {difference:.3g}, {limits.score} is allowed")
    if proof.matched < limits.fraction * proof.boxes:
        proof.faults.append(
            f"PyTorch detects {proof.boxes} boxes, of which the file detects {proof.matched} "
            f"(IoU at least {limits.iou})"
        )


def _race(runtime: Runtime, reference: nn.Module, images: torch.Tensor) -> tuple[float, float]:
    """Returns the milliseconds per image of PyTorch and of the file: medians of alternating runs."""
    images = images.to(runtime.device)
    ours = images.to(runtime.dtype)
    seconds: tuple[list, list] = [], []
    for _ in range(REPEATS):
        for taken, run, x in zip(seconds, (reference, runtime.run), (images, ours)):
            start = time.perf_counter()
            run(x)
            if runtime.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    eager, file = (1000 * median(taken) / len(images) for taken in seconds)
    return eager, file
