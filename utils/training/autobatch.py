"""How many images fit on the GPU at once (`--batch-size -1`): memory measured at small batches, a line through it."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import nn

from utils.log import LOGGER

SIZES = (1, 2, 4, 8, 16)  # batches that are tried
SHARE = 0.9  # of the free memory that a batch may take
DEFAULT = 16  # where there is no GPU to measure
GIB = 2**30


def auto_batch_size(
    model: nn.Module, image_size: int, autocast: torch.dtype | None = torch.float16, share: float = SHARE
) -> int:
    """The largest batch whose training step should take no more than `share` of the free memory; 16 on a CPU.

    Args:
        model: on its device; neither its weights nor its statistics are touched.
        image_size: side of the square images in pixels.
        autocast: type that the forward pass computes in, None for that of the weights.

    Raises ValueError where not even one image fits.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        LOGGER.info(f"AutoBatch: batch size {DEFAULT}; it is measured on a CUDA GPU only, and this is {device.type}")
        return DEFAULT

    def memory() -> int:
        peak = torch.cuda.max_memory_reserved(device)
        torch.cuda.empty_cache()  # what one size leaves behind does not suit the next
        torch.cuda.reset_peak_memory_stats(device)
        return peak

    memory()
    free = torch.cuda.mem_get_info(device)[0]
    sizes, used, failed = measure(model, image_size, memory, autocast)
    memory()
    return choose(sizes, used, failed, free, share, image_size)


def measure(
    model: nn.Module,
    image_size: int,
    memory: Callable[[], int],
    autocast: torch.dtype | None,
    sizes: Sequence[int] = SIZES,
) -> tuple[list[int], list[int], int | None]:
    """Peak memory of a training step, forward and backward, at rising batch sizes.

    Args:
        memory: the most bytes taken at one time since it was last called. What is taken before the first step does
            not count.

    Returns:
        the sizes that went through, the bytes that each took, and the size at which memory ran out, if any. No larger
        one is tried.
    """
    before = memory()
    copy = deepcopy(model).train()  # stands for the average of the weights that training will keep, too
    tried, used = [], []
    for size in sizes:
        try:
            for _ in range(2):  # the second step finds the gradients of the first in memory, as in training
                _step(copy, size, image_size, autocast)
        except torch.OutOfMemoryError:
            return tried, used, size
        tried.append(size)
        used.append(memory() - before)
    return tried, used, None


def _step(model: nn.Module, size: int, image_size: int, autocast: torch.dtype | None) -> None:
    device = next(model.parameters()).device
    shape = size, getattr(model, "yaml", {}).get("ch", 3), image_size, image_size
    images = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        maps = model(images)
    sum(m.float().sum() for m in maps).backward()


def choose(
    sizes: Sequence[int], used: Sequence[int], failed: int | None, free: int, share: float, image_size: int
) -> int:
    """The batch size that the measurements allow, with the reason in the log; see `measure` and `fit_batch_size`."""
    if not sizes:
        raise ValueError(
            f"--batch-size -1: not even one image of {image_size} pixels fits into the {free / GIB:.1f} GiB that are "
            "free on the GPU; try a smaller --imgsz or model"
        )
    batch = fit_batch_size(sizes, used, free, share)
    reason = f"{share:.0%} of the {free / GIB:.1f} GiB that are free"
    if failed is not None and batch >= failed:
        batch, reason = sizes[-1], f"memory ran out at {failed}"
    measured = ", ".join(f"{size}: {taken / GIB:.2f}" for size, taken in zip(sizes, used))
    LOGGER.info(f"AutoBatch: batch size {batch}, {reason}; GiB by batch size: {measured}")
    return batch


def fit_batch_size(sizes: Sequence[int], used: Sequence[int], free: int, share: float = SHARE) -> int:
    """The batch size, at least 1, at which the straight line through (size, bytes used) reaches share * free bytes.

    The largest size measured where there is no rising line: one point only, or no growth.
    """
    assert len(sizes) == len(used) > 0
    slope, base = np.polyfit(sizes, used, 1) if len(sizes) > 1 else (0.0, 0.0)
    if slope <= 0:
        return max(sizes)
    return max(int((share * free - base) / slope), 1)
