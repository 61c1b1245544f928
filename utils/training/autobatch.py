"""Finds the batch size that fits on the GPU (`--batch-size -1`): a line through the memory that small batches take."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import nn

from utils.files import GIB
from utils.log import LOGGER

SIZES = (1, 2, 4, 8, 16)  # batch sizes that are measured
USABLE = 0.9  # part of the free memory that a batch may take
DEFAULT = 16  # batch size where there is no GPU to measure


def auto_batch_size(
    model: nn.Module, image_size: int, autocast: torch.dtype | None = torch.float16, usable: float = USABLE
) -> int:
    """Returns the largest batch whose training step should fit into that part of the free memory; 16 on a CPU.

    Args:
        model: on its device; neither its weights nor its statistics are touched.
        image_size: side of the square images in pixels.
        autocast: type that the forward pass computes in, None for that of the weights.
        usable: part of the free memory that a batch may take, 0-1.

    Raises ValueError where not even one image fits.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        LOGGER.info(f"AutoBatch: batch size {DEFAULT}; it is measured on a CUDA GPU only, and this is {device.type}")
        return DEFAULT

    def memory() -> int:
        peak = torch.cuda.max_memory_reserved(device)
        torch.cuda.empty_cache()  # blocks that one size leaves behind do not suit the next
        torch.cuda.reset_peak_memory_stats(device)
        return peak

    memory()
    free = torch.cuda.mem_get_info(device)[0]
    sizes, used, failed = measure(model, image_size, memory, autocast)
    memory()
    return choose(sizes, used, failed, free, image_size, usable)


def measure(
    model: nn.Module,
    image_size: int,
    memory: Callable[[], int],
    autocast: torch.dtype | None,
    sizes: Sequence[int] = SIZES,
) -> tuple[list[int], list[int], int | None]:
    """Measures the peak memory of a training step, forward and backward, at rising batch sizes.

    Args:
        memory: returns the maximum of bytes that were taken at one time since it was last called. What is taken before
            the first step does not count.

    Returns:
        The sizes that fit, the bytes that each took, and the size at which memory ran out, or None. No larger size is
        tried.
    """
    before = memory()
    copy = deepcopy(model).train()  # takes the place of the averaged weights, which training keeps too
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
    sizes: Sequence[int], used: Sequence[int], failed: int | None, free: int, image_size: int, usable: float = USABLE
) -> int:
    """Returns the batch size that the measurements allow, and logs the reason; see `measure` and `fit_batch_size`."""
    if not sizes:
        raise ValueError(
            f"--batch-size -1: not even one image of {image_size} pixels fits into the {free / GIB:.1f} GiB that are "
            "free on the GPU; try a smaller --imgsz or model"
        )
    batch = fit_batch_size(sizes, used, usable * free)
    reason = f"{usable:.0%} of the {free / GIB:.1f} GiB that are free"
    if failed is not None and batch >= failed:
        batch, reason = sizes[-1], f"memory ran out at {failed}"
    measured = ", ".join(f"{size}: {taken / GIB:.2f}" for size, taken in zip(sizes, used))
    LOGGER.info(f"AutoBatch: batch size {batch}, {reason}; GiB by batch size: {measured}")
    return batch


def fit_batch_size(sizes: Sequence[int], used: Sequence[int], limit: float) -> int:
    """Returns the batch size, at least 1, at which the straight line through (size, bytes used) reaches `limit` bytes.

    It is the largest size that was measured where there is no rising line: one point only, or no growth.
    """
    assert len(sizes) == len(used) > 0
    # least squares in whole numbers: memory that does not grow has a slope of exactly 0, not one of rounding errors
    n, total = len(sizes), sum(used)
    rise = n * sum(size * taken for size, taken in zip(sizes, used)) - sum(sizes) * total
    spread = n * sum(size**2 for size in sizes) - sum(sizes) ** 2
    if rise <= 0:
        return max(sizes)
    slope = rise / spread
    base = (total - slope * sum(sizes)) / n
    return max(int((limit - base) / slope), 1)
