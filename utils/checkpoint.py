"""Reads and writes `.pt` files. The only `torch.load` of the project is here, and it executes no code of a file.

A checkpoint is a zip archive with a pickle of modules. `load` checks the pickle first (pickles.py), then reads it with
`weights_only=True` and stand-ins for every class, of which models/rebuild.py builds the detector anew. `save` writes
v6.1's keys, whole or not at all.
"""

import errno
import sys
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import nn

from utils import pickler, pickles
from utils.device import is_out_of_memory
from utils.files import atomic_write, megabytes
from utils.log import LOGGER
from utils.pickles import Refused, StandIn, plain
from utils.text import PACKAGE, is_utf8, printable

# v6.1's keys, in its order; `training` is this project's, the state that a resumed run needs (engine/run.py)
KEYS = ("epoch", "best_fitness", "model", "ema", "updates", "optimizer", "wandb_id", "date")

_NAMES = {"pickle_module": pickler} if PACKAGE else {}  # classes are named as v6.1 has them
_LOCK = Lock()  # torch keeps one list of allowed classes for all threads
PICKLE_BYTES = 32 * 2**20  # of the largest pickle that is read; that of yolov5x while it trains has 0.6 MB


def load(path: str | Path, known: Callable[[str], bool]) -> dict[str, Any]:
    """Reads a checkpoint on the CPU without executing code of the file.

    Args:
        path: a `.pt` file.
        known: whether a full name, such as models.common.Conv, is that of a module class that may occur.

    Returns:
        its dict. `model` and `ema` are stand-ins for modules, or what else the file has there; an `ema` without a model
        is the `model`. The rest is plain: text, numbers, lists, dicts, tensors. Of a path there is the text, of any
        other object None.

    Raises:
        ValueError: the file is damaged, is not a checkpoint, or asks for anything that is not allowed.
        FileNotFoundError, OSError: there is no such file, or the system cannot read it.
        MemoryError: it does not fit into memory.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    try:
        content = _read(path, pickles.check(*_open(path), known))
    except Refused as error:
        origin = f". {_origin(error.asked)}" if error.asked else ""
        raise ValueError(f"{path}: refused, no code was executed: {on_one_line(error)}{origin}") from None
    except Exception as error:  # damaged files make torch and zipfile raise exceptions of many types
        # an error of the system is not about the content, except EINVAL: a seek to before the start of a truncated file
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise OSError(error.errno, error.strerror, str(path)) from None
        if is_out_of_memory(error):
            raise MemoryError(f"{path}: {megabytes(path):.0f} MB do not fit into memory: {error}") from None
        raise ValueError(f"{path}: {on_one_line(_reason(error))}") from None
    if isinstance(content, dict) and content.get("model") is None and isinstance(content.get("ema"), StandIn):
        content |= {"model": content["ema"], "ema": None}  # v6.1 asks for `ema` first, and needs no other then
    if not isinstance(content, dict) or not isinstance(content.get("model"), StandIn):
        kind = f"{content.of:.80} alone" if isinstance(content, StandIn) else type(content).__name__
        found = [f"{key!s:.40}" for key in content][:8] if isinstance(content, dict) else f"a {kind}"
        raise ValueError(f"{path}: not a detector's checkpoint: expected a dict with a `model` module, found {found}")
    try:
        rest = {key: plain(value) for key, value in content.items() if key not in ("model", "ema")}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {key: rest.get(key, value) for key, value in content.items()}


def on_one_line(message: object) -> str:
    """Returns a message that may quote a file as text for a terminal: no control characters, at most 600 characters."""
    return printable(str(message)[:600], lines=False)


def _read(path: Path, names: set[str]) -> Any:
    """Returns what torch makes of a checked file, with stand-ins for these names and no other class."""
    stand_ins = [(pickles.stand_in(name), name) for name in names]
    with _LOCK:
        others = torch.serialization.get_safe_globals()  # of the program, which may have allowed real classes
        torch.serialization.clear_safe_globals()
        try:
            with torch.serialization.safe_globals(stand_ins):
                with _as_torch_opens(path) as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(others)


def _as_torch_opens(path: Path) -> AbstractContextManager:
    """Returns a context that gives the path, or the open file where torch would not find it: its name is not UTF-8."""
    return nullcontext(str(path)) if is_utf8(str(path)) else open(path, "rb")


# --- the archive ------------------------------------------------------------------------------------------------------


class _OtherFile(ValueError):
    """The file is of another kind, and the message says of which."""


def _open(path: Path) -> tuple[bytes, dict[str, int]]:
    """Returns the pickle of an archive, and the bytes that it has for each storage."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head.startswith(b"PK"):
        raise _OtherFile(_kind_of_file(head))
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = {member.filename.partition("/")[2]: member for member in members}
        if "constants.pkl" in names or any(name.startswith("code/") for name in names):
            raise _OtherFile("a TorchScript archive, not a checkpoint: it holds code. Name it *.torchscript")
        if "data.pkl" not in names:
            raise _OtherFile("a zip archive that torch.save did not write: it has no data.pkl")
        if len(names) < len(members) or len({member.filename.partition("/")[0] for member in members}) > 1:
            raise Refused("its archive has several members of one name, or several folders")
        if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
            raise Refused("its archive is compressed, which torch does not do; pack it again without compression")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise Refused("the members of its archive are said to be larger than the file")
        if names["data.pkl"].file_size > PICKLE_BYTES:
            size = names["data.pkl"].file_size / 1e6
            raise Refused(f"its pickle has {size:.0f} MB; at most {PICKLE_BYTES / 1e6:.0f} MB are read")
        if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
            raise Refused("its numbers are not in little-endian order; save it again on an ordinary machine")
        content = archive.read(names["data.pkl"])
    # two readers of zip files can be made to see different members: torch's has to see the pickle that is checked
    with _as_torch_opens(path) as file:
        same = torch.PyTorchFileReader(file).get_record("data.pkl") == content
    if not same:
        raise Refused("two programs that read its archive would see different content")
    return content, {name[5:]: member.file_size for name, member in names.items() if name.startswith("data/")}


def _kind_of_file(head: bytes) -> str:
    """Returns what a file that is no zip archive seems to be, and what to do, from its first bytes."""
    if not head:
        return "an empty file; copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, which only names the file; fetch the file itself with `git lfs pull`"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page (HTML), not a checkpoint; download the file itself, not the page that shows it"
    if (
        head.startswith((b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x02\x8a\x0al\xfc\x9cF"))
        or b"././@" in head
    ):
        return (
            "in the format of torch before 1.6, whose modules cannot be read without executing code of the file; "
            "if you trust it, load it with the program that wrote it, and save it again"
        )
    if head[:1] == b"\x08" and (b"pytorch" in head or b"onnx" in head or b"torch" in head):
        return "an ONNX file, not a checkpoint; name it *.onnx"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file (Keras or MATLAB), not a checkpoint of torch"
    if head[8:9] == b"{" and b'"dtype"' in head:
        return "a safetensors file, which has tensors but no model; a checkpoint of YOLOv5 is needed"
    if head[:1] == b"\x80":
        return "a pickle that is not in a zip archive, as torch.save writes it"
    return f"{_DAMAGED}: it does not begin as a zip archive does"


_DAMAGED = "cannot be read as a checkpoint (damaged, incomplete or another kind of file)"


def _reason(error: Exception) -> str:
    if isinstance(error, _OtherFile):
        return str(error)
    if isinstance(error, zipfile.BadZipFile):
        return f"{_DAMAGED}: its archive has no end; did a copy or a download break off?"
    # torch advises to switch the protection off, which is not repeated
    message = str(error)
    useful = " " in message and "weights_only" not in message
    detail = message.splitlines()[0] if useful else "its pickle does not decode"
    return f"{_DAMAGED}: {detail}"


# program that wrote a file, by the beginning of a name it asks for
_ORIGINS = {
    "ultralytics.": "It is of the package ultralytics (YOLOv8 or later), another architecture: use it with that "
    "package, or export it to ONNX with that package",
    "torch.nn.utils.prune": "It was pruned; call torch.nn.utils.prune.remove in the program that pruned it, and save "
    "it again",
    **dict.fromkeys(
        ("torch.ao.", "torch.nn.quantized", "torch.quantization", "torch._utils._rebuild_qtensor"),
        "It is quantised; give the checkpoint that it was before quantisation",
    ),
    "torch._utils.": "It holds tensors of a special kind (sparse, nested or with attributes)",
    "torch._tensor.": "It holds tensors with additional attributes",
    "__main__.": "It holds a class of the script that saved it; save the model's weights without that",
    **dict.fromkeys(
        ("torchvision.", "timm.", "mmdet.", "mmcv.", "transformers.", "detectron2."),
        "It was written by another program than YOLOv5",
    ),
}
_HEADS = {
    "segment": "It is a segmentation model; only detectors are read",
    "classif": "It is a classification model; only detectors are read",
    "proto": "It is a segmentation model; only detectors are read",
    "pose": "It is a pose model; only detectors are read",
    "landmark": "It is a face detector with landmarks; only detectors of boxes are read",
    "stemblock": "It is of YOLOv5-face or a similar fork, whose blocks this project does not have",
    "idetect": "It is of YOLOv7, another architecture",
    "iauxdetect": "It is of YOLOv7, another architecture",
    "sppcspc": "It is of YOLOv7, another architecture",
}


def _origin(name: str) -> str:
    """Returns a sentence on where a name that is not allowed comes from, and what to do."""
    for start, text in _ORIGINS.items():
        if name.startswith(start):
            return text
    package, last = name.removeprefix("yolov5.").partition(".")[0], name.rpartition(".")[2]
    for part, text in _HEADS.items():
        if part in last.lower():
            return text
    if package in ("models", "utils"):
        return (
            f"{last} is a block or a class of the program that wrote the file, a fork of YOLOv5. If you have its code, "
            "define it here in models/common.py under this name, as models/registry.py says"
        )
    if not package or "." in name.removeprefix(f"{package}.") or package in sys.stdlib_module_names:
        return "No checkpoint of a detector needs it, so the file is another program's, or made to do harm"
    return (
        f"If it is a block of your own, give the file that defines it, whose code is then run: --blocks {package}.py. "
        "Else no checkpoint of a detector needs it: the file is another program's, or made to do harm"
    )


# --- there and back ---------------------------------------------------------------------------------------------------


def load_own(path: str | Path) -> Any:
    """Reads what another process of this program saved with torch.save, in a folder that only this user can enter.

    This may execute code of the file: never call it for a file from anywhere else.
    """
    return torch.load(path, map_location="cpu", weights_only=False)


def save(path: str | Path, checkpoint: dict[str, Any]) -> None:
    """Writes a checkpoint so that path is at any time either the old file or the whole new one."""
    with atomic_write(path) as file:
        try:
            torch.save(checkpoint, file, **_NAMES)
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
    packed["model"] = _in_order(deepcopy(model).half())
    packed["ema"] = _in_order(deepcopy(entries["ema"]).half()) if entries.get("ema") is not None else None
    packed["date"] = entries.get("date") or datetime.now().isoformat()
    if "training" in entries:
        packed["training"] = entries["training"]
    return packed


def _in_order(model: nn.Module) -> nn.Module:
    """Gives every tensor of a module the contiguous order; v6.1 cannot fuse weights that are channels-last."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return model


def stripped(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint for inference: the averaged weights in half precision, without the training state."""
    model = _in_order((checkpoint.get("ema") or checkpoint["model"]).half())
    for p in model.parameters():
        p.requires_grad = False
    return {**dict.fromkeys(KEYS), "epoch": -1, "model": model, "date": checkpoint.get("date")}


def strip(path: str | Path, output: str | Path = "", *, read: Callable[[Path], dict[str, Any]]) -> None:
    """Turns a training checkpoint into one for inference, see `stripped`.

    Args:
        path: the checkpoint.
        output: path to write; without it the checkpoint is replaced.
        read: loads it, with its modules (models.backend.load_checkpoint).
    """
    target = Path(output or path)
    save(target, stripped(read(Path(path))))
    LOGGER.info(f"{target}: training state removed, {megabytes(target):.1f} MB")
