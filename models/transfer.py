"""Weights from one architecture into another.

v6.1 matches layers by number, so that one inserted row loses everything after it. Here the two sequences of layers are
aligned first, and each layer of the new model takes what its counterpart in the old one has.
"""

from difflib import SequenceMatcher

import torch
from torch import nn

from models.yolo import Detect, Model
from utils.log import LOGGER


def transfer(source: Model, target: Model, skip: tuple[str, ...] = ()) -> int:
    """Copies into target every tensor of source that has a counterpart of the same shape.

    Args:
        source: the trained model; float32.
        target: the new one, changed in place.
        skip: leave out tensors whose name contains one of these.

    Returns: how many entries of target's state were taken.
    """
    state, new = source.state_dict(), target.state_dict()
    carried = {}
    for i, j in align(source.model, target.model):
        for name in new:
            prefix = f"model.{j}."
            if not name.startswith(prefix) or any(word in name for word in skip):
                continue
            old = state.get(f"model.{i}.{name[len(prefix) :]}")
            if old is not None and old.shape == new[name].shape:
                carried[name] = old
    target.load_state_dict(carried, strict=False)
    LOGGER.info(f"carried {len(carried)} of {len(new)} tensors over from the weights")
    if not any(tensor.ndim for tensor in carried.values()):  # the counters of batch norm always fit
        LOGGER.warning("nothing of the weights fits this architecture: training starts from scratch")
    return len(carried)


def align(source: nn.Sequential, target: nn.Sequential) -> list[tuple[int, int]]:
    """Pairs (layer of source, layer of target) in order: equal layers, and between them those of the same kind."""
    matcher = SequenceMatcher(None, [_signature(m) for m in source], [_signature(m) for m in target], autojunk=False)
    pairs = []
    for operation, i1, i2, j1, j2 in matcher.get_opcodes():
        if operation == "equal" or (operation == "replace" and i2 - i1 == j2 - j1):
            pairs += [(i, j) for i, j in zip(range(i1, i2), range(j1, j2)) if type(source[i]) is type(target[j])]
    heads = (len(source) - 1, len(target) - 1)
    if isinstance(source[-1], Detect) and isinstance(target[-1], Detect) and heads not in pairs:
        pairs.append(heads)
    return pairs


def _signature(layer: nn.Module) -> tuple:
    shapes = tuple((name, tuple(t.shape)) for name, t in layer.state_dict().items() if isinstance(t, torch.Tensor))
    return type(layer).__name__, shapes
