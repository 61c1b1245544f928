"""Frames of sources in batches, read by a thread while the caller works on earlier ones."""

import itertools
import math
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import cv2
import numpy as np

from utils.data.images import decode_image, read_image
from utils.inference.sources import DEFAULT_FPS, IMAGE, STREAM, VIDEO, Frame, Source
from utils.inference.streams import TIMEOUT, read_streams
from utils.inference.videos import open_video
from utils.log import LOGGER

FAULTS_IN_A_ROW = 10  # frames of a video that cannot be decoded, after which the rest is left out

T = TypeVar("T")


def read_batches(
    sources: list[Source],
    batch_size: int = 1,
    stride: int = 1,
    todo: Sequence[int] | None = None,
    unreadable: list[int] | None = None,
    channels: int = 3,
) -> Iterator[list[Frame]]:
    """Yields the frames of all sources in batches. Close the iterator to end it early.

    Files come in batches of batch_size, without loss of a frame. A batch of live sources holds the newest frame of each
    that has a new one; frames that came in between are dropped.

    stride: read only every stride-th frame of a video or stream.
    todo: indices of the files to read; None for all.
    unreadable: the indices of files that cannot be read are appended to it, after a warning.

    channels: of the images; other than 1 and 3 only images have, which are then read as `read_image` does.

    Raises ValueError where no file can be read, for a video or stream where channels are not 1 or 3, and where a
    stream cannot be opened.
    """
    channels = 3 if channels == 1 else channels  # colour for the results; the detector makes it grey
    if channels != 3 and (colour := [source for source in sources if source.kind != IMAGE]):
        raise ValueError(f"{colour[0].title} is a {colour[0].kind} in colour, and the weights take {channels} channels")
    if sources[0].kind == STREAM:
        return read_streams(sources, stride)
    todo, unreadable = range(len(sources)) if todo is None else todo, [] if unreadable is None else unreadable
    return in_background(_batched(_read_files(sources, stride, todo, unreadable, channels), batch_size), depth=3)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def _read_files(
    sources: list[Source], stride: int, todo: Sequence[int], unreadable: list[int], channels: int
) -> Iterator[Frame]:
    for i in todo:
        try:
            if sources[i].kind == VIDEO:
                yield from _read_video(i, sources[i], stride)
            else:
                yield Frame(i, _read_image(sources[i], channels))
        except (ValueError, OSError) as error:
            unreadable.append(i)
            if len(unreadable) == len(sources):
                others = f" (and none of the {len(sources)} files can be read)" if len(sources) > 1 else ""
                raise ValueError(f"{error}{others}") from None
            LOGGER.warning(f"left out: {error}")


def _read_image(source: Source, channels: int) -> np.ndarray:
    if source.name == "-":
        return decode_image(np.frombuffer(sys.stdin.buffer.read(), np.uint8), "standard input", channels)
    return read_image(source.name, channels)


def _read_video(i: int, source: Source, stride: int) -> Iterator[Frame]:
    """Yields every stride-th frame of a video. Raises ValueError where it has none."""
    capture = open_video(source.name)
    try:
        fps = _frame_rate(capture) / stride  # so that the result plays as long as the original
        count = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        number = faults = 0
        while faults < FAULTS_IN_A_ROW and capture.grab():
            number += 1
            if (number - 1) % stride:
                continue
            whole, image = capture.retrieve()
            faults = 0 if whole else faults + 1
            if whole:
                yield Frame(i, image, number, math.ceil(count / stride), fps)
        if not number:
            raise ValueError(f"{source.name}: video cannot be decoded, or has no frames")
        if number < 0.9 * count:
            LOGGER.warning(f"{source.name}: ends after {number} of the {count} frames that its header states")
    finally:
        capture.release()


def _frame_rate(capture: cv2.VideoCapture) -> float:
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS


def in_background(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yields the same items, produced by a thread up to `depth` items ahead. Its errors are raised here."""
    ready: queue.Queue = queue.Queue(depth)
    stopped, end = threading.Event(), object()

    def put(item) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
            put((end, None))
        except BaseException as error:  # whatever it is, KeyboardInterrupt too: it is raised in the caller's thread
            put((end, error))

    thread = threading.Thread(target=work, name="reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stopped.set()
        thread.join(TIMEOUT)  # not for ever: it may hang in a read, such as that of standard input
