"""Strides by rule against strides that a forward pass shows: for every model YAML, and for every block that resizes."""

import math

import pytest
import torch
from test_registry import small, with_row

from models.architecture import layer_strides, parse_model, plain_yaml, plan_layers
from models.yolo import Model
from utils.files import ROOT

CONVOLUTIONS = ("Conv", "DWConv", "GhostConv", "GhostBottleneck", "CrossConv", "Focus")
YAMLS = sorted(p for p in (ROOT / "models").rglob("*.yaml") if p.name != "anchors.yaml")
SIDE = 256  # pixels


def measured(model: Model, side: int = SIDE) -> list[float | None]:
    """Image side over map side of each layer, to the nearest power of two (ZeroPad2d adds a pixel); None for Detect."""
    strides = []

    def keep(layer, inputs, y):
        strides.append(2.0 ** round(math.log2(side / y.shape[2])) if isinstance(y, torch.Tensor) else None)

    for layer in model.model:
        layer.register_forward_hook(keep)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side))
    return strides


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
def test_strides_by_rule_are_those_of_a_forward_pass(path):
    model = Model(path)
    narrow = Model({**model.yaml, "depth_multiple": 0.1, "width_multiple": 0.1})
    strides = layer_strides(model.yaml)
    assert strides == measured(narrow)
    assert model.stride.tolist() == model.model[-1].stride.tolist() == [strides[j] for j in model.model[-1].f]


@pytest.mark.parametrize(
    "row",
    [
        *([-1, 1, name, [96, 3, 2]] for name in CONVOLUTIONS),
        *([-1, 1, name, [96, 1]] for name in CONVOLUTIONS),
        [-1, 1, "Conv", [96, 3, [2, 2]]],
        [-1, 1, "Conv", [96, 7, 4, 3]],
        [-1, 2, "Conv", [96, 3, 2]],  # two in series
        [-1, 1, "MixConv2d", [96, [1, 3], 2]],
        [-1, 1, "nn.MaxPool2d", [2]],
        [-1, 1, "nn.MaxPool2d", [2, 2, 0]],
        [-1, 1, "nn.MaxPool2d", [3, 1, 1]],
        [-1, 1, "nn.MaxPool2d", [3, 2, 1]],
        [-1, 2, "nn.MaxPool2d", [2]],
        [-1, 1, "nn.Upsample", ["None", 4, "nearest"]],
        [-1, 1, "nn.ConvTranspose2d", [96, 2, 2]],
        [-1, 1, "nn.ConvTranspose2d", [96, 4, 2, 1]],
        [-1, 1, "nn.ConvTranspose2d", [96, 3, 2, 1, 1]],
        [-1, 1, "Contract", [2]],
        [-1, 1, "Contract", []],
        [-1, 1, "Expand", [2]],
    ],
    ids=str,
)
def test_blocks_that_resize(row):
    d = with_row(row)
    d["depth_multiple"] = 1
    d["head"][1:] = [[[5], 1, "Detect", ["nc", "anchors"]]]  # without the rows that join maps
    d["anchors"] = [[10, 13]]
    assert layer_strides(d) == measured(Model(d))


def test_planning_builds_nothing(monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_: pytest.fail("a module was built"))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert [layer.plan.channels for layer in plan_layers(small())] == [16, 32, 32, 48, 32, 32, 64, 14]
    assert layer_strides(small()) == [2, 4, 4, 8, 8, 4, 4, None]
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_planned_is_built():
    layers, _ = parse_model(small(), [3])
    for layer, planned in zip(layers, plan_layers(small()), strict=True):
        assert type(layer) is planned.block
        assert layer.f == planned.sources


def test_nothing_takes_what_detect_gives():
    d = small()
    d["head"].append([-1, 1, "Conv", [64]])
    with pytest.raises(ValueError, match=r"head row 4 \(layer 8\): Conv from -1: the output of Detect is not a map"):
        Model(d)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nc": 10**9}, "x.yaml: nc must be a positive number up to 32768, got 1000000000"),
        ({"width_multiple": math.inf}, "x.yaml: width_multiple must be a positive number up to 1000, got inf"),
        ({"depth_multiple": math.nan}, "x.yaml: depth_multiple must be a positive number up to 1000, got nan"),
        ({"anchors": 10**9}, "a number of anchors from 1 to 1000"),
        ({"anchors": [[math.inf, 1]]}, "anchors must be numbers of pixels"),
        ({"anchors": [[1] * 4000]}, "anchors may have at most 100 levels of 1000 pairs"),
        ({"ch": 100_000}, "x.yaml: ch, channels of an image, must be from 1 to 1024, got 100000"),
        ({"ch": "3"}, "x.yaml: ch, channels of an image, must be from 1 to 1024"),
        ({"backbone": [[-1, 1, "nn.Identity", []]] * 10_001}, "rows, more than 10000, the maximum"),
        ({"backbone": [[-1, 10**8, "nn.Identity", []]]}, "a whole number from 1 to 1000, got 100000000"),
        (
            {"backbone": [[-1, 900, "Conv", [16]]], "depth_multiple": 2},
            "a row may be repeated at most 1000 times, got 1800",
        ),
        ({"backbone": [[-1, 1, "Conv", [10**7]]]}, "a map may have 1 to 65536 channels"),
        ({"backbone": [[-1, 1, "Conv", [0]]]}, "a map may have 1 to 65536 channels"),
        ({"backbone": [[-1, 1, "Conv", [16, [1] * 2000]]]}, "a row may have at most 1000 values as args"),
        ({"backbone": [[-1, 1, "Contract", [0]]]}, "a stride or scale must be a positive number"),
        ({"backbone": [[-1, 1, "Conv", [65536]], [-1, 1, "Conv", [65536, 3]]]}, "more than 536870912 parameters"),
        ({"backbone": [[-1, 1, "Conv", [16, 10**6]]]}, "more than 536870912 parameters"),
    ],
    ids=str,
)
def test_what_would_fill_the_memory_is_refused_by_its_limit(changes, message):
    d = {
        **small(),
        "width_multiple": 1,
        "depth_multiple": 1,
        "head": [[[0], 1, "Detect", ["nc", "anchors"]]],
        **changes,
    }
    with pytest.raises(ValueError) as error:
        parse_checked(d)
    assert message in str(error.value)


def parse_checked(d: dict) -> None:
    parse_model(plain_yaml(d, "x.yaml"), [d.get("ch", 3)], "x.yaml")


def test_the_limits_leave_room_for_the_largest_use():
    nc = 21_841  # ImageNet-21k
    d = {**small(), "nc": nc, "depth_multiple": 1, "width_multiple": 1, "anchors": 1}
    assert plan_layers(plain_yaml(d))[-1].plan.channels == nc + 5
