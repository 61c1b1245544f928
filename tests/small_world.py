"""Pictures of a red and a white box, their labels, and models small enough to be trained in a moment."""

from pathlib import Path

import cv2
import numpy as np
import yaml

NAMES = ["red", "weiß"]
RED, WHITE, GROUND = (30, 30, 220), (245, 245, 245), (60, 60, 60)  # BGR
H, W = 64, 96  # of every picture
SIZE = 96  # --imgsz, at which they are not resized

TINY = {
    "nc": 80,
    "depth_multiple": 0.33,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]],
    "backbone": [
        [-1, 1, "Conv", [32, 6, 2, 2]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 3, "C3", [64]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 3, "C3", [128]],
        [-1, 1, "Conv", [256, 3, 2]],
    ],
    "head": [[-1, 1, "SPPF", [256, 5]], [[4, 6], 1, "Detect", ["nc", "anchors"]]],
}

# As few layers as have all that a run can lose: batch norm, attention, and a head of two levels
SMALLEST = {
    "nc": 80,
    "depth_multiple": 0.33,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]],
    "backbone": [[-1, 1, "Conv", [32, 6, 4, 2]], [-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]]],
    "head": [[-1, 1, "SOCA", []], [[1, 3], 1, "Detect", ["nc", "anchors"]]],
}


def picture(red=(8, 10, 30, 40), white=(50, 20, 90, 52)) -> np.ndarray:
    """A BGR picture with a red and a white box, given as x1, y1, x2, y2 in pixels, or None."""
    image = np.full((H, W, 3), GROUND, np.uint8)
    for box, colour in ((red, RED), (white, WHITE)):
        if box:
            image[box[1] : box[3], box[0] : box[2]] = colour
    return image


def label_text(*boxes) -> str:
    """A label file for boxes class, x1, y1, x2, y2 in pixels."""
    rows = [(c, (x1 + x2) / 2 / W, (y1 + y2) / 2 / H, (x2 - x1) / W, (y2 - y1) / H) for c, x1, y1, x2, y2 in boxes]
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


def write_yaml(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_set(root: Path, pictures: dict[str, tuple[np.ndarray | None, str | None]], split="train") -> Path:
    """Pictures (None: written elsewhere) and label texts (None: no file) by file name; returns the folder of images."""
    for name, (image, text) in pictures.items():
        file = root / "images" / split / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if image is not None:
            cv2.imencode(file.suffix, image)[1].tofile(file)
        label = root / "labels" / split / f"{file.stem}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            label.write_text(text, encoding="utf-8")
    return root / "images" / split


def write_boxes(root: Path, train: int = 6, val: int = 4) -> dict:
    """A data set of so many pictures, each with both boxes; returns what its YAML says."""
    rng = np.random.default_rng(0)
    for split, n in (("train", train), ("val", val)):
        pictures = {}
        for i in range(n):
            x, y = rng.integers(2, 20), rng.integers(2, 24)
            boxes = (int(x), int(y), int(x) + 26, int(y) + 32), (50, int(y), 50 + 2 * int(x) + 4, int(y) + 30)
            pictures[f"{i:04d}.png"] = picture(*boxes), label_text((0, *boxes[0]), (1, *boxes[1]))
        write_set(root, pictures, split)
    return {"path": str(root), "train": "images/train", "val": "images/val", "nc": 2, "names": NAMES}


def lively(cfg: dict = SMALLEST, nc: int = 3, seed: int = 0):
    """A small detector, with SOCA where cfg has it, whose random weights find boxes of several classes."""
    import torch

    from models.yolo import Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Model({**cfg, "nc": nc}).eval()
    for conv in model.model[-1].m:
        conv.weight.data *= 40
        conv.bias.data.view(3, -1)[:, 4] = 0.0
        conv.bias.data.view(3, -1)[:, 5:] = 0.5
    model.names = ["red", "weiß", "blue", "green"][:nc]
    return model
