"""Defines attention blocks on equal terms: the first argument is the number of channels, a map may have any size, the
output has the input's type, and nothing is random.

SOCA and SE are in models/common.py, which old checkpoints name. Adapter is the control to compare them with: as many
parameters in the same places, but no attention. Every block keeps the shape of its map, so it can be inserted anywhere
(models/insert.py); only NLRG is a stage like C3. What else a block may define is said in models/registry.py:
`start_as_identity()` and `gate(x)`.

Notation: x is (N, C, H, W), M = H W positions, sigma the logistic function.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from models.common import SOCA, Conv
from models.gates import OPEN, STARTS, Gated, checked, odd, wide
from models.registry import keeps_channels, register, widens_repeating

# --- gates ------------------------------------------------------------------------------------------------------------


@register(keeps_channels)
class ECA(Gated):
    """Efficient channel attention: the gate of a channel depends on the means of a few neighbouring channels.

    Wang et al., ECA-Net, CVPR 2020, section 3.2: sigma(conv of width k over the channels' means), and section 3.2.3 for
    k = |log2(C) / gamma + b / gamma|, made odd. `shift` on the logits is 0 in the paper; `start_as_identity` sets it,
    since the convolution has no bias to open the gate with.

    Args:
        channels: C.
        kernel: k, odd; 0 takes the paper's formula with gamma 2, b 1.
    """

    def __init__(self, channels: int, kernel: int = 0):
        super().__init__()
        k = odd(kernel or int(abs((math.log2(channels) + 1) / 2)) | 1, "channels")
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)
        self.register_buffer("shift", torch.zeros(1))

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the weight of each channel (N, C, 1, 1)."""
        means = x.mean((2, 3)).unsqueeze(1)  # (N, 1, C)
        return torch.sigmoid(self.conv(means).squeeze(1) + self.shift)[:, :, None, None]

    def start_as_identity(self) -> None:
        """Opens the gate of every channel, for a new block among trained layers."""
        nn.init.constant_(self.shift, OPEN)


@register(keeps_channels)
class CBAM(nn.Module):
    """Convolutional block attention: a gate per channel, then one per position, each from means and maxima.

    Woo et al., CBAM, ECCV 2018, section 3: equation 2, sigma(MLP(mean) + MLP(max)) with one MLP for both, then equation
    3, sigma(conv 7 x 7 of [mean over channels; max over channels]).

    Args:
        channels: C.
        reduction: the MLP's hidden width is C // reduction, at least 1; the paper's is 16.
        kernel: of the convolution over positions, odd.
    """

    def __init__(self, channels: int, reduction: int = 16, kernel: int = 7):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1))
        self.spatial = nn.Conv2d(2, 1, odd(kernel, "positions"), padding=kernel // 2)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the weight of each value (N, C, H, W), which is the product of both gates."""
        channels, positions, _ = self._gates(x)
        return channels * positions

    def _gates(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the gates (N, C, 1, 1) and (N, 1, H, W), and the map that the second one weighs."""
        # beside each other, since OpenCV 5 reads no weights that two convolutions of an ONNX file share
        both = torch.cat((x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)), 3)
        channels = torch.sigmoid(self.mlp(both).sum(3, keepdim=True))
        x = channels.type_as(x) * x
        logits = self.spatial(torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1))
        return channels, torch.sigmoid(logits), x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, positions, x = self._gates(x)
        return positions.type_as(x) * x

    def start_as_identity(self) -> None:
        """Opens both gates, for a new block among trained layers."""
        nn.init.constant_(self.mlp[2].bias, OPEN / 2)  # it is added twice
        nn.init.constant_(self.spatial.bias, OPEN)


@register(keeps_channels)
class CoordAttention(Gated):
    """Coordinate attention: a gate per channel and row times one per channel and column.

    Hou et al., Coordinate Attention for Efficient Mobile Network Design, CVPR 2021, section 3.2: means along rows and
    along columns (equations 4, 5), one shared 1 x 1 convolution, batch norm and activation (6), then a 1 x 1
    convolution and sigma for each direction (7, 8).

    Args:
        channels: C.
        reduction: the hidden width is C // reduction, at least 8; the paper's is 32.
    """

    def __init__(self, channels: int, reduction: int = 32):
        super().__init__()
        hidden = max(8, channels // reduction)
        self.shared = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.rows = nn.Conv2d(hidden, channels, 1)
        self.columns = nn.Conv2d(hidden, channels, 1)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the weight of each value (N, C, H, W), in the input's type: the product of both gates."""
        H, W = x.shape[2:]
        along_rows = x.mean(3, keepdim=True)  # (N, C, H, 1)
        along_columns = x.mean(2, keepdim=True).transpose(2, 3)  # (N, C, W, 1)
        rows, columns = self.shared(torch.cat((along_rows, along_columns), 2)).split((H, W), 2)
        return torch.sigmoid(self.rows(rows)).type_as(x) * torch.sigmoid(self.columns(columns.transpose(2, 3))).type_as(
            x
        )

    def start_as_identity(self) -> None:
        """Opens both gates, for a new block among trained layers."""
        nn.init.constant_(self.rows.bias, OPEN)
        nn.init.constant_(self.columns.bias, OPEN)


@register(keeps_channels)
class SimAM(Gated):
    """Attention without parameters: weighs each value by how far it is from the mean of its channel.

    Yang et al., SimAM, ICML 2021, section 3, the inverse of equation 5: with d = (x - mean)^2 and v = sum(d) / (M - 1)
    as in the paper's listing, out = sigma(d / (4 (v + lambda)) + 1 / 2) x. It has no parameters that could open it.

    Args:
        channels: C; not used.
        lambda_: the paper's lambda; 1e-4.
    """

    def __init__(self, channels: int, lambda_: float = 1e-4):
        super().__init__()
        self.lambda_ = lambda_

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the weight of each value (N, C, H, W)."""
        maps = wide(x)
        d = (maps - maps.mean((2, 3), keepdim=True)).square()
        v = d.sum((2, 3), keepdim=True) / max(x.shape[2] * x.shape[3] - 1, 1)
        return torch.sigmoid(d / (4 * (v + self.lambda_)) + 0.5)


@register(keeps_channels)
class GCT(Gated):
    """Gated channel transformation: each channel is scaled by its share of the second moments.

    Yang et al., Gated Channel Transformation for Visual Recognition, CVPR 2020, section 3: s = alpha times the root of
    a channel's sum of squares, normalised to sqrt(C) s / |s| over the channels; out = (1 + tanh(gamma s + beta)) x.
    At the start alpha = 1 and gamma = beta = 0, which is the identity.

    Args:
        channels: C.
        epsilon: added under both roots; 1e-5.
    """

    def __init__(self, channels: int, epsilon: float = 1e-5):
        super().__init__()
        self.epsilon = epsilon
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the weight of each channel (N, C, 1, 1)."""
        s = self.alpha * (wide(x).square().sum((2, 3), keepdim=True) + self.epsilon).sqrt()
        s = s * math.sqrt(x.shape[1]) * (s.square().sum(1, keepdim=True) + self.epsilon).rsqrt()
        return 1 + torch.tanh(self.gamma * s + self.beta)

    def start_as_identity(self) -> None:
        """Sets gamma and beta to 0, which is the identity."""
        nn.init.zeros_(self.gamma)
        nn.init.zeros_(self.beta)


# --- no attention -----------------------------------------------------------------------------------------------------


@register(keeps_channels)
class Scale(nn.Module):
    """A control for attention: multiplies each channel by a learnt constant, whatever the image.

    As LayerScale in Touvron et al., Going deeper with Image Transformers, ICCV 2021, section 2.1. It is a gate without
    a statistic: where it gains as much as attention, the gain does not come from looking at the image. It starts as the
    gate does: at 1/2 from scratch, at 0.982 among trained layers.

    Args:
        channels: C.
        start: of the gate that it is compared with: open as above; half at 1, in both cases.
    """

    def __init__(self, channels: int, start: str = "open"):
        super().__init__()
        self.opened = torch.sigmoid(torch.tensor(OPEN)).item() if checked(start, STARTS, "start") == "open" else 1.0
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), 0.5 if start == "open" else 1.0))

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the weight of each channel (N, C, 1, 1)."""
        return self.scale.expand(len(x), -1, -1, -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale.type_as(x) * x

    def start_as_identity(self) -> None:
        """Sets every channel to the value of an opened gate."""
        nn.init.constant_(self.scale, self.opened)


@register(keeps_channels)
class Adapter(nn.Module):
    """A control for attention: the two 1 x 1 convolutions of a gate, applied at every position and added to the map.

    Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019, section 2.1, as 1 x 1 convolutions:
    x + up(ReLU(down(x))). Its parameters have the number and shapes of SE's and SOCA's, but it sees one position at a
    time, measures no statistic of the map, and multiplies nothing. So where it gains as much as attention, the gain
    comes from the parameters. `up` is 0 at the start, which is the identity.

    Args:
        channels: C.
        reduction: the hidden width is C / reduction, rounded, at least 1.
    """

    def __init__(self, channels: int, reduction: float = 8):
        super().__init__()
        hidden = max(1, round(channels / reduction))
        self.down = nn.Conv2d(channels, hidden, 1)
        self.up = nn.Conv2d(hidden, channels, 1)
        self.start_as_identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(F.relu(self.down(x))).type_as(x)

    def start_as_identity(self) -> None:
        """Sets `up` to 0, which is the identity."""
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)


# --- SAN's group ------------------------------------------------------------------------------------------------------


@register(keeps_channels)
class RLNL(nn.Module):
    """Region-level non-local block: adds to every position a weighted sum over all positions of its region.

    Dai et al., SAN, CVPR 2019, section 3.2: the map is a grid of k x k regions, each with the embedded Gaussian of
    Wang et al., Non-local Neural Networks, CVPR 2018, section 3.2: x + W softmax(theta(x)^T phi(x)) g(x). Where k does
    not divide a side, the regions differ by one position. W is 0 at the start, which is the identity, as in Wang et al.

    Args:
        channels: C.
        grid: k; the paper has 2, and 1 is the plain non-local block.
        reduction: theta, phi and g are C // reduction wide, at least 1; 2 as in Wang et al.
    """

    def __init__(self, channels: int, grid: int = 2, reduction: int = 2):
        super().__init__()
        if grid < 1:
            raise ValueError(f"the grid of regions must be at least 1, got {grid}")
        hidden = max(1, channels // reduction)
        self.grid = grid
        self.theta = nn.Conv2d(channels, hidden, 1)
        self.phi = nn.Conv2d(channels, hidden, 1)
        self.g = nn.Conv2d(channels, hidden, 1)
        self.W = nn.Conv2d(hidden, channels, 1)
        self.start_as_identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        H, W = x.shape[2:]
        maps = self.theta(x), self.phi(x), self.g(x)
        bands = []
        for top, bottom in _parts(H, self.grid):
            cells = [_non_local([m[:, :, top:bottom, a:b] for m in maps]) for a, b in _parts(W, self.grid)]
            bands.append(torch.cat(cells, 3))
        return x + self.W(torch.cat(bands, 2)).type_as(x)

    def start_as_identity(self) -> None:
        """Sets W to 0, which is the identity."""
        nn.init.zeros_(self.W.weight)
        nn.init.zeros_(self.W.bias)


def _parts(side: int, count: int) -> list[tuple[int, int]]:
    """Returns (begin, end) of `count` parts of a side; of fewer where some would be empty."""
    count = min(count, side)
    return [(side * k // count, side * (k + 1) // count) for k in range(count)]


def _non_local(maps: list[torch.Tensor]) -> torch.Tensor:
    """Returns the sum over positions j of softmax_j(theta_i . phi_j) g_j for theta, phi, g of a region (N, c, h, w)."""
    # (N, 1, h w, c), contiguous, for the kernels that never hold all scores; exporters need the dimension of heads
    query, key, value = (wide(m).flatten(2).transpose(1, 2).contiguous().unsqueeze(1) for m in maps)
    with torch.autocast(maps[0].device.type, enabled=False):  # the scores are sums without a scale and can be large
        y = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    return y.squeeze(1).transpose(1, 2).reshape(maps[0].shape).type_as(maps[0])


class ResidualBlock(nn.Module):
    """The residual block of SAN: 3 x 3, ReLU, 3 x 3, plus the input; no batch norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


@register(keeps_channels)
class LSRAG(nn.Module):
    """Local-source residual attention group: residual blocks, SOCA, a 3 x 3 convolution, plus the group's input.

    Dai et al., SAN, CVPR 2019, section 3.2.

    Args:
        channels: C.
        blocks: residual blocks; the paper's super-resolution network has 10.
        reduction: of SOCA's gate; 16 in section 3.4.
    """

    def __init__(self, channels: int, blocks: int = 2, reduction: int = 16):
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.soca = SOCA(channels, reduction)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(self.soca(self.blocks(x))).type_as(x)

    def start_as_identity(self) -> None:
        """Sets the branch to exactly 0, which is the identity."""
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)


@register(widens_repeating)
class NLRG(nn.Module):
    """Non-locally enhanced residual group, SAN's trunk, as a stage: RL-NL, n groups, RL-NL.

    Dai et al., SAN, CVPR 2019, section 3.2. The input of the first group is added to the output of each,
    F_g = w F_0 + H_g(F_{g-1}): the share-source skip connection, whose w is one number for all groups, 0 at the start.
    As in C3 the stage works on half the width between two 1 x 1 convolutions, which the paper's network does not have.

    Args:
        c1, c2: incoming and outgoing channels.
        n: groups (LSRAG).
        blocks: residual blocks of a group.
        grid: k x k regions of both RL-NL.
        reduction: of SOCA's gate.
        e: share of c2 that the group works on.
    """

    def __init__(self, c1, c2, n=1, blocks=2, grid=2, reduction=16, e=0.5):
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.head = RLNL(hidden, grid)
        self.groups = nn.ModuleList(LSRAG(hidden, blocks, reduction) for _ in range(n))
        self.share = nn.Parameter(torch.zeros(1))
        self.tail = RLNL(hidden, grid)
        self.cv2 = Conv(hidden, c2, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        source = y = self.head(self.cv1(x))
        for group in self.groups:
            y = group(y) + (self.share * source).type_as(source)
        return self.cv2(self.tail(y))
