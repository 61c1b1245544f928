"""A job of a small detector, random images for it, and the comparison of a file with PyTorch."""

import os
from pathlib import Path

import pytest
import torch

import export
from models.backend import Backend
from models.yolo import Model
from utils.export.exporter import Job
from utils.export.formats import BY_ARGUMENT, ExportOptions, Suppression
from utils.export.graph import Decoded
from utils.runtimes.base import Metadata, Runtime
from utils.runtimes.table import runtime_for

SIZE = 64
FRAME = 64, 96  # height, width

HOW = Suppression(conf_thres=0.25, iou_thres=0.45, agnostic=False, topk_per_class=100, topk_all=30)


def random_images(*shapes: tuple[int, int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(B, 3, H, W, generator=generator) for B, H, W in shapes]


def job_for(model: Model, folder: Path, batch: int = 1, **options) -> Job:
    nms = options.get("nms")
    stated = {name: options.pop(name, False) for name in ("dynamic", "train", "half", "int8")}
    thresholds = {"conf_thres": nms.conf_thres, "iou_thres": nms.iou_thres} if nms else {}
    metadata = Metadata(
        names=tuple(model.names), stride=32, imgsz=(SIZE, SIZE), batch=batch, nms=bool(nms), **stated, **thresholds
    )
    batches = random_images((batch, SIZE, SIZE), (batch + 1, SIZE, SIZE), (2, 96, 32))
    options = ExportOptions(metadata=metadata, **options)
    return Job(detector=model, weights=folder / "best.pt", options=options, images=batches)


@torch.no_grad()
def assert_same(job: Job, runtime: Runtime, images: torch.Tensor, rtol=1e-4, atol=2e-3) -> None:
    expected = job.reference(images)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for ours, true in zip(runtime.run(images.to(runtime.dtype)), expected, strict=True):
        assert ours.shape == true.shape
        assert torch.allclose(ours.float(), true.float(), rtol=rtol, atol=atol)


def assert_command_writes(weights: Path, argument: str, name: str, batch_size: int = 1, half: bool = False) -> None:
    """export.py writes a file or folder beside the weights; it states what it is and computes what PyTorch does."""
    H, W = FRAME
    for package in BY_ARGUMENT[argument].packages:
        pytest.importorskip(package)
    [path] = export.run(weights=weights, imgsz=(H, W), include=argument, batch_size=batch_size, half=half)
    assert path == str(weights.with_name(name)) and sorted(os.listdir(weights.parent)) == sorted(["best.pt", name])
    runtime = runtime_for(path)(path)
    assert runtime.metadata == Metadata(names=("red", "weiß"), stride=32, imgsz=(H, W), batch=batch_size, half=half)
    assert runtime.declared
    images, three = random_images((batch_size, H, W), (3, H, W))
    first = runtime.run(1 - images)[0]
    kept = first.clone()
    found, expected = runtime.run(images)[0], Decoded(Backend(weights).model)(images)
    assert found.shape == expected.shape and torch.equal(first, kept)  # which the second run has not written over
    tolerance = {"rtol": 1e-2, "atol": 0.5} if half else {"rtol": 1e-4, "atol": 2e-3}
    assert torch.allclose(found, expected, **tolerance)
    assert torch.allclose(Backend(path)(three)[0], Backend(weights)(three)[0], **tolerance)
