"""The pixels of the images of a split: read from files each time, kept in memory or on disk, or unpacked from shards.

Every store gives image i as uint8 (height, width, C), resized so that its longer side is the image size. The result may
be shared with others and is never written to.
"""

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool

import cv2
import numpy as np

from utils.data.annotations import files_digest
from utils.data.cache import DISK_LIMIT, MEMORY_LIMIT, ImagesOnDisk, SharedImages
from utils.data.images import by_fours, decode_image, read_bytes
from utils.data.machine import free_memory, usable_cores
from utils.data.options import LoaderOptions
from utils.files import GIB
from utils.log import LOGGER
from utils.progress import Bar


class ImageStore:
    """What all stores share: the size that an image is loaded at, and its decoding.

    Args:
        files: n paths.
        sizes: int (n, 2), the width and height of each image in pixels.
        options: of which the image size, the channels and `augment` count.
    """

    def __init__(self, files: Sequence[str], sizes: np.ndarray, options: LoaderOptions):
        self.files = files
        self.sizes = sizes
        self.image_size = options.image_size
        self.channels = options.channels
        # evaluation averages over all pixels, as v6.1; training may take the faster way
        self.fast = options.augment

    @property
    def available(self) -> Sequence[int]:
        """Returns the numbers of the images whose pixels can be loaded now."""
        raise NotImplementedError

    def load(self, i: int) -> np.ndarray:
        """Returns image i, uint8 (height, width, C)."""
        raise NotImplementedError

    def shape_of(self, i: int) -> tuple[int, int]:
        """Returns the (height, width) of image i as `load` gives it."""
        width, height = self.sizes[i].tolist()
        gain = self.image_size / max(height, width)
        return max(int(height * gain), 1), max(int(width * gain), 1)

    def decode(self, i: int, data: np.ndarray) -> np.ndarray:
        """Decodes image i from the bytes of its file, uint8 (n,). Raises ValueError where its size has changed."""
        w0, h0 = self.sizes[i].tolist()
        gain = self.image_size / max(h0, w0)
        # training may let the decoder do part of the reduction
        image = decode_image(data, self.files[i], self.channels, shrink=1 / gain if self.fast else 1)
        factor = round(h0 / image.shape[0])
        if factor == 0 or image.shape[:2] != (-(-h0 // factor), -(-w0 // factor)):
            now = f"{image.shape[1]} x {image.shape[0]}"
            raise ValueError(
                f"{self.files[i]}: had {w0} x {h0} pixels when the data set was checked, but has {now} now; "
                "an image must not change during training: start again"
            )
        height, width = self.shape_of(i)
        if factor > 1:
            # by exactly so much, then cut: the last pixel may stand for less than the others do
            gains = {"fx": factor * width / w0, "fy": factor * height / h0}
            image = np.ascontiguousarray(cv2.resize(image, None, **gains)[:height, :width])  # in colour, always
        elif image.shape[:2] != (height, width):
            # area averaging is the truer reduction, linear the faster: training sees the fast one, as in v6.1
            method = cv2.INTER_LINEAR if self.fast or gain > 1 else cv2.INTER_AREA
            image = by_fours(lambda part: cv2.resize(part, (width, height), interpolation=method), image)
        return image


class FileStore(ImageStore):
    """Images in files; decoded ones are kept in memory or on disk where the option `cache` asks for it and they fit."""

    def __init__(self, files: Sequence[str], sizes: np.ndarray, options: LoaderOptions):
        super().__init__(files, sizes, options)
        self.prefix = options.prefix
        self._decoded: dict[int, np.ndarray] | None = None  # images that have been read, while `sharing`
        self._in_memory: SharedImages | None = None
        self._on_disk: ImagesOnDisk | None = None
        if options.cache == "disk":
            self._keep_on_disk()
        elif options.cache in MEMORY_LIMIT:
            self._keep_in_memory(options.cache)

    @property
    def available(self) -> Sequence[int]:
        return range(len(self.files))

    def load(self, i: int) -> np.ndarray:
        if self._in_memory is not None:
            return self._in_memory[i]
        if self._decoded is None:
            return self._read(i)
        if i not in self._decoded:
            self._decoded[i] = self._read(i)
        return self._decoded[i]

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Keeps an image that is read from its file for the next sample that shows it, as long as it is open."""
        self._decoded = {} if self._in_memory is None else None
        try:
            yield
        finally:
            self._decoded = None

    def _read(self, i: int) -> np.ndarray:
        data = read_bytes(self.files[i])
        if self._on_disk is None:
            return self.decode(i, data)
        image = self._on_disk.load(data, self.shape_of(i))
        if image is None:
            image = self.decode(i, data)
            self._on_disk.save(data, image)
        return image

    def _shapes(self) -> np.ndarray:
        """Returns height and width of every image as loaded, int (n, 2)."""
        return np.array([self.shape_of(i) for i in range(len(self.files))])

    @property
    def _kind(self) -> str:
        return f"{'linear' if self.fast else 'area'}-{self.channels}"

    def _keep_on_disk(self) -> None:
        on_disk = ImagesOnDisk(f"{self.image_size}-{self._kind}", self.channels)
        needed = int(self._shapes().prod(1).sum() * self.channels)
        free = shutil.disk_usage(on_disk.folder).free
        if self._enough(needed, free, DISK_LIMIT, f"space in {on_disk.folder}", warn=True):
            self._on_disk = on_disk
            LOGGER.info(f"{self.prefix}images are kept in {on_disk.folder} ({needed / GIB:.1f} GiB when all are)")

    def _keep_in_memory(self, cache: str) -> None:
        key = f"{self.image_size} {self._kind} {files_digest(self.files)}"

        def fits(needed: int) -> bool:
            free = free_memory()
            enough = free is None or self._enough(needed, free, MEMORY_LIMIT[cache], "memory", warn=cache == "ram")
            if enough and cache == "auto" and free is not None:
                LOGGER.info(
                    f"{self.prefix}images are kept in memory: {needed / GIB:.1f} GiB of the {free / GIB:.1f} GiB that "
                    "are free; --cache off reads them each time"
                )
            return enough

        try:
            self._in_memory = SharedImages(key, self._shapes(), self._fill, fits, self.channels)
        except MemoryError:
            pass  # `fits` has reported it

    def _enough(self, needed: int, free: int, limit: float, what: str, warn: bool) -> bool:
        if needed <= limit * free:
            return True
        level = logging.WARNING if warn else logging.INFO
        LOGGER.log(
            level,
            f"{self.prefix}images need {needed / GIB:.1f} GiB of {what}, more than {limit:.0%} of the "
            f"{free / GIB:.1f} GiB that are free; not cached",
        )
        return False

    def _fill(self, arrays: list[np.ndarray]) -> None:
        """Reads all images, each into its array."""

        def read(i: int) -> None:
            arrays[i][:] = self._read(i)

        quiet = not LOGGER.isEnabledFor(logging.INFO)
        with ThreadPool(min(8, usable_cores())) as pool:
            work = pool.imap_unordered(read, range(len(self.files)), chunksize=8)
            for _ in Bar(work, f"{self.prefix}caching images", len(self.files), disable=quiet):
                pass


class ShardStore(ImageStore):
    """Images of tar shards. Shards are read from front to back, so only the images in a window can be loaded."""

    def __init__(self, files: Sequence[str], sizes: np.ndarray, options: LoaderOptions):
        super().__init__(files, sizes, options)
        self._window: list[int] = []
        self._pixels: dict[int, np.ndarray] = {}

    @property
    def available(self) -> Sequence[int]:
        return self._window

    def load(self, i: int) -> np.ndarray:
        return self._pixels[i]

    def fill(self, items: Iterable[tuple[int, bytes]]) -> None:
        """Makes a new window of images, each given as its number and the bytes of its file."""
        self._window, self._pixels = [], {}
        for i, data in items:
            self._admit(i, data)
            self._window.append(i)

    def replace(self, position: int, i: int, data: bytes) -> None:
        """Replaces the image at a position of the window by image i."""
        old, self._window[position] = self._window[position], i
        self._admit(i, data)
        if old not in self._window:
            del self._pixels[old]

    def _admit(self, i: int, data: bytes) -> None:
        self._pixels[i] = self.decode(i, np.frombuffer(data, np.uint8))
