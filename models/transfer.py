"""Weights from one architecture into another.

v6.1 matches layers by number, so that one inserted row loses everything after it. Here the two sequences of layers are
aligned first, and each layer of the new model takes what its counterpart in the old one has. A block without a
counterpart that offers `start_as_identity()` has it called, so that the model begins as good as its weights.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import nn

from models.yolo import Detect, Model
from utils.log import LOGGER

ANCHOR_TOLERANCE = 0.01  # relative; checkpoints hold anchors in half precision
ANY_LAYER = 10**12  # counts more in an alignment than all numbers of a model
BOX_ROWS = 5  # of a detection map's channels per anchor: x, y, w, h and objectness; one per class follows


class Fate(NamedTuple):
    """What became of one layer of the new model."""

    source: int | None  # the layer of the weights that it took from
    whole: int  # tensors taken whole
    text: str


@torch.no_grad()
def transfer(source: Model, target: Model, own_anchors: bool = False, names: Sequence[str] | None = None) -> int:
    """Copies into target what source has for it, and logs what became of every layer.

    Layers take every tensor of the same name and shape. The detection head takes the box and objectness rows whatever
    the number of classes, and the row of each class that both know by name.

    Args:
        source: the trained model; float32.
        target: the new one, changed in place.
        own_anchors: target keeps its anchors; its head then takes nothing from a head with other anchors.
        names: classes of the data set. None, or as many as source has but none in common: by position.

    Returns: how many entries of target's state were taken whole.
    """
    counterpart = {j: i for i, j in align(source.model, target.model)}
    fates = {}
    for j, i in counterpart.items():
        old, new = source.model[i], target.model[j]
        if isinstance(new, Detect):
            whole, text = _copy_head(old, new, own_anchors, _class_pairs(source.names, names, old.nc, new.nc))
        else:
            whole, text = _copy(old, new)
        fates[j] = Fate(i, whole, text.format(source=i))

    from_scratch = not any(fate.whole and _tensors(target.model[j]) for j, fate in fates.items())
    for j, new in enumerate(target.model):
        fates.setdefault(j, Fate(None, 0, "new"))
        if not fates[j].whole and not from_scratch and _start_as_identity(new):
            fates[j] = fates[j]._replace(text="new, starts as identity")

    carried = sum(fate.whole for fate in fates.values())
    LOGGER.info(f"carried {carried} of {len(target.state_dict())} tensors over from the weights; layer by layer:")
    _report(source.model, target.model, fates)
    if from_scratch:
        LOGGER.warning("nothing of the weights fits this architecture: training starts from scratch")
    return carried


# --- which layer takes from which -------------------------------------------------------------------------------------


def align(source: nn.Sequential, target: nn.Sequential) -> list[tuple[int, int]]:
    """Pairs (layer of source, layer of target) of the same class, both ascending.

    As many pairs as there can be, and of those alignments the one by which the most numbers are carried over. Detection
    heads pair with each other.
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
    # best[i][j]: the most that the layers from i of source and from j of target have in common
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
    """How many numbers fit."""
    return sum(t.numel() for name, t in new.items() if name in old and old[name].shape == t.shape)


def _tensors(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t for name, t in layer.state_dict().items() if isinstance(t, torch.Tensor)}


# --- copying ----------------------------------------------------------------------------------------------------------


def _copy(old: nn.Module, new: nn.Module) -> tuple[int, str]:
    """Copies the tensors that fit; how many, and in words."""
    state, tensors = _tensors(old), _tensors(new)
    fitting = [name for name, tensor in tensors.items() if name in state and state[name].shape == tensor.shape]
    # vectors without a matrix describe other features
    if len(fitting) < len(tensors) and not any(tensors[name].ndim > 1 for name in fitting):
        return 0, "left out: its shape differs from layer {source} of the weights"
    for name in fitting:
        tensors[name].copy_(state[name])
    if len(fitting) == len(tensors):
        return len(fitting), "carried"
    return len(fitting), f"partly carried: {len(fitting)} of {len(tensors)} tensors fit"


def _copy_head(old: Detect, new: Detect, own_anchors: bool, classes: list[tuple[int, int]]) -> tuple[int, str]:
    """Copies what the heads have in common; how many tensors whole, and in words. classes: rows (old, new) to copy."""
    if (old.nl, old.na) != (new.nl, new.na):
        have = f"it has {new.nl} levels of {new.na} anchors; the weights have {old.nl} of {old.na}"
        return 0, f"left out: {have}"
    pixels = [head.anchors * head.stride.view(-1, 1, 1) for head in (old, new)]
    if not own_anchors:
        new.anchors.copy_(pixels[0] / new.stride.view(-1, 1, 1))
    elif not torch.allclose(*pixels, rtol=ANCHOR_TOLERANCE, atol=0):
        return 0, "left out: its anchors differ from the weights', and boxes are stated in anchors"

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
    """Pairs (class of the weights, class of the data set) that mean the same."""
    old_names = list(old_names.values() if isinstance(old_names, dict) else old_names)
    number = {str(name).strip().lower(): i for i, name in enumerate(old_names[:old_nc])}
    wanted = [str(name).strip().lower() for name in names or ()]
    pairs = [(number[name], j) for j, name in enumerate(wanted) if name in number]
    return pairs if pairs or old_nc != nc else [(k, k) for k in range(nc)]


def _start_as_identity(layer: nn.Module) -> bool:
    """Asks every block within a layer that offers it; whether one did."""
    blocks = [m for m in layer.modules() if hasattr(m, "start_as_identity")]
    for block in blocks:
        block.start_as_identity()
    return bool(blocks)


# --- the report -------------------------------------------------------------------------------------------------------


def _kind(layer: nn.Module) -> str:
    return layer.type.rpartition(".")[2]


def _report(source: nn.Sequential, target: nn.Sequential, fates: dict[int, Fate]) -> None:
    """One line per layer; layers in a row that were carried whole from layers in a row share one."""

    def run(j: int) -> tuple:  # the same for all layers that share a line
        fate = fates[j]
        return (fate.text, j - fate.source) if fate.text == "carried" else (fate.text, -j - 1)

    for _, group in groupby(range(len(target)), run):
        first, *rest = group
        last = rest[-1] if rest else first
        fate = fates[first]
        text, shift = fate.text, first - (fate.source or 0)
        text = text.replace("carried", f"carried from {_span(first - shift, last - shift)}", 1)
        kind = f"{_kind(target[first])} to {_kind(target[last])}" if rest else _kind(target[first])
        LOGGER.info(f"{_span(first, last):>7}  {kind:<16} {text}")
    used = {fate.source for fate in fates.values()}
    if unused := [f"{i} {_kind(layer)}" for i, layer in enumerate(source) if i not in used]:
        LOGGER.info(f"not used of the weights: {', '.join(unused)}")


def _span(first: int, last: int) -> str:
    return f"{first}-{last}" if last > first else f"{first}"
