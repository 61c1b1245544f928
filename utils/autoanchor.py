"""Anchors by v6.1's names, for programs written for it: `from utils.autoanchor import kmean_anchors`.

Nothing in the project imports this file.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.data.dataset import open_dataset
from utils.data.dataset_yaml import load_dataset_yaml
from utils.data.options import LoaderOptions
from utils.training import autoanchor as _autoanchor
from utils.training.ema import unwrap

__all__ = ["check_anchor_order", "check_anchors", "kmean_anchors"]


def kmean_anchors(
    dataset: Any = "data/shapes.yaml", n: int = 9, img_size: int = 640, thr: float = 4.0, gen: int = 1000,
    verbose: bool = True,
) -> np.ndarray:  # fmt: skip
    """Returns n anchors (n, 2) in pixels, the smallest first, fitted to the train boxes of a data set.

    dataset: its YAML file, or the data set of a loader. thr: hyper-parameter anchor_t. gen: mutations.
    verbose: accepted for v6.1's sake.
    """
    if isinstance(dataset, str | Path):
        dataset = open_dataset(load_dataset_yaml(dataset, ("train",))["train"], LoaderOptions())
    boxes = _autoanchor.boxes_in_pixels(dataset.shapes, _labels(dataset), img_size)
    return _autoanchor.fit_anchors(boxes, n, thr, np.random.default_rng(0), gen)


def check_anchors(dataset: Any, model: nn.Module, thr: float = 4.0, imgsz: int = 640) -> None:
    """Replaces the anchors of a model where they do not suit the boxes of a loader's data set."""
    head = unwrap(model).model[-1]
    stride = head.stride.view(-1, 1, 1).to(head.anchors)
    pixels = (head.anchors * stride).cpu().numpy()
    fitted, report = _autoanchor.check_anchors(
        dataset.shapes, _labels(dataset), pixels, head.stride.tolist(), imgsz, thr, np.random.default_rng(0)
    )
    if report.replaced:
        head.anchors[:] = torch.from_numpy(fitted).to(head.anchors) / stride


def check_anchor_order(m: nn.Module) -> None:
    """Reverses the levels of a head's anchors where their areas do not rise with the strides."""
    stride = m.stride.view(-1, 1, 1).to(m.anchors)
    ordered = _autoanchor.order_anchors((m.anchors * stride).cpu().numpy(), m.stride.tolist())
    m.anchors[:] = torch.from_numpy(ordered).to(m.anchors) / stride


def _labels(dataset: Any) -> list[np.ndarray]:
    return [dataset.labels_of(i) for i in range(len(dataset))]
