"""Measures what tools/attend.py shows of a model and an image: gates, detections with and without them, Grad-CAM."""

import argparse

import numpy as np
import torch

from models.attention_view import (
    Activation,
    BlockView,
    class_activation,
    gate_of_statistic,
    gated_blocks,
    spectrum,
    trace_detections,
    view_blocks,
    without_gates,
)
from models.common import SOCA
from models.gates import ChannelGate
from tools.attend_report import Block, ModelView, ScoredDetection
from utils.data.letterbox import letterbox, to_input


def explain_image(
    model: torch.nn.Module, title: str, image: np.ndarray, size: int, opt: argparse.Namespace
) -> ModelView:
    """Returns everything that the page shows of one model and an image, BGR uint8 (H, W, 3).

    size: longer side in pixels at which the model sees the image.
    opt: the options of attend.py.
    """
    stride = model.image_multiple
    device = next(model.parameters()).device
    pixels = to_input(image, size, stride)[0].to(device).float() / 255
    limits = {"conf_thres": opt.conf_thres, "iou_thres": opt.iou_thres}
    found = trace_detections(model, pixels, **limits)
    rows, classes = found.rows.tolist(), found.boxes[:, 5].int().tolist()
    shown = classes_in_turn(classes)[: opt.detections]
    explained = [rows[i] for i in shown], [classes[i] for i in shown]
    with_gate = class_activation(model, pixels, *explained)
    with without_gates(model, opt.without):
        without = trace_detections(model, pixels, **limits)
        without_gate = class_activation(model, pixels, *explained)
        scores = score_rows(model, pixels, rows, classes)
    detections = [
        ScoredDetection(box=box, stride=int(stride), without=score)
        for box, stride, score in zip(found.boxes.cpu().numpy(), found.strides, scores)
    ]
    frame = letterbox(image, size, stride=stride)[0]
    views = view_blocks(model, pixels)
    blocks = [_block(model, name, view, with_gate, without_gate) for name, view in views.items()]
    return ModelView(
        title=title, names=list(model.names), frame=frame, detections=detections, without=without.boxes.cpu().numpy(),
        shown=shown, blocks=blocks,
    )  # fmt: skip


def classes_in_turn(classes: list[int]) -> list[int]:
    """Returns the indices of a list of classes: the first of each class, then the second of each, ..."""
    seen = [classes[:i].count(label) for i, label in enumerate(classes)]
    return sorted(range(len(classes)), key=seen.__getitem__)


@torch.no_grad()
def score_rows(model: torch.nn.Module, image: torch.Tensor, rows: list[int], classes: list[int]) -> list[float]:
    """Returns objectness times class score of rows of the decoded output for an image (1, 3, H, W)."""
    decoded = model(image)[0][0]
    return [float(decoded[row, 4] * decoded[row, 5 + label]) for row, label in zip(rows, classes)]


def _block(
    model: torch.nn.Module, name: str, view: BlockView, with_gate: Activation, without_gate: Activation
) -> Block:
    block = gated_blocks(model)[name]
    measured = spectrum(view.maps) if isinstance(block, SOCA) else None
    zeros = np.zeros(len(view.gate))
    return Block(
        name=name, maps=view.maps, gate=view.gate,
        heat=[(a[name], b[name]) for a, b in zip(with_gate.maps, without_gate.maps)],
        gate_of_zeros=gate_of_statistic(block, zeros) if isinstance(block, ChannelGate) else None,
        spectrum=measured, gate_of_root=gate_of_statistic(block, measured.s_root) if measured else None,
    )  # fmt: skip
