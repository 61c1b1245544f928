"""YAML name -> block, and the rule that says how a block is built from its row.

A new block is one class and one decorator:

    @register(keeps_channels)
    class MyAttention(nn.Module):
        def __init__(self, channels, reduction=16): ...

A rule answers one question: given the incoming channels and the YAML row, what are the constructor's arguments, how
many channels come out, and how many copies stand in series? A block that offers `start_as_identity()` has it called
where it is new among trained layers (models/transfer.py).
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Row:
    """One row of a model YAML, as a rule sees it."""

    channels: list[int]  # incoming, one per entry of `from`
    repeats: int  # after the depth multiple
    args: list  # words such as `nc` already resolved
    width: float  # the width multiple
    outputs: int  # channels of one detection map; a width equal to it is never scaled


Rule = Callable[[Row], tuple[list, int, int]]  # -> constructor arguments, outgoing channels, copies in series


# --- rules ------------------------------------------------------------------------------------------------------------


def scaled(channels: int, row: Row) -> int:
    """A width from the YAML times the width multiple, rounded up to a multiple of 8."""
    return channels if channels == row.outputs else math.ceil(channels * row.width / 8) * 8


def _first(row: Row) -> int:
    if not row.args or not isinstance(row.args[0], int):
        raise ValueError(f"the first argument must be a number of channels, got {row.args}")
    return row.args[0]


def widens(row: Row) -> tuple[list, int, int]:
    """Convolutions: (c1, c2 x width, *args)."""
    c2 = scaled(_first(row), row)
    return [row.channels[0], c2, *row.args[1:]], c2, row.repeats


def widens_repeating(row: Row) -> tuple[list, int, int]:
    """Stages that repeat inside themselves: (c1, c2 x width, n x depth, *args)."""
    c2 = scaled(_first(row), row)
    return [row.channels[0], c2, row.repeats, *row.args[1:]], c2, 1


def keeps_channels(row: Row) -> tuple[list, int, int]:
    """Attention: (c1, *args). A row may state the width, `[1024]` or `[1024, 8]`; it must then be the incoming one.

    `[None, 8]` gives the other arguments without stating it.
    """
    c1 = row.channels[0]
    if row.args and row.args[0] is not None and (stated := scaled(_first(row), row)) != c1:
        raise ValueError(
            f"takes the {c1} channels that come in, but the row states {row.args[0]} "
            f"(x width_multiple {row.width} = {stated}); write [{math.floor(c1 / row.width)}] or []"
        )
    return [c1, *row.args[1:]], c1, row.repeats


def passes(row: Row) -> tuple[list, int, int]:
    """Layers without channels of their own: arguments unchanged."""
    return row.args, row.channels[0], row.repeats


def normalises(row: Row) -> tuple[list, int, int]:
    """Normalisation: (c1)."""
    return [row.channels[0]], row.channels[0], row.repeats


def joins(row: Row) -> tuple[list, int, int]:
    """Concatenation: channels add up."""
    return row.args, sum(row.channels), row.repeats


def contracts(row: Row) -> tuple[list, int, int]:
    """Space to channels."""
    return row.args, row.channels[0] * row.args[0] ** 2, row.repeats


def expands(row: Row) -> tuple[list, int, int]:
    """Channels to space."""
    return row.args, row.channels[0] // row.args[0] ** 2, row.repeats


def detects(row: Row) -> tuple[list, int, int]:
    """The detection head: (nc, anchors, [c1, ...]). An anchor count stands for the placeholders 0, 1, 2, ... pixels."""
    nc, anchors = row.args
    if isinstance(anchors, int):
        anchors = [list(range(anchors * 2))] * len(row.channels)
    return [nc, anchors, row.channels], row.outputs, 1


# --- the table --------------------------------------------------------------------------------------------------------

_BLOCKS: dict[str, tuple[type, Rule]] = {}


def register(rule: Rule, name: str = "") -> Callable[[type], type]:
    """Class decorator: model YAMLs may name the class, built by `rule`. ValueError when the name is taken."""

    def add(block: type) -> type:
        key = name or block.__name__
        if key in _BLOCKS:
            raise ValueError(f"block name {key!r} is taken by {_BLOCKS[key][0]}; choose another")
        _BLOCKS[key] = (block, rule)
        return block

    return add


def lookup(name: str) -> tuple[type, Rule]:
    """The class and rule of a name; ValueError with the nearest name when there is none."""
    if name in _BLOCKS:
        return _BLOCKS[name]
    near = difflib.get_close_matches(str(name), _BLOCKS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known modules: {', '.join(sorted(_BLOCKS))}"
    raise ValueError(f"unknown module {name!r}; {hint}")


def registered_classes() -> set[type]:
    """Every class that a model YAML may name."""
    return {block for block, _ in _BLOCKS.values()}
