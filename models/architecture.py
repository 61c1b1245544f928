"""The grammar of model YAMLs: reads one, with `base` and `insert`, plans its layers by the rules of the registry, and
builds them.

Channels and strides of every layer are known from the rows alone, so a wrong row is an error before anything is built.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models.insert import insert_rows
from models.registry import MAX_ANCHORS, Plan, Row, keeps_channels, lookup
from utils.files import MAX_CLASSES, MAX_IMAGE_CHANNELS, find_file, read_yaml, with_numbers
from utils.log import LOGGER
from utils.text import brief, full_name

# What a model YAML may ask for: far more than any model in use, far less than fills a machine's memory
MAX_STRIDE = 2**16
MAX_ROWS = 10_000
MAX_REPEATS = 1000  # of one row
MAX_LEVELS = 100  # of anchors
MAX_CHANNELS = 2**16  # of one map
MAX_ARGUMENTS = 1000  # of one row
MAX_PARAMETERS = 2**29  # 2.1 GB; YOLOv5x6 has 1.4e8
MAX_MULTIPLE = 1000  # of depth and width

# what blocks and rules raise over arguments that they cannot take
_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, RuntimeError)


def plain_yaml(d: dict, source: str = "model", path: Path | None = None, above: tuple[str, ...] = ()) -> dict:
    """Returns the content of a model YAML with `base` and `insert` written out: v6.1's keys and rows, checked.

    Args:
        d: content. With `base: FILE` it is the content of that file, except for the keys given here; then come the rows
            of `insert`.
        source: name for error messages.
        path: of the file, beside which `base` is looked for first.
        above: files that led here by their `base`.

    Raises ValueError, or FileNotFoundError for a base that does not exist.
    """
    changes = with_numbers(d)
    rows = changes.pop("insert", None)
    base = changes.pop("base", None)
    if base is not None:
        d = {**_read_base(base, source, path, above), **_check_changes(changes, source)}
    else:
        d = changes
    _check_keys(d, source)
    return d if rows is None else insert_rows(d, rows, layer_strides(d, source), source)


def _read_base(base: str, source: str, path: Path | None, above: tuple[str, ...]) -> dict:
    if not isinstance(base, str):
        raise ValueError(f"{source}: base must name a model YAML, such as yolov5s.yaml, got {base!r}")
    beside = path.parent / base if path else Path(base)
    file = beside if beside.is_file() else find_file(base, (".yaml", ".yml"))
    chain = (*above, str(path.resolve()) if path else source)
    if str(file.resolve()) in chain:
        raise ValueError(
            f"{source}: base {base} is based on itself, directly or through other files; name another base"
        )
    return plain_yaml(read_yaml(file), file.name, file, chain)


def _check_changes(changes: dict, source: str) -> dict:
    known = ("nc", "depth_multiple", "width_multiple", "anchors", "ch", "inplace")
    if unknown := [key for key in changes if key not in known]:
        allowed, given = ", ".join(known), ", ".join(map(str, unknown))
        raise ValueError(f"{source}: a YAML with `base` may also have insert, {allowed}; got {given}")
    return changes


# --- from rows to layers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedLayer:
    """A row of a model YAML, read, checked and planned by the rule of its block."""

    where: str  # file, section and row, for error messages
    sources: int | list[int]  # the row's `from`
    repeats: int  # after the depth multiple
    label: str  # the block's name and arguments as the YAML has them
    block: type[nn.Module]
    plan: Plan
    stride: float | None  # image side over map side; None where no single map comes out (Detect)


def plan_layers(d: dict, ch: int = 3, source: str = "model") -> list[PlannedLayer]:
    """Returns the layers of a plain YAML in order, nothing of them built.

    Args:
        d: the YAML's content: nc, depth_multiple, width_multiple, anchors, and rows [from, number, module, args] under
            backbone and head.
        ch: input channels.
        source: name for error messages.

    Raises ValueError that names the row.
    """
    if not isinstance(ch, int) or isinstance(ch, bool) or not 1 <= ch <= MAX_IMAGE_CHANNELS:
        raise ValueError(f"{source}: ch, channels of an image, must be from 1 to {MAX_IMAGE_CHANNELS}, got {brief(ch)}")
    anchors, nc = d["anchors"], d["nc"]
    na = len(anchors[0]) // 2 if isinstance(anchors, list) else anchors
    words = {"nc": nc, "anchors": anchors, "None": None, "True": True, "False": False}
    rows = [(section, k, row) for section in ("backbone", "head") for k, row in enumerate(d[section])]
    layers: list[PlannedLayer] = []
    for i, (section, k, row) in enumerate(rows):
        where = f"{source}, {section} row {k} (layer {i})"
        f, number, name, args = _check_row(row, i, where)
        args = [words.get(a, a) if isinstance(a, str) else a for a in args]
        before = [layers[j % i] for j in ([f] if isinstance(f, int) else f)] if i else []
        channels = [layer.plan.channels for layer in before] or [ch]
        strides = [layer.stride for layer in before] or [1.0]
        n = max(round(number * d["depth_multiple"]), 1) if number > 1 else number
        if n > MAX_REPEATS:
            raise ValueError(f"{where}: a row may be repeated at most {MAX_REPEATS} times, got {n}")
        try:
            block, rule = lookup(name)
            plan = rule(Row(channels, n, args, d["width_multiple"], na * (nc + 5), isinstance(f, list)))
        except _ERRORS as error:
            raise ValueError(f"{where}: {name}{args}: {error}") from error
        _check_width(plan, f"{where}: {name}")
        stride = _stride(plan, channels, strides, f"{where}: {name} from {f}")
        layers.append(PlannedLayer(where, f, n, f"{name}{args}", block, plan, stride))
    return layers


def _stride(plan: Plan, channels: list[int], strides: list[float | None], where: str) -> float | None:
    """Returns the stride of what comes out of a layer; ValueError where it cannot take what comes in."""
    if None in strides:
        raise ValueError(f"{where}: the output of Detect is not a map, so no layer can take it")
    if plan.copies > 1 and plan.channels != channels[0]:
        raise ValueError(
            f"{where}: {plan.copies} copies in series must have as many channels out as in, "
            f"got {channels[0]} in and {plan.channels} out; write 1 as the number of repeats"
        )
    if plan.stride is None:
        return None
    if len(set(strides)) > 1:
        raise ValueError(f"{where}: the incoming maps must have the same stride, got {strides}")
    try:
        stride = strides[0] * float(plan.stride) ** plan.copies
    except OverflowError:
        stride = math.inf
    if not 1 / MAX_STRIDE <= stride <= MAX_STRIDE:
        limits = f"between 1 / {MAX_STRIDE} and {MAX_STRIDE}"
        raise ValueError(f"{where}: the stride of the map must be {limits} pixels, got {stride:g}")
    return stride


def _check_width(plan: Plan, where: str) -> None:
    if plan.stride is not None and not 1 <= plan.channels <= MAX_CHANNELS:
        raise ValueError(f"{where}: a map may have 1 to {MAX_CHANNELS} channels, got {plan.channels}")


def layer_strides(d: dict, source: str = "model") -> list[float | None]:
    """Returns image side over map side for each layer of a plain YAML; None where no single map comes out (Detect)."""
    return [layer.stride for layer in plan_layers(d, d.get("ch", 3), source)]


def parse_model(d: dict, ch: list[int], source: str = "model") -> tuple[nn.Sequential, list[int]]:
    """Builds the layers of a plain YAML, the input having ch[0] channels.

    Returns the layers, each with i (number), f (from), type and np (parameters), and the sorted numbers of those whose
    output a later row names. Raises ValueError that names the row.
    """
    layers, save, room = [], [], _Room()
    LOGGER.debug(f"{'':>3}{'from':>18}{'n':>3}{'params':>10}  {'module':<40}{'arguments':<30}")
    for i, planned in enumerate(plan_layers(d, ch[0], source)):
        block, (arguments, _, copies, _) = planned.block, planned.plan
        try:
            with room:
                layer = nn.Sequential(*(block(*arguments) for _ in range(copies))) if copies > 1 else block(*arguments)
        except _ERRORS as error:
            raise ValueError(f"{planned.where}: {planned.label}: {error}") from error
        f = planned.sources
        layer.i, layer.f, layer.np = i, f, sum(p.numel() for p in layer.parameters())
        layer.type = full_name(block)
        LOGGER.debug(f"{i:>3}{f!s:>18}{planned.repeats:>3}{layer.np:>10}  {layer.type:<40}{arguments!s:<30}")
        save += [j % i for j in ([f] if isinstance(f, int) else f) if j != -1]
        layers.append(layer)
    return nn.Sequential(*layers), sorted(save)


class _Room(TorchFunctionMode):
    """Raises ValueError before a tensor is made with which a model would have more than MAX_PARAMETERS values."""

    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function in (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn):
            given = args[0] if args else (kwargs or {}).get("size", ())
            size = given if isinstance(given, list | tuple | torch.Size) else args
            self.values += math.prod(size)
            if self.values > MAX_PARAMETERS:
                raise ValueError(f"the model would have more than {MAX_PARAMETERS} parameters, the maximum")
        return function(*args, **(kwargs or {}))


# --- what is checked of a network that is not yet trained -------------------------------------------------------------


def check_arguments(d: dict, source: str = "model") -> None:
    """Raises ValueError for a row of a plain YAML whose arguments can be taken, but were hardly meant so.

    A trained network is as it is, so this and `check_all_used` are for YAMLs of which a new network is built.
    """
    for row, layer in zip(d["backbone"] + d["head"], plan_layers(d, d.get("ch", 3), source), strict=True):
        _check_order(row, layer)


def check_all_used(d: dict, source: str = "model") -> None:
    """Raises ValueError for a row of a plain YAML on which the output of the last row does not depend."""
    layers = plan_layers(d, d.get("ch", 3), source)
    read = {len(layers) - 1}
    for i in reversed(range(1, len(layers))):
        if i in read:
            f = layers[i].sources
            read |= {j % i for j in ([f] if isinstance(f, int) else f)}
    if unread := [i for i in range(len(layers)) if i not in read]:
        *others, last = unread
        also = f" (nor of layer {', '.join(map(str, others))})" if others else ""
        raise ValueError(
            f"{layers[last].where}: {layers[last].label}: no later row uses the output of layer {last}{also}, so it "
            "would never be trained. Remove the row, or correct the layer numbers in `from` of later rows: where a row "
            "was added, each number from there on is one higher; `base` and `insert` count for you"
        )


def _check_order(row: list, layer: PlannedLayer) -> None:
    """Raises ValueError where an attention block gets a number of channels as its second argument, as (c1, c2, ...)."""
    name, args = row[2:]
    block, rule = lookup(name)
    if rule is not keeps_channels or len(args) < 2 or not isinstance(args[0], int) or not isinstance(args[1], int):
        return
    channels, second = layer.plan.channels, args[1]
    if second == args[0] or second >= channels > 32:
        parameters = list(signature(block).parameters.values())[1:]
        takes = ", ".join(["width", *(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters)])
        raise ValueError(
            f"{layer.where}: {layer.label}: the second number, {second}, looks like a number of channels, but {name} "
            f"has as many out as in and takes [{takes}]: write [{args[0]}] and the other arguments in that order, or "
            f"[None, {second}] where {second} is meant"
        )


# --- what is checked of every row -------------------------------------------------------------------------------------


def _check_keys(d: dict, source: str) -> None:
    needed = ("nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head")
    missing = [key for key in needed if key not in d]
    if missing:
        raise ValueError(f"{source}: a model YAML needs {', '.join(needed)}; missing: {', '.join(missing)}")
    for key in ("backbone", "head"):
        if not isinstance(d[key], list) or not d[key]:
            raise ValueError(
                f"{source}: {key} must be a list of rows [from, number, module, args], got {brief(d[key])}"
            )
    if (rows := len(d["backbone"]) + len(d["head"])) > MAX_ROWS:
        raise ValueError(f"{source}: backbone and head have {rows} rows, more than {MAX_ROWS}, the maximum")
    limits = (
        ("nc", int, MAX_CLASSES),
        ("depth_multiple", int | float, MAX_MULTIPLE),
        ("width_multiple", int | float, MAX_MULTIPLE),
    )
    for key, kinds, maximum in limits:
        if not isinstance(d[key], kinds) or isinstance(d[key], bool) or not 0 < d[key] <= maximum:
            raise ValueError(f"{source}: {key} must be a positive number up to {maximum}, got {brief(d[key])}")
    anchors = d["anchors"]
    if isinstance(anchors, list):
        if not anchors or any(not isinstance(level, list) or len(level) % 2 or not level for level in anchors):
            raise ValueError(f"{source}: anchors must be one list of w,h pairs per level, got {brief(anchors)}")
        if len(anchors) > MAX_LEVELS or max(map(len, anchors)) > 2 * MAX_ANCHORS:
            raise ValueError(f"{source}: anchors may have at most {MAX_LEVELS} levels of {MAX_ANCHORS} pairs")
        if not all(isinstance(side, int | float) and abs(side) < 2**31 for level in anchors for side in level):
            raise ValueError(f"{source}: anchors must be numbers of pixels, got {brief(anchors)}")
    elif not isinstance(anchors, int) or not 1 <= anchors <= MAX_ANCHORS:
        raise ValueError(
            f"{source}: anchors must be lists of w,h pairs or a number of anchors from 1 to {MAX_ANCHORS}, "
            f"got {brief(anchors)}"
        )


def _check_row(row: list, i: int, where: str) -> tuple[int | list[int], int, str, list]:
    if not isinstance(row, list) or len(row) != 4:
        raise ValueError(f"{where}: a row is [from, number, module, args], got {brief(row)}")
    f, number, name, args = row
    sources = [f] if isinstance(f, int) else f
    if not isinstance(sources, list) or not sources or not all(isinstance(j, int) for j in sources):
        raise ValueError(f"{where}: `from` must be a layer number or a list of them, got {brief(f)}")
    for j in sources:
        if not -max(i, 1) <= j < i:
            before = f"only layers 0 to {i - 1} come" if i else "no layer comes"
            raise ValueError(f"{where}: `from` names layer {j}, but {before} before it")
    if not isinstance(number, int) or not 1 <= number <= MAX_REPEATS:
        raise ValueError(
            f"{where}: the number of repeats must be a whole number from 1 to {MAX_REPEATS}, got {brief(number)}"
        )
    if not isinstance(args, list):
        raise ValueError(f"{where}: args must be a list, got {brief(args)}")
    if (count := _count(args)) > MAX_ARGUMENTS:
        raise ValueError(f"{where}: a row may have at most {MAX_ARGUMENTS} values as args, got {count}")
    return f, number, name, args


def _count(values: Any) -> int:
    """Returns the number of values in lists in lists."""
    return sum(map(_count, values)) + 1 if isinstance(values, list) else 1
