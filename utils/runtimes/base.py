"""What every runtime of exported files shares: the metadata that a file states, and how images go through it.

A file states which classes it knows, for which stride and frame it was made, and whether it suppresses boxes itself.
"""

import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from utils.boxes import xyxy_to_xywh
from utils.cli import installed, require
from utils.data.letterbox import GREY
from utils.device import is_out_of_memory
from utils.log import LOGGER
from utils.runtimes.trust import open_copy

METADATA_FILE = "metadata.json"  # in formats that are folders
UNKNOWN_STRIDE = 64  # where a file states none, as in v6.1: right for every model of the family
UNKNOWN_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What an exported file states about itself.

    names:    of the classes.
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
    def from_texts(cls, texts: dict[str, str], path: str | Path) -> "Metadata | None":
        """Reads what `as_texts` wrote; None where there are no class names among the texts."""
        if "names" not in texts:
            return None
        known = {field.name for field in fields(cls)}
        return cls.checked({key: _parsed(texts[key], path) for key in known & set(texts)}, path)

    @classmethod
    def from_json(cls, text: str | bytes, path: str | Path) -> "Metadata | None":
        """Reads what `as_json` wrote, as text or in UTF-8; None where it is empty."""
        if not text:
            return None
        entries = _parsed(text, path)
        known = {field.name for field in fields(cls)}
        if not isinstance(entries, dict):
            raise ValueError(
                f"{path}: its metadata must be a mapping, found a {type(entries).__name__}; export the file again"
            )
        return cls.checked({key: value for key, value in entries.items() if key in known}, path)

    @classmethod
    def checked(cls, entries: dict[str, Any], path: str | Path) -> "Metadata":
        """Makes metadata of the plain values in a file; ValueError, which names the file, for a wrong value."""
        names = entries.get("names")
        if isinstance(names, dict):  # as later releases of YOLOv5 write them
            names = list(names.values())
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
            raise ValueError(f"{path}: its metadata must list the class names, found {names!r}; export the file again")
        entries = {**entries, "names": tuple(names)}
        for key in ("stride", "batch", "channels"):
            value = entries.get(key, 1)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{path}: {key} in its metadata must be a whole number from 1, found {value!r}")
        if "imgsz" in entries:
            size = entries["imgsz"]
            if not isinstance(size, list) or len(size) != 2 or not all(isinstance(s, int) and s > 0 for s in size):
                raise ValueError(f"{path}: imgsz in its metadata must be height and width in pixels, found {size!r}")
            entries["imgsz"] = tuple(size)
        return cls(**entries)


def _parsed(text: str | bytes, path: str | Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path}: its metadata is not JSON: {error}; export the file again") from None


def assumed_metadata(shape: Sequence[Any] = (None, None, None, None), columns: Any = None) -> Metadata:
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


# --- a file that runs -------------------------------------------------------------------------------------------------


class Runtime:
    """One exported file, opened.

    A class for a toolchain has `__init__(path, device, trust)`, which calls `declare`, and `run`. Files that are
    programs are opened only where this installation wrote them, or with trust: ValueError for others (trust.py).

    Attributes: path, device; file (what to open: path, or a copy of it whose bytes were checked);
    metadata; declared (False where the file states no metadata, and metadata is assumed);
    dtype of the images that `run` takes.
    """

    program = ""  # what it is, such as "a TorchScript file", where opening it runs what is in it; "" for data
    packages: tuple[str, ...] = ()  # that must be installed
    systems: tuple[str, ...] = ()  # of platform.system() on which it runs; empty for all
    gpu = False  # whether it needs a CUDA GPU

    @classmethod
    def obstacle(cls) -> str | None:
        """Returns why such a file cannot be run here, as the end of a sentence; None where it can."""
        if cls.systems and platform.system() not in cls.systems:
            return f"runs on {' and '.join(cls.systems)} only"
        if missing := [package for package in cls.packages if not installed(package)]:
            return f"runs with {', '.join(missing)}, which is not installed here"
        if cls.gpu and not torch.cuda.is_available():
            return "runs on a CUDA GPU, and torch sees none here"
        return None

    def __init__(self, path: str | Path, device: torch.device | str = "cpu", trust: bool = False):
        self.path, self.device = Path(path), torch.device(device)
        self.file = self.path
        if self.program and not trust:  # before any toolchain sees it
            self._copy, self.file = open_copy(self.path, self.program)
        for package in self.packages:
            require(package, str(self.path))
        if reason := self.obstacle():
            raise ValueError(f"{self.path} {reason}")
        self.metadata = assumed_metadata()
        self.declared = False
        self.dtype = torch.float32

    def declare(
        self, metadata: Metadata | None, shape: Sequence[Any] = (None, None, None, None), columns: Any = None
    ) -> None:
        """Takes the metadata that the file states, or where it states none what `assumed_metadata` returns."""
        self.declared = metadata is not None
        self.metadata = metadata or assumed_metadata(shape, columns)
        if not self.declared:
            LOGGER.warning(
                f"{self.path} has no metadata: stride {self.metadata.stride} is assumed, and classes are called "
                "class0, class1 ... unless --data names them"
            )

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the graph once.

        images: (B, C, H, W), 0-1, on self.device, of self.dtype, of a shape that the file takes.

        Returns decoded rows (B, N, 5 + nc) first; or with metadata.nms boxes (B, K, 4) x1, y1, x2, y2 in pixels,
        scores (B, K), 0 in the rows after the last box, and classes (B, K).
        """
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Returns decoded rows (B, N, 5 + nc), float32, of images (B, C, H, W), 0-1.

        Images of another size are put into the frame of the file, and batches of another size are split and filled up.
        Where the file suppresses, each row is a box that was kept: its objectness is the score, and its class has 1.
        """
        meta = self.metadata
        if images.shape[1] != meta.channels:
            raise ValueError(f"{self.path} takes images of {meta.channels} channels, got {images.shape[1]}")
        images = images.to(self.device, self.dtype)
        if meta.dynamic:
            return self._rows(self.run(images))
        framed, gain, corner = into_frame(images, meta.imgsz)
        parts = []
        for part in framed.split(meta.batch):
            missing = meta.batch - len(part)
            full = torch.cat((part, part.new_zeros(missing, *part.shape[1:]))) if missing else part
            parts.append(self._rows(self.run(full))[: len(part)])
        rows = torch.cat(parts) if len(parts) > 1 else parts[0]
        if gain == 1 and not any(corner):
            return rows
        offset = torch.tensor([*corner, 0, 0], device=rows.device)
        return torch.cat(((rows[..., :4] - offset) / gain, rows[..., 4:]), -1)

    def _rows(self, outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if not self.metadata.nms:
            return outputs[0].float()
        boxes, scores, classes = (output.float() for output in outputs[:3])
        one_hot = F.one_hot(classes.long(), len(self.metadata.names)).float()
        return torch.cat((xyxy_to_xywh(boxes), scores[..., None], one_hot), -1)


def into_frame(images: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, float, tuple[int, int]]:
    """Puts images (B, C, H, W) in the middle of a grey frame (height, width), shrunk where they are larger.

    Returns them with the gain of their sides, and the (left, top) of their corner in pixels of the frame.
    """
    H, W = images.shape[2:]
    height, width = size
    if (H, W) == (height, width):
        return images, 1.0, (0, 0)
    gain = min(height / H, width / W, 1.0)
    if gain < 1:
        inner = max(round(H * gain), 1), max(round(W * gain), 1)
        wide = images.float()  # the CPU does not resize in half precision
        images = F.interpolate(wide, inner, mode="bilinear", align_corners=False, antialias=True).to(images.dtype)
    H, W = images.shape[2:]
    left, top = (width - W) // 2, (height - H) // 2
    padding = left, width - W - left, top, height - H - top
    return F.pad(images, padding, value=GREY / 255), gain, (left, top)


def to_pixels(outputs: Sequence[np.ndarray], size: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Returns the outputs of TensorFlow's formats as tensors.

    outputs: the first has x, y, w, h or corners in fractions of the frame; they are returned in pixels.
    size:    of the frame, (height, width).
    """
    height, width = size
    first = torch.tensor(outputs[0], dtype=torch.float32, device=device)
    first[..., :4] *= torch.tensor([width, height, width, height], device=device)
    return first, *(torch.tensor(output, device=device) for output in outputs[1:])


# --- what toolchains have in common -----------------------------------------------------------------------------------


@contextmanager
def readable(path: str | Path, program: str, *faults: type[Exception]) -> Iterator[None]:
    """Inside, an exception by which a program rejects a file becomes a ValueError that names both.

    Memory that runs out says nothing about the file, and passes.
    """
    try:
        yield
    except faults as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{path}: {program} cannot read it: {first_line(error)}") from None


def as_tuple(outputs: Any) -> tuple[torch.Tensor, ...]:
    """Returns the outputs of a graph as a tuple, also where it returns one tensor alone."""
    return tuple(outputs) if isinstance(outputs, list | tuple) else (outputs,)


@contextmanager
def silence() -> Iterator[None]:
    """Inside, whatever C++ libraries write to standard error is dropped: greetings, and warnings about themselves."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def first_line(error: Exception) -> str:
    """Returns the first line of an exception's message; its type where there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def only_file(path: Path, suffix: str) -> Path:
    """Returns path, or where path is a folder the one file in it with this suffix."""
    if path.is_file():
        return path
    files = sorted(path.glob(f"*{suffix}"))
    if len(files) != 1:
        raise ValueError(f"{path}: expected one {suffix} file in this folder, found {len(files)}")
    return files[0]


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Writes the metadata beside the files of a format that is a folder."""
    (folder / METADATA_FILE).write_text(metadata.as_json(), encoding="utf-8")


def folder_metadata(folder: Path) -> Metadata | None:
    """Reads what `write_metadata` wrote; None where there is no such file."""
    file = folder / METADATA_FILE
    return Metadata.from_json(file.read_text(encoding="utf-8"), file) if file.is_file() else None
