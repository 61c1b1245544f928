"""The sources of detect: images, videos, lists of them, cameras, streams and the screen."""

import glob
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np

from utils.data.images import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    is_image,
    listed_files,
    tell_of_other_kinds,
    viewable,
)
from utils.downloads import download as fetch
from utils.files import ROOT
from utils.text import HIDDEN, redact

IMAGE, VIDEO, STREAM = "image", "video", "stream"
LIST_SUFFIXES = ("txt", "streams")
SCHEMES = ("http", "https", "rtmp", "rtsp", "rtsps", "udp")
DEFAULT_FPS = 30.0  # of a stream, and of a video that does not state its rate


class Source(NamedTuple):
    """One image, video or stream: a path, a URL, `-`, `screen ...` or the number of a camera."""

    name: str
    kind: str  # IMAGE, VIDEO or STREAM

    @property
    def live(self) -> bool:
        """Returns whether frames come in real time and may be dropped; those of a video in a list of streams do not."""
        return self.kind == STREAM and ("://" in self.name or not _is_video(self.name))

    @property
    def title(self) -> str:
        """Returns the name for messages and results; an address has no user, password or other secret in it."""
        return redact(self.name).replace(f"://{HIDDEN}@", "://")

    @property
    def result(self) -> str:
        """Returns the path after which the results are named."""
        if self.name == "-":
            return "stdin.jpg"
        return re.sub(r"[^\w.-]+", "_", self.title).strip("_") + ".mp4" if self.live else self.name


class Frame(NamedTuple):
    """One image, or one frame of a video or stream."""

    source: int  # index in the list of sources
    image: np.ndarray  # BGR uint8 (H, W, 3); as many channels as the network takes where these are not 1 or 3
    number: int | None = None  # in a video from 1, in a stream from 0; None for an image
    count: int = 1  # number of frames of its source, 0 if unknown
    fps: float = DEFAULT_FPS  # frames per second of the results

    @property
    def shown(self) -> np.ndarray:
        """Returns the image to draw on, BGR uint8 (H, W, 3)."""
        return viewable(self.image)


def list_sources(source: str | Path, download: bool = False) -> list[Source]:
    """Returns the sources that `--source` names: images and then videos, each sorted; or live sources.

    source: a file; a folder (without its subfolders); a glob such as `shots/**/*.jpg`; `-` for an image on standard
        input; the number of a camera; a URL; `screen`, or `screen x y width height`; a `.txt` file that lists images
        and videos, or only live sources; a `.streams` file of live sources and videos, which are read side by side. A
        relative path that is not below the current folder is looked up in the repository.
    download: fetch the image or video of a URL into the current folder, as v6.1 does.

    Raises FileNotFoundError where there is no such file, ValueError for anything else that is not a source.
    """
    text = str(source).strip()
    if not text:
        raise ValueError("--source is empty; give an image or video file, a folder of them, or a glob in quotes")
    if text == "-" or is_camera(text) or "://" in text:
        return [_entry(text, download)]
    path = Path(source).expanduser()
    if not path.exists() and (ROOT / path).exists():
        path = ROOT / path
    if path.is_file():
        return _from_list(path, download) if _suffix(path) in LIST_SUFFIXES else [_entry(str(path))]
    if path.is_dir():
        paths, where = path.iterdir(), "in this folder"
    elif glob.has_magic(text):
        paths, where = map(Path, glob.glob(str(path), recursive=True)), "match"
    elif text.split()[0] == "screen":
        screen_box(text)
        return [Source(text, STREAM)]
    else:
        raise FileNotFoundError(f"--source {source}: no such file or folder")

    paths = sorted(p for p in paths if p.is_file())
    tell_of_other_kinds([p for p in paths if not _is_video(p)], source)
    files = [_entry(str(p)) for p in paths if is_image(p) or _is_video(p)]
    if not files:
        suffixes = f"images end in {', '.join(IMAGE_SUFFIXES)}; videos in {', '.join(VIDEO_SUFFIXES)}"
        raise FileNotFoundError(f"--source {source}: no image or video files {where}; {suffixes}")
    return _images_first(files)


def _from_list(path: Path, download: bool) -> list[Source]:
    """Returns the sources in a text file, one per line."""
    listed = [_entry(line, download) for line in listed_files(path)]
    if not listed:
        raise ValueError(f"{path}: the list is empty; write a file or a stream per line")
    live = [s.live for s in listed]
    if _suffix(path) == "streams":
        if odd := [s.title for s in listed if s.kind == IMAGE]:
            raise ValueError(
                f"{path}: a list of streams holds URLs, camera numbers and videos, and {odd[0]} is an image"
            )
        return [s._replace(kind=STREAM) for s in listed]
    if any(live) and not all(live):
        odd, kinds = listed[live.index(not live[0])].title, ("file", "stream") if live[0] else ("stream", "file")
        raise ValueError(
            f"{path}: a list holds files or streams, not both: {odd} is a {kinds[0]}, {listed[0].title} a {kinds[1]}; "
            "make two lists"
        )
    return listed if all(live) else _images_first(listed)


def _entry(text: str, download: bool = False) -> Source:
    if is_camera(text):
        return Source(text, STREAM)
    if "://" in text:
        return _from_url(text, download)
    return Source(text, VIDEO if _is_video(text) else IMAGE)


def _from_url(url: str, download: bool) -> Source:
    parts = urlsplit(url)
    source = Source(url, STREAM)
    if parts.scheme.lower() not in SCHEMES:
        raise ValueError(f"--source {source.title}: a URL starts with {', '.join(SCHEMES)} and ://")
    if parts.hostname and re.search(r"(^|\.)(youtube\.com|youtu\.be)$", parts.hostname):
        raise ValueError(
            f"--source {source.title}: this is a web page, not a stream; save the video with yt-dlp and give the file"
        )
    name = unquote(PurePosixPath(parts.path).name)
    if not parts.scheme.lower().startswith("http") or not (is_image(name) or _is_video(name)):
        return source
    file = Path(Path(name.replace("\\", "/")).name)  # `%2F` must not lead out of the current folder
    if not file.exists():
        if not download:
            raise ValueError(
                f"--source {source.title}: this file was not downloaded yet; --download fetches it to {file}"
            )
        fetch(url, file)
    return _entry(str(file))


def _images_first(sources: list[Source]) -> list[Source]:
    return sorted(sources, key=lambda s: s.kind == VIDEO)


def _suffix(path: str | Path) -> str:
    return Path(path).suffix[1:].lower()


def _is_video(path: str | Path) -> bool:
    return _suffix(path) in VIDEO_SUFFIXES


def is_camera(text: str) -> bool:
    """Returns whether a source is the number of a camera."""
    return text.isascii() and text.isdecimal()


def screen_box(text: str) -> tuple[int, int, int, int] | None:
    """Returns left, top, right, bottom in pixels of `screen x y width height`; None for `screen` alone."""
    numbers = text.split()[1:]
    if len(numbers) not in (0, 4) or not all(is_camera(n) for n in numbers) or "0" in numbers[2:]:
        raise ValueError(f"--source {text}: expected `screen`, or `screen x y width height` in pixels")
    x, y, width, height = map(int, numbers or (0, 0, 0, 0))
    return (x, y, x + width, y + height) if numbers else None
