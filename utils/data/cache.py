"""Decoded images kept for reuse: in memory, one copy for all processes of a machine, or in the user's cache folder."""

import hashlib
import math
import mmap
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from utils.files import atomic_write, cache_folder
from utils.log import LOGGER

# maximum share of what is free that decoded images may take: of memory, by the value of --cache, and of the disk
MEMORY_LIMIT = {"ram": 0.8, "auto": 0.5}
DISK_LIMIT = 0.9
VERSION = 1  # of what is stored; raise it when the same file would give other pixels
HEAD = mmap.PAGESIZE  # bytes before the first image, which hold the key


# --- memory -----------------------------------------------------------------------------------------------------------


class SharedImages:
    """uint8 images in one block of memory, which other processes of this user can open but not change.

    A block is found by its key, exists as long as a process has it open, and leaves nothing behind, however the
    processes end. A forked worker inherits it; a spawned one opens it again, and so does the next process that asks for
    the same key.

    Args:
        key: identifies the content; two blocks of one key are the same.
        shapes: int (n, 2), the (height, width) of each image.
        fill: called with n arrays to write to, if the block does not exist yet.
        fits: called with a number of bytes before memory is taken; returns False where that is too much.

    Raises MemoryError if it does not fit.
    """

    def __init__(
        self,
        key: str,
        shapes: np.ndarray,
        fill: Callable[[list[np.ndarray]], None],
        fits: Callable[[int], bool] = lambda size: True,
        channels: int = 3,
    ):
        self._shapes = shapes
        self._channels = channels
        self._starts = HEAD + np.cumsum([0, *(shapes.prod(1) * channels)], dtype=np.int64)
        self._mark = hashlib.sha256(f"images {VERSION} {key}".encode()).digest()
        name = cache_folder() / "memory" / f"{platform.node()}-{self._mark.hex()[:32]}"
        with _lock(name) as locked:  # the first process fills the block, the others wait for it
            if not (locked and self._open(name)):
                self._make(fill, fits)
                if locked:
                    self._publish(name)

    def __getitem__(self, i: int) -> np.ndarray:
        """Returns image i, uint8 (height, width, channels), which cannot be written to."""
        shape = (*self._shapes[i].tolist(), self._channels)
        return np.frombuffer(self._memory, np.uint8, math.prod(shape), int(self._starts[i])).reshape(shape)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("_memory", "_file")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        if not self._attach(self._address):
            raise RuntimeError("the images that the starting process kept in memory no longer exist")

    def _make(self, fill: Callable[[list[np.ndarray]], None], fits: Callable[[int], bool]) -> None:
        size = int(self._starts[-1])
        if not fits(size):
            raise MemoryError
        if hasattr(os, "memfd_create"):  # Linux: a file without a name
            self._file = os.fdopen(os.memfd_create("images"), "r+b")
            self._address = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        else:
            self._file = tempfile.NamedTemporaryFile()  # deleted when this process ends
            self._address = self._file.name
        self._file.truncate(size)
        block = np.frombuffer(mmap.mmap(self._file.fileno(), size), np.uint8)
        parts = [block[a:b] for a, b in zip(self._starts, self._starts[1:])]
        fill([part.reshape(*shape, self._channels) for part, shape in zip(parts, self._shapes.tolist())])
        block[: len(self._mark)] = np.frombuffer(self._mark, np.uint8)  # last: the block is whole
        self._memory = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ)

    def _publish(self, name: Path) -> None:
        try:
            with atomic_write(name, "w", sync=False) as file:
                file.write(self._address)
        except OSError as error:
            _warn_of_private(name, error)

    def _open(self, name: Path) -> bool:
        return name.is_file() and self._attach(name.read_text())

    def _attach(self, address: str) -> bool:
        """Maps the block at `address`; returns False where it no longer exists or is another one."""
        try:
            self._file = open(address, "rb")
            self._memory = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # the process that made it is gone; or the file is empty
            return False
        if len(self._memory) != self._starts[-1] or self._memory[: len(self._mark)] != self._mark:
            return False
        if address.startswith("/proc/"):
            self._address = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"  # which lives on without its maker
        else:
            self._address = address
        return True


@contextmanager
def _lock(name: Path) -> Iterator[bool]:
    """Holds the lock file of a block; yields False where the folder cannot be written, which is reported."""
    from filelock import FileLock

    lock = FileLock(f"{name}.lock")
    try:
        name.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire()
    except OSError as error:
        _warn_of_private(name, error)
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _warn_of_private(name: Path, error: OSError) -> None:
    LOGGER.warning(f"{name} cannot be written ({error}); other processes cannot use the images of this one")


# --- disk -------------------------------------------------------------------------------------------------------------


class ImagesOnDisk:
    """Decoded images in the user's cache folder, found by the bytes of the file that they came from.

    So a changed file never gives its old pixels, equal files share an entry, and entries outlive the run.
    They are written whole or not at all; processes and runs may use them side by side.

    kind: how the pixels were made, where it matters; part of an entry's name.
    """

    def __init__(self, kind: str, channels: int = 3):
        self.kind = kind
        self.channels = channels
        self.folder = cache_folder() / f"images-{VERSION}"
        self._writable = True
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _path(self, data: np.ndarray) -> Path:
        name = hashlib.blake2b(data, digest_size=20).hexdigest()
        return self.folder / name[:2] / f"{name}-{self.kind}"

    def load(self, data: np.ndarray, shape: tuple[int, int]) -> np.ndarray | None:
        """Returns the image of `shape` (height, width) that was made of a file's bytes `data`, or None."""
        try:
            pixels = np.fromfile(self._path(data), np.uint8)
        except OSError:
            return None
        shape = (*shape, self.channels)
        return pixels.reshape(shape) if pixels.size == math.prod(shape) else None

    def save(self, data: np.ndarray, image: np.ndarray) -> None:
        """Keeps the image made of a file's bytes; a disk that is full is reported once."""
        if not self._writable:
            return
        path = self._path(data)
        try:
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path, sync=False) as file:
                file.write(image.tobytes())
        except OSError as error:
            self._writable = False
            LOGGER.warning(f"images can no longer be kept in {self.folder} ({error}); they are read each time")
