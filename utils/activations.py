"""Activations beyond torch's own, for checkpoints and blocks that use them."""

import torch
import torch.nn.functional as F
from torch import nn


class SiLU(nn.Module):
    """x sigmoid(x), spelled out for exporters that lack it."""

    def forward(self, x):
        return x * x.sigmoid()


class Hardswish(nn.Module):
    """x clip(x + 3, 0, 6) / 6, spelled out for exporters that lack it."""

    def forward(self, x):
        return x * F.hardtanh(x + 3, 0.0, 6.0) / 6.0


class Mish(nn.Module):
    """x tanh(softplus(x)) (Misra, BMVC 2020)."""

    def forward(self, x):
        return F.mish(x)


class FReLU(nn.Module):
    """The larger of x and a depth-wise convolution of x (Ma et al., Funnel activation, ECCV 2020)."""

    def __init__(self, channels: int, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        funnel = self.bn(self.conv(x))
        return torch.maximum(funnel, x)


def _acon(x: torch.Tensor, p1: torch.Tensor, p2: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """Returns a smooth maximum of p1 x and p2 x, sharper for larger beta: equation 5 of Ma et al., CVPR 2021."""
    difference = (p1 - p2) * x
    return p2 * x + difference * torch.sigmoid(beta * difference)


def _random_per_channel(channels: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(1, channels, 1, 1))


class AconC(nn.Module):
    """A smooth maximum of p1 x and p2 x with learned p1, p2 and beta (Ma et al., Activate or not, CVPR 2021)."""

    def __init__(self, channels: int):
        super().__init__()
        self.p1, self.p2 = _random_per_channel(channels), _random_per_channel(channels)
        self.beta = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _acon(x, self.p1, self.p2, self.beta)


class MetaAconC(nn.Module):
    """AconC with a beta that a small network works out from the means of the channels."""

    def __init__(self, channels: int, kernel: int = 1, stride: int = 1, reduction: int = 16):
        super().__init__()
        hidden = max(reduction, channels // reduction)
        self.p1, self.p2 = _random_per_channel(channels), _random_per_channel(channels)
        self.fc1 = nn.Conv2d(channels, hidden, kernel, stride)
        self.fc2 = nn.Conv2d(hidden, channels, kernel, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean((2, 3), keepdim=True)
        return _acon(x, self.p1, self.p2, self.fc2(self.fc1(means)).sigmoid())


def out_of_place(model: nn.Module) -> None:
    """Makes every SiLU of a model write into a new tensor, for training.

    In place, autograd first copies the input, which the gradient needs: the same memory, and more time.
    """
    for module in model.modules():
        if isinstance(module, nn.SiLU):
            module.inplace = False
