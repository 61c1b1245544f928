"""What every runtime of exported files shares: how it is opened, and how images go through it."""

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from utils.runtimes.metadata import METADATA_FILE, Metadata, assumed_metadata, read_bounded
from utils.runtimes.trust import open_copy

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
        """Takes the metadata that the file states, or where it states none what `assumed_metadata` returns.

        Raises ValueError where the metadata contradicts the shape of the input.
        """
        assumed = assumed_metadata(shape, columns)
        self.declared = bool(metadata and metadata.names)
        if self.declared:
            self.metadata = self._agreeing(metadata, shape, columns)
            return
        self.metadata = replace(self._agreeing(metadata, shape), names=assumed.names) if metadata else assumed
        LOGGER.warning(
            f"{self.path} names no classes: they are called class0, class1 ... unless --data names them; stride "
            f"{self.metadata.stride} is {'taken from it' if metadata else 'assumed'}"
        )

    def _agreeing(self, metadata: Metadata, shape: Sequence[Any], columns: Any = None) -> Metadata:
        """Returns metadata with as many names as the output has classes; ValueError where the input is another."""
        stated = (metadata.batch, metadata.channels, *metadata.imgsz)
        for what, said, side, free in zip(("batch", "channels", "height", "width"), stated, shape, (1, 0, 1, 1)):
            number = isinstance(side, int) and side > 0
            if number and (said != side or (free and metadata.dynamic)):
                said = "any" if free and metadata.dynamic else said
                raise ValueError(
                    f"{self.path}: its metadata says {what} {said}, and its input has {side}; export the file again"
                )
        nc = columns - 5 if isinstance(columns, int) and columns > 5 else len(metadata.names)
        if nc == len(metadata.names) or metadata.nms or metadata.train:
            return metadata
        LOGGER.warning(
            f"{self.path} has {len(metadata.names)} class names for {nc} classes; a class without one has its number, "
            "and names beyond are left out"
        )
        return replace(metadata, names=tuple((*metadata.names, *map(str, range(len(metadata.names), nc)))[:nc]))

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
        shapes = [tuple(output.shape) for output in outputs]
        if not self.metadata.nms:
            if len(shapes[0]) != 3 or shapes[0][2] < 6:
                raise ValueError(
                    f"{self.path}: its output must be rows (B, N, 5 + classes), found the shape {shapes[0]}"
                )
            return outputs[0].float()
        if len(shapes) < 3 or len(shapes[0]) != 3 or shapes[0][2] != 4 or not shapes[0][:2] == shapes[1] == shapes[2]:
            raise ValueError(
                f"{self.path}: its outputs must be boxes (B, K, 4), scores (B, K) and classes (B, K), found {shapes}"
            )
        boxes, scores, classes = (output.float() for output in outputs[:3])
        nc = len(self.metadata.names)
        if classes.numel() and not 0 <= classes.min() <= classes.max() < nc:
            raise ValueError(
                f"{self.path} found class {int(classes.max())}, and names {nc} classes from 0; give --data"
            )
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
    return Metadata.from_json(read_bounded(file), file) if file.is_file() else None
