"""Defines blocks that old checkpoints and YAMLs name from this module."""

import importlib
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from models.common import Conv
from models.registry import convolves, register


@register(convolves)
class CrossConv(nn.Module):
    """A 1 x k and a k x 1 convolution in series, plus the input with `shortcut` and where the widths agree."""

    def __init__(self, c1, c2, k=3, s=1, g=1, e=1.0, shortcut=False):
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, (1, k), (1, s))
        self.cv2 = Conv(hidden, c2, (k, 1), (s, 1), g=g)
        self.add = shortcut and c1 == c2

    def forward(self, x):
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


@register(convolves)
class MixConv2d(nn.Module):
    """Convolutions with several kernel sizes side by side (Tan and Le, MixConv, BMVC 2019).

    equal_ch: gives each kernel the same number of channels, otherwise about the same number of weights.
    """

    def __init__(self, c1, c2, k=(1, 3), s=1, equal_ch=True):
        super().__init__()
        widths = _equal_widths(c2, len(k)) if equal_ch else _equal_weights(c2, k)
        self.m = nn.ModuleList(
            nn.Conv2d(c1, width, kernel, s, kernel // 2, groups=math.gcd(c1, width), bias=False)
            for kernel, width in zip(k, widths)
        )
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(torch.cat([m(x) for m in self.m], 1)))


def _equal_widths(channels: int, groups: int) -> list[int]:
    group_of_channel = np.linspace(0, groups - 1e-6, channels).astype(int)
    return np.bincount(group_of_channel, minlength=groups).tolist()


def _equal_weights(channels: int, kernels: list[int]) -> list[int]:
    share = 1 / np.square(kernels, dtype=float)
    return (channels * share / share.sum()).round().astype(int).tolist()


class Sum(nn.Module):
    """Adds n maps; with `weight`, each one after the first is multiplied by a learned factor between 0 and 2.

    v6.1 reads the attributes weight and iter of a checkpoint.
    """

    def __init__(self, n: int, weight: bool = False):
        super().__init__()
        self.weight, self.iter = weight, range(n - 1)
        if weight:
            self.w = nn.Parameter(-0.5 * torch.arange(1.0, n))

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        first, *others = maps[: len(self.iter) + 1]
        if self.weight:
            others = [factor * y for factor, y in zip(2 * self.w.sigmoid(), others)]
        return sum(others, first)


class Ensemble(nn.ModuleList):
    """Several detectors as one: their decoded rows are joined, for one non-maximum suppression of all."""

    @property
    def image_multiple(self) -> int:
        """Returns the multiple in pixels that image sides must be of, for every member."""
        return max(member.image_multiple for member in self)

    def forward(self, x, augment=False, profile=False, visualize=False):
        decoded = [member(x, augment, profile, visualize)[0] for member in self]
        return torch.cat(decoded, 1), None


def __getattr__(name: str) -> Any:
    """Looks up the name that programs written for v6.1 import from here; importing blocks loads nothing of it."""
    if name == "attempt_load":
        return importlib.import_module(".doors", __package__).attempt_load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
