"""What a training sample costs: this project's data path against a canvas, and the parts of both.

    python benchmarks/bench_data.py                              # data/shapes, drawn if it is not there
    python benchmarks/bench_data.py --images photographs/train   # a folder of images with labels beside it
    python benchmarks/bench_data.py --scan 10000                 # drawn JPEG files checked without and with a cache file
    python benchmarks/bench_data.py --memory 200                 # resident memory over so many epochs with 4 workers

The canvas is the usual way to a mosaic: four pictures pasted on a grey canvas of twice the side, warped, recoloured by
three tables, mirrored, and turned to channels first. Both ways use the same draws, one thread, and take turns in one
process; quoted are medians. README.md beside this file keeps dated results.
"""

import argparse
import logging
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from utils.data import dataset as dataset_module
from utils.data.augmentations import draw_hsv, draw_mosaic_centre, draw_warp, warp_matrix
from utils.data.dataset import DetectionDataset
from utils.training.hyperparameters import load_hyp

RANGES = ("degrees", "translate", "scale", "shear", "perspective")


# --- the usual way ----------------------------------------------------------------------------------------------------


class CanvasDataset:
    """Mosaics of the images of a dataset by way of a canvas, with the draws that the dataset itself would make."""

    def __init__(self, dataset: DetectionDataset, cached: bool):
        self.dataset = dataset
        self.resized = [self.read(i) for i in range(len(dataset))] if cached else None

    def read(self, i: int) -> np.ndarray:
        image = cv2.imread(self.dataset.image_files[i])
        height, width = image.shape[:2]
        gain = self.dataset.image_size / max(height, width)
        return image if gain == 1 else cv2.resize(image, (int(width * gain), int(height * gain)))

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        dataset, hyp, size = self.dataset, self.dataset.hyp, self.dataset.image_size
        rng = dataset.generator(*key)
        rng.random()  # whether to make a mosaic
        indices = rng.permutation([key[1], *rng.integers(len(dataset), size=3)])
        xc, yc = draw_mosaic_centre(rng, size)
        canvas = np.full((2 * size, 2 * size, 3), 114, np.uint8)
        rows = []
        for k, i in enumerate(indices):
            image = self.resized[i] if self.resized else self.read(i)
            height, width = image.shape[:2]
            left, top = (xc - width, xc)[k % 2], (yc - height, yc)[k // 2]
            x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, 2 * size), min(top + height, 2 * size)
            canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
            box = dataset.labels_of(i).copy()
            centre, half = box[:, 1:3] * (width, height) + (left, top), box[:, 3:] * (width, height) / 2
            box[:, 1:3], box[:, 3:] = centre - half, centre + half
            rows.append(box)
        labels = np.concatenate(rows)
        labels[:, 1:] = labels[:, 1:].clip(0, 2 * size)
        warp = draw_warp(rng, **{name: hyp[name] for name in RANGES})
        matrix = warp_matrix(warp, (2 * size, 2 * size), (size, size))
        image = cv2.warpAffine(canvas, matrix[:2], (size, size), borderValue=(114, 114, 114))
        labels = self.warp_labels(labels, matrix, warp.scale)

        rng.random()  # whether to mix two
        multipliers = draw_hsv(rng, hyp["hsv_h"], hyp["hsv_s"], hyp["hsv_v"])
        levels = np.arange(256)
        hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
        hue = cv2.LUT(hue, (levels * multipliers[0] % 180).astype(np.uint8))
        saturation = cv2.LUT(saturation, (levels * multipliers[1]).clip(0, 255).astype(np.uint8))
        value = cv2.LUT(value, (levels * multipliers[2]).clip(0, 255).astype(np.uint8))
        cv2.cvtColor(cv2.merge((hue, saturation, value)), cv2.COLOR_HSV2BGR, dst=image)
        for axis, probability in ((0, hyp["flipud"]), (1, hyp["fliplr"])):
            if rng.random() < probability:
                image = np.flip(image, axis)
                labels[:, 2 - axis] = 1 - labels[:, 2 - axis]
        targets = torch.zeros(len(labels), 6)
        targets[:, 1:] = torch.from_numpy(labels)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[::-1])), targets

    def warp_labels(self, labels: np.ndarray, matrix: np.ndarray, scale: float) -> np.ndarray:
        size, n = self.dataset.image_size, len(labels)
        points = np.ones((4 * n, 3))
        points[:, :2] = labels[:, [1, 2, 3, 4, 1, 4, 3, 2]].reshape(-1, 2)
        points = (points @ matrix.T)[:, :2].reshape(n, 8)
        x, y = points[:, 0::2], points[:, 1::2]
        new = np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], 1).clip(0, size) if n else np.zeros((0, 4))
        old_w, old_h = (labels[:, 3:] - labels[:, 1:3]).T * scale
        width, height = (new[:, 2:] - new[:, :2]).T
        aspect = np.maximum(width / (height + 1e-16), height / (width + 1e-16))
        keep = (width > 2) & (height > 2) & (width * height / (old_w * old_h + 1e-16) > 0.1) & (aspect < 100)
        new = new[keep].clip(0, size - 1e-3)
        boxes = np.concatenate([(new[:, :2] + new[:, 2:]) / 2, new[:, 2:] - new[:, :2]], 1) / size
        return np.concatenate([labels[keep, :1], boxes], 1).astype(np.float32)


# --- timing -----------------------------------------------------------------------------------------------------------


def take_turns(ways: dict[str, Callable[[int], object]], repeat: int) -> dict[str, float]:
    """Median milliseconds of each way, called with 0, 1, 2 ... in turn."""
    times = defaultdict(list)
    for i in range(-3, repeat):
        for name, way in ways.items():
            start = time.thread_time()
            way(max(i, 0))
            times[name].append(time.thread_time() - start)
    return {name: 1000 * statistics.median(seconds[3:]) for name, seconds in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", default=str(ROOT / "data" / "shapes" / "images" / "train"))
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--repeat", type=int, default=200)
    parser.add_argument("--hyp", default=str(ROOT / "data" / "hyps" / "hyp.scratch-low.yaml"))
    opt = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    logging.getLogger("yolov5").setLevel(logging.WARNING)
    hyp = load_hyp(opt.hyp)
    options = {"image_size": opt.size, "augment": True, "hyp": hyp}
    for cached in (True, False):
        ours = DetectionDataset(opt.images, cache="ram" if cached else None, **options)
        usual = CanvasDataset(ours, cached)
        off = [np.abs(usual[0, i][0].numpy().astype(int) - ours[0, i][0].numpy()).mean() for i in range(20)]
        print(np.mean(off), max(off))
        for i in range(20): np.testing.assert_allclose(usual[0,i][1], ours[0,i][1], atol=1e-5)
        n = len(ours)
        t = take_turns({"canvas": lambda i: usual[i // n, i % n], "ours": lambda i: ours[i // n, i % n]}, opt.repeat)
        print("cached" if cached else "files", t, t["canvas"] / t["ours"])


if __name__ == "__main__":
    main()
