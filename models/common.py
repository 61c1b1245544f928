"""Defines the blocks that model YAMLs name. Attribute names are a file format: checkpoints pickle these objects.

Notation: x is (B, C, H, W); c1, c2 are incoming and outgoing channels, k kernel, s stride, p padding, g groups, e the
share of c2 that is hidden width.
"""

import importlib
import math
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.gates import MOMENTUM, UNITS, ChannelGate, checked, wide
from models.registry import (
    contracts,
    convolves,
    expands,
    joins,
    keeps_channels,
    normalises,
    passes,
    pools,
    register,
    upsamples,
    upsamples_by_convolution,
    widens,
    widens_repeating,
)
from models.second_order import second_order_statistic


def same_padding(kernel: int | tuple[int, int]) -> int | tuple[int, ...]:
    """Returns the padding by which an odd kernel keeps the size at stride 1."""
    return kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel)


def _pair(kernel: int | list[int] | tuple[int, int]) -> int | tuple[int, int]:
    return kernel if isinstance(kernel, int) else tuple(kernel)


# --- convolutions -----------------------------------------------------------------------------------------------------


@register(convolves)
class Conv(nn.Module):
    """A convolution, batch norm and activation.

    act: True for SiLU, a module for that one, anything else for no activation.
    """

    def __init__(self, c1, c2, k=1, s=1, p=None, g=1, act=True):
        super().__init__()
        k, s = _pair(k), _pair(s)
        self.conv = nn.Conv2d(c1, c2, k, s, same_padding(k) if p is None else p, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU() if act is True else act if isinstance(act, nn.Module) else nn.Identity()

    def forward(self, x):
        x = self.conv(x)
        return self.act(self.bn(x) if hasattr(self, "bn") else x)

    def fuse(self) -> None:
        """Folds the batch norm's running statistics into the convolution, for inference; a second call does nothing."""
        if hasattr(self, "bn"):
            was_training = self.training
            self.conv = fuse_conv_bn_eval(self.conv.eval(), self.bn.eval()).requires_grad_(False)
            del self.bn
            self.train(was_training)


@register(convolves)
class DWConv(Conv):
    """A depth-wise convolution, with the largest number of groups that divides both widths."""

    def __init__(self, c1, c2, k=1, s=1, act=True):
        super().__init__(c1, c2, k, s, g=math.gcd(c1, c2), act=act)


@register(lambda row: (plan := convolves(row))._replace(stride=2 * plan.stride))
class Focus(nn.Module):
    """Moves every second pixel in each direction into channels, four times as many, then convolves."""

    def __init__(self, c1, c2, k=1, s=1, p=None, g=1, act=True):
        super().__init__()
        self.conv = Conv(c1 * 4, c2, k, s, p, g, act)

    def forward(self, x):
        quarters = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.conv(torch.cat(quarters, 1))


@register(convolves)
class GhostConv(nn.Module):
    """Half of the maps by a convolution, half by a cheap convolution of those (Han et al., GhostNet, CVPR 2020)."""

    def __init__(self, c1, c2, k=1, s=1, g=1, act=True):
        super().__init__()
        hidden = c2 // 2
        self.cv1 = Conv(c1, hidden, k, s, None, g, act)
        self.cv2 = Conv(hidden, hidden, 5, 1, None, hidden, act)

    def forward(self, x):
        y = self.cv1(x)
        return torch.cat((y, self.cv2(y)), 1)


# --- residual blocks and stages ---------------------------------------------------------------------------------------


@register(widens)
class Bottleneck(nn.Module):
    """A 1 x 1 convolution to the hidden width and a 3 x 3 one back, plus the input where the widths agree."""

    def __init__(self, c1, c2, shortcut=True, g=1, e=0.5):
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden, c2, 3, 1, g=g)
        self.add = shortcut and c1 == c2

    def forward(self, x):
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


@register(convolves)
class GhostBottleneck(nn.Module):
    """The residual block of GhostNet; stride 2 halves the map."""

    def __init__(self, c1, c2, k=3, s=1):
        super().__init__()
        if s not in (1, 2):
            raise ValueError(f"the stride must be 1 or 2, got {s}")
        hidden = c2 // 2
        self.conv = nn.Sequential(
            GhostConv(c1, hidden, 1, 1),
            DWConv(hidden, hidden, k, s, act=False) if s == 2 else nn.Identity(),
            GhostConv(hidden, c2, 1, 1, act=False),
        )
        self.shortcut = (
            nn.Sequential(DWConv(c1, c1, k, s, act=False), Conv(c1, c2, 1, 1, act=False)) if s == 2 else nn.Identity()
        )

    def forward(self, x):
        return self.conv(x) + self.shortcut(x)


@register(widens_repeating)
class BottleneckCSP(nn.Module):
    """A cross-stage partial stage (Wang et al., CVPRW 2020) as in the first releases of YOLOv5."""

    def __init__(self, c1, c2, n=1, shortcut=True, g=1, e=0.5):
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = nn.Conv2d(c1, hidden, 1, 1, bias=False)
        self.cv3 = nn.Conv2d(hidden, hidden, 1, 1, bias=False)
        self.cv4 = Conv(2 * hidden, c2, 1, 1)
        self.bn = nn.BatchNorm2d(2 * hidden)
        self.act = nn.SiLU()
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x):
        both = torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1)
        return self.cv4(self.act(self.bn(both)))


@register(widens_repeating)
class C3(nn.Module):
    """A cross-stage partial stage with three convolutions: half of the width passes n bottlenecks, half does not."""

    def __init__(self, c1, c2, n=1, shortcut=True, g=1, e=0.5):
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(c1, hidden, 1, 1)
        self.cv3 = Conv(2 * hidden, c2, 1)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x):
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


@register(widens_repeating)
class C3TR(C3):
    """A C3 whose inner blocks are transformer layers with 4 heads."""

    def __init__(self, c1, c2, n=1, shortcut=True, g=1, e=0.5):
        super().__init__(c1, c2, n, shortcut, g, e)
        hidden = int(c2 * e)
        self.m = TransformerBlock(hidden, hidden, 4, n)


@register(widens)
class C3SPP(C3):
    """A C3 whose inner block is spatial pyramid pooling. As in v6.1, repeats are copies in series."""

    def __init__(self, c1, c2, k=(5, 9, 13), n=1, shortcut=True, g=1, e=0.5):
        super().__init__(c1, c2, n, shortcut, g, e)
        hidden = int(c2 * e)
        self.m = SPP(hidden, hidden, k)


@register(widens_repeating)
class C3Ghost(C3):
    """A C3 whose inner blocks are ghost bottlenecks."""

    def __init__(self, c1, c2, n=1, shortcut=True, g=1, e=0.5):
        super().__init__(c1, c2, n, shortcut, g, e)
        hidden = int(c2 * e)
        self.m = nn.Sequential(*(GhostBottleneck(hidden, hidden) for _ in range(n)))


class TransformerLayer(nn.Module):
    """Self-attention, then two linear maps, each added to its input; no layer norm. x is (positions, B, c).

    q, k and v stand before the projections that torch's attention has of its own, as in v6.1.
    """

    def __init__(self, c: int, num_heads: int):
        super().__init__()
        square = partial(nn.Linear, c, c, bias=False)
        self.q, self.k, self.v = square(), square(), square()
        self.ma = nn.MultiheadAttention(c, num_heads)
        self.fc1, self.fc2 = square(), square()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.q(x), self.k(x), self.v(x)
        attended, _ = self.ma(query, key, value, need_weights=False)
        y = x + attended
        return y + self.fc2(self.fc1(y))


class TransformerBlock(nn.Module):
    """Transformer layers over the positions of a map, each position first added to a linear map of itself."""

    def __init__(self, c1: int, c2: int, num_heads: int, num_layers: int):
        super().__init__()
        self.c2 = c2
        self.conv = None if c1 == c2 else Conv(c1, c2)
        self.linear = nn.Linear(c2, c2)
        self.tr = nn.Sequential()
        for _ in range(num_layers):
            self.tr.append(TransformerLayer(c2, num_heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = x if self.conv is None else self.conv(x)
        positions = maps.flatten(2).permute(2, 0, 1)  # (H W, B, c2)
        positions = self.tr(positions + self.linear(positions))
        return positions.permute(1, 2, 0).reshape(maps.shape)


# --- pooling, reshaping, joining --------------------------------------------------------------------------------------


@register(widens)
class SPP(nn.Module):
    """Spatial pyramid pooling (He et al., 2015): the map and its max-pools with several windows, side by side."""

    def __init__(self, c1, c2, k=(5, 9, 13)):
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden * (len(k) + 1), c2, 1, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(kernel, stride=1, padding=kernel // 2) for kernel in k)

    def forward(self, x):
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))


@register(widens)
class SPPF(nn.Module):
    """SPP with the windows 5, 9 and 13, computed as one window of 5 three times in series."""

    def __init__(self, c1, c2, k=5):
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden * 4, c2, 1, 1)
        self.m = nn.MaxPool2d(kernel_size=k, stride=1, padding=k // 2)

    def forward(self, x):
        pools = [self.cv1(x)]
        for _ in range(3):
            pools.append(self.m(pools[-1]))
        return self.cv2(torch.cat(pools, 1))


@register(contracts)
class Contract(nn.Module):
    """Moves space into channels: (B, C, H, W) -> (B, C g^2, H/g, W/g)."""

    def __init__(self, gain=2):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        B, C, H, W = x.shape
        g = self.gain
        x = x.view(B, C, H // g, g, W // g, g)
        return x.permute(0, 3, 5, 1, 2, 4).reshape(B, C * g * g, H // g, W // g)


@register(expands)
class Expand(nn.Module):
    """Moves channels into space: (B, C, H, W) -> (B, C / g^2, H g, W g)."""

    def __init__(self, gain=2):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        B, C, H, W = x.shape
        g = self.gain
        x = x.view(B, g, g, C // g**2, H, W)
        return x.permute(0, 3, 4, 1, 5, 2).reshape(B, C // g**2, H * g, W * g)


@register(joins)
class Concat(nn.Module):
    """Joins a list of maps along a dimension, which stands in the attribute `d`."""

    def __init__(self, dim: int = 1):
        super().__init__()
        self.d = dim

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(maps, dim=self.d)


class Classify(nn.Module):
    """A classification head: pooled maps -> c2 logits. x is one map or a list of maps."""

    def __init__(self, c1, c2, k=1, s=1, p=None, g=1):
        super().__init__()
        self.aap = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv2d(c1, c2, k, s, same_padding(k) if p is None else p, groups=g)
        self.flat = nn.Flatten()

    def forward(self, x):
        pooled = torch.cat([self.aap(y) for y in (x if isinstance(x, list) else [x])], 1)
        return self.flat(self.conv(pooled))


# --- channel attention ------------------------------------------------------------------------------------------------


@register(keeps_channels)
class SOCA(ChannelGate):
    """Second-order channel attention: weighs each channel by how it varies together with the others.

    Dai et al., Second-order Attention Network for Single Image Super-Resolution, CVPR 2019, section 3.3, with the
    matrix square root of Li et al. (iSQRT-COV, CVPR 2018). `models/second_order.py` explains how it is computed,
    `models/gates.py` the forms of its gate. With `unit`, `start` and `rate` left out it is the paper's.

    Args:
        channels: C, of input and output.
        reduction: the gate's hidden width is C // reduction, at least 1.
        unit: of the statistic: means, sums, or own (sums over their running size).
        start: of the gate: open, or half.
        rate: learning rate of the gate, as a factor.

    Shape: (N, C, H, W) -> (N, C, H, W), in the input's type.
    """

    in_float32 = True  # in exported files of less precision too
    unit = "means"  # an attribute of the object only where it is another: files of the paper's form have none

    def __init__(self, channels: int, reduction: int = 8, unit: str = "means", start: str = "open", rate: float = 1.0):
        super().__init__(channels, reduction, start, rate)
        if checked(unit, UNITS, "unit of SOCA's statistic") != "means":
            self.unit = unit
        if unit == "own":
            self.register_buffer("size", torch.ones(1))  # the running root mean square of the sums

    def statistic(self, x: torch.Tensor) -> torch.Tensor:
        """Returns s in the block's unit (N, C, 1, 1); in training, `own` also learns the size of s."""
        if self.unit == "means":
            s = second_order_statistic(x)
        else:  # in float32, so that small means keep their digits in half precision
            s = self.in_unit(second_order_statistic(wide(x))).to(x.dtype)
        return s[:, :, None, None]

    def in_unit(self, s: torch.Tensor) -> torch.Tensor:
        """Returns row means (N, C) in the block's unit."""
        if self.unit == "means":
            return s
        s = s * s.shape[1]
        if self.unit == "own":
            if self.training:
                now = s.detach().square().mean().sqrt().to(self.size.dtype)
                self.size.lerp_(torch.where(now.isfinite(), now, self.size), MOMENTUM)
            s = s / self.size.clone().clamp(min=1e-6).to(s.dtype)  # a copy: the next batch changes it
        return s

    def unit_of_statistic(self) -> float:
        """Returns the statistic as a multiple of the row means."""
        C = self.conv_du[0].in_channels
        return {"means": 1.0, "sums": float(C)}.get(self.unit) or C / max(self.size.item(), 1e-6)


@register(keeps_channels)
class SE(ChannelGate):
    """First-order channel attention: weighs each channel by its mean.

    Hu et al., Squeeze-and-Excitation Networks, CVPR 2018. Arguments and shapes as SOCA; the paper's reduction is 16.
    """

    def __init__(self, channels: int, reduction: int = 16, start: str = "open", rate: float = 1.0):
        super().__init__(channels, reduction, start, rate)

    def statistic(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the means (N, C, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


# --- layers of torch that model YAMLs name ----------------------------------------------------------------------------

for _rule, _layer in (
    (upsamples, nn.Upsample), (upsamples_by_convolution, nn.ConvTranspose2d), (pools, nn.MaxPool2d),
    (pools, nn.AvgPool2d), (passes, nn.ZeroPad2d), (normalises, nn.BatchNorm2d),
    *((passes, layer) for layer in (nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.ELU)),
    *((passes, layer) for layer in (nn.GELU, nn.Mish, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh)),
):  # fmt: skip
    register(_rule, f"nn.{_layer.__name__}")(_layer)


# Names that programs written for v6.1 import from here, and those that code around a pasted SOCA calls
_IN_DOORS = ("AutoShape", "DetectMultiBackend", "Detections", "autopad")
_IN_DOORS += ("Covpool", "CovpoolLayer", "Sqrtm", "SqrtmLayer")


def __getattr__(name: str) -> Any:
    """Looks up the names of models/doors.py, of which importing blocks loads nothing."""
    if name in _IN_DOORS:
        return getattr(importlib.import_module(".doors", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
