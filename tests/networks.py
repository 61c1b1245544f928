"""Builds what a rule about every network must hold for: one block of each kind, and a narrow model of each YAML."""

import torch
from torch import nn

from models import registry
from models.architecture import plain_yaml
from models.registry import Row, keeps_channels, lookup
from models.yolo import Model
from utils.files import ROOT, read_yaml

CHANNELS = 24
NAMES = [name for name in registry._BLOCKS if name != "Detect"]  # which is in every YAML
ARGUMENTS = {
    "Concat": [1],
    "Contract": [2],
    "Expand": [2],
    "Focus": [32, 3],
    "GhostBottleneck": [CHANNELS],
    "nn.ConvTranspose2d": [32, 2, 2],
    "nn.Upsample": [None, 2, "nearest"],
    "nn.ZeroPad2d": [[0, 1, 0, 1]],
}
BY_RULE = {keeps_channels: [], registry.passes: [], registry.normalises: [], registry.pools: [2, 2]}


def block(name: str) -> nn.Module:
    """The block that model YAMLs name so, for maps of CHANNELS channels."""
    kind, rule = lookup(name)
    arguments = ARGUMENTS.get(name) or BY_RULE.get(rule, [32])
    channels = [CHANNELS, CHANNELS] if name == "Concat" else [CHANNELS]
    return kind(*rule(Row(channels, 2, arguments, 1.0, 255, len(channels) > 1)).arguments)


def inputs(name: str, *shape: int) -> torch.Tensor | list[torch.Tensor]:
    """What a block takes: a map (N, CHANNELS, H, W) for the shape (N, H, W), or a list of two."""
    maps = [torch.randn(shape[0], CHANNELS, *shape[1:]) for _ in range(2)]
    return maps if name == "Concat" else maps[0]


def narrow(path) -> dict:
    """A YAML with stages of one block and a width of 8 or a little more."""
    return plain_yaml(read_yaml(path), path.name, path) | {"width_multiple": 1 / 64, "depth_multiple": 0.1, "nc": 3}


def narrow_yamls() -> dict[str, dict]:
    """Each network of models/ by the name of a YAML; the sizes of one network are the same when they are narrow."""
    paths = sorted(p for p in (ROOT / "models").rglob("*.yaml") if p.name != "anchors.yaml")
    networks = {}
    for path in paths:
        content = narrow(path)
        if content not in networks.values():
            networks[path.stem] = content
    return networks


def narrow_model(content: dict) -> Model:
    """A model of `narrow_yamls`, the same each time."""
    torch.manual_seed(0)
    return Model(content)
