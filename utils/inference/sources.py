"""What detect looks at: pictures, videos, lists of them, cameras, streams and the screen, as batches of frames."""

import glob
import itertools
import math
import queue
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np

from utils.data.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES, decode_image, is_image, listed_files, read_image
from utils.downloads import download as fetch
from utils.files import ROOT
from utils.log import LOGGER

PICTURE, VIDEO, STREAM = "picture", "video", "stream"
LIST_SUFFIXES = ("txt", "streams")
SCHEMES = ("http", "https", "rtmp", "rtsp", "rtsps", "udp")
DEFAULT_FPS = 30.0  # of a stream, and of a video that does not say
TIMEOUT = 10.0  # seconds that a stream may be silent
RETRY_AFTER = (1, 2, 4, 8, 16)  # seconds between attempts to reopen a stream that broke off; then it is given up
FAULTS_IN_A_ROW = 10  # frames of a video that cannot be decoded before the rest is given up

T = TypeVar("T")


class Source(NamedTuple):
    """One thing to look at: a path, an URL, `-`, `screen ...` or the number of a camera."""

    name: str
    kind: str  # PICTURE, VIDEO or STREAM

    @property
    def live(self) -> bool:
        """Whether it goes on without us, so that frames may be lost. A video in a list of streams does not."""
        return self.kind == STREAM and ("://" in self.name or not _is_video(self.name))

    @property
    def title(self) -> str:
        """The name for messages: without the password that the address of a camera may hold."""
        return re.sub(r"(?<=://)[^/@]*@", "", self.name)

    @property
    def result(self) -> str:
        """The path that results are named after."""
        if self.name == "-":
            return "stdin.jpg"
        return re.sub(r"[^\w.-]+", "_", self.title).strip("_") + ".mp4" if self.live else self.name


class Frame(NamedTuple):
    """One picture to look at."""

    source: int  # index in the list of sources
    image: np.ndarray  # BGR uint8 (H, W, 3)
    number: int | None = None  # in a video, from 1; of a stream, from 0; None for a picture
    count: int = 1  # frames of its source, 0 where that is not known
    fps: float = DEFAULT_FPS  # frames per second to play it at


# --- what there is ----------------------------------------------------------------------------------------------------


def list_sources(source: str | Path, download: bool = False) -> list[Source]:
    """What `--source` names: either pictures, then videos, each sorted; or live sources.

    source: a file; a folder (not below it); a glob such as `shots/**/*.jpg`; `-` for a picture on standard input; the
        number of a camera; an URL; `screen`, or `screen x y width height`; a `.txt` file that lists pictures and
        videos, or else live sources; a `.streams` file of live sources and videos to be watched side by side. A
        relative path that is not below the current folder is looked for in the repository.
    download: fetch the picture or video that an URL names into the current folder, as v6.1 does.

    Raises FileNotFoundError when nothing is there, ValueError for what is no source.
    """
    text = str(source).strip()
    if not text:
        raise ValueError("--source is empty; give an image or video file, a folder of them, or a glob in quotes")
    if text == "-" or _is_camera(text) or "://" in text:
        return [_entry(text, download)]
    path = Path(source).expanduser()
    if not path.exists() and (ROOT / path).exists():
        path = ROOT / path
    if path.is_file():
        return _from_list(path, download) if _suffix(path) in LIST_SUFFIXES else [_entry(str(path))]
    if path.is_dir():
        found, where = path.iterdir(), "in this folder"
    elif glob.has_magic(text):
        found, where = map(Path, glob.glob(str(path), recursive=True)), "match"
    elif text.split()[0] == "screen":
        _screen_box(text)
        return [Source(text, STREAM)]
    else:
        raise FileNotFoundError(f"--source {source}: no such file or folder")

    files = [_entry(str(p)) for p in sorted(found) if p.is_file() and (is_image(p) or _is_video(p))]
    if not files:
        suffixes = f"an image file ends in {', '.join(IMAGE_SUFFIXES)}; a video in {', '.join(VIDEO_SUFFIXES)}"
        raise FileNotFoundError(f"--source {source}: no image or video files {where}; {suffixes}")
    return _pictures_first(files)


def _from_list(path: Path, download: bool) -> list[Source]:
    """The sources in a text file, one a line."""
    found = [_entry(line, download) for line in listed_files(path)]
    if not found:
        raise ValueError(f"{path}: the list is empty; give a file or a stream per line")
    live = [s.live for s in found]
    if _suffix(path) == "streams":
        if odd := [s.title for s in found if s.kind == PICTURE]:
            raise ValueError(f"{path}: a list of streams holds URLs, camera numbers and videos, got {odd[0]}")
        return [s._replace(kind=STREAM) for s in found]
    if any(live) and not all(live):
        odd = found[live.index(not live[0])].title
        raise ValueError(f"{path}: lists files or streams, not both: {odd} is unlike {found[0].title}, its first line")
    return found if all(live) else _pictures_first(found)


def _entry(text: str, download: bool = False) -> Source:
    if _is_camera(text):
        return Source(text, STREAM)
    if "://" in text:
        return _from_url(text, download)
    return Source(text, VIDEO if _is_video(text) else PICTURE)


def _from_url(url: str, download: bool) -> Source:
    parts = urlsplit(url)
    source = Source(url, STREAM)
    if parts.scheme.lower() not in SCHEMES:
        raise ValueError(f"--source {source.title}: an address starts with {', '.join(SCHEMES)} and ://")
    if parts.hostname and re.search(r"(^|\.)(youtube\.com|youtu\.be)$", parts.hostname):
        raise ValueError(f"--source {source.title}: a page, not a stream; save the video with yt-dlp, then give it")
    name = unquote(PurePosixPath(parts.path).name)
    if not parts.scheme.lower().startswith("http") or not (is_image(name) or _is_video(name)):
        return source
    file = Path(Path(name.replace("\\", "/")).name)  # `%2F` must not lead out of the folder
    if not file.exists():
        if not download:
            raise ValueError(f"--source {source.title}: not fetched; --download saves it as {file} and reads that")
        fetch(url, file)
    return _entry(str(file))


def _pictures_first(sources: list[Source]) -> list[Source]:
    return sorted(sources, key=lambda s: s.kind == VIDEO)


def _suffix(path: str | Path) -> str:
    return Path(path).suffix[1:].lower()


def _is_video(path: str | Path) -> bool:
    return _suffix(path) in VIDEO_SUFFIXES


def _is_camera(text: str) -> bool:
    return text.isascii() and text.isdecimal()


# --- files: none of their frames is lost ------------------------------------------------------------------------------


def read_batches(
    sources: list[Source],
    batch_size: int = 1,
    stride: int = 1,
    todo: Sequence[int] | None = None,
    lost: list[int] | None = None,
) -> Iterator[list[Frame]]:
    """The frames of all sources, read by threads while the caller works on earlier ones.

    Files come in batches of batch_size, every frame of them. Of live sources a batch holds the newest frame of each
    that has a new one; those for which there was no time are dropped. Close the iterator to end it early.

    stride: of a video or stream only every stride-th frame.
    todo: indices of the files to read; None for all.
    lost: is given the indices of files that cannot be read.

    A file that cannot be read is named and left out; ValueError where none of all can, and where a stream does not
    open.
    """
    if sources[0].kind == STREAM:
        return read_streams(sources, stride)
    todo, lost = range(len(sources)) if todo is None else todo, [] if lost is None else lost
    return in_background(_batched(_read_files(sources, stride, todo, lost), batch_size), depth=3)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def _read_files(sources: list[Source], stride: int, todo: Sequence[int], lost: list[int]) -> Iterator[Frame]:
    for i in todo:
        try:
            if sources[i].kind == VIDEO:
                yield from _read_video(i, sources[i], stride)
            else:
                yield Frame(i, _read_picture(sources[i]))
        except (ValueError, OSError) as error:
            lost.append(i)
            if len(lost) == len(sources):
                others = f" (nor can the other {len(lost) - 1} files)" if len(lost) > 1 else ""
                raise ValueError(f"{error}{others}") from None
            LOGGER.warning(f"left out: {error}")


def _read_picture(source: Source) -> np.ndarray:
    if source.name == "-":
        return decode_image(np.frombuffer(sys.stdin.buffer.read(), np.uint8), "standard input")
    return read_image(source.name)


def _read_video(i: int, source: Source, stride: int) -> Iterator[Frame]:
    """Every stride-th frame of a video; ValueError where it has none."""
    if not Path(source.name).is_file():
        raise FileNotFoundError(f"{source.name}: no such file")
    capture = cv2.VideoCapture(source.name)
    try:
        fps = _frame_rate(capture) / stride  # played as long as the original
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
            LOGGER.warning(f"{source.name}: ends after {number} of the {count} frames that it promises")
    finally:
        capture.release()


def _frame_rate(capture: cv2.VideoCapture) -> float:
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS


def in_background(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items, made by a thread up to `depth` ahead of the caller. What it raises is raised here."""
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
        except BaseException as error:  # all of it belongs to the caller
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
        thread.join(TIMEOUT)  # not for ever: it may hang in a read, of standard input for one


# --- live sources: always the newest frame ----------------------------------------------------------------------------


class Stream:
    """A camera, a network stream, the screen, or a video that plays beside them, read by a thread.

    Of a live source only the newest frame is kept; a video waits until its frame is taken. A live source that breaks
    off is opened anew, see RETRY_AFTER.

    Args:
        index: of the source in its list.
        news: told whenever a frame has come or the stream is over.
    """

    def __init__(self, index: int, source: Source, stride: int, news: threading.Condition):
        self.index, self.source, self.stride, self.news = index, source, stride, news
        self.over = False
        self._newest: np.ndarray | None = None
        self._stopped = threading.Event()
        self._capture = open_capture(source)
        if self._capture is None:
            raise ValueError(f"--source {source.title}: cannot be opened; {_opening_hint(source)}")
        self.live = source.live
        self.thread = threading.Thread(target=self._work, name=source.title, daemon=True)
        self.thread.start()

    def take(self) -> np.ndarray | None:
        """The newest frame if it was not taken before. Call it while holding `news`."""
        image, self._newest = self._newest, None
        self.news.notify_all()
        return image

    def stop(self) -> None:
        """Ends the thread, at the latest when the read that it is in times out."""
        self._stopped.set()
        with self.news:
            self.news.notify_all()

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                self._play()
                if not self.live or not self._reopened():
                    return
        finally:
            if self._capture is not None:
                self._capture.release()
            with self.news:
                self.over = True
                self.news.notify_all()

    def _play(self) -> None:
        """Shows frames until there is none."""
        for number in itertools.count():
            if self._stopped.is_set() or not self._capture.grab():
                return
            if number % self.stride:
                continue
            whole, image = self._capture.retrieve()
            if whole and image is not None:
                self._show(image)

    def _show(self, image: np.ndarray) -> None:
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
            LOGGER.warning(f"{self.source.title}: broke off; attempt {attempt} of {len(RETRY_AFTER)} to reopen it")
            self._capture = open_capture(self.source)
            if self._capture is not None:
                return True
        LOGGER.warning(f"{self.source.title}: given up")
        return False


def read_streams(sources: list[Source], stride: int = 1) -> Iterator[list[Frame]]:
    """The newest frame of each stream that has a new one, until all are over. Numbers count the batches, from 0."""
    news = threading.Condition()
    streams: list[Stream] = []
    try:
        for i, source in enumerate(sources):
            streams.append(Stream(i, source, stride, news))
        for number in itertools.count():
            with news:
                while True:
                    over = all(s.over for s in streams)  # asked before the frames: the last one comes before the end
                    frames = [(s.index, image) for s in streams if (image := s.take()) is not None]
                    if frames or over:
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
    """Something with OpenCV's `grab`, `retrieve` and `release`, or None where it cannot be opened."""
    if source.live and source.name.startswith("screen"):
        capture = ScreenCapture(_screen_box(source.name))
    elif _is_camera(source.name):
        capture = cv2.VideoCapture(int(source.name))
    elif source.live:
        milliseconds = int(1000 * TIMEOUT)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
        capture = cv2.VideoCapture(source.name, cv2.CAP_FFMPEG, limits)
    else:
        capture = cv2.VideoCapture(source.name)
    return capture if capture.isOpened() else None


def _opening_hint(source: Source) -> str:
    if _is_camera(source.name):
        return "is a camera of this number connected, and free?"
    if source.name.startswith("screen"):
        return "is there a display that programs may look at?"
    return "is the address right, and the sender running?" if source.live else "is it a video?"


def _screen_box(text: str) -> tuple[int, int, int, int] | None:
    """left, top, right, bottom of `screen x y width height`; None for `screen` alone."""
    numbers = text.split()[1:]
    if len(numbers) not in (0, 4) or not all(_is_camera(n) for n in numbers) or "0" in numbers[2:]:
        raise ValueError(f"--source {text}: expected `screen`, or `screen x y width height` in pixels")
    x, y, width, height = map(int, numbers or (0, 0, 0, 0))
    return (x, y, x + width, y + height) if numbers else None


class ScreenCapture:
    """The screen, or a part of it, with the methods of OpenCV's captures. box: left, top, right, bottom."""

    def __init__(self, box: tuple[int, int, int, int] | None):
        self.box = box
        self._picture: np.ndarray | None = None

    def isOpened(self) -> bool:
        return self.grab()

    def grab(self) -> bool:
        from PIL import ImageGrab

        time.sleep(1 / DEFAULT_FPS)
        try:
            self._picture = np.asarray(ImageGrab.grab(self.box).convert("RGB"))[..., ::-1].copy()
        except (OSError, ValueError):  # there is no display, or none any more
            return False
        return True

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        return True, self._picture

    def release(self) -> None:
        pass


# --- as the network sees it -------------------------------------------------------------------------------------------
