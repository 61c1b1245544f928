"""Live sources: cameras, network streams and the screen, of which the newest frame is always used."""

import itertools
import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np

from utils.inference.sources import DEFAULT_FPS, Frame, Source, is_camera, screen_box
from utils.inference.videos import open_video
from utils.log import LOGGER

TIMEOUT = 10.0  # seconds without a frame after which a stream counts as broken off
RETRY_AFTER = (1, 2, 4, 8, 16)  # seconds before each attempt to reopen a stream that broke off


class Stream:
    """A camera, a network stream, the screen, or a video beside them, read by a thread.

    Only the newest frame of a live source is kept; a video waits until its frame is taken. A live source that breaks
    off is opened again, see RETRY_AFTER.

    Args:
        index: position of the source in its list.
        stride: read every stride-th frame only.
        news: notified whenever a frame has come or the stream has ended.

    Raises ValueError where the source cannot be opened.
    """

    def __init__(self, index: int, source: Source, stride: int, news: threading.Condition):
        self.index, self.source, self.stride, self.news = index, source, stride, news
        self.ended = False
        self._newest: np.ndarray | None = None
        self._stopped = threading.Event()
        self._capture = open_capture(source)
        if self._capture is None:
            raise ValueError(f"--source {source.title}: cannot be opened; {_opening_hint(source)}")
        self.live = source.live
        self.thread = threading.Thread(target=self._work, name=source.title, daemon=True)
        self.thread.start()

    def take(self) -> np.ndarray | None:
        """Returns the newest frame, or None if it was taken before. The caller holds `news`."""
        image, self._newest = self._newest, None
        self.news.notify_all()
        return image

    def stop(self) -> None:
        """Ends the thread, at the latest when its present read times out."""
        self._stopped.set()
        with self.news:
            self.news.notify_all()

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                self._read()
                if not self.live or not self._reopened():
                    return
        finally:
            if self._capture is not None:
                self._capture.release()
            with self.news:
                self.ended = True
                self.news.notify_all()

    def _read(self) -> None:
        """Reads frames until there are none."""
        for number in itertools.count():
            if self._stopped.is_set() or not self._capture.grab():
                return
            if number % self.stride:
                continue
            whole, image = self._capture.retrieve()
            if whole and image is not None:
                self._keep(image)

    def _keep(self, image: np.ndarray) -> None:
        with self.news:
            while not self.live and self._newest is not None and not self._stopped.is_set():
                self.news.wait()
            self._newest = image
            self.news.notify_all()

    def _reopened(self) -> bool:
        self._capture.release()
        for attempt, seconds in enumerate(RETRY_AFTER, 1):
            if self._stopped.wait(seconds):
                return False
            LOGGER.warning(
                f"{self.source.title}: the stream broke off; attempt {attempt} of {len(RETRY_AFTER)} to reopen it"
            )
            self._capture = open_capture(self.source)
            if self._capture is not None:
                return True
        LOGGER.warning(f"{self.source.title}: the stream could not be reopened and is not read any more")
        return False


def read_streams(sources: list[Source], stride: int = 1) -> Iterator[list[Frame]]:
    """Yields the newest frame of each stream that has a new one, until all have ended. Batches are numbered from 0."""
    news = threading.Condition()
    streams: list[Stream] = []
    try:
        for i, source in enumerate(sources):
            streams.append(Stream(i, source, stride, news))
        for number in itertools.count():
            with news:
                while True:
                    ended = all(s.ended for s in streams)  # read before the frames, as the last frame precedes the end
                    frames = [(s.index, image) for s in streams if (image := s.take()) is not None]
                    if frames or ended:
                        break
                    news.wait()
            if not frames:
                return
            yield [Frame(i, image, number, 0) for i, image in frames]
    finally:
        for stream in streams:
            stream.stop()
        for stream in streams:
            stream.thread.join(timeout=TIMEOUT)


def open_capture(source: Source):
    """Returns an object with OpenCV's `grab`, `retrieve` and `release`, or None where the source cannot be opened."""
    if source.live and source.name.startswith("screen"):
        capture = ScreenCapture(screen_box(source.name))
    elif is_camera(source.name):
        capture = cv2.VideoCapture(int(source.name))
    elif source.live:
        milliseconds = int(1000 * TIMEOUT)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
        capture = cv2.VideoCapture(source.name, cv2.CAP_FFMPEG, limits)
    else:
        try:
            capture = open_video(source.name)
        except (ValueError, OSError) as error:
            LOGGER.warning(str(error))
            return None
    return capture if capture.isOpened() else None


def _opening_hint(source: Source) -> str:
    if is_camera(source.name):
        return "is the camera with this number connected, and not in use?"
    if source.name.startswith("screen"):
        return "is there a display, and may programs read it?"
    return "is the address right, and is the stream running?" if source.live else "is it a video?"


class ScreenCapture:
    """The screen, or a part of it, with the methods of OpenCV's captures. box: left, top, right, bottom in pixels."""

    def __init__(self, box: tuple[int, int, int, int] | None):
        self.box = box
        self._image: np.ndarray | None = None

    def isOpened(self) -> bool:
        return self.grab()

    def grab(self) -> bool:
        from PIL import ImageGrab

        time.sleep(1 / DEFAULT_FPS)
        try:
            self._image = np.asarray(ImageGrab.grab(self.box).convert("RGB"))[..., ::-1].copy()
        except (OSError, ValueError):  # there is no display, or it is gone
            return False
        return True

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        return True, self._image

    def release(self) -> None:
        pass
