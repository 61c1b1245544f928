"""Measures the cost of a training sample: this project's data path against a canvas, and the parts of both.

    python benchmarks/bench_data.py                              # data/shapes, drawn if it is missing
    python benchmarks/bench_data.py --images photographs/train   # a folder of images with labels beside it
    python benchmarks/bench_data.py --scan 10000                 # checks that many JPEG files, then reads the cache
    python benchmarks/bench_data.py --memory 200                 # the memory of all processes after that many epochs

The canvas is the usual way to a mosaic: four images are pasted on a grey canvas of twice the side, warped, recoloured
by three tables, mirrored, and turned to channels first. Both ways use the same random numbers and one thread, and
alternate in one process by windows of four batches; medians of processor time are printed. README.md in this folder
keeps dated results.
"""

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch are loaded
import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.data import dataset as dataset_module
from utils.data import loader as loader_module
from utils.data import store as store_module
from utils.data.annotations import scan
from utils.data.augmentations import draw_hsv, draw_warp, warp_matrix
from utils.data.dataset import DetectionDataset, open_dataset
from utils.data.dataset_yaml import load_dataset_yaml
from utils.data.loader import WindowSampler, create_dataloader
from utils.data.mosaic import draw_mosaic_centre
from utils.data.options import LoaderOptions
from utils.files import ROOT
from utils.log import LOGGER
from utils.training.hyperparameters import load_hyp

BATCH = 16
RANGES = ("degrees", "translate", "scale", "shear", "perspective")


# --- the usual way ----------------------------------------------------------------------------------------------------


class CanvasDataset:
    """Mosaics of the images of a dataset on a canvas, with the random numbers that the dataset itself would draw."""

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


def take_turns(ways: dict[str, Callable[[int], object]], counts: list[int]) -> dict[str, float]:
    """Returns the median processor milliseconds per sample of each way; the ways alternate window by window.

    counts: the numbers of samples of the windows, the first of which is not counted.
    """
    times = defaultdict(list)
    for number, count in enumerate(counts):
        for name, way in ways.items():
            start = time.thread_time()
            way(number)
            times[name].append((time.thread_time() - start) / count)
    return {name: 1000 * statistics.median(seconds[1:]) for name, seconds in times.items()}


@contextmanager
def clocked(parts: list[tuple[str, object, str]], spent: dict[str, float]) -> Iterator[None]:
    """Inside, the processor seconds of each (part, module, function) are added to `spent`."""

    def clock(part: str, function: Callable) -> Callable:
        def timed(*args, **kwargs):
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += time.thread_time() - start

        return timed

    real = [(module, name, getattr(module, name)) for _, module, name in parts]
    for (part, module, name), (_, _, function) in zip(parts, real):
        setattr(module, name, clock(part, function))
    try:
        yield
    finally:
        for module, name, function in real:
            setattr(module, name, function)


CANVAS_PARTS = [
    ("decode", cv2, "imread"),
    ("warp", cv2, "warpAffine"),
    *(("colour", cv2, name) for name in ("cvtColor", "split", "LUT", "merge")),
]
OWN_PARTS = [
    ("decode", store_module, "decode_image"),
    ("warp", dataset_module, "warp_mosaic"),
    ("colour", dataset_module, "to_planes"),
]


def split_time(
    way: Callable[[int], object], parts: list[tuple[str, object, str]], counts: list[int]
) -> dict[str, float]:
    """Returns the mean milliseconds per sample of each part, and of the rest."""
    spent = dict.fromkeys(("decode", "warp", "colour"), 0.0)
    start = time.thread_time()
    with clocked(parts, spent):
        for number in range(len(counts)):
            way(number)
    spent["rest"] = time.thread_time() - start - sum(spent.values())
    return {part: 1000 * seconds / sum(counts) for part, seconds in spent.items()}


def compare(images: str, image_size: int, hyp: dict, turns: int) -> None:
    """Prints the cost of a sample from memory and from files."""
    print("| images | way | ms per sample | times faster | decode | warp | colour | rest |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for source in ("memory", "files"):
        cache = "ram" if source == "memory" else None
        own = open_dataset(images, LoaderOptions(image_size=image_size, augment=True, hyp=hyp, cache=cache))
        usual = CanvasDataset(own, source == "memory")
        length = len(own)

        sampler = WindowSampler(length, True, 0, batch_size=min(BATCH, length))
        windows = []
        while len(windows) <= turns:
            sampler.set_epoch(len(windows))
            windows += list(sampler)

        def canvas(number: int, usual=usual, windows=windows) -> list:
            return [usual[key[:2]] for batch in windows[number] for key in batch]

        def direct(number: int, own=own, windows=windows) -> list:
            return [own[key[:2]] for batch in windows[number] for key in batch]

        def shared(number: int, own=own, windows=windows) -> list:
            with own.store.sharing():
                return [own[key] for batch in windows[number] for key in batch]

        ways = {"canvas": canvas, "ours": direct}
        if source == "files":
            ways["ours, decoding shared"] = shared
        else:
            show_difference(usual, own)
        counts = [sum(map(len, window)) for window in windows]
        times = take_turns(ways, counts[: turns + 1])
        for name, way in ways.items():
            parts = split_time(way, CANVAS_PARTS if name == "canvas" else OWN_PARTS, counts[: max(turns // 3, 1)])
            columns = " | ".join(f"{ms:.2f}" for ms in parts.values())
            print(f"| {source} | {name} | {times[name]:.2f} | {times['canvas'] / times[name]:.2f} | {columns} |")


def show_difference(usual: CanvasDataset, own: DetectionDataset) -> None:
    """Checks that the labels of the two ways are equal, and prints by how much their pixels differ."""
    off = []
    for index in range(min(len(own), 64)):
        (image, targets), (own_image, own_targets, *_) = usual[0, index], own[0, index]
        np.testing.assert_allclose(targets, own_targets, atol=1e-5)
        off.append((image.int() - own_image.int()).abs().float())
    off = torch.stack(off)
    print(
        f"labels equal; pixels differ by {off.mean():.2f} of 255 on average, {(off > 16).float().mean():.2%} by > 16\n"
    )


# --- other measurements -----------------------------------------------------------------------------------------------


def write_set(folder: Path, count: int, side: int) -> str:
    """Writes `count` JPEG files of blurred noise, twenty different ones, eight boxes in each; returns their folder."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    files = []
    for _ in range(20):
        coarse = rng.integers(0, 256, (side // 16, side // 12, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (side, side * 3 // 4), interpolation=cv2.INTER_CUBIC)
        image = np.clip(image + rng.integers(-12, 12, image.shape), 0, 255).astype(np.uint8)
        files.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())
    for i in range(count):
        (folder / "images" / f"{i:06}.jpg").write_bytes(files[i % 20])
        rows = [f"{i % 3} " + " ".join(f"{x:.6f}" for x in row) for row in rng.uniform(0.3, 0.6, (8, 4))]
        (folder / "labels" / f"{i:06}.txt").write_text("\n".join(rows))
    return str(folder / "images")


def time_scan(count: int) -> None:
    """Prints the seconds of a scan without and with a cache file."""
    with tempfile.TemporaryDirectory() as folder:
        entry = write_set(Path(folder), count, 640)
        for state in ("without a cache file", "with one"):
            start = time.perf_counter()
            scan(entry)
            print(f"{count} JPEG files of 640 px, {state}: {time.perf_counter() - start:.2f} s")


def watch_memory(epochs: int, hyp: dict) -> None:
    """Prints the memory of this process and four workers at some epochs: resident, and shared pages counted once."""
    loader_module.usable_cores = lambda: 4  # the loader starts at most as many workers
    with tempfile.TemporaryDirectory() as folder:
        entry = write_set(Path(folder), 64, 128)
        for cache in ("off", "ram", "disk"):
            os.environ["XDG_CACHE_HOME"] = folder
            loader, _ = create_dataloader(
                entry,
                LoaderOptions(
                    image_size=128, batch_size=8, stride=32, hyp=hyp, augment=True, shuffle=True, workers=4, cache=cache
                ),
            )
            for epoch in range(epochs):
                loader.sampler.set_epoch(epoch)
                for _ in loader:
                    pass
                if epoch in (1, epochs // 2, epochs - 1):
                    pids = [os.getpid(), *(worker.pid for worker in loader._iterator._workers)]
                    resident, own = (sum(_kilobytes(pid, key) for pid in pids) / 1024 for key in ("Rss", "Pss"))
                    print(f"--cache {cache}, epoch {epoch + 1}: resident {resident:.1f} MiB, shared once {own:.1f} MiB")
            del loader


def _kilobytes(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images",
        default=str(ROOT / "data" / "shapes" / "images" / "train"),
        help="folder of images (default: %(default)s)",
    )
    parser.add_argument("--size", type=int, default=640, help="longer side in pixels (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=6, help="windows of about 64 samples each (default: %(default)s)")
    parser.add_argument(
        "--hyp",
        default=str(ROOT / "data" / "hyps" / "hyp.scratch-low.yaml"),
        help="hyper-parameters of augmentation (default: %(default)s)",
    )
    parser.add_argument("--scan", type=int, default=0, metavar="N", help="measure the scan of N files instead")
    parser.add_argument(
        "--memory", type=int, default=0, metavar="EPOCHS", help="measure the memory of four workers instead"
    )
    opt = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    LOGGER.setLevel(logging.WARNING)
    if opt.scan:
        time_scan(opt.scan)
    elif opt.memory:
        watch_memory(opt.memory, load_hyp(opt.hyp))
    else:
        if not Path(opt.images).exists():
            load_dataset_yaml(ROOT / "data" / "shapes.yaml")  # draws them
        compare(opt.images, opt.size, load_hyp(opt.hyp), opt.turns)


if __name__ == "__main__":
    main()
