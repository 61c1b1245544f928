"""What the layers of a network make of a picture: maps of each layer, and what attention lets through."""

import csv
import math
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from utils.drawing import write_image
from utils.files import atomic_write

MAPS = 32  # of a layer at most are drawn
COLUMNS = 8
FAINT = 0.01  # of a weight in 0-1
CELL = 160  # pixels of a drawn map's longer side, at least


class FeatureRecorder:
    """Writes what the layers of a model give for the first image of each forward pass that runs inside `with`.

    A layer i of class Module gives `stage<i>_<Module>_features.png`, at most 32 of its maps, each from its least (dark)
    to its greatest value (bright), and `.npy` with all of them, float32 (C, h, w). A channel attention (SOCA, SE) gives
    also `stage<i>_<Module>_gate.csv`, a weight 0-1 per channel; `_gate.png`, these as bars; and `_emphasis.png`, where
    in the picture lies what it lets through more, red, or less, blue, than its mean.

    Args:
        model: with the layers in `model`, as models.yolo.Model has them; the head, the last, is passed over.
        folder: where to write; it is there.
        picture: BGR uint8 (H, W, 3) under the emphasis, letterboxed as the network sees it.
    """

    def __init__(self, model: nn.Module, folder: Path, picture: np.ndarray):
        self.model, self.folder, self.picture = model, folder, picture
        self.hooks: list = []

    def __enter__(self) -> "FeatureRecorder":
        for i, layer in enumerate(list(self.model.model)[:-1]):
            name = f"stage{i}_{type(layer).__name__}"
            self.hooks.append(layer.register_forward_hook(self._features(name)))
            if isinstance(gate := getattr(layer, "conv_du", None), nn.Module):
                weights: list = []
                self.hooks.append(gate.register_forward_hook(lambda m, x, y, kept=weights: kept.append(y)))
                self.hooks.append(layer.register_forward_hook(self._gate(name, weights)))
        return self

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()

    def _features(self, name: str):
        def write(layer, inputs, output) -> None:
            if isinstance(output, torch.Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
                maps = output[0].float().cpu().numpy()
                with atomic_write(self.folder / f"{name}_features.npy", sync=False) as file:
                    np.save(file, maps)
                write_image(self.folder / f"{name}_features.png", draw_maps(maps[:MAPS]))

        return write

    def _gate(self, name: str, weights: list):
        def write(layer, inputs, output) -> None:
            gate = weights.pop()[0].float().flatten().cpu().numpy()
            with atomic_write(self.folder / f"{name}_gate.csv", "w", sync=False) as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["channel", "gate"])
                writer.writerows([i, f"{weight:.6f}"] for i, weight in enumerate(gate))
            write_image(self.folder / f"{name}_gate.png", draw_bars(gate))
            maps = inputs[0][0].float().cpu().numpy()
            write_image(self.folder / f"{name}_emphasis.png", draw_emphasis(maps, gate, self.picture))

        return write


def draw_maps(maps: np.ndarray) -> np.ndarray:
    """Maps (n, h, w) side by side, 8 in a row, each from dark (its least value) to bright: BGR uint8."""
    n, height, width = maps.shape
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    grey = ((maps - low) / np.maximum(high - low, 1e-12) * 255).astype(np.uint8)
    scale = max(math.ceil(CELL / max(height, width)), 1)
    rows, columns = math.ceil(n / COLUMNS), min(n, COLUMNS)
    gap = 4
    canvas = np.full((rows * (height * scale + gap) - gap, columns * (width * scale + gap) - gap, 3), 255, np.uint8)
    for i, one in enumerate(grey):
        large = cv2.resize(one, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        y, x = i // columns * (height * scale + gap), i % columns * (width * scale + gap)
        canvas[y : y + height * scale, x : x + width * scale] = cv2.applyColorMap(large, cv2.COLORMAP_VIRIDIS)
    return canvas


def draw_bars(gate: np.ndarray) -> np.ndarray:
    """Weights (C,) in 0-1 as bars, from the first channel at the left; a line marks their mean. BGR uint8."""
    height, width = 300, max(2, math.ceil(800 / len(gate)))
    canvas = np.full((height, len(gate) * width, 3), 255, np.uint8)
    for i, weight in enumerate(gate):
        canvas[height - round(float(weight) * height) :, i * width : (i + 1) * width - 1] = (178, 114, 0)
    mean = min(height - round(float(gate.mean()) * height), height - 1)
    canvas[max(mean - 1, 0) : mean + 1] = (0, 94, 213)
    return canvas


def draw_emphasis(maps: np.ndarray, gate: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Where lies what a gate favours: the mean weight there, each channel counting by its |map|, less that of all.

    maps (C, h, w) and gate (C,) as the attention sees and weighs them. Over the picture in grey, red is more than the
    mean, blue less, the strongest in full colour; differences below FAINT stay faint.
    """
    size = np.abs(maps)
    favoured = np.einsum("c,chw->hw", gate, size) / np.maximum(size.sum(0), 1e-12)
    favoured -= np.einsum("c,chw->", gate, size) / max(size.sum(), 1e-12)
    favoured /= max(np.abs(favoured).max(), FAINT)
    favoured = cv2.resize(favoured.astype(np.float32), picture.shape[1::-1], interpolation=cv2.INTER_CUBIC).clip(-1, 1)
    colour = np.where(favoured[..., None] > 0, np.float32([0, 0, 255]), np.float32([255, 0, 0]))
    strength = 0.75 * np.abs(favoured)[..., None]
    return (_grey(picture) * (1 - strength) + colour * strength).astype(np.uint8)


def draw_heat(heat: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Over a BGR picture (H, W, 3) in grey, a map (h, w) of 0-1: nothing where it is 0, yellow where it is 1."""
    heat = cv2.resize(heat.astype(np.float32), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR).clip(0, 1)
    colour = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO).astype(np.float32)
    strength = 0.75 * heat[..., None]
    return (_grey(picture) * (1 - strength) + colour * strength).astype(np.uint8)


def _grey(picture: np.ndarray) -> np.ndarray:
    """A BGR picture without its colours, float32 (H, W, 3)."""
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR).astype(np.float32)
