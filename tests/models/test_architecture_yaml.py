"""Strides by rule against strides that a forward pass shows: for every model YAML, and for every block that resizes."""

import math

import pytest
import torch
from test_registry import small, with_row

from models.architecture import layer_strides, parse_model, plan_layers
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
