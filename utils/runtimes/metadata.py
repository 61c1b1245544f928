"""The metadata that an exported file states: its classes, stride and frame, and whether it suppresses boxes itself.

It comes with files of others, so it is checked against one schema, with limits, before it is used.
"""

import ast
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

METADATA_FILE = "metadata.json"  # in formats that are folders
UNKNOWN_STRIDE = 64  # where a file states none, as in v6.1: right for every model of the family
UNKNOWN_CLASSES = 1000
UNKNOWN_SHAPE = (None, None, None, None)

# Limits of what a file states
NAMES = 10_000
NAME_LENGTH = 200  # characters
TEXT_LENGTH = 2**24  # characters of all metadata
DEPTH, SIGNS = 8, 100  # of brackets, and number of signs, in Python text
WHOLE = {"stride": 1024, "batch": 65_536, "channels": 65_536}  # whole numbers from 1
SIDE = 65_536  # pixels
FLAGS = ("dynamic", "nms", "train", "half", "int8")
SHARES = ("conf_thres", "iou_thres")  # numbers from 0 to 1


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What an exported file states about itself.

    names:    of the classes; empty where a file states none.
    stride:   in pixels; the sides of a frame are multiples of it.
    imgsz:    (height, width) of the frame it was made for; the only one unless dynamic.
    batch:    number of images it was made for; the only one unless dynamic.
    channels: of an image.
    dynamic:  whether it takes any frame and number of images.
    nms:      whether it returns boxes, scores and classes after non-maximum suppression instead of all decoded rows.
    train:    whether it returns the raw maps of all levels instead: a network to train further, not to detect with.
    half:     whether its network is in float16.
    int8:     whether its network is in 8-bit integers.
    conf_thres, iou_thres: thresholds of its suppression.
    """

    names: tuple[str, ...]
    stride: int = UNKNOWN_STRIDE
    imgsz: tuple[int, int] = (640, 640)
    batch: int = 1
    channels: int = 3
    dynamic: bool = False
    nms: bool = False
    train: bool = False
    half: bool = False
    int8: bool = False
    conf_thres: float = 0.0
    iou_thres: float = 0.0

    def as_texts(self) -> dict[str, str]:
        """Returns each entry as JSON text, for formats that store texts by name."""
        return {key: json.dumps(value, ensure_ascii=False) for key, value in asdict(self).items()}

    def as_json(self, **more: Any) -> str:
        """Returns all entries as one JSON text, with more entries that other programs look for."""
        return json.dumps({**asdict(self), **more}, ensure_ascii=False)

    @classmethod
    def from_texts(
        cls, texts: Mapping[str, str], path: str | Path, shape: Sequence[Any] = UNKNOWN_SHAPE
    ) -> "Metadata | None":
        """Reads what `as_texts` wrote, or YOLOv5 v6.2 and later; None where no text is an entry.

        shape: of the file's input, for what the texts do not state.
        """
        if not _known() & set(texts):
            return None
        return cls.checked({key: _parsed(texts[key], path) for key in _known() & set(texts)}, path, shape)

    @classmethod
    def from_json(cls, text: str | bytes, path: str | Path, shape: Sequence[Any] = UNKNOWN_SHAPE) -> "Metadata | None":
        """Reads what `as_json` wrote, as text or in UTF-8; None where it is empty.

        shape: of the file's input, for what the text does not state; where it states a `shape`, that is taken.
        """
        if not text:
            return None
        entries = _parsed(text, path)
        if not isinstance(entries, dict):
            raise ValueError(
                f"{path}: its metadata must be a mapping, found a {type(entries).__name__}; export the file again"
            )
        own = entries.get("shape")
        return cls.checked(entries, path, own if isinstance(own, list | tuple) and len(own) == 4 else shape)

    @classmethod
    def checked(cls, entries: Mapping[str, Any], path: str | Path, shape: Sequence[Any] = UNKNOWN_SHAPE) -> "Metadata":
        """Makes metadata of the plain values in a file; ValueError, which names the file, for a wrong value."""

        def refuse(key: str, rule: str) -> ValueError:
            found = reprlib.repr(entries.get(key))
            return ValueError(f"{path}: {key} in its metadata must be {rule}, found {found}; export the file again")

        values: dict[str, Any] = {}
        for key in _known() & set(entries):
            value = entries[key]
            if key == "names":
                names = _names(value)
                if not names:
                    raise refuse(key, f"1 to {NAMES} class names of at most {NAME_LENGTH} characters")
                values[key] = names
            elif key in WHOLE:
                if not _is_whole(value, WHOLE[key]):
                    raise refuse(key, f"a whole number from 1 to {WHOLE[key]}")
                values[key] = int(value)
            elif key == "imgsz":
                if not (isinstance(value, list | tuple) and len(value) == 2 and all(_is_whole(v, SIDE) for v in value)):
                    raise refuse(key, f"height and width in pixels, from 1 to {SIDE}")
                values[key] = int(value[0]), int(value[1])
            elif key in FLAGS:
                if not isinstance(value, bool):
                    raise refuse(key, "true or false")
                values[key] = value
            elif key in SHARES:
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                    raise refuse(key, "a number from 0 to 1")
                values[key] = float(value)
        return cls(**{"names": (), **_frame(values, shape), **values})


def _known() -> set[str]:
    return {field.name for field in fields(Metadata)}


def _names(value: Any) -> tuple[str, ...]:
    """Returns the class names in a list, or in a mapping from their numbers, as later releases of YOLOv5 write them.

    A number without a name is its own name. Empty where the value is neither.
    """
    if isinstance(value, dict):
        keys = [str(key) for key in value]
        if len(keys) > NAMES or not all(re.fullmatch(r"\d{1,5}", key, re.ASCII) and int(key) < NAMES for key in keys):
            return ()
        named = dict(zip(map(int, keys), value.values()))
        value = [named.get(i, str(i)) for i in range(max(named, default=-1) + 1)]
    if not isinstance(value, list | tuple) or not 0 < len(value) <= NAMES:
        return ()
    return tuple(value) if all(isinstance(name, str) and len(name) <= NAME_LENGTH for name in value) else ()


def _is_whole(value: Any, most: int) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 1 <= value <= most and value == int(value)  # false for NaN too


def _frame(values: Mapping[str, Any], shape: Sequence[Any]) -> dict[str, Any]:
    """Returns what a file's input shape tells about its frame, for a file that states no image size."""
    if "imgsz" in values or all(side is None for side in shape):
        return {}
    assumed = assumed_metadata([side if _is_whole(side, SIDE) else None for side in shape])
    keys = {"imgsz", "batch", "channels", "dynamic"} - set(values)
    return {key: getattr(assumed, key) for key in keys}


def _parsed(text: str | bytes, path: str | Path) -> Any:
    """Returns the value of JSON text, or of Python text with literals alone, as YOLOv5 v6.2 and later write them."""
    if len(text) > TEXT_LENGTH:
        raise ValueError(
            f"{path}: its metadata may have at most {TEXT_LENGTH} characters, found {len(text)}; export the file again"
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or too deep
        reason = str(error)
    try:
        text = text.decode() if isinstance(text, bytes) else text
        # nested Python text costs the parser far more than its length
        outside = re.sub(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'", "", text, flags=re.DOTALL)
        depth = signs = 0
        for character in outside:
            depth += (character in "[{(") - (character in ")}]")
            signs += character in "-+~"
            if depth > DEPTH or signs > SIGNS:
                raise ValueError("too deep")
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise ValueError(f"{path}: its metadata is not JSON: {reason}; export the file again") from None


def read_bounded(path: Path) -> bytes:
    """Returns the bytes of a file of metadata; no more than the limit allows, and one."""
    with path.open("rb") as file:
        return file.read(TEXT_LENGTH + 1)


def assumed_metadata(shape: Sequence[Any] = UNKNOWN_SHAPE, columns: Any = None) -> Metadata:
    """Returns the metadata of a file that states none.

    shape:   of its input, (B, C, H, W). A height or width that is not a number makes the file dynamic.
    columns: of its output, 5 + nc, where known. The classes are called class0, class1 ...
    """
    B, C, H, W = (side if isinstance(side, int) and side > 0 else None for side in shape)
    nc = columns - 5 if isinstance(columns, int) and columns > 5 else UNKNOWN_CLASSES
    fixed = H is not None and W is not None
    return Metadata(
        names=tuple(f"class{i}" for i in range(nc)),
        imgsz=(H, W) if fixed else (640, 640),
        batch=B or 1,
        channels=C or 3,
        dynamic=not fixed,
    )
