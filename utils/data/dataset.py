"""From image and label files to training samples.

The contracts of the data, cited elsewhere as "the contracts of utils/data/dataset.py":

    images   uint8   (B, C, H, W)   RGB (or grey, or more channels, as the data set YAML says), letterboxed
    targets  float32 (T, 6)         image index in batch, class, x, y, w, h: centre form, 0-1 of the letterboxed image
    shapes   per image              ((h0, w0), ((gain_h, gain_w), (pad_w, pad_h))); None for a mosaic
    raw      list of (B, A, h, w, 5+nc)   logits, at strides 8, 16, 32
    decoded  float   (B, N, 5+nc)   x, y, w, h in input pixels; objectness; class scores 0-1
    found    list of (n, 6)         x1, y1, x2, y2 in pixels, confidence, class

Randomness is a generator seeded by (seed, epoch, index): the same sample is drawn the same way whatever the number of
workers, and a resumed run continues as if never stopped.
"""

import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from utils.boxes import xywhn_to_xyxy, xyxy_to_xywhn
from utils.data.augmentations import (
    Albumentations,
    copy_paste,
    draw_copy_paste,
    draw_hsv,
    draw_mixup,
    draw_warp,
    flip_left_right,
    flip_up_down,
    mixup,
    random_perspective,
    to_planes,
    warp_labels,
    warp_matrix,
)
from utils.data.cache import DISK_SHARE, GIB, SHARE, ImagesOnDisk, SharedImages, free_memory
from utils.data.images import by_fours, decode_image
from utils.data.labels import Annotations, Entry, files_digest, image_to_label_path, parse_labels, scan
from utils.data.letterbox import letterbox, letterbox_planes
from utils.data.mosaic import (
    draw_mosaic9_corner,
    draw_mosaic_centre,
    mosaic9_tiles,
    mosaic_canvas,
    mosaic_labels,
    mosaic_tiles,
    tile_spans,
    warp_mosaic,
)
from utils.data.options import LoaderOptions
from utils.log import LOGGER

FRACTION_STREAM = 3  # keeps this random stream apart from those of the samples, seeded by (seed, epoch, index)
EDGE = 1e-3  # pixels by which boxes stay inside the far edges of the picture

Shapes = tuple[tuple[int, int], tuple[tuple[float, float], tuple[float, float]]]
Sample = tuple[torch.Tensor, torch.Tensor, str, Shapes | None]


def open_dataset(entry: Entry, options: LoaderOptions) -> "DetectionDataset":
    """The dataset of an entry of a data set YAML: folder, list file, list of those, or a split in another format.

    Raises ValueError where no image is usable, no label is found though augmenting, or a class is beyond `nc`.
    """
    return DetectionDataset(entry, options)


class DetectionDataset(torch.utils.data.Dataset):
    """Images of a dataset entry with their boxes.

    Attributes:
        image_files: n paths.
        labels: float32 (N, 5) of all images: class, x, y, w, h, 0-1. `labels_of(i)` gives those of image i.
        shapes: float64 (n, 2): width, height in pixels.
        batch_index: (n,) the batch of each image, in file order.
        batch_shapes: (batches, 2) height, width of each batch, or None unless `rect`.
        epoch: of a sample asked for by its index alone; the loader's sampler asks by (epoch, index).
    """

    def __init__(self, path: Entry, options: LoaderOptions):
        augment, hyp, rect, batch_size = options.augment, options.hyp, options.rect, options.batch_size
        self.image_size = image_size = options.image_size
        self.augment = augment
        self.hyp = hyp
        self.rect = rect
        self.mosaic = augment and not rect
        self.mosaic_until = math.inf if options.mosaic_until is None else options.mosaic_until
        self.channels = options.channels
        self.seed = options.seed
        self.prefix = options.prefix
        self.epoch = 0
        self._albumentations = Albumentations() if augment and hyp.get("albumentations", 0) else None
        self._decoded: dict[int, np.ndarray] | None = None  # images that have been read, while `sharing`
        self._in_memory: SharedImages | None = None
        self._on_disk: ImagesOnDisk | None = None

        annotations = self.annotate(path, options.strict, options.rehash)
        if augment and not annotations.counts["found"]:
            raise ValueError(
                f"{path}: no label files, so there is nothing to learn; the label of {annotations.images[0]} "
                f"would be {image_to_label_path(annotations.images[0])}"
            )
        if options.fraction < 1:
            annotations = self._choose(annotations, options.fraction)
        if rect:
            width, height = annotations.sizes.T
            # numpy's default sort, as in v6.1: among equal ratios it decides which images share a frame, and a stable
            # one moves the mAP of rare classes by several points
            annotations = annotations.take(np.argsort(height / width))
        self._annotations = annotations
        self.image_files = annotations.images
        self.shapes = annotations.sizes.astype(np.float64)
        self.labels = annotations.labels
        if options.single_cls:
            self.labels = self.labels * np.array([0, 1, 1, 1, 1], np.float32)
        self._check_classes(options.nc)

        self.batch_index = np.arange(len(self)) // batch_size
        self.batch_shapes = None
        if rect:
            self.batch_shapes = rect_shapes(self.shapes, batch_size, image_size, options.stride, options.pad)
        self._keep_images(options.cache)

    def __len__(self) -> int:
        return len(self.image_files)

    def annotate(self, path: Entry, strict: bool, rehash: bool) -> Annotations:
        """All images of an entry with their labels."""
        return scan(path, self.prefix, strict=strict, rehash=rehash)

    def labels_of(self, i: int) -> np.ndarray:
        """float32 (m, 5) labels of image i: class, x, y, w, h, 0-1."""
        starts = self._annotations.starts
        return self.labels[starts[i] : starts[i + 1]]

    def polygons_of(self, i: int) -> list[np.ndarray]:
        """m polygons float32 (k, 2) of image i: x, y, 0-1; k = 0 where there is only a box. [] if no image has any."""
        return self._annotations.polygons_of(i) if len(self._annotations.points) else []

    def partners(self, rng: np.random.Generator, size: int, window: tuple[int, ...] | None = None) -> np.ndarray:
        """Numbers of `size` random images, of all or of those in a window, to join another in a mosaic."""
        drawn = rng.integers(len(window or self), size=size)
        return np.array(window)[drawn] if window else drawn

    def frame(self, index: int) -> int | tuple[int, int]:
        """Side, or (height, width), of the letterboxed picture of an image."""
        return tuple(self.batch_shapes[self.batch_index[index]].tolist()) if self.rect else self.image_size

    def set_epoch(self, epoch: int) -> None:
        """Epoch of samples asked for by index alone; does not reach workers that already run."""
        self.epoch = epoch

    def generator(self, epoch: int, index: int) -> np.random.Generator:
        """The source of all randomness of one sample."""
        return np.random.default_rng((self.seed, epoch, index))

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """While open, an image that is read from its file is kept for the next sample that shows it."""
        self._decoded = {} if self._in_memory is None else None
        try:
            yield
        finally:
            self._decoded = None

    def __getitem__(self, key: int | tuple) -> Sample:
        """Sample `index`, or (epoch, index): image uint8 (C, H, W), targets float32 (m, 6) with column 0 still 0,
        path, and shapes. (epoch, index, partners, window): its mosaic of four joins it with those three partners, and
        whatever else it needs is one of those numbered in the window.
        """
        epoch, index, partners, window = (
            (*key, None, None)[:4] if isinstance(key, tuple) else (self.epoch, key, None, None)
        )
        rng = self.generator(epoch, index)
        if self.mosaic and epoch < self.mosaic_until and rng.random() < self.hyp["mosaic"]:
            image, labels = self._mosaic(index, rng, partners, window)
            if rng.random() < self.hyp["mixup"]:
                (second,) = self.partners(rng, 1, window)
                other = self._mosaic(second, rng, None, window)
                image, labels = mixup(image, labels, *other, draw_mixup(rng))
            shapes = None
        else:
            image, labels, shapes = self._letterboxed(index, rng)

        height, width = image.shape[:2] if self.augment else image.shape[1:]
        boxes = xyxy_to_xywhn(labels[:, 1:], width, height, clip=True, eps=EDGE)
        labels = np.concatenate([labels[:, :1], boxes], 1)
        if self.augment:
            if self._albumentations and self.channels == 3 and rng.random() < self.hyp["albumentations"]:
                image = self._albumentations(image, rng)
            multipliers = draw_hsv(rng, *(self.hyp[f"hsv_{channel}"] for channel in "hsv"))
            image, labels = self._flip(image, labels, rng)
            image = to_planes(image, multipliers)

        targets = torch.zeros(len(labels), 6)
        targets[:, 1:] = torch.from_numpy(labels)
        return torch.from_numpy(image), targets, self.image_files[index], shapes

    # --- parts of a sample: image (h, w, C), planes if not augmenting, and labels as class and pixel xyxy -------------

    def _letterboxed(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Shapes]:
        image, (h0, w0) = self.load_image(index)
        height, width = image.shape[:2]
        fit = letterbox if self.augment else letterbox_planes
        image, ratio, pad = fit(image, self.frame(index), auto=False, scaleup=self.augment)
        shapes = (h0, w0), ((height / h0, width / w0), pad)
        labels = self.labels_of(index)
        boxes = xywhn_to_xyxy(labels[:, 1:], ratio[0] * width, ratio[1] * height, *pad)
        labels = np.concatenate([labels[:, :1], boxes], 1)
        if self.augment:
            image, labels = random_perspective(image, labels, [], self._draw_warp(rng))
        return image, labels, shapes

    def _mosaic(
        self, index: int, rng: np.random.Generator, partners: tuple | None, window: tuple | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image `index` and three others around a random centre, warped into one picture of the image size.

        Or eight others around one of them, in the share of mosaics that the hyper-parameter mosaic9 says.
        """
        size = self.image_size
        nine = self.hyp.get("mosaic9", 0) and rng.random() < self.hyp["mosaic9"]
        others = partners if partners and not nine else self.partners(rng, 8 if nine else 3, window)
        indices = rng.permutation([index, *others])
        sizes = [self.loaded_shape(i) for i in indices]
        if nine:
            tiles = mosaic9_tiles(sizes, draw_mosaic9_corner(rng, size), size)
        else:
            tiles = mosaic_tiles(sizes, draw_mosaic_centre(rng, size), size)
        polygons = [self.polygons_of(i) for i in indices]
        labels, polygons = mosaic_labels([self.labels_of(i) for i in indices], polygons, sizes, tiles, size)
        picked = [] if nine else draw_copy_paste(rng, polygons, self.hyp["copy_paste"])
        warp = self._draw_warp(rng)

        if picked or warp.perspective_x or warp.perspective_y:  # these two need the whole canvas
            canvas = mosaic_canvas([self.load_image(i)[0] for i in indices], tiles, size)
            canvas, labels, polygons = copy_paste(canvas, labels, polygons, picked)
            return random_perspective(canvas, labels, polygons, warp, (size, size))
        matrix = warp_matrix(warp, (2 * size, 2 * size), (size, size))
        labels = warp_labels(labels, polygons, matrix, (size, size), warp.scale)
        # a tile that lies outside of the frame is not even read
        spans = tile_spans(tiles, matrix, size)
        images = [self.load_image(i)[0] if span else None for i, span in zip(indices, spans)]
        return warp_mosaic(images, tiles, spans, matrix, size), labels

    def _draw_warp(self, rng: np.random.Generator):
        ranges = ("degrees", "translate", "scale", "shear", "perspective")
        return draw_warp(rng, **{name: self.hyp[name] for name in ranges})

    def _flip(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator):
        if rng.random() < self.hyp["flipud"]:
            image, labels = flip_up_down(image, labels)
        if rng.random() < self.hyp["fliplr"]:
            image, labels = flip_left_right(image, labels)
        return image, labels

    # --- reading ------------------------------------------------------------------------------------------------------

    def load_image(self, i: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Image i, uint8 (h, w, C) with its longer side at the image size, and the (height, width) it had.

        It may be shared with others and is not to be written to.
        """
        w0, h0 = self._annotations.sizes[i].tolist()
        if self._in_memory is not None:
            return self._in_memory[i], (h0, w0)
        if self._decoded is None:
            return self._read(i), (h0, w0)
        if i not in self._decoded:
            self._decoded[i] = self._read(i)
        return self._decoded[i], (h0, w0)

    def loaded_shape(self, i: int) -> tuple[int, int]:
        """(height, width) of image i as `load_image` returns it."""
        w0, h0 = self._annotations.sizes[i].tolist()
        gain = self.image_size / max(h0, w0)
        return max(int(h0 * gain), 1), max(int(w0 * gain), 1)

    def _read(self, i: int) -> np.ndarray:
        data = np.fromfile(self.image_files[i], np.uint8)
        if self._on_disk is None:
            return self._decode(i, data)
        image = self._on_disk.load(data, self.loaded_shape(i))
        if image is None:
            image = self._decode(i, data)
            self._on_disk.save(data, image)
        return image

    def _decode(self, i: int, data: np.ndarray) -> np.ndarray:
        w0, h0 = self._annotations.sizes[i].tolist()
        gain = self.image_size / max(h0, w0)
        # evaluation averages over all pixels, as v6.1; training may let the decoder do part of it
        image = decode_image(data, self.image_files[i], self.channels, shrink=1 / gain if self.augment else 1)
        factor = round(h0 / image.shape[0])
        if factor == 0 or image.shape[:2] != (-(-h0 // factor), -(-w0 // factor)):
            now = f"{image.shape[1]} x {image.shape[0]}"
            raise ValueError(
                f"{self.image_files[i]}: was {w0} x {h0} pixels when the data set was checked and is {now} now; "
                "start again when it no longer changes"
            )
        height, width = self.loaded_shape(i)
        if factor > 1:
            # by exactly so much, then cut: the last pixel may stand for less than the others do
            gains = {"fx": factor * width / w0, "fy": factor * height / h0}
            image = np.ascontiguousarray(cv2.resize(image, None, **gains)[:height, :width])  # in colour, always
        elif image.shape[:2] != (height, width):
            # area averaging is the truer reduction, linear the faster: training sees the fast one, as in v6.1
            method = cv2.INTER_LINEAR if self.augment or gain > 1 else cv2.INTER_AREA
            image = by_fours(lambda part: cv2.resize(part, (width, height), interpolation=method), image)
        return image

    def _keep_images(self, cache: str | None) -> None:
        """Prepares `load_image` to keep images in memory, on disk, or not, as `cache` says and room allows."""
        shapes = np.array([self.loaded_shape(i) for i in range(len(self))])
        needed = int(shapes.prod(1).sum() * self.channels)
        method = f"{'linear' if self.augment else 'area'}-{self.channels}"
        if cache == "disk":
            on_disk = ImagesOnDisk(f"{self.image_size}-{method}", self.channels)
            free = shutil.disk_usage(on_disk.folder).free
            if self._enough(needed, free, DISK_SHARE, f"space in {on_disk.folder}", warn=True):
                self._on_disk = on_disk
                LOGGER.info(f"{self.prefix}images are kept in {on_disk.folder} ({needed / GIB:.1f} GiB when all are)")
        elif cache in SHARE:
            key = f"{self.image_size} {method} {files_digest(self.image_files)}"
            try:
                self._in_memory = SharedImages(key, shapes, self._fill, lambda n: self._fits(n, cache), self.channels)
            except MemoryError:
                pass  # has been said

    def _fits(self, needed: int, cache: str) -> bool:
        free = free_memory()
        fits = free is None or self._enough(needed, free, SHARE[cache], "memory", warn=cache == "ram")
        if fits and cache == "auto" and free is not None:
            LOGGER.info(
                f"{self.prefix}images are kept in memory: {needed / GIB:.1f} GiB of the {free / GIB:.1f} GiB that are "
                "free; --cache off reads them each time"
            )
        return fits

    def _enough(self, needed: int, free: int, share: float, place: str, warn: bool) -> bool:
        if needed <= share * free:
            return True
        level = logging.WARNING if warn else logging.INFO
        LOGGER.log(
            level,
            f"{self.prefix}images need {needed / GIB:.1f} GiB of {place}, more than {share:.0%} of the "
            f"{free / GIB:.1f} GiB that are free; not cached",
        )
        return False

    def _fill(self, places: list[np.ndarray]) -> None:
        """Reads all images, each into its place."""

        def read(i: int) -> None:
            places[i][:] = self._read(i)

        quiet = not LOGGER.isEnabledFor(logging.INFO)
        with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
            work = pool.imap_unordered(read, range(len(self)), chunksize=8)
            for _ in tqdm(work, f"{self.prefix}caching images", len(self), disable=quiet):
                pass

    def _choose(self, annotations: Annotations, fraction: float) -> Annotations:
        """A random share of the images, each as likely as any other, in the order that they had."""
        count = len(annotations.images)
        chosen = max(round(fraction * count), 1)
        LOGGER.info(f"{self.prefix}using {chosen} of {count} images")
        rng = np.random.default_rng((self.seed, 0, 0, FRACTION_STREAM))
        return annotations.take(np.sort(rng.choice(count, chosen, replace=False)))

    def _check_classes(self, nc: int | None) -> None:
        if nc is None or not len(self.labels) or self.labels[:, 0].max() < nc:
            return
        row = int(np.argmax(self.labels[:, 0] >= nc))
        image = self.image_files[int(np.searchsorted(self._annotations.starts, row, side="right")) - 1]
        label_file = image_to_label_path(image)
        if os.path.isfile(label_file):
            parse_labels(Path(label_file).read_text(encoding="utf-8"), label_file, nc)  # raises, naming the line
        raise ValueError(f"{image}: class {self.labels[row, 0]:g} but there are {nc} classes")


def rect_shapes(shapes: np.ndarray, batch_size: int, image_size: int, stride: int, pad: float) -> np.ndarray:
    """Frames for images of `shapes` (n, 2: width, height), sorted by height / width: int (batches, 2: height, width).

    Each is the smallest multiple of the stride (plus `pad` strides, rounded up) in which every image of its batch fits
    with its longer side at `image_size`.
    """
    aspect = shapes[:, 1] / shapes[:, 0]
    firsts = np.arange(0, len(shapes), batch_size)
    lasts = np.minimum(firsts + batch_size, len(shapes)) - 1
    sides = np.stack([np.minimum(aspect[lasts], 1), np.minimum(1 / aspect[firsts], 1)], 1)
    return np.ceil(sides * image_size / stride + pad).astype(int) * stride
