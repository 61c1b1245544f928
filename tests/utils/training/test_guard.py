"""The first place at which numbers stop being finite, found in networks that were spoiled in a known place."""

import pytest
import torch
from torch import nn

from utils.training.guard import first_not_finite, weights_not_finite


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x))


class Network(nn.Module):
    """Gives a list of maps, as a detector does in training."""

    def __init__(self):
        super().__init__()
        self.first = Block()
        self.second = nn.Sequential(nn.Conv2d(4, 3, 1), nn.ReLU())
        self.last = Block()

    def forward(self, x):
        return [self.last(self.second(self.first(x)))]


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FINE = "the outputs of all layers are finite, so it is the loss"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["first.conv.bias", "first.bn.running_var", "second.0.weight", "last.bn.weight"])
def test_a_spoiled_tensor_is_named(network, name, value):
    assert weights_not_finite(network) is None
    network.state_dict()[name].view(-1)[-1] = value
    assert weights_not_finite(network) == name


def test_of_several_the_first_is_named_and_whole_numbers_are_none(network):
    network.last.conv.weight.data[:] = torch.nan
    network.second[0].bias.data[0] = torch.inf
    network.first.bn.num_batches_tracked.fill_(2**62)
    assert weights_not_finite(network) == "second.0.bias"
    assert first_not_finite(network, IMAGES) == "second.0.bias is not finite"
    assert weights_not_finite(nn.ReLU()) is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_images_that_are_not_finite(network, value):
    images = IMAGES.clone()
    images[1, 2, 3, 4] = value
    assert first_not_finite(network, images) == "the images are not finite"


def test_a_layer_that_overflows_is_named_though_batch_norm_took_it_in(network):
    network.second[0].weight.data[:] = 3e38
    network(IMAGES * 1000)  # the batch of which the loss was no number
    assert weights_not_finite(network) == "last.bn.running_mean"
    found = first_not_finite(network, IMAGES * 1000)
    assert found == "the first layer whose output is not finite is second.0 (Conv2d)"


def test_statistics_that_are_none_count_where_they_are_used(network):
    network.first.bn.running_var[0] = torch.nan
    assert first_not_finite(network.train(), IMAGES).startswith(FINE)
    network.first.bn.running_var[0] = torch.nan  # which the pass above has not mended
    assert first_not_finite(network.eval(), IMAGES).endswith("first.bn (BatchNorm2d)")


def test_a_layer_that_overflows_in_half_precision_alone(network):
    network.second[0].weight.data[:] = 1e5
    assert first_not_finite(network.train(), IMAGES).startswith(FINE)
    assert first_not_finite(network, IMAGES, torch.float16).endswith("is second.0 (Conv2d)")
    assert first_not_finite(network, IMAGES, torch.bfloat16).startswith(FINE)


def test_nothing_is_left_behind(network):
    def hooks():
        return [len(m._forward_hooks) for m in network.modules()]

    none = hooks()
    assert first_not_finite(network, IMAGES).startswith(FINE)
    assert hooks() == none and all(p.grad is None for p in network.parameters())
    with pytest.raises(RuntimeError):
        first_not_finite(network, IMAGES[:, :2])
    assert hooks() == none
