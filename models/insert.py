"""Inserts blocks into a model YAML by the name of a place, so that the numbers in Concat and Detect need no change.

    base: yolov5s.yaml
    insert:
      - {after: P5, module: SOCA}
      - {after: B3+B4, module: SE, args: [None, 8]}

`after` names one place, or several joined by `+`:

    P3, P4, ...   the map of stride 8, 16, ... (2 to that power) that goes into Detect; models/SOCA.yaml has SOCA at P5
    B2, B3, ...   the last map of stride 4, 8, ... in the backbone
    backbone      the last layer of the backbone
    17            the layer with that number in the base
    C3            every layer of that module

The block stands in series: every layer that took the output of the layer before it, Detect included, takes the output
of the block instead. Several blocks after one layer follow each other in the order of the rows. `args` are those of a
plain row. The result is an ordinary v6.1 YAML, in which inserted rows look like any other.
"""

import difflib
import re
from copy import deepcopy

import yaml

from models.registry import keeps_channels, lookup

AFTER = "P3 (a map that goes into Detect), B3 (of the backbone), backbone, a layer number, or a module such as C3"


def parse_attention(text: str) -> list[dict]:
    """Reads `SOCA@P3+P4+P5` into rows of `insert:`, "" and "none" into no rows; ValueError for any other form.

    `SE[8]@P3&SOCA[8]@P5` has two blocks with arguments: those of a plain row, in which a block that keeps its channels
    is not told their number.
    """
    return [] if text in ("", "none") else [_inserted(part.strip(), text) for part in text.split("&")]


def _inserted(part: str, text: str) -> dict:
    found = re.fullmatch(r"([^@\[\]\s]+)(?:\[([\w\s.,+-]*)\])?@(\S.*)", part)
    if not found:
        raise ValueError(
            "attention must be MODULE@PLACE or MODULE[ARGUMENTS]@PLACE+PLACE, such as SOCA@P3+P4+P5 or SE[8]@P5, "
            f"several joined by &, got {text!r}"
        )
    module, words, after = found.groups()
    if words is None:
        return {"after": after, "module": module}
    args = yaml.safe_load(f"[{words}]")
    channels = [None] if lookup(module)[1] is keeps_channels else []
    return {"after": after, "module": module, "args": [*channels, *args]}


def insert_rows(d: dict, rows: list[dict], strides: list[float | None], source: str = "model") -> dict:
    """Returns the content of a model YAML with blocks inserted.

    Args:
        d: the plain YAML's content; it is not changed.
        rows: of `insert:`, each {after, module} and optionally args.
        strides: of each layer's map in pixels; None for Detect.
        source: name for error messages.

    Raises ValueError that names source and the number of the wrong row.
    """
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{source}: insert must be a list of rows {{after: P5, module: SOCA}}, got {rows!r}")
    blocks = {}  # layer of the base -> the rows that follow it
    for k, row in enumerate(rows):
        where = f"{source}, insert row {k}"
        after, module, args = _check_insertion(row, where)
        for layer in _layers(after, d, strides, where):
            blocks.setdefault(layer, []).append([-1, 1, module, args])
    return _renumbered(d, blocks)


def _check_insertion(row: dict, where: str) -> tuple[str | int, str, list]:
    if not isinstance(row, dict) or not {"after", "module"} <= set(row) <= {"after", "module", "args"}:
        raise ValueError(f"{where}: a row is {{after: P5, module: SOCA}}, optionally with args: [...], got {row!r}")
    after, module, args = row["after"], row["module"], row.get("args", [])
    if not isinstance(after, int | str) or isinstance(after, bool):
        raise ValueError(f"{where}: `after` must be {AFTER}, or several joined by +, got {after!r}")
    if not isinstance(args, list):
        raise ValueError(f"{where}: args must be a list, got {args!r}")
    try:
        lookup(module)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return after, module, args


# --- the layers that a place names ------------------------------------------------------------------------------------


def _layers(after: str | int, d: dict, strides: list[float | None], where: str) -> list[int]:
    """Returns the numbers of the layers that `after` names, each once."""
    layers = [j for word in str(after).split("+") for j in _layers_of_word(word.strip(), d, strides, where)]
    if twice := sorted({j for j in layers if layers.count(j) > 1}):
        raise ValueError(f"{where}: after {after!r} names layer {twice[0]} twice")
    if without := [j for j in layers if strides[j] is None]:
        raise ValueError(f"{where}: no block can stand after layer {without[0]}, whose output is not a single map")
    return layers


def _layers_of_word(word: str, d: dict, strides: list[float | None], where: str) -> list[int]:
    modules = [row[2] for row in d["backbone"] + d["head"]]
    if word == "backbone":
        return [len(d["backbone"]) - 1]
    if re.fullmatch(r"-?\d+", word):
        if not 0 <= int(word) < len(modules):
            raise ValueError(f"{where}: there is no layer {word}; the base has layers 0 to {len(modules) - 1}")
        return [int(word)]
    if named := re.fullmatch(r"([PB])(\d)", word):
        maps = _maps(named[1], d, strides)
        level = int(named[2])
        if level not in maps:
            what = "goes into Detect" if named[1] == "P" else "is in the backbone"
            hint = f"; the backbone has B{level}" if named[1] == "P" and level in _maps("B", d, strides) else ""
            names = ", ".join(f"{named[1]}{k}" for k in maps) or "none"
            raise ValueError(f"{where}: no map of stride {2**level} {what}; the places are {names}{hint}")
        return [maps[level]]
    if word in modules:
        return [j for j, module in enumerate(modules) if module == word]
    near = difflib.get_close_matches(word, {str(module) for module in modules}, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"`after` must be {AFTER}"
    raise ValueError(f"{where}: the base has no place {word!r}; {hint}")


def _maps(letter: str, d: dict, strides: list[float | None]) -> dict[int, int]:
    """Returns the layer of each level, ascending: P for the maps that Detect takes, B for the last of the backbone."""
    rows = d["backbone"] + d["head"]
    if letter == "B":
        layers = range(len(d["backbone"]))
    else:
        layers = [j % i for i, row in enumerate(rows) if row[2] == "Detect" for j in _sources(row[0])]
    levels = {2**k: k for k in range(10)}
    return dict(sorted((levels[strides[j]], j) for j in layers if strides[j] in levels))


# --- new numbers ------------------------------------------------------------------------------------------------------


def _sources(f: int | list[int]) -> list[int]:
    return [f] if isinstance(f, int) else f


def _renumbered(d: dict, blocks: dict[int, list[list]]) -> dict:
    """Returns d with `blocks` after their layers; each `from` names what it named, or the last block after that."""
    output = {}  # layer of the base -> new number of the layer that gives its output: itself, or its last block
    count = 0
    for i in range(len(d["backbone"]) + len(d["head"])):
        count += 1 + len(blocks.get(i, []))
        output[i] = count - 1
    expanded = deepcopy({**d, "backbone": [], "head": []})
    i = 0
    for section in ("backbone", "head"):
        for f, *rest in d[section]:
            new = output[i] - len(blocks.get(i, []))
            moved = [_moved(j, i, new, output) for j in _sources(f)]
            expanded[section].append([moved[0] if isinstance(f, int) else moved, *deepcopy(rest)])
            expanded[section] += deepcopy(blocks.get(i, []))
            i += 1
    return expanded


def _moved(j: int, i: int, new: int, output: dict[int, int]) -> int:
    """Returns the `from` entry by which layer i, now number `new`, names what it called j; relative stays relative."""
    if i == 0:
        return j
    return output[j] if j >= 0 else output[i + j] - new
