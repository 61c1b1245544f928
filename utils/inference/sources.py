"""What detect looks at: files, folders and globs, as pictures one by one."""

import glob
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from utils.data.augmentations import letterbox_planes
from utils.data.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_image, read_image
from utils.files import ROOT
from utils.log import LOGGER

ONLY_PICTURES = "videos, cameras, streams and lists of them are not read; give pictures"


def list_sources(source: str | Path) -> list[Path]:
    """The image files of a file, a folder (not below it) or a glob such as `shots/**/*.jpg`, sorted.

    A relative path that is not below the current folder is looked for in the repository. A folder's or glob's other
    files are left out. Raises FileNotFoundError when nothing is there, ValueError for what is no picture.
    """
    text = str(source)
    if not text.strip():
        raise ValueError("--source is empty; give an image file, a folder of them, or a glob in quotes")
    path = Path(source).expanduser()
    if not path.exists() and (ROOT / path).exists():
        path = ROOT / path
    if path.is_file():
        return [_picture(path)]
    if path.is_dir():
        found, where = path.iterdir(), "in this folder"
    elif glob.has_magic(text):
        found, where = map(Path, glob.glob(str(path), recursive=True)), "match"
    elif text.isdecimal() or "://" in text:
        raise ValueError(f"--source {source}: {ONLY_PICTURES}")
    else:
        raise FileNotFoundError(f"--source {source}: no such file or folder")

    found = sorted(p for p in found if p.is_file())
    if videos := [p.name for p in found if _suffix(p) in VIDEO_SUFFIXES]:
        LOGGER.warning(f"--source {source}: {len(videos)} videos are left out, {videos[0]} first: {ONLY_PICTURES}")
    files = [p for p in found if is_image(p)]
    if not files:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise FileNotFoundError(f"--source {source}: no image files {where}; an image file ends in {suffixes}")
    return files


def _suffix(path: Path) -> str:
    return path.suffix[1:].lower()


def _picture(path: Path) -> Path:
    """The path; ValueError where its name says that it is something else."""
    if _suffix(path) in (*VIDEO_SUFFIXES, "txt"):
        raise ValueError(f"--source {path}: {ONLY_PICTURES}")
    return path


def read_sources(files: list[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """(path, BGR uint8 (H, W, 3)) of each file. One that cannot be read is named and left out.

    Raises ValueError where none can be read.
    """
    faults = []
    for path in files:
        try:
            image = read_image(path)
        except (ValueError, OSError) as error:
            faults.append(error)
            if len(faults) < len(files):
                LOGGER.warning(f"left out: {error}")
            continue
        yield path, image
    if len(faults) == len(files):
        others = f" (nor can the other {len(files) - 1} pictures)" if len(files) > 1 else ""
        raise ValueError(f"{faults[-1]}{others}")


def to_input(
    image: np.ndarray, size: int | tuple[int, int], stride: int, auto: bool = True
) -> tuple[torch.Tensor, tuple[int, int]]:
    """One picture as the network sees it.

    Args:
        image: BGR uint8 (H, W, 3).
        size: frame in pixels, one side or (height, width).
        auto: pad only to the next multiple of the stride.

    Returns: uint8 RGB (1, 3, h, w), and (h, w).
    """
    planes = letterbox_planes(image, size, auto=auto, stride=stride)[0]
    return torch.from_numpy(planes)[None], planes.shape[1:]
