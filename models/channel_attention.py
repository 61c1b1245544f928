"""Defines channel attention by statistics that are akin to SOCA's or rival it, each from its paper, under the rules of
models/attention.py: the first argument is the number of channels, any size of map, the output in the input's type.

    GSoP    a learnt function of the covariance of a few mixtures of the channels
    SRM     mean and standard deviation of each channel
    MCA     mean and standard deviation, or skewness, of neighbouring channels
    FCA     one coefficient per channel of a discrete cosine transform, of which the mean is the lowest

All statistics are in float32, in exported files too (`in_float32`).
Notation: x is (N, C, H, W), sigma the logistic function.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from models.gates import OPEN, ChannelGate, Gated, checked, odd, wide
from models.registry import keeps_channels, register
from models.second_order import covariance


def _normalised(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """Returns norm(x) for x (N, c, h, w) whose type may be wider than the norm's.

    Where a training batch has one value per channel, and so no variance, by the running statistics.
    """
    if norm.training and x[:, 0].numel() > 1:
        return norm(x)
    state = (t.to(x.dtype) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return F.batch_norm(x, *state, eps=norm.eps)


@register(keeps_channels)
class GSoP(Gated):
    """Global second-order pooling: the gate is a learnt function of the covariance of a few mixtures of the channels.

    Gao et al., Global Second-order Pooling Convolutional Networks, CVPR 2019, section 3.2, the block along channels:
    a 1 x 1 convolution to c channels, their covariance c x c, batch norm of its rows, a convolution of each row by
    itself to 4 numbers, leaky ReLU, a 1 x 1 convolution to C, and sigma. Unlike SOCA it takes no root, and sees more of
    the covariance than its row means.

    Args:
        channels: C.
        width: c; the paper's is 128. At most C / 2, since it is to reduce.
    """

    in_float32 = True

    def __init__(self, channels: int, width: int = 128):
        super().__init__()
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"the width of the covariance must be at least 1, got {width!r}")
        c = min(width, max(1, channels // 2))
        self.reduce = nn.Conv2d(channels, c, 1, bias=False)  # a bias has no part in a covariance
        self.norm = nn.BatchNorm2d(c)
        self.rows = nn.Conv2d(c, 4 * c, (c, 1), groups=c)
        self.act = nn.LeakyReLU(0.1)
        self.expand = nn.Conv2d(4 * c, channels, 1)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the weight of each channel (N, C, 1, 1)."""
        mixed = wide(self.reduce(x))
        with torch.autocast(x.device.type, enabled=False):
            rows = _normalised(self.norm, covariance(mixed).unsqueeze(3))  # (N, c, c, 1)
        return torch.sigmoid(self.expand(self.act(self.rows(rows.type_as(x)))))

    def start_as_identity(self) -> None:
        """Opens the gate of every channel, for a new block among trained layers."""
        nn.init.constant_(self.expand.bias, OPEN)


@register(keeps_channels)
class SRM(Gated):
    """Style-based recalibration: the gate of a channel depends on its own mean and standard deviation alone.

    Lee et al., SRM: A Style-based Recalibration Module for Convolutional Neural Networks, ICCV 2019, section 3: style
    pooling, mean and standard deviation of a channel (equations 1 to 3), and style integration, their weighted sum with
    two weights per channel, batch norm, and sigma (equations 4 to 6).

    Args:
        channels: C.
        epsilon: added to the variance under the root, which has no slope at 0; 1e-5.
    """

    in_float32 = True

    def __init__(self, channels: int, epsilon: float = 1e-5):
        super().__init__()
        self.epsilon = epsilon
        self.cfc = nn.Conv2d(channels, channels, (1, 2), groups=channels, bias=False)  # channel-wise fully connected
        self.bn = nn.BatchNorm2d(channels)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the weight of each channel (N, C, 1, 1)."""
        mean, std, _ = _moments(x, self.epsilon)
        style = torch.cat((mean, std), 3)  # (N, C, 1, 2)
        return torch.sigmoid(_normalised(self.bn, self.cfc(style.to(x.dtype))))

    def start_as_identity(self) -> None:
        """Opens the gate of every channel by the batch norm, whose factor starts at 0, for trained layers around it."""
        nn.init.zeros_(self.bn.weight)
        nn.init.constant_(self.bn.bias, OPEN)


@register(keeps_channels)
class MCA(Gated):
    """Moment channel attention: the gate of a channel depends on two moments of a few neighbouring channels.

    Jiang et al., MCA: Moment Channel Attention Networks, AAAI 2024: extensive moment aggregation, of the mean and one
    higher moment (K = 2), and cross moment convolution, a convolution over channels whose input planes are the moments;
    then sigma.

    Args:
        channels: C; not used, as in ECA the convolution is the same for every channel.
        moment: E for the standard deviation (MCA-E), S for the skewness (MCA-S).
        kernel: over channels, odd.
        epsilon: added to the variance under the root; 1e-5.
    """

    in_float32 = True

    def __init__(self, channels: int, moment: str = "E", kernel: int = 3, epsilon: float = 1e-5):
        super().__init__()
        self.moment, self.epsilon = checked(moment, ("E", "S"), "moment"), epsilon
        self.conv = nn.Conv1d(2, 1, odd(kernel, "channels"), padding=kernel // 2)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the weight of each channel (N, C, 1, 1)."""
        mean, std, centred = _moments(x, self.epsilon)
        unit = centred / std
        higher = std if self.moment == "E" else (unit * unit * unit).mean((2, 3), keepdim=True)
        moments = torch.cat((mean, higher), 3).squeeze(2).transpose(1, 2)  # (N, 2, C)
        return torch.sigmoid(self.conv(moments.to(x.dtype))).transpose(1, 2).unsqueeze(3)

    def start_as_identity(self) -> None:
        """Opens the gate of every channel, for a new block among trained layers."""
        nn.init.constant_(self.conv.bias, OPEN)


def _moments(x: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns mean and standard deviation of each channel (N, C, 1, 1), and x minus the mean; in float32."""
    x = wide(x)
    mean = x.mean((2, 3), keepdim=True)
    centred = x - mean
    return mean, (centred.square().mean((2, 3), keepdim=True) + epsilon).sqrt(), centred


# (row, column) of the 16 frequencies out of 7 x 7 with which FcaNet is best, the best first: section 4.2 of the paper
FREQUENCIES = (
    *((0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0)),
    *((5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3), (3, 5), (2, 2)),
)


@register(keeps_channels)
class FCA(ChannelGate):
    """Frequency channel attention: SE, whose mean of a channel is replaced by another coefficient of its transform.

    Qin et al., FcaNet: Frequency Channel Attention Networks, ICCV 2021, section 3.3: the channels are split into equal
    parts, and each part is squeezed by one frequency (u, v) of the two-dimensional discrete cosine transform, from 16
    of 7 x 7. In a map of another size the paper takes u H / 7, whose cosine at row i is cos(pi u (i + 1/2) / 7) for any
    H. The basis is orthonormal over a map of 7 x 7, and the sum over positions is a mean, so that the frequency (0, 0)
    is SE's mean in a map of any size.

    Args:
        channels: C.
        reduction: the gate's hidden width is C // reduction, at least 1; the paper's is 16.
        start, rate: of the gate, as SOCA's.
    """

    in_float32 = True

    def __init__(self, channels: int, reduction: int = 16, start: str = "open", rate: float = 1.0):
        super().__init__(channels, reduction, start, rate)
        chosen = [FREQUENCIES[c * len(FREQUENCIES) // channels] for c in range(channels)]
        frequencies = torch.tensor([(u, v, math.sqrt(2) ** ((u > 0) + (v > 0))) for u, v in chosen]).view(-1, 3, 1, 1)
        self.register_buffer("frequencies", frequencies, persistent=False)  # row, column, and factor of the basis

    def statistic(self, x: torch.Tensor) -> torch.Tensor:
        """Returns one coefficient of each channel (N, C, 1, 1)."""
        H, W = x.shape[2:]
        maps = wide(x)
        u, v, factor = self.frequencies.to(maps.dtype).unbind(1)  # each (C, 1, 1)
        rows = torch.cos(u * self._angles(H, maps).view(1, H, 1))  # (C, H, 1)
        columns = torch.cos(v * self._angles(W, maps).view(1, 1, W))  # (C, 1, W)
        along_rows = (maps * columns).sum(3, keepdim=True)  # (N, C, H, 1)
        return (factor / (H * W) * (along_rows * rows).sum(2, keepdim=True)).to(x.dtype)

    @staticmethod
    def _angles(side: int, like: torch.Tensor) -> torch.Tensor:
        return (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) * (math.pi / 7)
