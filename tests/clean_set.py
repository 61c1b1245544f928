"""A data set without a fault, in which tests plant one."""

import cv2
import numpy as np
from PIL import Image

COUNTS = {"train": 6, "val": 3}
CLEAN = "0 0.3 0.3 0.25 0.3\n1 0.7 0.7 0.2 0.2\n"


def soft_image(seed, height=96, width=128):
    """An image that looks like no other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def write_clean_set(root):
    """Writes 6 + 3 images with two boxes each, of two classes, and data.yaml into a folder; returns it."""
    for number, split in enumerate(COUNTS):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(COUNTS[split]):
            soft_image(100 * number + i).save(root / "images" / split / f"{i}.jpg", quality=95)
            (root / "labels" / split / f"{i}.txt").write_text(CLEAN)
    (root / "data.yaml").write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n")
    return root


def label(text, name="train/0"):
    """A function of the root that writes the text of a label file."""
    return lambda root: (root / "labels" / f"{name}.txt").write_text(text)
