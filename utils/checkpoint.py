"""Reads and writes `.pt` files. The only `torch.load` of the project is here, and it executes no code of a file.

A checkpoint is a zip archive with a pickle of modules. `load` reads it with `weights_only=True` and a list of the
classes that may be rebuilt; a file that asks for anything else is refused, by name. `save` writes v6.1's keys, whole or
not at all.
"""

import collections
import errno
import re
from collections.abc import Iterable
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.device import is_out_of_memory
from utils.files import atomic_write, megabytes
from utils.log import LOGGER

# v6.1's keys, in its order; `training` is this project's, the state that a resumed run needs (engine/run.py)
KEYS = ("epoch", "best_fitness", "model", "ema", "updates", "optimizer", "wandb_id", "date")

_TORCH_LAYERS = [
    *(nn.Conv1d, nn.Conv2d, nn.Linear, nn.Dropout, nn.Identity),
    *(nn.BatchNorm2d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm),
    *(nn.Sequential, nn.ModuleList, nn.Upsample, nn.ZeroPad2d, nn.Flatten, nn.Softmax, nn.MultiheadAttention),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ConvTranspose2d, nn.PixelShuffle),
    *(nn.SiLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Mish),
    nn.modules.linear.NonDynamicallyQuantizableLinear,
]
# NumPy scalars and arrays, which v6.1 stores as `best_fitness`, by the names that old and new NumPy give them
_NUMPY = [np.dtype, np.ndarray, *(type(np.dtype(t)) for t in ("float32", "float64", "int32", "int64", "bool"))]
_REBUILD = {"_reconstruct": np.zeros(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
_NUMPY_NAMED = [(f, f"numpy.{core}.multiarray.{name}") for name, f in _REBUILD.items() for core in ("core", "_core")]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Replaces `_codecs.encode`, by which NumPy pickles bytes under protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"a checkpoint may only hold latin1 bytes, got {encoding!r}")
    return text.encode("latin1")


def _allowed(classes: Iterable[type]) -> list:
    builtin = [(set, "__builtin__.set"), (set, "builtins.set"), (_encode, "_codecs.encode"), collections.OrderedDict]
    return [*classes, *_TORCH_LAYERS, *_NUMPY, *_NUMPY_NAMED, *builtin]


def load(path: str | Path, classes: Iterable[type] = ()) -> dict[str, Any]:
    """Reads a checkpoint on the CPU without executing code of the file.

    Args:
        path: a `.pt` file.
        classes: module classes that may be rebuilt, besides torch's layers (`models.yolo.checkpoint_classes()`).

    Returns:
        its dict; `model` and `ema` are modules in the stored precision.

    Raises:
        ValueError: the file is damaged, is not a checkpoint, or asks for anything that is not allowed.
        FileNotFoundError, OSError: there is no such file, or the system cannot read it.
        MemoryError: it does not fit into memory.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    try:
        with torch.serialization.safe_globals(_allowed(classes)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files make torch raise exceptions of many types
        # an error of the system is not about the content, except EINVAL: a seek to before the start of a truncated file
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise OSError(error.errno, error.strerror, str(path)) from None
        if is_out_of_memory(error):
            raise MemoryError(f"{path}: {megabytes(path):.0f} MB do not fit into memory: {error}") from None
        raise ValueError(f"{path}: {_reason(str(error))}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), nn.Module):
        found = sorted(map(str, content))[:8] if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{path}: not a detector's checkpoint: expected a dict with a `model` module, found {found}")
    return content


def _reason(message: str) -> str:
    if asked := re.search(r"(?:GLOBAL |class )([\w.]+)", message):
        return (
            f"refused, no code was executed: the file asks for {asked[1]}, which is not among the allowed classes. "
            "If it is your own block, define it in models/common.py"
        )
    if "Only persistent_load of storage is allowed" in message:
        return (
            "in the format of torch before 1.6, whose modules cannot be read without executing code of the file; "
            "if you trust it, load it with the program that wrote it, and save it again"
        )
    # torch advises to switch the protection off, which is not repeated
    useful = " " in message and "weights_only" not in message
    detail = message.splitlines()[0] if useful else "its pickle does not decode"
    return f"cannot be read as a checkpoint (damaged, incomplete or another kind of file): {detail}"


def load_own(path: str | Path) -> Any:
    """Reads what another process of this program saved with torch.save, in a folder that only this user can enter.

    This may execute code of the file: never call it for a file from anywhere else.
    """
    return torch.load(path, map_location="cpu", weights_only=False)


def save(path: str | Path, checkpoint: dict[str, Any]) -> None:
    """Writes a checkpoint so that path is at any time either the old file or the whole new one."""
    with atomic_write(path) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # torch says so that a write failed, and so that memory ran out
            if is_out_of_memory(error):
                raise
            raise OSError(f"{path}: cannot be written, the disk may be full: {error}") from error


def pack(model: nn.Module, **entries: Any) -> dict[str, Any]:
    """Returns v6.1's dict: half-precision copies of `model` and, where given, of `ema`; other entries as they are."""
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
    """Returns a checkpoint for inference: the averaged weights in half precision, without the training state."""
    model = (checkpoint.get("ema") or checkpoint["model"]).half()
    for p in model.parameters():
        p.requires_grad = False
    return {**dict.fromkeys(KEYS), "epoch": -1, "model": model, "date": checkpoint.get("date")}


def strip(path: str | Path, output: str | Path = "", classes: Iterable[type] = ()) -> None:
    """Turns a training checkpoint into one for inference, see `stripped`.

    Args:
        path: the checkpoint.
        output: path to write; without it the checkpoint is replaced.
    """
    target = Path(output or path)
    save(target, stripped(load(path, classes)))
    LOGGER.info(f"{target}: training state removed, {megabytes(target):.1f} MB")
