"""Defines the small network that makes of one number per channel a gate per channel, and the forms it has.

The paper's form is z = W2 ReLU(W1 s + b1) + b2 and gate = sigma(z), for a statistic s of C numbers. A row of a YAML may
ask for other forms, `[1024, 8, sums, half, 0.1]`, each of which is the same family of functions:

* the unit of s: `means` of the rows of the covariance's root (the paper's), `sums`, which are C times that, or `own`,
  sums divided by their running size. W1 of a unit k is k W1 in the paper's form.
* the start: `open` is the paper's gate; among trained layers its bias is 4, so it is 0.982 with slope 0.018. `half` is
  gate = 2 sigma(z) with z = 0 among trained layers: exactly 1, with slope 1/2. In the paper's form that is a gate of
  1/2, with the weights of the layers that read the map doubled.
* the rate: both convolutions give sqrt(rate) times what they would, and start with weights divided by sqrt(rate). The
  function at the start is the same, and it learns at `rate` times the learning rate by SGD, sqrt(rate) times by Adam.
"""

import math

import torch
from torch import nn

OPEN = 4.0  # logit of an open gate: its value is 0.982, and its slope of 0.018 still lets it learn
STARTS = ("open", "half")
UNITS = ("means", "sums", "own")
MOMENTUM = 0.03  # of the running size, that of the detector's batch norms


class DoubledSigmoid(nn.Module):
    """Gives 2 sigma(z), which is exactly 1 at 0."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return 2 * torch.sigmoid(z)


class RatedConv(nn.Conv2d):
    """A convolution that gives `gain` times the usual result, and starts with weights divided by it."""

    def __init__(self, c1: int, c2: int, gain: float):
        super().__init__(c1, c2, 1)
        self.gain = gain
        with torch.no_grad():
            for p in self.parameters():
                p /= gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * super().forward(x)


def wide(x: torch.Tensor) -> torch.Tensor:
    """Returns x in float32, or float64 as it is: the sum of squares of a map overflows in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def checked(word: str, words: tuple[str, ...], what: str) -> str:
    """Returns the word; ValueError where it is none of the words."""
    if word not in words:
        raise ValueError(f"the {what} must be {', '.join(words[:-1])} or {words[-1]}, got {word!r}")
    return word


def odd(kernel: int, over: str) -> int:
    """Returns the size of a kernel over channels or positions; ValueError where it is not an odd number."""
    if not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"the kernel over {over} must be odd, got {kernel!r}")
    return kernel


def gate_network(channels: int, reduction: int, start: str = "open", rate: float = 1.0) -> nn.Sequential:
    """Returns the network (N, C, 1, 1) -> (N, C, 1, 1), whose hidden width is C // reduction, at least 1.

    start, rate: see the head of this file. The paper's form consists of torch's own layers.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1e6:
        raise ValueError(f"the rate of a gate must be a number above 0, up to 1e6, got {rate!r}")
    hidden, gain = max(1, channels // reduction), math.sqrt(rate)
    first, second = (
        nn.Conv2d(a, b, 1) if gain == 1 else RatedConv(a, b, gain) for a, b in ((channels, hidden), (hidden, channels))
    )
    last = nn.Sigmoid() if checked(start, STARTS, "start of a gate") == "open" else DoubledSigmoid()
    return nn.Sequential(first, nn.ReLU(inplace=True), second, last)


def start_of(network: nn.Sequential) -> str:
    """Returns the word of the form that a gate's network has."""
    return "half" if isinstance(network[3], DoubledSigmoid) else "open"


@torch.no_grad()
def open_gate(network: nn.Sequential) -> None:
    """Sets the gate to 0.982 or, where it starts at half, to exactly 1 for every channel, for trained layers around it.

    The matrices of the paper's form keep their initial values, so that both learn from the first step. Of the other
    one the last is 0, so the first learns from the second step on.
    """
    last = network[2]
    if start_of(network) == "half":
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    else:
        nn.init.constant_(last.bias, OPEN / getattr(last, "gain", 1))


@torch.no_grad()
def convert_gate(source: nn.Sequential, target: nn.Sequential, unit: float = 1.0) -> float:
    """Sets the network `target` so that it is the function of `source`, and returns k with source = k target.

    Args:
        unit: the statistic of source over that of target, for the same map.

    k is 1 where both have the same start, 2 from half to open, 1/2 from open to half. Then the layers that read the
    block's output must take k times their weights. Equal up to rounding: one product per weight.
    """
    for i, factor in ((0, unit), (2, 1.0)):
        old, new = source[i], target[i]
        gain = getattr(old, "gain", 1) / getattr(new, "gain", 1)
        new.weight.copy_(old.weight * (gain * factor))
        new.bias.copy_(old.bias * gain)
    doubled = [2.0 if start_of(network) == "half" else 1.0 for network in (source, target)]
    return doubled[0] / doubled[1]


class Gated(nn.Module):
    """Multiplies a map by the gate that a subclass defines."""

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the weight of each channel (N, C, 1, 1), or of each value (N, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gate(x).type_as(x) * x


class ChannelGate(Gated):
    """Has a gate between 0 and 1, or 0 and 2, that the small network makes of a statistic.

    A subclass defines `statistic`. The network is the attribute `conv_du`, whose output is the gate itself.
    """

    def __init__(self, channels: int, reduction: int, start: str = "open", rate: float = 1.0):
        super().__init__()
        self.conv_du = gate_network(channels, reduction, start, rate)

    def statistic(self, x: torch.Tensor) -> torch.Tensor:
        """Returns what the network takes for a map x (N, C, H, W): (N, C, 1, 1)."""
        raise NotImplementedError

    def in_unit(self, s: torch.Tensor) -> torch.Tensor:
        """Returns the paper's statistic (N, C) in the block's unit."""
        return s

    def unit_of_statistic(self) -> float:
        """Returns the statistic as a multiple of the paper's."""
        return 1.0

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the weight of each channel (N, C, 1, 1)."""
        return self.conv_du(self.statistic(x))

    def start_as_identity(self) -> None:
        """Opens the gate of every channel, for a new block among trained layers."""
        open_gate(self.conv_du)

    def take(self, other: "ChannelGate") -> float:
        """Sets this block to the function of another of its class and widths, whatever the forms of the two.

        Returns k with other(x) = k self(x), as `convert_gate`.
        """
        if "size" in self._buffers:
            self.size.copy_(other.size if "size" in other._buffers else torch.ones(1))
        return convert_gate(other.conv_du, self.conv_du, other.unit_of_statistic() / self.unit_of_statistic())
