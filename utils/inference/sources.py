"""What detect looks at: files, folders and globs, as pictures one by one."""

import glob
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from utils.data.augmentations import letterbox
from utils.data.images import is_image, read_image
from utils.log import LOGGER


def list_sources(source: str | Path) -> list[Path]:
    """The image files of a file, a folder (not below it) or a glob such as `shots/**/*.jpg`, sorted.

    A folder's or glob's other files are left out. Raises FileNotFoundError when nothing is there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and is_image(p))
        if not files:
            raise FileNotFoundError(f"--source {source}: no image files in this folder")
    elif path.is_file():
        files = [path]
    elif glob.has_magic(str(source)):
        files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file() and is_image(p))
        if not files:
            raise FileNotFoundError(f"--source {source}: no image files match")
    else:
        raise FileNotFoundError(f"--source {source}: no such file or folder")
    return files


def read_sources(files: list[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """(path, BGR uint8 (H, W, 3)) of each file. Among several a file that cannot be decoded is named and left out."""
    for path in files:
        try:
            yield path, read_image(path)
        except ValueError as error:
            if len(files) == 1:
                raise
            LOGGER.warning(f"skipped: {error}")


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
    framed = letterbox(image, size, auto=auto, stride=stride)[0]
    chw = np.ascontiguousarray(framed[..., ::-1].transpose(2, 0, 1))
    return torch.from_numpy(chw)[None], framed.shape[:2]
