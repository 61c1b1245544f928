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


class MemoryEfficientMish(Mish):
    """torch's Mish keeps only its input for the backward pass, so this is the same."""


class FReLU(nn.Module):
    """max(x, a depth-wise convolution of x) (Ma et al., ECCV 2020)."""

    def __init__(self, c1, k=3):
        super().__init__()
        self.conv = nn.Conv2d(c1, c1, k, 1, 1, groups=c1, bias=False)
        self.bn = nn.BatchNorm2d(c1)

    def forward(self, x):
        return torch.maximum(x, self.bn(self.conv(x)))


class AconC(nn.Module):
    """(p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x with learned p1, p2, beta (Ma et al., CVPR 2021)."""

    def __init__(self, c1):
        super().__init__()
        self.p1 = nn.Parameter(torch.randn(1, c1, 1, 1))
        self.p2 = nn.Parameter(torch.randn(1, c1, 1, 1))
        self.beta = nn.Parameter(torch.ones(1, c1, 1, 1))

    def forward(self, x):
        d = (self.p1 - self.p2) * x
        return d * torch.sigmoid(self.beta * d) + self.p2 * x


class MetaAconC(nn.Module):
    """AconC whose beta is worked out from the channel means by a small network."""

    def __init__(self, c1, k=1, s=1, r=16):
        super().__init__()
        hidden = max(r, c1 // r)
        self.p1 = nn.Parameter(torch.randn(1, c1, 1, 1))
        self.p2 = nn.Parameter(torch.randn(1, c1, 1, 1))
        self.fc1 = nn.Conv2d(c1, hidden, k, s)
        self.fc2 = nn.Conv2d(hidden, c1, k, s)

    def forward(self, x):
        beta = torch.sigmoid(self.fc2(self.fc1(x.mean((2, 3), keepdim=True))))
        d = (self.p1 - self.p2) * x
        return d * torch.sigmoid(beta * d) + self.p2 * x


def out_of_place(model: nn.Module) -> None:
    """Has every SiLU of a model write into a new tensor, for training.

    In place, autograd first copies the input, which the gradient needs: the same memory, and more time.
    """
    for module in model.modules():
        if isinstance(module, nn.SiLU):
            module.inplace = False
