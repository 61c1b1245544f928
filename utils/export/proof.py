"""Whether an exported file gives what PyTorch gives: it is opened, run on pictures, and compared.

What is compared: all outputs for each of several frames and numbers of images, and the boxes that are left after
suppression. Beyond the tolerance of its precision the file counts as wrong.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import nn

from utils.boxes import box_iou
from utils.nms import non_max_suppression
from utils.runtimes.base import Metadata, Runtime
from utils.runtimes.table import runtime_for

CONFIDENCE = 0.25  # of boxes that are compared
REPEATS = 7


@dataclass(frozen=True)
class Tolerance:
    """How far a file may be from PyTorch in float32.

    pixels, relative: an edge length or coordinate v may differ by pixels + relative |v|.
    score:            objectness, a class score or a confidence may differ by this much.
    iou, share:       of PyTorch's boxes of confidence 0.25 and above, this share must have a partner of the same class
                      with at least this overlap.
    """

    pixels: float
    relative: float
    score: float
    iou: float
    share: float


TOLERANCES = {
    "float32": Tolerance(0.05, 1e-4, 1e-3, 0.99, 0.98),
    "float16": Tolerance(2.0, 2e-2, 3e-2, 0.9, 0.9),
    "int8": Tolerance(math.inf, math.inf, math.inf, 0.7, 0.8),
}


def precision(metadata: Metadata) -> str:
    """Which of the tolerances holds for a file."""
    return "int8" if metadata.int8 else "float16" if metadata.half else "float32"


@dataclass
class Proof:
    """What was seen when a file ran beside PyTorch."""

    pixels: float = 0.0  # largest difference of a coordinate or side, in pixels
    score: float = 0.0  # of an objectness, a class score or a raw value
    boxes: int = 0  # that PyTorch finds
    matched: int = 0  # of which the file finds
    box_pixels: float = 0.0  # largest difference of a corner of these
    confidence: float = 0.0  # of their confidence
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # (B, C, H, W) that ran
    milliseconds: tuple[float, float] = (0.0, 0.0)  # per image: PyTorch, the file
    faults: list[str] = field(default_factory=list)  # what is beyond the tolerance

    def describe(self) -> str:
        """All of it in a line."""
        counts = {shape: self.shapes.count(shape) for shape in self.shapes}
        shapes = ", ".join(
            f"{B} x {H} x {W}" + (f" ({n} times)" if n > 1 else "") for (B, _, H, W), n in counts.items()
        )
        eager, file = self.milliseconds
        boxes = f"{self.matched} of {self.boxes} boxes"
        if self.matched:
            boxes += f" (corners within {self.box_pixels:.2g} px, confidence {self.confidence:.2g})"
        return (
            f"ran on {shapes}; largest difference {self.pixels:.2g} px, {self.score:.2g} in scores; {boxes}; "
            f"{file:.1f} ms per image, PyTorch {eager:.1f}: {eager / file:.2f} times as fast"
        )


@torch.no_grad()
def prove(runtime: Runtime, reference: nn.Module, pictures: Sequence[torch.Tensor]) -> Proof:
    """Runs an opened file and the graph that it stands for, in float32, on batches (B, C, H, W), 0-1."""
    proof = Proof()
    limits = TOLERANCES[precision(runtime.metadata)]
    for images in pictures:
        proof.shapes.append(tuple(images.shape))
        images = images.to(runtime.device)
        expected, found = reference(images), runtime.run(images.to(runtime.dtype))
        if runtime.metadata.train:
            _compare_maps(proof, expected, found, limits)
        elif runtime.metadata.nms:
            _compare_boxes(proof, _boxes(expected), _boxes(found), limits)
        else:
            _compare_rows(proof, expected, found[0].float(), limits)
            pair = (non_max_suppression(rows.float(), CONFIDENCE) for rows in (expected, found[0]))
            _compare_boxes(proof, *pair, limits)
    _judge(proof, limits, runtime.metadata)
    proof.milliseconds = _race(runtime, reference, pictures[0])
    return proof


def _boxes(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Per image (n, 6), from outputs boxes, scores, classes."""
    boxes, scores, classes = (output.float() for output in outputs)
    rows = torch.cat((boxes, scores[..., None], classes[..., None]), 2)
    return [row[score > 0] for row, score in zip(rows, scores)]


def _compare_rows(proof: Proof, expected: torch.Tensor, found: torch.Tensor, limits: Tolerance) -> None:
    if expected.shape != found.shape:
        proof.faults.append(f"its output has the shape {tuple(found.shape)}, PyTorch's {tuple(expected.shape)}")
        return
    difference = (expected - found).abs()
    if not difference.isfinite().all():
        proof.faults.append("its output is not finite")
        return
    places, scores = difference[..., :4], difference[..., 4:]
    proof.pixels = max(proof.pixels, places.max().item())
    proof.score = max(proof.score, scores.max().item())
    excess = (places - limits.pixels - limits.relative * expected[..., :4].abs()).max().item()
    if excess > 0:
        proof.faults.append(f"coordinates differ by {places.max():.3g} px, {excess:.3g} px more than they may")


def _compare_maps(proof: Proof, expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], limits) -> None:
    if [tuple(m.shape) for m in expected] != [tuple(m.shape) for m in found]:
        proof.faults.append(f"its maps have the shapes {[tuple(m.shape) for m in found]}")
        return
    proof.score = max(proof.score, *((a - b.float()).abs().max().item() for a, b in zip(expected, found)))


def _compare_boxes(proof: Proof, expected: list, found: list, limits: Tolerance) -> None:
    """Looks for each expected box that is not within the tolerance of the threshold."""
    for true, ours in zip(expected, found):
        margin = limits.score if math.isfinite(limits.score) else 0.1
        true = true[true[:, 4] > CONFIDENCE + margin]
        proof.boxes += len(true)
        if not len(true) or not len(ours):
            continue
        overlap = box_iou(true[:, :4], ours[:, :4]) * (true[:, None, 5] == ours[None, :, 5])
        best, partner = overlap.max(1)
        pairs = best >= limits.iou
        proof.matched += int(pairs.sum())
        if pairs.any():
            difference = (true - ours[partner])[pairs].abs()
            proof.box_pixels = max(proof.box_pixels, difference[:, :4].max().item())
            proof.confidence = max(proof.confidence, difference[:, 4].max().item())


def _judge(proof: Proof, limits: Tolerance, metadata: Metadata) -> None:
    score = proof.score / (10 if metadata.train else 1)  # raw maps are logits of a range about ten times as wide
    if score > limits.score or proof.confidence > limits.score:
        proof.faults.append(f"scores differ by {max(proof.score, proof.confidence):.3g}, allowed are {limits.score}")
    if proof.matched < limits.share * proof.boxes:
        proof.faults.append(
            f"of {proof.boxes} boxes that PyTorch finds it finds {proof.matched} (overlap at least {limits.iou})"
        )


def _race(runtime: Runtime, reference: nn.Module, images: torch.Tensor) -> tuple[float, float]:
    """Milliseconds per image of PyTorch and of the file: medians of runs by turns."""
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


def open_file(path: Path, device: torch.device | str) -> tuple[Runtime | None, str]:
    """The file opened by its runtime; or None, and why it cannot be run here."""
    runtime = runtime_for(path)
    if runtime is None:
        return None, "this project has no runtime for it"
    obstacle = runtime.obstacle()
    return (None, obstacle) if obstacle else (runtime(path, device), "")
