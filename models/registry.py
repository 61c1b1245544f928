"""Maps the name of a block in a model YAML to its class and to the rule that says how a row of the YAML is built.

A new block is one class and one decorator:

    @register(keeps_channels)
    class MyAttention(nn.Module):
        def __init__(self, channels, reduction=16): ...

A rule reads a row and answers: what are the arguments of the constructor, how many channels come out, how many copies
stand in series, and by which factor does the stride grow? Strides are known from the rules alone, no image is needed;
so a block that makes its map smaller or larger needs a rule that says so (`convolves`, or one of its own).

A block may define two methods more. It works without them, and is said to lack them wherever that matters:

    start_as_identity()   makes a block that is new among trained layers change its map as little as possible
                          (models/transfer.py calls it)
    gate(x)               returns what the block multiplies its map x (N, C, H, W) by: (N, C, 1, 1), or (N, C, H, W)
                          where positions differ. Then tools/attend.py, the histograms of gates, and the comparison
                          with the gate and without work on it (models/attention_view.py)

A file of the user's own that --blocks names (utils/user_blocks.py) registers blocks in the same way.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

MAX_ANCHORS = 1000  # of one detection map


@dataclass(frozen=True)
class Row:
    """A row of a model YAML, as a rule sees it."""

    channels: list[int]  # incoming, one per entry of `from`
    repeats: int  # after the depth multiple
    args: list  # words such as `nc` are already replaced by their values
    width: float  # the width multiple
    outputs: int  # channels of one detection map; a width equal to it is never scaled
    several: bool = False  # whether `from` is a list: the block is then called with a list of maps


class Plan(NamedTuple):
    """What a rule makes of a row."""

    arguments: list  # of the constructor
    channels: int  # outgoing
    copies: int = 1  # in series
    stride: float | None = 1  # side of the incoming map over side of the outgoing one; None: no single map comes out


Rule = Callable[[Row], Plan]


# --- rules ------------------------------------------------------------------------------------------------------------


def scaled(channels: int, row: Row) -> int:
    """Returns a width of the YAML times the width multiple, rounded up to a multiple of 8."""
    return channels if channels == row.outputs else math.ceil(channels * row.width / 8) * 8


def widens(row: Row) -> Plan:
    """Plans a block that gives any width and keeps the map's size: (c1, c2 x width, *args)."""
    c2 = scaled(_width(row), row)
    return Plan([_one_map(row), c2, *row.args[1:]], c2, row.repeats)


def convolves(row: Row) -> Plan:
    """Plans a convolution: as `widens`, and the third entry of the row's args, 1 if left out, is its stride."""
    return widens(row)._replace(stride=_factor(row.args[2]) if len(row.args) > 2 else 1)


def widens_repeating(row: Row) -> Plan:
    """Plans a stage that repeats its inner block: (c1, c2 x width, n x depth, *args)."""
    c2 = scaled(_width(row), row)
    return Plan([_one_map(row), c2, row.repeats, *row.args[1:]], c2)


def keeps_channels(row: Row) -> Plan:
    """Plans an attention block: (c1, *args). A row may state the width, `[1024]` or `[1024, 8]`, which must be c1.

    `[None, 8]` gives the other arguments without stating it.
    """
    c1 = _one_map(row)
    if row.args and row.args[0] is not None and (stated := scaled(_width(row), row)) != c1:
        raise ValueError(
            f"takes the {c1} channels that come in, but the row states {row.args[0]} "
            f"(x width_multiple {row.width} = {stated}); write [{math.floor(c1 / row.width)}] or []"
        )
    return Plan([c1, *row.args[1:]], c1, row.repeats)


def passes(row: Row) -> Plan:
    """Plans a layer that knows nothing of channels and keeps the map's size, up to a padding: arguments unchanged."""
    return Plan(row.args, _one_map(row), row.repeats)


def pools(row: Row) -> Plan:
    """Plans a pooling layer: [kernel, stride, ...]; without a stride it is the kernel's size."""
    kernel, *others = row.args
    stride = others[0] if others and others[0] is not None else kernel
    padding = others[1] if len(others) > 1 else 0
    if isinstance(kernel, int) and isinstance(padding, int) and not 0 <= padding <= kernel // 2:
        raise ValueError(f"the padding must be from 0 to half of the kernel {kernel}, got {padding}")
    return passes(row)._replace(stride=_factor(stride))


def upsamples(row: Row) -> Plan:
    """Plans an upsampling layer: [None, scale, ...]."""
    size, scale = (*row.args, None, None)[:2]
    if size is not None or scale is None:
        raise ValueError(f"the arguments must name a scale factor, such as [None, 2, nearest], got {row.args}")
    if (mode := row.args[2] if len(row.args) > 2 else "nearest") not in (
        "nearest",
        "nearest-exact",
        "bilinear",
        "bicubic",
    ):
        raise ValueError(f"the mode must be nearest, nearest-exact, bilinear or bicubic, got {mode!r}")
    return passes(row)._replace(stride=1 / _factor(scale))


def upsamples_by_convolution(row: Row) -> Plan:
    """Plans a transposed convolution: (c1, c2 x width, kernel, stride 1, padding 0, output padding 0, ...).

    The side must grow by exactly the stride, which it does for kernel + output padding = stride + 2 padding.
    """
    kernel, stride, padding, more = (*row.args[1:5], *(None, 1, 0, 0)[len(row.args[1:5]) :])
    if not all(isinstance(value, int) for value in (kernel, stride, padding, more)) or min(kernel, stride) < 1:
        raise ValueError(f"takes [channels, kernel, stride, padding, output padding], whole numbers, got {row.args}")
    if kernel + more != stride + 2 * padding or padding < 0 or not 0 <= more < max(stride, 1) or row.args[7:]:
        raise ValueError(
            "the map must grow by exactly its stride: kernel + output padding = stride + 2 x padding, as in "
            f"[256, 2, 2] or [256, 4, 2, 1], got {row.args}"
        )
    return widens(row)._replace(stride=1 / stride)


def normalises(row: Row) -> Plan:
    """Plans a normalisation: (c1)."""
    return Plan([_one_map(row)], row.channels[0], row.repeats)


def joins(row: Row) -> Plan:
    """Plans a concatenation: channels add up."""
    _check_list(row)
    if row.args not in ([], [1]):
        raise ValueError(f"maps are joined along their channels, which is dimension 1: write [1] or [], got {row.args}")
    return Plan(row.args, sum(row.channels), row.repeats)


def contracts(row: Row) -> Plan:
    """Plans a layer that moves space into channels."""
    gain = _factor(row.args[0]) if row.args else 2
    return Plan(row.args, _one_map(row) * gain**2, row.repeats, gain)


def expands(row: Row) -> Plan:
    """Plans a layer that moves channels into space."""
    gain = _factor(row.args[0]) if row.args else 2
    return Plan(row.args, _one_map(row) // gain**2, row.repeats, 1 / gain)


def detects(row: Row) -> Plan:
    """Plans the head: (nc, anchors, [c1, ...]). A number of anchors stands for the placeholders 0, 1, 2, ... pixels."""
    _check_list(row)
    if len(row.args) != 2:
        raise ValueError(f"takes the number of classes and the anchors: write [nc, anchors], got {row.args}")
    nc, anchors = row.args
    if isinstance(anchors, int):
        if anchors > MAX_ANCHORS:
            raise ValueError(f"a level may have at most {MAX_ANCHORS} anchors, got {anchors}")
        anchors = [list(range(anchors * 2))] * len(row.channels)
    return Plan([nc, anchors, row.channels], row.outputs, stride=None)


def _width(row: Row) -> int:
    if not row.args or not isinstance(row.args[0], int):
        raise ValueError(f"the first argument must be a number of channels, got {row.args}")
    return row.args[0]


def _one_map(row: Row) -> int:
    """Returns the channels of the one map that comes in."""
    if row.several:
        raise ValueError("takes one map, so `from` must be a layer number, not a list")
    return row.channels[0]


def _check_list(row: Row) -> None:
    if not row.several:
        raise ValueError("takes a list of maps, so `from` must be a list of layer numbers, such as [-1, 6]")


def _factor(value: float | list) -> float:
    """Returns a stride or scale as a number; of a pair (height, width) the one for the height."""
    factor = value[0] if isinstance(value, list | tuple) and value else value
    if not isinstance(factor, int | float) or not factor > 0:
        raise ValueError(f"a stride or scale must be a positive number, got {value!r}")
    return factor


# --- the table --------------------------------------------------------------------------------------------------------

_BLOCKS: dict[str, tuple[type, Rule]] = {}


def register(rule: Rule, name: str = "") -> Callable[[type], type]:
    """Returns a class decorator by which model YAMLs may name the class, as `name` or as it is called.

    Raises ValueError when the name is taken.
    """

    def add(block: type) -> type:
        key = name or block.__name__
        if key in _BLOCKS:
            raise ValueError(f"block name {key!r} is taken by {_BLOCKS[key][0]}; choose another")
        _BLOCKS[key] = (block, rule)
        return block

    return add


def registered(planned_by: Rule | None = None) -> list[type]:
    """Returns the class of every block, or of those that one rule plans."""
    return [block for block, rule in _BLOCKS.values() if planned_by in (None, rule)]


def has(block: object, method: str) -> bool:
    """Returns whether the class of a block defines a method; an attribute of the object, such as a layer, is none."""
    return callable(getattr(type(block), method, None))


def lacks(block: object, method: str) -> bool:
    """Returns whether a block that keeps its channels does not define a method of the contract."""
    return type(block) in registered(keeps_channels) and not has(block, method)


def lookup(name: str) -> tuple[type, Rule]:
    """Returns the class and the rule of a name; ValueError that proposes the block meant when there is none."""
    if name in _BLOCKS:
        return _BLOCKS[name]
    meant = _meant(str(name))
    hint = f"did you mean {meant!r}?" if meant else f"known modules: {', '.join(sorted(_BLOCKS))}"
    raise ValueError(f"unknown module {name!r}; {hint}")


# What other code calls a block, by its stem -> the name here
_ELSEWHERE = {
    "ca": "CoordAttention",
    "coordinate": "CoordAttention",
    "coor": "CoordAttention",
    "squeezeexcite": "SE",
    "squeezeexcitation": "SE",
    "squeezeandexcitation": "SE",
    "squeezeandexcite": "SE",
    "convolutionalblock": "CBAM",
    "efficientchannel": "ECA",
    "simple": "SimAM",
    "simpleparameterfree": "SimAM",
    "parameterfree": "SimAM",
    "gatedchanneltransform": "GCT",
    "gatedchanneltransformation": "GCT",
    "secondorderchannel": "SOCA",
    "secondorder": "SOCA",
    "nonlocal": "RLNL",
    "nonlocalca": "RLNL",
    "regionnonlocal": "RLNL",
    "globalsecondorderpooling": "GSoP",
    "stylebasedrecalibration": "SRM",
    "momentchannel": "MCA",
    "frequencychannel": "FCA",
    "multispectral": "FCA",
    "multispectralchannel": "FCA",
}
_ENDINGS = ("attention", "attn", "att", "layer", "block", "module", "net", "2d")


def _stem(name: str) -> str:
    """Returns a name in small letters, without signs and without endings that say nothing: SE_Layer -> se."""
    stem = "".join(filter(str.isalnum, name.lower()))
    while ending := next((e for e in _ENDINGS if stem.endswith(e) and stem != e), ""):
        stem = stem.removesuffix(ending)
    return stem


def _meant(name: str) -> str | None:
    """Returns the registered name that an unknown one probably stands for: another spelling, or a slip of a letter."""
    stem = _stem(name)
    stems = {_stem(known): known for known in _BLOCKS}
    if (known := stems.get(stem) or _ELSEWHERE.get(stem)) in _BLOCKS:
        return known
    near = difflib.get_close_matches(stem, stems, n=1, cutoff=0.7)  # at 0.6 EMA, another block, would be taken for ECA
    return stems[near[0]] if near else None
