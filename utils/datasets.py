"""Images, videos and streams by v6.1's names, for programs written for it: `from utils.datasets import LoadImages`.

Nothing in the project imports this file. Training sets are in utils/data.
"""

import contextlib
import math
import os
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.augmentations import letterbox
from utils.data.formats.yolo import image_to_label_path
from utils.data.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES, list_images, listed_files, read_image
from utils.data.labels import has_labels
from utils.data.letterbox import letterbox_planes
from utils.data.loader import create_dataloader as _create_dataloader
from utils.data.options import LoaderOptions
from utils.general import clean_str
from utils.inference.sources import STREAM, VIDEO, Source, list_sources, screen_box
from utils.inference.streams import ScreenCapture, Stream, open_capture
from utils.log import LOGGER

__all__ = [
    "IMG_FORMATS",
    "VID_FORMATS",
    "LoadImages",
    "LoadScreenshots",
    "LoadStreams",
    "LoadWebcam",
    "create_dataloader",
    "img2label_paths",
    "img_formats",
    "letterbox",
    "vid_formats",
]

IMG_FORMATS, VID_FORMATS = list(IMAGE_SUFFIXES), list(VIDEO_SUFFIXES)
img_formats, vid_formats = IMG_FORMATS, VID_FORMATS  # their names in v5.0


class LoadImages:
    """Iterates over images and the frames of videos: (path, input, original, capture, text).

    input:    RGB uint8 (3, h, w), letterboxed. original: BGR uint8 (H, W, 3).
    capture:  the cv2.VideoCapture of a video, None for images. text: "image 1/5 /home/me/a.jpg: ".

    Args:
        path: a file, a folder, a glob, a list file, or several of these.
        img_size: of the input in pixels, the longer side or (height, width).
        stride: the sides of the input are multiples of it.
        auto: pad only to the next multiple of the stride; otherwise to the whole img_size.
        transforms: makes the input of an original, in place of the letterbox.
        vid_stride: read only every vid_stride-th frame of a video.

    Attributes: files, nf (their number), mode ("image" or "video"), count (files done), frame, frames (number of the
    frame in its video, from 1, and how many the video has), cap.

    Raises FileNotFoundError where there is no such file or no image or video, ValueError for a stream.
    """

    def __init__(
        self, path: Any, img_size: Any = 640, stride: int = 32, auto: bool = True, transforms: Any = None,
        vid_stride: int = 1,
    ):  # fmt: skip
        entries = [path] if isinstance(path, str | Path) else list(path)
        found = [source for entry in entries for source in list_sources(entry)]
        if live := [source.title for source in found if source.kind == STREAM]:
            raise ValueError(f"LoadImages reads files, and {live[0]} is a stream: use LoadStreams")
        found.sort(key=lambda source: source.kind == VIDEO)
        self.img_size, self.stride, self.auto = img_size, int(stride), auto
        self.transforms, self.vid_stride = transforms, vid_stride
        self.files = [os.path.abspath(source.name) for source in found]
        self.nf = len(found)
        self.video_flag = [source.kind == VIDEO for source in found]
        self.mode, self.count, self.frame, self.frames = "image", 0, 0, 0
        self.cap: cv2.VideoCapture | None = None

    def __len__(self) -> int:
        return self.nf

    def __iter__(self) -> "LoadImages":
        self.count = 0
        self._close()
        return self

    def __next__(self) -> tuple[str, np.ndarray, np.ndarray, cv2.VideoCapture | None, str]:
        while self.count < self.nf:
            path, position = self.files[self.count], f"{self.count + 1}/{self.nf}"
            if not self.video_flag[self.count]:
                self.count += 1
                return self._item(path, read_image(path), f"image {position} {path}: ")
            self.mode = "video"
            if self.cap is None:
                self.new_video(path)
            whole, image = self.cap.read()
            for _ in range(self.vid_stride - 1):
                self.cap.grab()
            if whole:
                self.frame += 1
                return self._item(path, image, f"video {position} ({self.frame}/{self.frames}) {path}: ")
            if not self.frame:
                LOGGER.warning(f"left out: {path}: video cannot be decoded, or has no frames")
            self._close()
            self.count += 1
        raise StopIteration

    def new_video(self, path: str) -> None:
        """Opens a video at its first frame. Raises ValueError where it cannot be opened."""
        self._close()
        self.frame = 0
        self.cap = open_capture(Source(path, VIDEO))
        if self.cap is None:
            raise ValueError(f"{path}: video cannot be opened; is it a video?")
        self.frames = math.ceil(self.cap.get(cv2.CAP_PROP_FRAME_COUNT) / self.vid_stride)

    def _item(self, path: str, image: np.ndarray, text: str):
        if self.transforms:
            return path, self.transforms(image), image, self.cap, text
        planes = letterbox_planes(image, self.img_size, auto=self.auto, stride=self.stride)[0]
        return path, planes, image, self.cap, text

    def _close(self) -> None:
        if self.cap is not None:
            self.cap.release()
            self.cap = None


class LoadStreams:
    """Iterates over the newest frames of cameras and streams: (sources, inputs, originals, None, "").

    inputs: RGB uint8 (B, 3, h, w), letterboxed. originals: a BGR uint8 (H, W, 3) of each source. A source without a new
    frame gives its last one again. It ends when one of them has ended, or `q` is pressed in a window.

    Args:
        sources: the number of a camera, a URL, a video, or a text file with one of these per line.
        img_size, stride: as in LoadImages.
        auto: pad only to the next multiple of the stride, where all frames have one size.
        transforms: makes the input of an original, in place of the letterbox.
        vid_stride: read only every vid_stride-th frame.

    Raises ValueError where one cannot be opened.
    """

    def __init__(
        self, sources: str | Path = "streams.txt", img_size: Any = 640, stride: int = 32, auto: bool = True,
        transforms: Any = None, vid_stride: int = 1,
    ):  # fmt: skip
        entries = listed_files(Path(sources)) if _is_list(sources) else [str(sources)]
        found = [source._replace(kind=STREAM) for entry in entries for source in list_sources(entry)]
        self.mode, self.img_size, self.stride = "stream", img_size, int(stride)
        self.transforms = transforms
        self.sources = [clean_str(source.title) for source in found]
        self._news = threading.Condition()
        self.streams: list[Stream] = []
        self.imgs: list[np.ndarray | None] = [None] * len(found)
        try:
            for i, source in enumerate(found):
                self.streams.append(Stream(i, source, vid_stride, self._news))
            if not self._wait(first=True):
                ended = next(stream.source.title for stream in self.streams if stream.ended)
                raise ValueError(f"{ended}: the stream ended before its first frame")
        except ValueError:
            self.close()
            raise
        self.rect = len({image.shape for image in self.imgs}) == 1
        self.auto = auto and self.rect
        self._first = True

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> "LoadStreams":
        return self

    def __next__(self) -> tuple[list[str], np.ndarray, list[np.ndarray], None, str]:
        if not self._first and (_q_pressed() or not self._wait()):
            self.close()
            raise StopIteration
        self._first = False
        frame = {"auto": self.auto, "stride": self.stride}
        fit = self.transforms or (lambda image: letterbox_planes(image, self.img_size, **frame)[0])
        planes = [fit(image) for image in self.imgs]
        return self.sources, np.stack(planes), [image.copy() for image in self.imgs], None, ""

    def _wait(self, first: bool = False) -> bool:
        """Waits for a new frame of a live source, and one of each video; False where a source has ended instead.

        first: wait for a frame of each live source too.
        """
        fresh: list[np.ndarray | None] = [None] * len(self.streams)
        with self._news:
            while True:
                ended = [stream.ended for stream in self.streams]  # read first: the last frame precedes the end
                fresh = [stream.take() if image is None else image for stream, image in zip(self.streams, fresh)]
                if any(over and image is None for over, image in zip(ended, fresh)):
                    return False
                missing = [s for s, image in zip(self.streams, fresh) if image is None and (first or not s.live)]
                if not missing and any(image is not None for image in fresh):
                    self.imgs = [old if new is None else new for old, new in zip(self.imgs, fresh)]
                    return True
                self._news.wait()

    def close(self) -> None:
        """Ends the threads that read the streams."""
        for stream in self.streams:
            stream.stop()


class LoadWebcam(LoadStreams):
    """Iterates over the newest frames of one camera, as LoadStreams does; v6.1 shows them mirrored, this does not."""

    def __init__(self, pipe: str = "0", img_size: Any = 640, stride: int = 32):
        super().__init__(str(pipe), img_size, stride)


class LoadScreenshots:
    """Iterates over images of the screen: (screen, input, original, None, text), as LoadImages does; v7.0's name.

    source: "screen", or "screen left top width height" in pixels.
    """

    def __init__(self, source: str, img_size: Any = 640, stride: int = 32, auto: bool = True, transforms: Any = None):
        self.source, self.img_size, self.stride, self.auto = source, img_size, int(stride), auto
        self.transforms, self.mode, self.frame = transforms, "stream", 0
        self._capture = ScreenCapture(screen_box(source))

    def __iter__(self) -> "LoadScreenshots":
        return self

    def __next__(self) -> tuple[str, np.ndarray, np.ndarray, None, str]:
        if not self._capture.grab():
            raise ValueError(f"{self.source}: the screen cannot be read; is there a display, and may programs read it?")
        image = self._capture.retrieve()[1]
        fit = self.transforms or (
            lambda image: letterbox_planes(image, self.img_size, auto=self.auto, stride=self.stride)[0]
        )
        text = f"{self.source} {self.frame}: "
        self.frame += 1
        return self.source, fit(image), image, None, text


def _is_list(sources: str | Path) -> bool:
    return os.path.isfile(sources) and Path(sources).suffix[1:].lower() not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)


def _q_pressed() -> bool:
    with contextlib.suppress(cv2.error):  # the headless build has no windows
        return cv2.waitKey(1) & 0xFF == ord("q")
    return False


def img2label_paths(img_paths: Sequence[str | Path]) -> list[str]:
    """Returns the path of the label file of each image: the last folder `images` becomes `labels`, the suffix .txt."""
    return [image_to_label_path(str(path)) for path in img_paths]


def autosplit(
    path: str | Path = "../datasets/coco128/images",
    weights: Sequence[float] = (0.9, 0.1, 0.0),
    annotated_only: bool = False,
) -> None:
    """Writes autosplit_train.txt, autosplit_val.txt and autosplit_test.txt beside a folder of images, chosen by lot.

    weights: chances of an image to come to train, val, test. annotated_only: leave out images without a label file.
    tools/split.py does more: it gives each class its share in each part, and keeps images that belong together so.
    """
    path = Path(path).absolute()
    images = list_images(path)
    parts = random.Random(0).choices(range(3), weights=weights, k=len(images))
    LOGGER.info("autosplit deals images out by lot; tools/split.py gives each class its share in train, val and test")
    files = [path.parent / f"autosplit_{part}.txt" for part in ("train", "val", "test")]
    for i, file in enumerate(files):
        chosen = [image for image, part in zip(images, parts) if part == i]
        chosen = [image for image in chosen if not annotated_only or has_labels(image_to_label_path(image))]
        lines = [f"./{Path(image).relative_to(path.parent).as_posix()}\n" for image in chosen]
        file.unlink(missing_ok=True)  # of an earlier call; a part without images has no list
        if lines:
            file.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")


def create_dataloader(
    path: Any, imgsz: int, batch_size: int, stride: int, single_cls: bool = False, hyp: Any = None,
    augment: bool = False, cache: Any = False, pad: float = 0.0, **others: Any,
) -> tuple[Iterator, Any]:  # fmt: skip
    """Returns a loader of batches (images uint8, targets (T, 6), paths, shapes), and the data set behind it.

    others: rect, rank, workers, quad, prefix, shuffle, and all else that `utils.data.options.LoaderOptions` takes;
        image_weights must not be set.
    """
    if others.pop("image_weights", False):
        raise ValueError("create_dataloader: image_weights is an option of train.py: --image-weights")
    options = LoaderOptions(
        image_size=imgsz, batch_size=batch_size, stride=int(stride), single_cls=bool(single_cls), hyp=hyp,
        augment=augment, cache=("ram" if cache is True else cache) or None, pad=pad, **others,
    )  # fmt: skip
    return _create_dataloader(str(path) if isinstance(path, Path) else path, options)
