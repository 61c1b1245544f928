"""The fit against hand numbers, the measurement against a memory that is made up: no GPU is needed."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from utils.training.autobatch import DEFAULT, auto_batch_size, choose, fit_batch_size, measure

GIB = 2**30


@pytest.fixture
def log(caplog):
    """Messages of the project's logger, which does not pass them on."""
    logger = logging.getLogger("yolov5")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "yolov5")
    yield caplog
    logger.removeHandler(caplog.handler)


class Network(nn.Module):
    """Two maps, as a detector gives them; out of memory from `limit` images on. `seen` outlives copies."""

    def __init__(self, seen, limit=1000):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.seen = SimpleNamespace(sizes=seen)
        self.limit = limit

    def __deepcopy__(self, memo):
        copy = Network(self.seen.sizes, self.limit)
        copy.load_state_dict(self.state_dict())
        return copy

    def forward(self, images):
        self.seen.sizes.append(len(images))
        assert self.training and self.conv[0].weight.requires_grad
        if len(images) >= self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        features = self.conv(images)
        return [features, features[..., ::2, ::2]]


# --- the fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes, used, free, share, batch",
    [
        # 1 GiB and half a GiB an image: 9.09 GiB hold 16 of them
        ((1, 2, 4, 8, 16), (1.5, 2, 3, 5, 9), 10.1, 0.9, 16),
        ((1, 2, 4, 8, 16), (1.5, 2, 3, 5, 9), 10.1, 0.5, 8),
        ((1, 2, 4), (1.5, 2, 3), 100, 0.9, 178),  # beyond what was measured
        ((4, 8), (3, 5), 10.1, 0.9, 16),  # sizes and bytes stay together whichever are missing
        ((1, 2, 4, 8), (1.5, 2, 3, 5), 1, 0.9, 1),  # never below 1
        ((1, 2, 4), (1.4, 2.2, 2.9), 10, 0.9, 16),  # least squares: slope 0.4786, base 1.05
        ((1,), (3,), 100, 0.9, 1),  # no line through one point
        ((1, 2, 4), (2, 2, 2), 100, 0.9, 4),  # no growth
    ],
)
def test_fit_by_hand(sizes, used, free, share, batch):
    assert fit_batch_size(sizes, [round(taken * GIB) for taken in used], share * round(free * GIB)) == batch


@pytest.mark.parametrize("sizes", [(1, 2), (1, 2, 4), (1, 2, 4, 8, 16)])
def test_memory_that_does_not_grow_gives_the_largest_size_measured(sizes):
    """Whatever the number of bytes: a slope of rounding errors would promise any number of images."""
    for used in (1, 3, 3_141_592_653, 2**31 - 1, 7**12, 10**11 + 1):
        assert fit_batch_size(sizes, [used] * len(sizes), 10**12) == max(sizes)


def test_a_size_that_failed_is_never_chosen(log):
    used = [3 * GIB // 2, 2 * GIB, 3 * GIB]
    assert choose([1, 2, 4], used, 8, 100 * GIB, 640) == 4
    assert "batch size 4, memory ran out at 8; GiB by batch size: 1: 1.50, 2: 2.00, 4: 3.00" in log.text
    assert choose([1, 2, 4], used, 8, 4 * GIB, 640) == 5
    assert "batch size 5, 90% of the 4.0 GiB that are free" in log.text


def test_not_even_one_image():
    with pytest.raises(ValueError, match=r"not even one image of 1280 pixels fits into the 2\.0 GiB"):
        choose([], [], 1, 2 * GIB, 1280)


# --- the measurement --------------------------------------------------------------------------------------------------


def test_measured_sizes_and_bytes():
    seen = []
    readings = iter([100, 130, 160, 220])
    model = Network(seen).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert measure(model, 8, lambda: next(readings), None, (1, 2, 4)) == ([1, 2, 4], [30, 60, 120], None)
    assert seen == [1, 1, 2, 2, 4, 4]
    assert not model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_measuring_stops_where_memory_runs_out():
    seen = []
    readings = iter([0, 10, 20])
    assert measure(Network(seen, limit=4), 8, lambda: next(readings), torch.bfloat16) == ([1, 2], [10, 20], 4)
    assert seen == [1, 1, 2, 2, 4]


def test_other_errors_pass():
    model = nn.Conv2d(1, 1, 1)
    with pytest.raises(RuntimeError, match="channels"):
        measure(model, 8, lambda: 0, None)


def test_a_cpu_takes_the_default(log):
    seen = []
    assert auto_batch_size(Network(seen), 640) == DEFAULT == 16
    assert not seen and "measured on a CUDA GPU only" in log.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu():
    from models.yolo import Model

    model = Model("models/yolov5n.yaml").cuda()
    batch = auto_batch_size(model, 128)
    assert batch >= 1
    assert auto_batch_size(model, 256) < batch
