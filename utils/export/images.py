"""Images for exports: those on which files are verified, and those on which integers are calibrated."""

from collections.abc import Iterator
from itertools import cycle

import torch

from utils.data.dataset_yaml import load_dataset_yaml
from utils.data.images import list_images, read_image
from utils.data.letterbox import to_input
from utils.files import ROOT
from utils.runtimes.base import Metadata

PROOF_IMAGES = 4
CALIBRATION_IMAGES = 101  # as in v6.1


def framed(file: str, size: tuple[int, int], metadata: Metadata) -> torch.Tensor:
    """Reads one image into a frame (height, width): float32 (1, C, height, width), 0-1."""
    return to_input(read_image(file, metadata.channels), size, metadata.stride, auto=False)[0].float() / 255


def proof_batches(metadata: Metadata, data: str | None) -> list[torch.Tensor]:
    """Returns batches (B, C, H, W) to verify an export on, 0-1: first of its own size and number, then of others.

    data: data set YAML, whose val images are taken; None takes the images in data/images, or random numbers for a
        number of channels that these do not have.
    """
    (H, W), stride, batch = metadata.imgsz, metadata.stride, metadata.batch
    other = max(H // 2 // stride, 1) * stride, max(W * 3 // 4 // stride, 1) * stride
    shapes = [(batch, (H, W))] * -(-PROOF_IMAGES // batch)
    shapes += [(batch + 1, (H, W)), (1, other), (batch + 2, other)]
    if data:
        files = _spread(_images(data, "val", metadata), PROOF_IMAGES)
    elif metadata.channels in (1, 3):
        files = sorted(map(str, (ROOT / "data/images").glob("*.jpg")))
    else:
        generator = torch.Generator().manual_seed(0)
        return [torch.rand(B, metadata.channels, *size, generator=generator) for B, size in shapes]
    turn = cycle(files)
    return [torch.cat([framed(next(turn), size, metadata) for _ in range(B)]) for B, size in shapes]


def calibration_images(metadata: Metadata, data: str) -> Iterator[torch.Tensor]:
    """Yields train images of a data set YAML, spread over it, float32, 0-1, each repeated to (batch, C, H, W)."""
    for file in _spread(_images(data, "train", metadata), CALIBRATION_IMAGES):
        yield framed(file, metadata.imgsz, metadata).repeat(metadata.batch, 1, 1, 1)


def _images(data: str, split: str, metadata: Metadata) -> list[str]:
    content = load_dataset_yaml(data, (split,))
    if content["channels"] != metadata.channels:
        raise ValueError(
            f"--data {data}: its images have {content['channels']} channels, but the weights take {metadata.channels}"
        )
    if not isinstance(content[split], str | list):
        raise ValueError(
            f"--data {data}: export reads images from folders and lists of images, but the {split} split is a "
            f"{type(content[split]).__name__}; give the YAML of such a data set"
        )
    return list_images(content[split])


def _spread(files: list[str], count: int) -> list[str]:
    """Returns at most `count` of the files, evenly spread over them."""
    step = max(len(files) / count, 1)
    return [files[int(i * step)] for i in range(min(count, len(files)))]
