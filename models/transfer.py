"""Carries weights from one architecture over to another.

v6.1 matches layers by number, so that one inserted row loses everything after it. Here the two sequences of layers are
aligned first, and each layer of the new model takes the weights of its counterpart in the old one. A block without a
counterpart that has a method `start_as_identity()` has it called, so that the model begins as good as its weights.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import nn

from models.gates import ChannelGate, start_of
from models.registry import has, lacks
from models.yolo import Detect, Model
from utils.log import LOGGER

ANCHOR_TOLERANCE = 0.01  # relative; checkpoints hold anchors in half precision
ANY_LAYER = 10**12  # an aligned layer counts more than all parameters of a model
BOX_ROWS = 5  # of a detection map's channels per anchor: x, y, w, h and objectness; one per class follows


class LayerTransfer(NamedTuple):
    """What one layer of the new model took over from the weights."""

    source: int | None  # number of the layer that it took from
    whole: int  # tensors that were copied whole
    text: str  # for the report


@torch.no_grad()
def transfer(source: Model, target: Model, own_anchors: bool = False, names: Sequence[str] | None = None) -> int:
    """Copies the weights of source into target where they fit, and logs for each layer what was copied.

    Layers take every tensor of the same name and shape. The detection head takes the box and objectness rows for any
    number of classes, and the row of each class whose name both models have.

    Args:
        source: the trained model; float32.
        target: the new model, changed in place.
        own_anchors: target keeps its anchors; its head then takes nothing from a head with other anchors.
        names: class names of the data set. Classes are matched by position where it is None, or where source has as
            many classes and no name in common.

    Returns the number of entries of target's state that were copied whole.
    """
    counterpart = {j: i for i, j in align(source.model, target.model)}
    transfers = {}
    for j, i in counterpart.items():
        old, new = source.model[i], target.model[j]
        if isinstance(new, Detect):
            whole, text = _copy_head(old, new, own_anchors, _class_pairs(source.names, names, old.nc, new.nc))
        else:
            whole, text = _copy(old, new)
        transfers[j] = LayerTransfer(i, whole, text.format(source=i))

    from_scratch = not any(t.whole and _tensors(target.model[j]) for j, t in transfers.items())
    for j, new in enumerate(target.model):
        transfers.setdefault(j, LayerTransfer(None, 0, "new"))
        if not transfers[j].whole and not from_scratch:
            if _start_as_identity(new):
                transfers[j] = transfers[j]._replace(text=f"{transfers[j].text}, starts as identity")
            elif lacks(new, "start_as_identity"):
                text = f"{transfers[j].text}; it has no start_as_identity(), so it changes what later layers know"
                transfers[j] = transfers[j]._replace(text=text)

    carried = sum(t.whole for t in transfers.values())
    LOGGER.info(f"carried {carried} of {len(target.state_dict())} tensors over from the weights; layer by layer:")
    _report(source.model, target.model, transfers)
    if from_scratch:
        LOGGER.warning("no layer of the weights fits this architecture: training starts from scratch")
    return carried


# --- the alignment of layers ------------------------------------------------------------------------------------------


def align(source: nn.Sequential, target: nn.Sequential) -> list[tuple[int, int]]:
    """Returns pairs (layer of source, layer of target) of the same class, both ascending.

    There are as many pairs as possible; of all such alignments it is the one that carries the most parameters over.
    Detection heads are a pair.
    """
    old, new = list(source), list(target)
    heads = []
    if isinstance(old[-1], Detect) and isinstance(new[-1], Detect):
        heads = [(len(old) - 1, len(new) - 1)]
        old, new = old[:-1], new[:-1]
    old_tensors, new_tensors = [_tensors(m) for m in old], [_tensors(m) for m in new]
    gains = [
        [ANY_LAYER + _common(x, y) if type(a) is type(b) else 0 for b, y in zip(new, new_tensors)]
        for a, x in zip(old, old_tensors)
    ]
    # best[i][j]: the largest gain of an alignment of the layers from i of source with those from j of target
    best = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i in reversed(range(len(old))):
        for j in reversed(range(len(new))):
            best[i][j] = max(best[i + 1][j], best[i][j + 1], gains[i][j] + best[i + 1][j + 1])
    pairs, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        if gains[i][j] and best[i][j] == gains[i][j] + best[i + 1][j + 1]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return pairs + heads


def _common(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> int:
    """Returns the number of parameters that fit."""
    return sum(t.numel() for name, t in new.items() if name in old and old[name].shape == t.shape)


def _tensors(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t for name, t in layer.state_dict().items() if isinstance(t, torch.Tensor)}


# --- copying ----------------------------------------------------------------------------------------------------------


def _copy(old: nn.Module, new: nn.Module) -> tuple[int, str]:
    """Copies the tensors that fit; returns their number and a text for the report."""
    state, tensors = _tensors(old), _tensors(new)
    fitting = [name for name, tensor in tensors.items() if name in state and state[name].shape == tensor.shape]
    # without a matrix that fits, the vectors belong to other features
    if len(fitting) < len(tensors) and not any(tensors[name].ndim > 1 for name in fitting):
        return 0, "left out: its shape differs from layer {source} of the weights"
    if isinstance(new, ChannelGate) and all(name in fitting for name in tensors if name.startswith("conv_du")):
        if start_of(old.conv_du) != start_of(new.conv_du):
            return 0, "left out: the gate of layer {source} of the weights has another start"
        new.take(old)  # whatever the unit and the rate of the two
        return len(tensors), "carried"
    for name in fitting:
        tensors[name].copy_(state[name])
    if len(fitting) == len(tensors):
        return len(fitting), "carried"
    return len(fitting), f"partly carried: {len(fitting)} of {len(tensors)} tensors fit"


def _copy_head(old: Detect, new: Detect, own_anchors: bool, classes: list[tuple[int, int]]) -> tuple[int, str]:
    """Copies the rows that both heads have, of the classes those in the pairs (old, new).

    Returns the number of tensors that were copied whole and a text for the report.
    """
    if (old.nl, old.na) != (new.nl, new.na):
        return 0, f"left out: it has {new.nl} levels of {new.na} anchors, and the weights have {old.nl} of {old.na}"
    pixels = [head.anchors * head.stride.view(-1, 1, 1) for head in (old, new)]
    if not own_anchors:
        new.anchors.copy_(pixels[0] / new.stride.view(-1, 1, 1))
    elif not torch.allclose(*pixels, rtol=ANCHOR_TOLERANCE, atol=0):
        return 0, "left out: its anchors differ from those of the weights, and boxes depend on them"

    rows = [(k, k) for k in range(BOX_ROWS)] + [(BOX_ROWS + i, BOX_ROWS + j) for i, j in classes]
    from_rows, to_rows = map(list, zip(*rows))
    fitting = [(a, b) for a, b in zip(old.m, new.m) if a.weight.shape[1] == b.weight.shape[1]]
    for a, b in fitting:
        for x, y in ((a.weight, b.weight), (a.bias, b.bias)):
            y.view(new.na, new.no, -1)[:, to_rows] = x.view(old.na, old.no, -1)[:, from_rows]
    if not fitting:
        return 0, "left out: the maps that come in differ in width"
    every_class = len(classes) == new.nc
    whole = (not own_anchors) + (2 * len(fitting) if every_class else 0)
    if every_class and len(fitting) == new.nl:
        return whole, "carried"
    levels = "" if len(fitting) == new.nl else f" on {len(fitting)} of {new.nl} levels (the others differ in width)"
    return whole, f"partly carried: boxes, objectness and {len(classes)} of {new.nc} classes{levels}"


def _class_pairs(
    old_names: Sequence[str] | dict[int, str], names: Sequence[str] | None, old_nc: int, nc: int
) -> list[tuple[int, int]]:
    """Returns pairs (class of the weights, class of the data set) that are the same class."""
    old_names = list(old_names.values() if isinstance(old_names, dict) else old_names)
    number = {str(name).strip().lower(): i for i, name in enumerate(old_names[:old_nc])}
    new_names = [str(name).strip().lower() for name in names or ()]
    pairs = [(number[name], j) for j, name in enumerate(new_names) if name in number]
    return pairs if pairs or old_nc != nc else [(k, k) for k in range(nc)]


def _start_as_identity(layer: nn.Module) -> bool:
    """Calls `start_as_identity` of every block in a layer that has it; returns whether there is one."""
    blocks = [m for m in layer.modules() if has(m, "start_as_identity")]
    for block in blocks:
        block.start_as_identity()
    return bool(blocks)


# --- the report -------------------------------------------------------------------------------------------------------


def _kind(layer: nn.Module) -> str:
    return layer.type.rpartition(".")[2]


def _report(source: nn.Sequential, target: nn.Sequential, transfers: dict[int, LayerTransfer]) -> None:
    """Logs one line per layer; consecutive layers that were carried whole from consecutive layers share a line."""

    def line_of(j: int) -> tuple:  # the same for all layers that share a line
        text, source = transfers[j].text, transfers[j].source
        return (text, j - source) if text == "carried" else (text, -j - 1)

    for _, group in groupby(range(len(target)), line_of):
        first, *rest = group
        last = rest[-1] if rest else first
        text, shift = transfers[first].text, first - (transfers[first].source or 0)
        text = text.replace("carried", f"carried from {_span(first - shift, last - shift)}", 1)
        kind = f"{_kind(target[first])} to {_kind(target[last])}" if rest else _kind(target[first])
        LOGGER.info(f"{_span(first, last):>7}  {kind:<16} {text}")
    used = {t.source for t in transfers.values()}
    if unused := [f"{i} {_kind(layer)}" for i, layer in enumerate(source) if i not in used]:
        LOGGER.info(f"layers of the weights that are not used: {', '.join(unused)}")


def _span(first: int, last: int) -> str:
    return f"{first}-{last}" if last > first else f"{first}"
