"""From image and label files to training samples.

The contracts of the data, cited elsewhere as "the contracts of utils/data/dataset.py":

    images      uint8   (B, C, H, W)   RGB (or grey, or more channels, as the data set YAML says), letterboxed
    targets     float32 (T, 6)         image index in batch, class, x, y, w, h: centre form, 0-1 of the frame
    shapes      per image              ((h0, w0), ((gain_h, gain_w), (pad_w, pad_h))); None for a mosaic
    raw         list of (B, A, h, w, 5+nc)   logits, at strides 8, 16, 32
    decoded     float   (B, N, 5+nc)   x, y, w, h in input pixels; objectness; class scores 0-1
    detections  list of (n, 6)         x1, y1, x2, y2 in pixels, confidence, class

Randomness is a generator seeded by (seed, epoch, index): the same sample is drawn the same way whatever the number of
workers, and a resumed run continues as if never stopped.
"""

import math

import numpy as np
import torch

from utils.boxes import xywhn_to_xyxy, xyxy_to_xywhn
from utils.data.annotations import Annotations, Entry, check_classes, scan
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
from utils.data.formats.shards import ShardSplit
from utils.data.formats.yolo import image_to_label_path
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
from utils.data.store import FileStore, ImageStore, ShardStore
from utils.log import LOGGER

FRACTION_STREAM = 3  # keeps this random stream apart from those of the samples, seeded by (seed, epoch, index)
MUCH_PADDING = 1.1  # times as long as without is a side of a frame whose padding is told of
MARGIN = 1e-3  # pixels by which boxes stay inside the far edges of the image

Shapes = tuple[tuple[int, int], tuple[tuple[float, float], tuple[float, float]]]
Sample = tuple[torch.Tensor, torch.Tensor, str, Shapes | None]


def open_dataset(entry: Entry, options: LoaderOptions) -> "DetectionDataset":
    """Makes the dataset of an entry of a data set YAML: folder, list file, list of those, or split in another format.

    Raises ValueError where no image is usable, no label is found though augmenting, or a class is beyond `nc`.
    """
    annotations = scan(
        entry, options.prefix, strict=options.strict, rehash=options.rehash, fix_labels=options.fix_labels
    )
    if options.augment and not annotations.counts["found"]:
        example = annotations.images[0]
        raise ValueError(
            f"{entry}: no label files, so there is nothing to learn; the label of {example} "
            f"would be {image_to_label_path(example)}"
        )
    if options.fraction < 1:
        count = len(annotations.images)
        annotations = annotations.choose(options.fraction, np.random.default_rng((options.seed, 0, 0, FRACTION_STREAM)))
        LOGGER.info(f"{options.prefix}using {len(annotations.images)} of {count} images")
    if options.rect:
        width, height = annotations.sizes.T
        # numpy's default sort, as in v6.1: among equal ratios it decides which images share a frame, and a stable
        # one moves the mAP of rare classes by several points
        annotations = annotations.take(np.argsort(height / width))
    if options.single_cls:
        annotations = annotations.as_one_class()
    if options.nc is not None:
        check_classes(annotations, options.nc)
    kind = ShardStore if isinstance(entry, ShardSplit) else FileStore
    dataset = DetectionDataset(annotations, kind(annotations.images, annotations.sizes, options), options)
    if options.rect and not options.augment:
        _tell_of_padding(dataset, options)
    return dataset


def _tell_of_padding(dataset: "DetectionDataset", options: LoaderOptions) -> None:
    """Logs by how much padding enlarges the frames, where it is by more than a tenth."""
    plain = rect_shapes(dataset.shapes, options.batch_size, options.image_size, options.stride, 0.0)
    growth = (dataset.batch_shapes / plain).max(1)
    worst = int(growth.argmax())
    if growth[worst] > MUCH_PADDING:
        (height, width), (h, w) = dataset.batch_shapes[worst].tolist(), plain[worst].tolist()
        LOGGER.info(
            f"{options.prefix}frames are padded by {options.pad:g} strides: {width} x {height} pixels where detect.py "
            f"has {w} x {h}, so the two score objects differently; val.py --pad 0 measures without"
        )


class DetectionDataset(torch.utils.data.Dataset):
    """Samples: images from a store and their labels, letterboxed or augmented as the options say.

    Attributes:
        image_files: n paths.
        labels: float32 (N, 5) of all images: class, x, y, w, h, 0-1. `labels_of(i)` gives those of image i.
        shapes: float64 (n, 2): width, height in pixels.
        batch_index: (n,) the batch of each image, in file order.
        batch_shapes: (batches, 2) height, width of each batch, or None unless `rect`.
    """

    def __init__(self, annotations: Annotations, store: ImageStore, options: LoaderOptions):
        self.annotations = annotations
        self.store = store
        self.image_files = annotations.images
        self.labels = annotations.labels
        self.shapes = annotations.sizes.astype(np.float64)
        self.image_size = options.image_size
        self.augment = options.augment
        self.hyp = options.hyp
        self.mosaic = options.augment and not options.rect
        self.mosaic_until = math.inf if options.mosaic_until is None else options.mosaic_until
        self.channels = options.channels
        self.seed = options.seed
        self._albumentations = None
        if options.augment and options.hyp.get("albumentations", 0):
            self._albumentations = Albumentations()

        self.batch_index = np.arange(len(self)) // options.batch_size
        self.batch_shapes = None
        self._side = options.image_size
        if options.rect:
            self.batch_shapes = rect_shapes(
                self.shapes, options.batch_size, options.image_size, options.stride, options.pad
            )
        elif isinstance(store, ShardStore):  # which cannot be sorted by shape, so all frames are square
            self._side = int(np.ceil(options.image_size / options.stride + options.pad)) * options.stride

    def __len__(self) -> int:
        return len(self.image_files)

    def labels_of(self, i: int) -> np.ndarray:
        """Returns the labels of image i, float32 (m, 5): class, x, y, w, h, 0-1."""
        return self.annotations.labels_of(i)

    def generator(self, epoch: int, index: int) -> np.random.Generator:
        """Returns the source of all randomness of one sample."""
        return np.random.default_rng((self.seed, epoch, index))

    def __getitem__(self, key: int | tuple) -> Sample:
        """Returns a sample: image uint8 (C, H, W), targets float32 (m, 6) with column 0 still 0, path, and shapes.

        key: an index, of epoch 0; or (epoch, index); or (epoch, index, partners, window): its mosaic of four joins it
            with those three partners, and whatever else it needs is one of those numbered in the window.
        """
        epoch, index, partners, window = (*key, None, None)[:4] if isinstance(key, tuple) else (0, key, None, None)
        rng = self.generator(epoch, index)
        if self.mosaic and epoch < self.mosaic_until and rng.random() < self.hyp["mosaic"]:
            image, labels = self._mosaic(index, rng, partners, window)
            if rng.random() < self.hyp["mixup"]:
                (second,) = self._partners(rng, 1, window)
                other = self._mosaic(second, rng, None, window)
                image, labels = mixup(image, labels, *other, draw_mixup(rng))
            shapes = None
        else:
            image, labels, shapes = self._letterboxed(index, rng)

        height, width = image.shape[:2] if self.augment else image.shape[1:]
        boxes = xyxy_to_xywhn(labels[:, 1:], width, height, clip=True, eps=MARGIN)
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
        image = self.store.load(index)
        w0, h0 = self.annotations.sizes[index].tolist()
        height, width = image.shape[:2]
        frame = self._side if self.batch_shapes is None else tuple(self.batch_shapes[self.batch_index[index]].tolist())
        fit = letterbox if self.augment else letterbox_planes
        image, ratio, pad = fit(image, frame, auto=False, scaleup=self.augment)
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
        """Joins image `index` and three others around a random centre, warped into one image of the image size.

        A share of the mosaics, which the hyper-parameter mosaic9 sets, has eight others around one of them.
        """
        size = self.image_size
        nine = self.hyp.get("mosaic9", 0) and rng.random() < self.hyp["mosaic9"]
        others = partners if partners and not nine else self._partners(rng, 8 if nine else 3, window)
        indices = rng.permutation([index, *others])
        sizes = [self.store.shape_of(i) for i in indices]
        if nine:
            tiles = mosaic9_tiles(sizes, draw_mosaic9_corner(rng, size), size)
        else:
            tiles = mosaic_tiles(sizes, draw_mosaic_centre(rng, size), size)
        outlined = len(self.annotations.points) > 0
        polygons = [self.annotations.polygons_of(i) if outlined else [] for i in indices]
        labels, polygons = mosaic_labels([self.labels_of(i) for i in indices], polygons, sizes, tiles, size)
        picked = [] if nine else draw_copy_paste(rng, polygons, self.hyp["copy_paste"])
        warp = self._draw_warp(rng)

        if picked or warp.perspective_x or warp.perspective_y:  # these two need the whole canvas
            canvas = mosaic_canvas([self.store.load(i) for i in indices], tiles, size)
            canvas, labels, polygons = copy_paste(canvas, labels, polygons, picked)
            return random_perspective(canvas, labels, polygons, warp, (size, size))
        matrix = warp_matrix(warp, (2 * size, 2 * size), (size, size))
        labels = warp_labels(labels, polygons, matrix, (size, size), warp.scale)
        # a tile that lies outside of the frame is not even read
        spans = tile_spans(tiles, matrix, size)
        images = [self.store.load(i) if span else None for i, span in zip(indices, spans)]
        return warp_mosaic(images, tiles, spans, matrix, size), labels

    def _partners(self, rng: np.random.Generator, count: int, window: tuple[int, ...] | None) -> list[int]:
        """Draws images to join another in a mosaic: from a window, or from all whose pixels can be loaded."""
        candidates = window or self.store.available
        return [candidates[k] for k in rng.integers(len(candidates), size=count).tolist()]

    def _draw_warp(self, rng: np.random.Generator):
        ranges = ("degrees", "translate", "scale", "shear", "perspective")
        return draw_warp(rng, **{name: self.hyp[name] for name in ranges})

    def _flip(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator):
        if rng.random() < self.hyp["flipud"]:
            image, labels = flip_up_down(image, labels)
        if rng.random() < self.hyp["fliplr"]:
            image, labels = flip_left_right(image, labels)
        return image, labels


def rect_shapes(shapes: np.ndarray, batch_size: int, image_size: int, stride: int, pad: float) -> np.ndarray:
    """Returns a frame for each batch of images sorted by height / width: int (batches, 2: height, width).

    Each is the smallest multiple of the stride (plus `pad` strides, rounded up) in which every image of its batch fits
    with its longer side at `image_size`.

    shapes: (n, 2) width, height of the images.
    """
    aspect = shapes[:, 1] / shapes[:, 0]
    firsts = np.arange(0, len(shapes), batch_size)
    lasts = np.minimum(firsts + batch_size, len(shapes)) - 1
    sides = np.stack([np.minimum(aspect[lasts], 1), np.minimum(1 / aspect[firsts], 1)], 1)
    return np.ceil(sides * image_size / stride + pad).astype(int) * stride
