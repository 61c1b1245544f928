"""Blocks put into a model YAML by the name of a place, so that nobody renumbers Concat and Detect.

    base: yolov5s.yaml
    insert:
      - {after: P5, module: SOCA}
      - {after: B3+B4, module: SE, args: [None, 8]}

`after` names one place or several joined by `+`:

    P3, P4, ...   the map of stride 8, 16, ... (2 to that power) that goes into Detect; SOCA@P5 is the article's place
    B2, B3, ...   the last map of stride 4, 8, ... of the backbone
    backbone      the last layer of the backbone
    17            the layer of that number in the base
    C3            every layer of that module

The block stands in series: whatever took the layer's output takes the block's, later layers and Detect alike. Several
blocks after one layer follow each other in the order of the rows. `args` are those of a plain row. The result is an
ordinary v6.1 YAML, and nothing downstream sees that rows were inserted.
"""

import difflib
import re
from copy import deepcopy

from models.registry import lookup

FORMS = "P3 (a map that goes into Detect), B3 (of the backbone), backbone, a layer number, or a module such as C3"


def parse_attention(text: str) -> list[dict]:
    """`SOCA@P3+P4+P5` -> rows of `insert:`; "" and "none" -> no rows. ValueError for any other form."""
    if text in ("", "none"):
        return []
    module, at, after = text.partition("@")
    if not (module and at and after):
        raise ValueError(f"attention must be MODULE@PLACE or MODULE@PLACE+PLACE, such as SOCA@P3+P4+P5, got {text!r}")
    return [{"after": after, "module": module}]


def insert_rows(d: dict, rows: list[dict], strides: list[float | None], source: str = "model") -> dict:
    """A model YAML with blocks put in.

    Args:
        d: the plain YAML's content; left as it is.
        rows: of `insert:`, each {after, module} and perhaps args.
        strides: of each layer's map in pixels; None for Detect.
        source: name for error messages.

    Returns the expanded content. ValueError names source and the number of the row that is wrong.
    """
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{source}: insert must be a list of rows {{after: P5, module: SOCA}}, got {rows!r}")
    blocks = {}  # layer of the base -> the rows that follow it
    for k, row in enumerate(rows):
        place = f"{source}, insert row {k}"
        after, module, args = _check_row(row, place)
        for layer in _layers(after, d, strides, place):
            blocks.setdefault(layer, []).append([-1, 1, module, args])
    return _renumbered(d, blocks)


def _check_row(row: dict, place: str) -> tuple[str | int, str, list]:
    if not isinstance(row, dict) or not {"after", "module"} <= set(row) <= {"after", "module", "args"}:
        raise ValueError(f"{place}: a row is {{after: P5, module: SOCA}}, perhaps with args: [...], got {row!r}")
    after, module, args = row["after"], row["module"], row.get("args", [])
    if not isinstance(after, int | str) or isinstance(after, bool):
        raise ValueError(f"{place}: `after` must be {FORMS}, or several joined by +, got {after!r}")
    if not isinstance(args, list):
        raise ValueError(f"{place}: args must be a list, got {args!r}")
    try:
        lookup(module)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return after, module, args


# --- which layers a place means ---------------------------------------------------------------------------------------


def _layers(after: str | int, d: dict, strides: list[float | None], place: str) -> list[int]:
    """The layers that `after` names, each once."""
    found = [j for word in str(after).split("+") for j in _layers_of_word(word.strip(), d, strides, place)]
    if twice := sorted({j for j in found if found.count(j) > 1}):
        raise ValueError(f"{place}: after {after!r} names layer {twice[0]} twice")
    if without := [j for j in found if strides[j] is None]:
        raise ValueError(f"{place}: nothing can stand after layer {without[0]}, whose output is no single map")
    return found


def _layers_of_word(word: str, d: dict, strides: list[float | None], place: str) -> list[int]:
    modules = [row[2] for row in d["backbone"] + d["head"]]
    if word == "backbone":
        return [len(d["backbone"]) - 1]
    if re.fullmatch(r"-?\d+", word):
        if not 0 <= int(word) < len(modules):
            raise ValueError(f"{place}: there is no layer {word}; the base has layers 0 to {len(modules) - 1}")
        return [int(word)]
    if named := re.fullmatch(r"([PB])(\d)", word):
        maps = _maps(named[1], d, strides)
        level = int(named[2])
        if level not in maps:
            where = "goes into Detect" if named[1] == "P" else "is in the backbone"
            hint = f"; the backbone's is B{level}" if named[1] == "P" and level in _maps("B", d, strides) else ""
            there = ", ".join(f"{named[1]}{k}" for k in maps) or "none"
            raise ValueError(f"{place}: no map of stride {2**level} {where}; there are {there}{hint}")
        return [maps[level]]
    if word in modules:
        return [j for j, module in enumerate(modules) if module == word]
    near = difflib.get_close_matches(word, {str(module) for module in modules}, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"`after` must be {FORMS}"
    raise ValueError(f"{place}: the base has no place {word!r}; {hint}")


def _maps(letter: str, d: dict, strides: list[float | None]) -> dict[int, int]:
    """Level -> layer, ascending: P for the maps that Detect takes, B for the last ones of the backbone."""
    rows = d["backbone"] + d["head"]
    if letter == "B":
        layers = range(len(d["backbone"]))
    else:
        layers = [j % i for i, row in enumerate(rows) if row[2] == "Detect" for j in _sources(row[0])]
    levels = {2**k: k for k in range(10)}
    return dict(sorted((levels[strides[j]], j) for j in layers if strides[j] in levels))


# --- numbers ----------------------------------------------------------------------------------------------------------


def _sources(f: int | list[int]) -> list[int]:
    return [f] if isinstance(f, int) else f


def _renumbered(d: dict, blocks: dict[int, list[list]]) -> dict:
    """d with the rows of `blocks` after their layers, every `from` naming what it named or the block that follows."""
    place = {}  # layer of the base -> where its output is now: the layer itself, or its last block
    count = 0
    for i in range(len(d["backbone"]) + len(d["head"])):
        count += 1 + len(blocks.get(i, []))
        place[i] = count - 1
    expanded = deepcopy({**d, "backbone": [], "head": []})
    i = 0
    for section in ("backbone", "head"):
        for f, *rest in d[section]:
            here = place[i] - len(blocks.get(i, []))
            moved = [_moved(j, i, here, place) for j in _sources(f)]
            expanded[section].append([moved[0] if isinstance(f, int) else moved, *deepcopy(rest)])
            expanded[section] += deepcopy(blocks.get(i, []))
            i += 1
    return expanded


def _moved(j: int, i: int, here: int, place: dict[int, int]) -> int:
    """What layer i of the base called j, said by the same layer at its new number; relative stays relative."""
    if i == 0:
        return j
    return place[j] if j >= 0 else place[i + j] - here
