"""Reading and writing `.pt` files. The only `torch.load` of the project stands here, and it executes nothing.

A checkpoint is a zip with a pickle of live modules. `load` reads it with `weights_only=True` and a list of the classes
that may be rebuilt; a file that asks for anything else is refused by name. `save` writes v6.1's top-level keys, whole
or not at all.
"""

import collections
import re
from collections.abc import Iterable
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.files import atomic_write
from utils.log import LOGGER

# v6.1's keys, in its order; `training` is ours and holds what a resumed run needs (see train.py)
KEYS = ("epoch", "best_fitness", "model", "ema", "updates", "optimizer", "wandb_id", "date")

_TORCH_LAYERS = [
    *(nn.Conv1d, nn.Conv2d, nn.Linear, nn.Dropout, nn.Identity),
    *(nn.BatchNorm2d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm),
    *(nn.Sequential, nn.ModuleList, nn.Upsample, nn.ZeroPad2d, nn.Flatten, nn.Softmax, nn.MultiheadAttention),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ConvTranspose2d, nn.PixelShuffle),
    *(nn.SiLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Mish),
    nn.modules.linear.NonDynamicallyQuantizableLinear,
]
# numpy scalars and arrays, which v6.1 stores as `best_fitness`, by the names old and new numpy give them
_NUMPY = [np.dtype, np.ndarray, *(type(np.dtype(t)) for t in ("float32", "float64", "int32", "int64", "bool"))]
_REBUILD = {"_reconstruct": np.zeros(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
_NUMPY_NAMED = [(f, f"numpy.{core}.multiarray.{name}") for name, f in _REBUILD.items() for core in ("core", "_core")]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stands in for `_codecs.encode`, by which numpy pickles bytes under protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"a checkpoint may only hold latin1 bytes, got {encoding!r}")
    return text.encode("latin1")


def _allowed(classes: Iterable[type]) -> list:
    builtin = [(set, "__builtin__.set"), (set, "builtins.set"), (_encode, "_codecs.encode"), collections.OrderedDict]
    return [*classes, *_TORCH_LAYERS, *_NUMPY, *_NUMPY_NAMED, *builtin]


def load(path: str | Path, classes: Iterable[type] = ()) -> dict[str, Any]:
    """Reads a checkpoint on the CPU without executing anything it says.

    Args:
        path: a `.pt` file.
        classes: module classes that may be rebuilt, besides torch's layers (`models.yolo.checkpoint_classes()`).

    Returns:
        its dict; `model` and `ema` are modules in the stored precision.

    Raises:
        FileNotFoundError, or ValueError for a file that is damaged, no checkpoint, or asks for anything not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    try:
        with torch.serialization.safe_globals(_allowed(classes)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes torch raise
        raise ValueError(f"{path}: {_reason(str(error))}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), nn.Module):
        found = sorted(map(str, content))[:8] if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: not a detector's checkpoint: expected a dict with a `model` module, found {found}")
    return content


def _reason(message: str) -> str:
    if asked := re.search(r"(?:GLOBAL |class )([\w.]+)", message):
        return (
            f"refused, nothing was executed: the file asks for {asked[1]}, which is not among the allowed classes. "
            "If it is a block of your own, define it in models/common.py"
        )
    if "Only persistent_load of storage is allowed" in message:
        return (
            "in the format of torch before 1.6, whose modules cannot be read without executing what the file says; "
            "load it with the program that wrote it, if you trust it, and save it again"
        )
    # torch's own advice here is to switch the protection off; not repeated
    worded = " " in message and "weights_only" not in message
    detail = message.splitlines()[0] if worded else "its pickle does not decode"
    return f"cannot be read as a checkpoint (damaged, incomplete or another kind of file): {detail}"


def load_own(path: str | Path) -> Any:
    """What another process of this program has put aside with torch.save, in a folder that only this user can enter.

    It may execute what the file says: never for a file of anyone else.
    """
    return torch.load(path, map_location="cpu", weights_only=False)


def save(path: str | Path, checkpoint: dict[str, Any]) -> None:
    """Writes a checkpoint so that path is at every instant either the old file or the whole new one."""
    with atomic_write(path) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # how torch says that a write failed
            raise OSError(f"{path}: cannot be written, the disk may be full: {error}") from error


def pack(model: nn.Module, **entries: Any) -> dict[str, Any]:
    """v6.1's dict around a model: half-precision copies of `model` and of `ema` where given, other keys as they are."""
    unknown = set(entries) - {*KEYS, "training"}
    assert not unknown, unknown
    packed = {key: entries.get(key) for key in KEYS}
    packed["epoch"] = entries.get("epoch", -1)
    packed["model"] = deepcopy(model).half()
    packed["ema"] = deepcopy(entries["ema"]).half() if entries.get("ema") is not None else None
    packed["date"] = entries.get("date") or datetime.now().isoformat()
    if "training" in entries:
        packed["training"] = entries["training"]
    return packed


def stripped(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What of a checkpoint is for use: the averaged weights in half precision, no training state."""
    model = (checkpoint.get("ema") or checkpoint["model"]).half()
    for p in model.parameters():
        p.requires_grad = False
    return {**dict.fromkeys(KEYS), "epoch": -1, "model": model, "date": checkpoint.get("date")}


def strip(path: str | Path, output: str | Path = "", classes: Iterable[type] = ()) -> None:
    """Turns a training checkpoint into one for use, see `stripped`.

    Args:
        path: the checkpoint.
        output: where to write; path itself when not given.
    """
    target = Path(output or path)
    save(target, stripped(load(path, classes)))
    LOGGER.info(f"{target}: stripped of its training state, {target.stat().st_size / 1e6:.1f} MB")
