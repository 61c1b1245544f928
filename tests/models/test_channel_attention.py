"""GSoP, SRM, MCA and FCA, each against its paper as slow loops in numpy.

What holds for every block is in test_attention.py.
"""

from itertools import product

import numpy as np
import pytest
import torch
from test_attention import build, image, near, sigma, weights

from models.channel_attention import FCA, FREQUENCIES, MCA, SRM, GSoP
from models.common import SE
from models.gates import ChannelGate


def test_gsop_by_hand():
    """The covariance as numpy has it; row by row through the rest."""
    block, x = build(GSoP), image(2, 24, 5, 7) + 1
    w = weights(block)
    assert w["reduce.weight"].shape == (12, 24, 1, 1) and w["rows.weight"].shape == (48, 1, 12, 1)
    expected = x.double().numpy().copy()
    for y in expected:
        S = np.cov(w["reduce.weight"][:, :, 0, 0] @ y.reshape(24, 35), bias=True)
        numbers = []
        for i, row in enumerate(S):
            row = (row - w["norm.running_mean"][i]) / np.sqrt(w["norm.running_var"][i] + 1e-5)
            row = row * w["norm.weight"][i] + w["norm.bias"][i]
            for k in range(4 * i, 4 * i + 4):  # only this row's own
                z = w["rows.weight"][k, 0, :, 0] @ row + w["rows.bias"][k]
                numbers.append(z if z > 0 else z / 10)
        y *= sigma(w["expand.weight"][:, :, 0, 0] @ numbers + w["expand.bias"])[:, None, None]
    assert near(block(x), expected)


@pytest.mark.parametrize(
    ("channels", "width", "c"), [(512, 128, 128), (256, 128, 128), (24, 128, 12), (24, 4, 4), (1, 9, 1)]
)
def test_gsop_reduces(channels, width, c):
    assert GSoP(channels, width).reduce.out_channels == c


def test_srm_by_hand():
    block, x = build(SRM), 3 * image(2, 24, 5, 7) + 1
    w = weights(block)
    expected = x.double().numpy().copy()
    for y in expected:
        for c in range(24):
            a, b = w["cfc.weight"][c, 0, 0]
            z = a * y[c].mean() + b * np.sqrt(y[c].var() + 1e-5)
            z = (z - w["bn.running_mean"][c]) / np.sqrt(w["bn.running_var"][c] + 1e-5)
            y[c] *= sigma(z * w["bn.weight"][c] + w["bn.bias"][c])
    assert near(block(x), expected)


@pytest.mark.parametrize("moment", ["E", "S"])
def test_mca_by_hand(moment):
    block, x = build(lambda C: MCA(C, moment)), image(2, 24, 5, 7).exp()
    w = weights(block)
    expected = x.double().numpy().copy()
    for y in expected:
        std = np.sqrt(y.var((1, 2)) + 1e-5)
        third = [((channel - channel.mean()) ** 3).mean() for channel in y]
        planes = np.stack([y.mean((1, 2)), std if moment == "E" else third / std**3])
        planes = np.pad(planes, ((0, 0), (1, 1)))
        for c in range(24):
            y[c] *= sigma((w["conv.weight"][0] * planes[:, c : c + 3]).sum() + w["conv.bias"][0])
    assert near(block(x), expected, 1e-5)


def test_skewness_of_numbers_whose_skewness_is_known():
    """One of n positions is 1, the others 0: (n - 2) / sqrt(n - 1)."""
    block, x = MCA(2, "S", kernel=1, epsilon=0), torch.zeros(1, 2, 4, 4)
    x[:, :, 1, 2] = 1
    torch.nn.init.zeros_(block.conv.bias)
    block.conv.weight.data = torch.tensor([[[0.0], [1.0]]])
    assert block.gate(x).logit().flatten().tolist() == pytest.approx([14 / 15**0.5] * 2, rel=1e-4)


# --- the cosine transform ---------------------------------------------------------------------------------------------


def coefficient(channel: np.ndarray, u: int, v: int) -> float:
    """A coefficient of the orthonormal two-dimensional DCT-II of a channel (H, W), by its definition."""
    H, W = channel.shape
    total = 0.0
    for i, j in product(range(H), range(W)):
        total += channel[i, j] * np.cos(np.pi * u * (i + 0.5) / H) * np.cos(np.pi * v * (j + 0.5) / W)
    return total * np.sqrt((1 + (u > 0)) / H) * np.sqrt((1 + (v > 0)) / W)


@pytest.mark.parametrize("shape", [(7, 7), (14, 21), (28, 7)])
def test_fca_takes_the_papers_frequencies(shape):
    """In a map of 7 h x 7 w, the coefficients (h u, w v) of its own transform, over the root of its positions."""
    x = image(1, 32, *shape)
    s = FCA(32).statistic(x).flatten().tolist()
    for c, channel in enumerate(x[0].double().numpy()):
        u, v = FREQUENCIES[c // 2]
        h, w = shape[0] // 7, shape[1] // 7
        assert s[c] == pytest.approx(coefficient(channel, h * u, w * v) / channel.size**0.5, abs=1e-6)


def test_the_basis_is_orthonormal():
    """The 49 coefficients of a map of 7 x 7 have the energy of the map (Parseval)."""
    x, energy = image(1, 1, 7, 7), 0.0
    for u, v in product(range(7), range(7)):
        block = FCA(1)
        block.frequencies.copy_(torch.tensor([u, v, 2 ** (((u > 0) + (v > 0)) / 2)]).view(1, 3, 1, 1))
        energy += block.statistic(x).item() ** 2
    assert energy == pytest.approx(x.square().mean().item(), rel=1e-5)


def test_the_frequencies():
    assert len(set(FREQUENCIES)) == 16 and FREQUENCIES[0] == (0, 0)
    assert all(0 <= u < 7 and 0 <= v < 7 for u, v in FREQUENCIES)
    assert sum(u * v == 0 for u, v in FREQUENCIES) == 12  # most are along one direction


@pytest.mark.parametrize("shape", [(5, 9), (1, 1), (20, 13)])
def test_of_the_lowest_frequency_alone_it_is_se(shape):
    block, x = build(FCA), image(2, 24, *shape)
    block.frequencies[:, :2] = 0
    block.frequencies[:, 2] = 1
    other = SE(24)
    other.load_state_dict(block.state_dict())
    assert near(block(x), other(x).detach().double().numpy())
    assert isinstance(block, ChannelGate)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GSoP(24, 0), "at least 1, got 0"),
        (lambda: MCA(24, "K"), "the moment must be E or S, got 'K'"),
        (lambda: MCA(24, "E", 2), "odd, got 2"),
        (lambda: MCA(24, "E", "S"), "odd, got 'S'"),
        (lambda: GSoP(24, "S"), "at least 1, got 'S'"),
        (lambda: FCA(24, start="closed"), "open or half"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_batch_of_one_image_trains():
    """A batch norm of one value per channel has no variance: the running one is used, and left as it is."""
    block, x = build(SRM).train(), image(1, 24, 5, 7)
    before = block.bn.running_var.clone()
    block(x).sum().backward()
    assert torch.equal(block.bn.running_var, before)
    assert torch.equal(block(x), block.eval()(x))
