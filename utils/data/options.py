"""The options of a dataset and its loader."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

CACHES = ("ram", "auto", "disk", "off")


def add_fix_labels(group: argparse._ActionsContainer) -> None:
    """Adds --fix-labels, of the commands that read labels."""
    group.add_argument(
        "--fix-labels", choices=("clip",), default="",
        help="clip: cut labels that reach over the edge of their image by up to a pixel, as rounding leaves them "
        "(default: leave such an image out, as v6.1)",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """The options of a dataset and its loader; the images come from an entry of the data set YAML.

    Args:
        image_size: longer side of a sample in pixels; samples are square unless `rect`.
        batch_size: images per batch of this process.
        stride: frames of `rect` have sides that are multiples of it.
        augment: mosaic, warps, colours and flips, as `hyp` says.
        hyp: augmentation hyperparameters, by the names of the hyp files; needed by `augment`.
        rect: images sorted by aspect ratio, each batch in the smallest frame that holds its images; no mosaic.
        pad: extra size of those frames, in strides.
        shuffle: a new order in every epoch; not together with `rect`, whose batches are made by aspect ratio.
        cache: "ram" keeps resized images in memory, one copy for all processes of a machine, if they take at most 80 %
            of what is free; "auto" if at most 50 %; "disk" in the user's cache folder; None or "off" nowhere.
        channels: of an image (see `utils.data.images.read_image`); hue and saturation vary only in colour.
        single_cls: every object is of class 0.
        nc: number of classes, where a label beyond it is an error.
        fraction: share of the images, above 0 and at most 1, that is used; the seed decides which ones.
        mosaic_until: from this epoch on no mosaic, and so neither mixup nor copy-paste, which need one; None for never.
        quad: every four images make one of twice the side, so a batch has a quarter of the images.
        share_decoding: mosaics are made of the images of a window of batches, so that each file is decoded once, not
            four times (see `utils.data.loader.WindowSampler`); v6.1 does not do this.
        seed: of all randomness.
        rank, world_size: this process takes each world_size-th image; -1, 1 outside a distributed run.
        workers: maximum number of worker processes; there are no more than this machine's cores, shared by the
            processes of the run that it hosts, or than images in a batch. They live as long as the loader.
        strict, rehash, fix_labels: see `utils.data.annotations.scan`.
        prefix: of progress bars and messages.

    Raises ValueError where two options contradict each other or one is out of its range.
    """

    image_size: int = 640
    batch_size: int = 16
    stride: int = 32
    augment: bool = False
    hyp: Mapping[str, float] | None = None
    rect: bool = False
    pad: float = 0.0
    shuffle: bool = False
    cache: str | None = None
    channels: int = 3
    single_cls: bool = False
    nc: int | None = None
    fraction: float = 1.0
    mosaic_until: int | None = None
    quad: bool = False
    share_decoding: bool = False
    seed: int = 0
    rank: int = -1
    world_size: int = 1
    workers: int = 8
    strict: bool = False
    rehash: bool = False
    fix_labels: str = ""
    prefix: str = ""

    def __post_init__(self):
        if self.augment and self.hyp is None:
            raise ValueError("augment needs the augmentation hyperparameters: give hyp")
        if self.cache not in (None, *CACHES):
            raise ValueError(f"cache must be one of {', '.join(CACHES)}, got {self.cache!r}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, got {self.fraction}")
