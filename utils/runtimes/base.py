"""An exported detector: what its file says about itself, and what all that run such files have in common.

A file says which classes it knows, for which stride and frame it was made, and whether it suppresses on its own.
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

import torch
import torch.nn.functional as F

from utils.boxes import xyxy_to_xywh
from utils.cli import installed, require
from utils.log import LOGGER

GREY = 114 / 255  # around a picture that does not fill its frame
UNKNOWN_STRIDE = 64  # of a file that does not say, as in v6.1: right for every model of the family
UNKNOWN_CLASSES = 1000


@dataclass(frozen=True)
class Metadata:
    """What an exported file says about itself.

    names:    of the classes.
    stride:   pixels; sides of a frame are multiples of it.
    imgsz:    (height, width) of the frame it was made for; the only one unless dynamic.
    batch:    images at a time it was made for; the only number unless dynamic.
    channels: of an image.
    dynamic:  whether it takes any frame and number of images.
    nms:      whether it gives boxes, scores and classes after suppression instead of all decoded rows.
    train:    whether it gives the raw maps of all levels instead; no detector then, but something to train on.
    half:     whether the network inside is in float16.
    int8:     whether it is in 8-bit integers.
    conf_thres, iou_thres: of its suppression.
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
        """Each entry as JSON text, for stores of texts by name."""
        return {key: json.dumps(value, ensure_ascii=False) for key, value in asdict(self).items()}

    def as_json(self, **more: Any) -> str:
        """All of it in one text, with further entries that other programs look for."""
        return json.dumps({**asdict(self), **more}, ensure_ascii=False)

    @classmethod
    def from_texts(cls, texts: dict[str, str], path: str | Path) -> "Metadata | None":
        """What `as_texts` wrote; None where there is no such entry."""
        if "names" not in texts:
            return None
        known = {field.name for field in fields(cls)}
        return cls.checked({key: _parsed(texts[key], path) for key in known & set(texts)}, path)

    @classmethod
    def from_json(cls, text: str, path: str | Path) -> "Metadata | None":
        """What `as_json` wrote; None where the text is empty."""
        if not text:
            return None
        entries = _parsed(text, path)
        known = {field.name for field in fields(cls)}
        if not isinstance(entries, dict):
            raise ValueError(f"{path}: its metadata must be a mapping, found {type(entries).__name__}; export it anew")
        return cls.checked({key: value for key, value in entries.items() if key in known}, path)

    @classmethod
    def checked(cls, entries: dict[str, Any], path: str | Path) -> "Metadata":
        """From plain values that a file holds; ValueError, naming the file, where one makes no sense."""
        names = entries.get("names")
        if isinstance(names, dict):  # as later releases of YOLOv5 have them
            names = list(names.values())
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
            raise ValueError(f"{path}: its metadata must list the names of classes, found {names!r}; export it anew")
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


def _parsed(text: str, path: str | Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: its metadata is no JSON: {error}; export it anew") from None


def undeclared(shape: Sequence[Any], columns: Any = None) -> Metadata:
    """Of a file without metadata: what its input shape (B, C, H, W), and the columns of its output, tell.

    Sides that are no numbers make it dynamic. Classes are called class0, class1 ...
    """
    B, C, H, W = (side if isinstance(side, int) and side > 0 else None for side in shape)
    nc = columns - 5 if isinstance(columns, int) and columns > 5 else UNKNOWN_CLASSES
    names = tuple(f"class{i}" for i in range(nc))
    fixed = H is not None and W is not None
    return Metadata(names, imgsz=(H, W) if fixed else (640, 640), batch=B or 1, channels=C or 3, dynamic=not fixed)


# --- what all runtimes share ------------------------------------------------------------------------------------------


class Runtime:
    """One exported file, opened.

    A class for a toolchain has `__init__(path, device, half)`, which sets metadata, and `run`.

    Attributes: path, device; metadata; declared (False where the file has none and metadata is a guess); dtype that
    images should have.
    """

    packages: tuple[str, ...] = ()  # that have to be installed
    systems: tuple[str, ...] = ()  # of platform.system() on which it runs; empty for all
    gpu = False  # whether it takes a CUDA GPU

    @classmethod
    def obstacle(cls) -> str | None:
        """Why such a file cannot be run here; None where it can."""
        if cls.systems and platform.system() not in cls.systems:
            return f"runs on {' and '.join(cls.systems)} only"
        if missing := [package for package in cls.packages if not installed(package)]:
            return f"runs with {', '.join(missing)}, not installed here"
        return (
            "runs on a CUDA GPU, which torch does not see here" if cls.gpu and not torch.cuda.is_available() else None
        )

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        self.path, self.device = Path(path), torch.device(device)
        for package in self.packages:
            require(package, str(self.path))
        if reason := self.obstacle():
            raise ValueError(f"{self.path} {reason}")
        self.metadata: Metadata = undeclared((None, None, None, None))
        self.declared = False
        self.dtype = torch.float32

    def declare(self, metadata: Metadata | None, guess: Metadata) -> None:
        """Takes what the file says, or where it says nothing the guess."""
        self.declared = metadata is not None
        self.metadata = metadata or guess
        if not self.declared:
            LOGGER.warning(
                f"{self.path} has no metadata: stride {self.metadata.stride} is assumed, and classes have no names "
                "but those that --data gives"
            )

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One pass of the graph.

        images: (B, C, H, W), 0-1, on self.device, of self.dtype, of a shape that the file takes.

        Returns decoded rows (B, N, 5 + nc) first; or with metadata.nms boxes (B, K, 4) x1, y1, x2, y2 in pixels,
        scores (B, K), 0 where there is no more box, and classes (B, K).
        """
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, C, H, W), 0-1 -> decoded rows (B, N, 5 + nc), float32.

        Images that the file does not take as they are come into its frame and in its number. Of a file that
        suppresses, a row is a box that is left: its score as objectness, and 1 for its class.
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
    """Images (B, C, H, W) in the middle of a grey frame (height, width), made smaller where they are larger.

    Returns them with the gain of their sides and the (left, top) of their corner in pixels of the frame.
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
    return F.pad(images, (left, width - W - left, top, height - H - top), value=GREY), gain, (left, top)


# --- small things ---------------------------------------------------------------------------------------------------


def as_text(value: str | bytes) -> str:
    """UTF-8, whichever a toolchain gives."""
    return value.decode() if isinstance(value, bytes) else value


def as_tuple(outputs: Any) -> tuple[torch.Tensor, ...]:
    """What a graph gives, also where it is one tensor alone."""
    return tuple(outputs) if isinstance(outputs, list | tuple) else (outputs,)


@contextmanager
def silence() -> Iterator[None]:
    """Inside, what C++ libraries write to standard error goes nowhere: some greet, or warn of flags of their own."""
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
    """Of a toolchain's message; its type where there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def only_file(path: Path, suffix: str) -> Path:
    """path, or of a folder the one file in it with this suffix."""
    if path.is_file():
        return path
    files = sorted(path.glob(f"*{suffix}"))
    if len(files) != 1:
        raise ValueError(f"{path}: expected one {suffix} file in this folder, found {len(files)}")
    return files[0]


METADATA_FILE = "metadata.json"  # in formats that are folders


def folder_metadata(folder: Path) -> Metadata | None:
    """The metadata that lies beside the files of a format that is a folder."""
    file = folder / METADATA_FILE
    return Metadata.from_json(file.read_text(encoding="utf-8"), file) if file.is_file() else None
