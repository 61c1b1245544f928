"""What detect leaves behind: pictures, videos, label files, crops, one JSON or CSV file of all boxes, a window."""

import csv
import json
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from utils import dist
from utils.boxes import xyxy_to_xywh
from utils.drawing import automatic_line_width, draw_boxes, write_image
from utils.inference.ledger import Ledger
from utils.inference.outputs import (
    CropNames,
    crop,
    crop_folder,
    result_stems,
    write_crop,
    write_labels,
)
from utils.inference.sources import VIDEO, Frame, Source
from utils.log import LOGGER

WINDOWS = ("darwin", "win32")  # systems that always have a display, as far as can be told


@dataclass(frozen=True)
class Wanted:
    """Which results, and how boxes are drawn. The names are those of detect's options."""

    images: bool = True
    txt: bool = False
    conf: bool = False
    crop: bool = False
    json: bool = False
    csv: bool = False
    view: bool = False
    line_thickness: int | None = None
    hide_labels: bool = False
    hide_conf: bool = False


class Results:
    """Writes the results of frames in the order they come, in a thread of its own unless they are also shown.

    Use it in a `with`: at its end, reached or not, videos and tables are closed, so that they can be read.

    Args:
        folder: the run's folder; it is there.
        sources: what the frames' numbers of sources stand for.
        names: of the classes.
        ledger: is told what is done; then the tables are written at the end, by the process that finds all done.
        lost: indices of sources that could not be read, by the end.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        names: Sequence[str],
        wanted: Wanted,
        ledger: Ledger | None = None,
        lost: Sequence[int] = (),
    ):
        self.folder, self.sources, self.names, self.wanted = folder, sources, names, wanted
        self.ledger, self.lost = ledger, lost
        self.stems = result_stems([source.result for source in sources])
        self.crop_names = CropNames(self.stems)
        self.videos: dict[int, VideoFile] = {}
        self.tables = [] if ledger else self._open_tables(lambda name: folder / name)
        self._current: int | None = None  # the source of the last frame
        self._crops: Counter[Path] = Counter()  # of it, by folder
        if wanted.txt:
            (folder / "labels").mkdir(exist_ok=True)
        self.quit = False  # whether q was pressed in the window
        self._worker = None if wanted.view else Worker(self._write, depth=8)

    def _open_tables(self, path: Callable[[str], Path]) -> list:
        wanted = {"predictions.json": (self.wanted.json, JsonTable), "predictions.csv": (self.wanted.csv, CsvTable)}
        return [table(path(name)) for name, (on, table) in wanted.items() if on]

    def add(self, frame: Frame, boxes: torch.Tensor) -> None:
        """Takes the boxes (n, 6) found in a frame, in its pixels, confidence, class; a seventh column is the track.

        Raises what went wrong in writing an earlier frame.
        """
        if self._worker:
            self._worker.add(frame, boxes)
        else:
            self._write(frame, boxes)

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if self._worker:
                self._worker.close(quiet=kind is not None)
        finally:
            for closed in (*self.videos.values(), *self.tables):
                closed.close()
            if self.wanted.view:
                cv2.destroyAllWindows()
            if self.ledger:
                self._close_ledger(whole=kind is None and not self.quit)

    def _close_ledger(self, whole: bool) -> None:
        """The last process writes the tables and ends the run; an interrupted one says how to go on.

        whole: nothing is left of this process's share.
        """
        ledger = self.ledger
        if whole and self._current is not None and self.sources[self._current].kind == VIDEO:
            ledger.done(self._current)
        for source in self.lost:
            ledger.left_out(source)
        try:
            complete = ledger.complete()
            if complete or dist.world_size() == 1:
                self._write_tables()
            if complete:
                ledger.finish()
                if not any(ledger.places.values()):
                    raise ValueError(f"none of the {len(ledger.sources)} files can be read")
        except FileNotFoundError:  # another process has finished at the same moment
            return
        finally:
            ledger.close()
        if not whole:
            LOGGER.warning(f"unfinished; to go on: python detect.py --resume '{self.folder}'")
        elif not complete:
            left = len(ledger.sources) - len(ledger.places)
            LOGGER.info(f"this process's share is done; others have {left} of {len(ledger.sources)} files to go")

    def _write_tables(self) -> None:
        """Tables of all that is done, by whatever process, whole."""
        paths: dict[str, Path] = {}
        tables = self._open_tables(lambda name: paths.setdefault(name, self.ledger.scratch(name)))
        try:
            for source, number, boxes in self.ledger.rows() if tables else ():
                for table in tables:
                    table.add(self.sources[source].title, self._stem(source, number), number, boxes, self.names)
        finally:
            for table in tables:
                table.close()
        for name, path in paths.items():
            os.replace(path, self.folder / name)

    def stem(self, frame: Frame) -> str:
        """The name of a frame's label file and crops."""
        return self._stem(frame.source, frame.number)

    def _stem(self, source: int, number: int | None) -> str:
        return self.stems[source] + ("" if number is None else f"_{number}")

    def _write(self, frame: Frame, boxes: torch.Tensor) -> None:
        wanted, source, shape = self.wanted, self.sources[frame.source], frame.image.shape[:2]
        self._begin(frame.source)
        for table in self.tables:
            table.add(source.title, self.stem(frame), frame.number, boxes, self.names)
        if self.ledger and (wanted.json or wanted.csv) and len(boxes):
            self.ledger.record(frame.source, frame.number, boxes)
        # whole pixels, as the pictures and label files of v6.1 have them
        boxes = torch.cat((boxes[:, :4].round(), boxes[:, 4:]), 1)
        if wanted.txt:
            write_labels(self.folder / "labels" / f"{self.stem(frame)}.txt", boxes.flip(0), shape, wanted.conf)
        if wanted.crop:
            for box in boxes.flip(0):
                picture = crop(frame.image, box[:4])
                if picture.size:
                    self._write_crop(self.names[int(box[5])], self.stems[frame.source], picture)
        if wanted.images or wanted.view:
            width = wanted.line_thickness or automatic_line_width(shape, usual=3)
            drawn = draw_boxes(frame.image, boxes, self.names, width, wanted.hide_labels, wanted.hide_conf)
            if wanted.images:
                self._write_drawn(frame, source, drawn)
            if wanted.view:
                self.quit = show(source.title, drawn) or self.quit
        if self.ledger and source.kind != VIDEO:
            self.ledger.done(frame.source)

    def _begin(self, source: int) -> None:
        """A frame of this source is written next. Files come one after another: with it the one before is done."""
        before, self._current = self._current, source
        if self.ledger and before not in (None, source):
            self._crops.clear()
            if self.sources[before].kind == VIDEO:
                self.close_videos()
                self.ledger.done(before)

    def _write_crop(self, name: str, stem: str, picture: np.ndarray) -> None:
        if not self.ledger:
            write_crop(self.folder / "crops", name, stem, picture)
            return
        # not the first name that is free: a file that is done again must find its own
        folder = crop_folder(self.folder / "crops", name)
        folder.mkdir(parents=True, exist_ok=True)
        self._crops[folder] += 1
        write_image(folder / f"{self.crop_names.name(stem, self._crops[folder])}.jpg", picture)

    def _write_drawn(self, frame: Frame, source: Source, drawn: np.ndarray) -> None:
        stem = self.stems[frame.source]
        if frame.number is None:
            write_image(self.folder / f"{stem}{Path(source.result).suffix}", drawn)
            return
        if frame.source not in self.videos:
            if source.kind == VIDEO:  # videos come one after another
                self.close_videos()
            self.videos[frame.source] = VideoFile(self.folder / f"{stem}.mp4", frame.fps, drawn.shape[:2])
        self.videos[frame.source].add(drawn)

    def close_videos(self) -> None:
        """Ends the videos that are being written."""
        while self.videos:
            self.videos.popitem()[1].close()


class Worker:
    """Does calls one after another in a thread, while at most `depth` more wait for it."""

    def __init__(self, call: Callable, depth: int):
        self._call, self._waiting, self._error = call, queue.Queue(depth), None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def add(self, *arguments) -> None:
        """Leaves a call to the thread. Raises what an earlier one raised."""
        if self._error:
            raise self._error
        self._waiting.put(arguments)

    def close(self, quiet: bool = False) -> None:
        """Waits until all is done. Raises what a call raised, unless `quiet`."""
        self._waiting.put(None)
        self._thread.join()
        if self._error and not quiet:
            raise self._error

    def _work(self) -> None:
        while (arguments := self._waiting.get()) is not None:
            try:
                if self._error is None:
                    self._call(*arguments)
            except BaseException as error:  # it belongs to the caller
                self._error = error


# --- files that grow with every frame ---------------------------------------------------------------------------------


class VideoFile:
    """An MP4 (codec mp4v) of pictures of one shape (height, width). It has its name once it is closed.

    The codec has even sides only: of an odd one the last row or column is left out.
    """

    def __init__(self, path: Path, fps: float, shape: tuple[int, int]):
        self.path, self.shape = path, shape
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")
        self._writer = cv2.VideoWriter(str(self._part), cv2.VideoWriter_fourcc(*"mp4v"), fps, shape[::-1])
        if not self._writer.isOpened():
            raise OSError(f"{path}: cannot be written as a video of {shape[1]} x {shape[0]} at {fps:g} frames a second")

    def add(self, picture: np.ndarray) -> None:
        """The next picture, BGR uint8; one of another shape, as a camera that turns gives, is resized."""
        if picture.shape[:2] != self.shape:
            picture = cv2.resize(picture, self.shape[::-1], interpolation=cv2.INTER_AREA)
        self._writer.write(picture)

    def close(self) -> None:
        """Ends the file."""
        self._writer.release()
        os.replace(self._part, self.path)


class JsonTable:
    """A JSON array with an object per box: v6.1's and COCO's image_id, category_id, bbox, score; file, name, frame."""

    def __init__(self, path: Path):
        self._file = open(path, "w", encoding="utf-8")
        self._separator = "[\n"

    def add(self, title: str, stem: str, number: int | None, boxes: torch.Tensor, names: Sequence[str]) -> None:
        """Rows for boxes (n, 6 or 7) in pixels of their picture."""
        corner_and_size = xyxy_to_xywh(boxes[:, :4].double())
        corner_and_size[:, :2] -= corner_and_size[:, 2:] / 2
        for box, (confidence, c, *track) in zip(corner_and_size.tolist(), boxes[:, 4:].tolist()):
            row = {
                "image_id": int(stem) if stem.isascii() and stem.isdecimal() else stem,
                "category_id": int(c),
                "bbox": [round(v, 3) for v in box],
                "score": round(confidence, 5),
                "name": names[int(c)],
                "file": title,
            }
            row |= {} if number is None else {"frame": number}
            row |= {"track": int(track[0])} if track and track[0] else {}
            self._file.write(self._separator + json.dumps(row, ensure_ascii=False))
            self._separator = ",\n"

    def close(self) -> None:
        """Ends the array."""
        self._file.write("[]\n" if self._separator == "[\n" else "\n]\n")
        self._file.close()


class CsvTable:
    """A CSV file with a row per box: file, frame, class, name, confidence, xmin, ymin, xmax, ymax, track."""

    COLUMNS = ("file", "frame", "class", "name", "confidence", "xmin", "ymin", "xmax", "ymax", "track")

    def __init__(self, path: Path):
        self._file = open(path, "w", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(self.COLUMNS)

    def add(self, title: str, stem: str, number: int | None, boxes: torch.Tensor, names: Sequence[str]) -> None:
        """Rows for boxes (n, 6 or 7) in pixels of their picture."""
        for row in boxes.tolist():
            box, (confidence, c), track = row[:4], row[4:6], [int(v) or "" for v in row[6:]] or [""]
            start = [title, "" if number is None else number, int(c), names[int(c)], f"{confidence:.5f}"]
            self._rows.writerow([*start, *(f"{v:.3f}" for v in box), *track])

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


# --- a window ---------------------------------------------------------------------------------------------------------


def has_display() -> bool:
    """Whether a window can be opened: there is a screen, and OpenCV was built for it."""
    # asked first, because without a screen OpenCV's Qt ends the whole process
    if sys.platform not in WINDOWS and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        cv2.namedWindow("test")
        cv2.destroyWindow("test")
    except cv2.error:  # the headless build
        return False
    return True


def show(title: str, picture: np.ndarray) -> bool:
    """Shows a picture in the window of this title; True if q was pressed."""
    cv2.imshow(title, picture)
    return cv2.waitKey(1) & 0xFF == ord("q")
