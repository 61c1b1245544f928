"""Writes and draws the feature maps of a network's layers, and the gates of its attention."""

import csv
import math
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from utils.drawing import write_image
from utils.files import atomic_write

MAX_MAPS = 32  # maximum number of maps of a layer that are drawn
COLUMNS = 8
MIN_CONTRAST = 0.01  # a difference of gates that is drawn in full colour only if it is larger than this
MIN_MAP_SIDE = 160  # minimum length in pixels of the longer side of a drawn map


class FeatureRecorder:
    """Writes the feature maps of a model's layers for the first image of each forward pass that runs inside `with`.

    A layer i of class Module gives `stage<i>_<Module>_features.png`, up to 32 of its maps, each from its minimum
    (dark) to its maximum (bright), and `.npy` with all of them, float32 (C, h, w).

    Args:
        model: with the layers in `model`, as models.yolo.Model has them; the last, the head, is left out.
        folder: where to write; it must exist.
    """

    def __init__(self, model: nn.Module, folder: Path):
        self.model, self.folder = model, folder
        self.hooks: list = []

    def __enter__(self) -> "FeatureRecorder":
        for i, layer in enumerate(list(self.model.model)[:-1]):
            self.hooks.append(layer.register_forward_hook(self._writer(stage_name(i, layer))))
        return self

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()

    def _writer(self, name: str):
        def write(layer, inputs, output) -> None:
            if isinstance(output, torch.Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
                maps = output[0].float().cpu().numpy()
                with atomic_write(self.folder / f"{name}_features.npy", sync=False) as file:
                    np.save(file, maps)
                write_image(self.folder / f"{name}_features.png", draw_maps(maps[:MAX_MAPS]))

        return write


def stage_name(i: int, layer: nn.Module) -> str:
    """Returns the beginning of the names of layer i's files, such as stage6_SOCA."""
    return f"stage{i}_{type(layer).__name__}"


def write_gate(folder: Path, name: str, maps: np.ndarray, gate: np.ndarray, image: np.ndarray) -> None:
    """Writes what the gate of a channel attention does, in three files.

    `<name>_gate.csv` is a weight 0-1 per channel; `_gate.png` shows them as bars; `_emphasis.png` shows where in the
    image the gate raises the map (red) or lowers it (blue).

    Args:
        maps: what came into the attention, (C, h, w).
        gate: (C,).
        image: BGR uint8 (H, W, 3), letterboxed as the network sees it.
    """
    with atomic_write(folder / f"{name}_gate.csv", "w", sync=False) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["channel", "gate"])
        writer.writerows([i, f"{weight:.6f}"] for i, weight in enumerate(gate))
    write_image(folder / f"{name}_gate.png", draw_bars(gate))
    write_image(folder / f"{name}_emphasis.png", draw_emphasis(maps, gate, image))


def draw_maps(maps: np.ndarray) -> np.ndarray:
    """Draws maps (n, h, w), 8 in a row, each from its minimum (dark) to its maximum (bright): BGR uint8."""
    n, height, width = maps.shape
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    grey = ((maps - low) / np.maximum(high - low, 1e-12) * 255).astype(np.uint8)
    scale = max(math.ceil(MIN_MAP_SIDE / max(height, width)), 1)
    rows, columns = math.ceil(n / COLUMNS), min(n, COLUMNS)
    gap = 4
    canvas = np.full((rows * (height * scale + gap) - gap, columns * (width * scale + gap) - gap, 3), 255, np.uint8)
    for i, one in enumerate(grey):
        large = cv2.resize(one, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        y, x = i // columns * (height * scale + gap), i % columns * (width * scale + gap)
        canvas[y : y + height * scale, x : x + width * scale] = cv2.applyColorMap(large, cv2.COLORMAP_VIRIDIS)
    return canvas


def draw_bars(gate: np.ndarray) -> np.ndarray:
    """Draws weights (C,) in 0-1 as bars, the first channel at the left, with a line at their mean: BGR uint8."""
    height, width = 300, max(2, math.ceil(800 / len(gate)))
    canvas = np.full((height, len(gate) * width, 3), 255, np.uint8)
    for i, weight in enumerate(gate):
        canvas[height - round(float(weight) * height) :, i * width : (i + 1) * width - 1] = (178, 114, 0)
    mean = min(height - round(float(gate.mean()) * height), height - 1)
    canvas[max(mean - 1, 0) : mean + 1] = (0, 94, 213)
    return canvas


def draw_emphasis(maps: np.ndarray, gate: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Draws where in an image a gate raises its map (red) and where it lowers it (blue), over the image in grey.

    The weight of a position is the mean of the gate over the channels, each weighted by its |map| there; drawn is its
    difference from the same mean over all positions, the largest in full colour.

    Args:
        maps, gate: what came into the attention, (C, h, w), and the weight of each channel, (C,).
        image: BGR uint8 (H, W, 3).
    """
    size = np.abs(maps)
    emphasis = np.einsum("c,chw->hw", gate, size) / np.maximum(size.sum(0), 1e-12)
    emphasis -= np.einsum("c,chw->", gate, size) / max(size.sum(), 1e-12)
    emphasis /= max(np.abs(emphasis).max(), MIN_CONTRAST)
    emphasis = cv2.resize(emphasis.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_CUBIC).clip(-1, 1)
    colour = np.where(emphasis[..., None] > 0, np.float32([0, 0, 255]), np.float32([255, 0, 0]))
    strength = 0.75 * np.abs(emphasis)[..., None]
    return (_grey(image) * (1 - strength) + colour * strength).astype(np.uint8)


def draw_heat(heat: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Draws a map (h, w) of 0-1 over a BGR image (H, W, 3) in grey: nothing where it is 0, yellow where it is 1."""
    heat = cv2.resize(heat.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR).clip(0, 1)
    colour = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO).astype(np.float32)
    strength = 0.75 * heat[..., None]
    return (_grey(image) * (1 - strength) + colour * strength).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
    """Returns a BGR image without its colours, float32 (H, W, 3)."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR).astype(np.float32)
