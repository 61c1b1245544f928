"""The results of detect: images, videos, label files, crops, one JSON or CSV file of all detections, a window."""

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
from utils.drawing import draw_boxes, write_image
from utils.inference.ledger import Ledger
from utils.inference.outputs import (
    CropNames,
    crop,
    crop_folder,
    number_stems,
    result_stems,
    write_crop,
    write_labels,
)
from utils.inference.sources import VIDEO, Frame, Source
from utils.log import LOGGER
from utils.text import csv_field

HAVE_DISPLAY = ("darwin", "win32")  # systems that are assumed to have a display


@dataclass(frozen=True)
class ResultOptions:
    """Which results are written, and how boxes are drawn. The names are those of detect's options."""

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


class ResultWriter:
    """Writes the results of frames in the order they come, in a thread of its own unless they are also shown.

    Use it in a `with`: at its end, also after an error, videos and tables are closed and can be read.

    Args:
        folder: the run's folder, which exists.
        sources: the sources to which the frames' source numbers refer.
        names: of the classes.
        options: which results.
        ledger: records what is done; then the process that does the last file writes the tables.
        unreadable: indices of sources that could not be read; complete when the `with` ends.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        names: Sequence[str],
        options: ResultOptions,
        ledger: Ledger | None = None,
        unreadable: Sequence[int] = (),
    ):
        self.folder, self.sources, self.names, self.options = folder, sources, names, options
        self.ledger, self.unreadable = ledger, unreadable
        self.stems = result_stems([source.result for source in sources])
        self._ids = number_stems(self.stems) or self.stems
        self.crop_names = CropNames(self.stems)
        self.videos: dict[int, VideoFile] = {}
        self.tables = [] if ledger else self._open_tables(lambda name: folder / name)
        self._current: int | None = None  # the source of the last frame
        self._crops: Counter[Path] = Counter()  # number of crops of that source, by folder
        if options.txt:
            (folder / "labels").mkdir(exist_ok=True)
        self.quit = False  # whether q was pressed in the window
        self._worker = None if options.view else Worker(self._write, depth=8)

    def _open_tables(self, path: Callable[[str], Path]) -> list:
        tables = {"predictions.json": (self.options.json, JsonTable), "predictions.csv": (self.options.csv, CsvTable)}
        return [table(path(name)) for name, (on, table) in tables.items() if on]

    def add(self, frame: Frame, boxes: torch.Tensor) -> None:
        """Adds the detections (n, 6) of a frame: xyxy in its pixels, confidence, class; a seventh column is the track.

        Raises the error of writing an earlier frame, if there was one.
        """
        if self._worker:
            self._worker.add(frame, boxes)
        else:
            self._write(frame, boxes)

    def __enter__(self) -> "ResultWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if self._worker:
                self._worker.close(quiet=kind is not None)
        finally:
            for closed in (*self.videos.values(), *self.tables):
                closed.close()
            if self.options.view:
                cv2.destroyAllWindows()
            if self.ledger:
                self._close_ledger(finished=kind is None and not self.quit)

    def _close_ledger(self, finished: bool) -> None:
        """Lets the last process write the tables and finish the run; an interrupted one logs how to resume it.

        finished: whether this process has done all its files.
        """
        ledger = self.ledger
        if finished and self._current is not None and self.sources[self._current].kind == VIDEO:
            ledger.done(self._current)
        for source in self.unreadable:
            ledger.left_out(source)
        try:
            complete = ledger.complete()
            if complete or dist.world_size() == 1:
                self._write_tables()
            if complete:
                ledger.finish()
                if not any(ledger.positions.values()):
                    raise ValueError(f"{self.folder}: none of the {len(ledger.sources)} files of this run can be read")
        except FileNotFoundError:  # another process has finished at the same moment
            return
        finally:
            ledger.close()
        if not finished:
            LOGGER.warning(f"unfinished; to resume it: python detect.py --resume '{self.folder}'")
        elif not complete:
            left = len(ledger.sources) - len(ledger.positions)
            LOGGER.info(f"this process has done its files; {left} of {len(ledger.sources)} are left to other processes")

    def _write_tables(self) -> None:
        """Writes the tables of all files that are done, by whichever process."""
        paths: dict[str, Path] = {}
        tables = self._open_tables(lambda name: paths.setdefault(name, self.ledger.scratch(name)))
        try:
            for source, number, boxes in self.ledger.rows(len(self.names)) if tables else ():
                for table in tables:
                    table.add(self.sources[source].title, self._id(source, number), number, boxes, self.names)
        finally:
            for table in tables:
                table.close()
        for name, path in paths.items():
            os.replace(path, self.folder / name)

    def stem(self, frame: Frame) -> str:
        """Returns the name of a frame's label file and crops, without suffix."""
        return self._stem(frame.source, frame.number)

    def _stem(self, source: int, number: int | None) -> str:
        return self.stems[source] + ("" if number is None else f"_{number}")

    def _id(self, source: int, number: int | None) -> int | str:
        return self._ids[source] if number is None else self._stem(source, number)

    def _write(self, frame: Frame, boxes: torch.Tensor) -> None:
        options, source, shape = self.options, self.sources[frame.source], frame.image.shape[:2]
        self._begin(frame.source)
        for table in self.tables:
            table.add(source.title, self._id(frame.source, frame.number), frame.number, boxes, self.names)
        if self.ledger and (options.json or options.csv) and len(boxes):
            self.ledger.record(frame.source, frame.number, boxes)
        # whole pixels, as in the images and label files of v6.1
        boxes = torch.cat((boxes[:, :4].round(), boxes[:, 4:]), 1)
        if options.txt:
            write_labels(self.folder / "labels" / f"{self.stem(frame)}.txt", boxes.flip(0), shape, options.conf)
        if options.crop:
            for box in boxes.flip(0):
                cropped = crop(frame.shown, box[:4])
                if cropped.size:
                    self._write_crop(self.names[int(box[5])], self.stems[frame.source], cropped)
        if options.images or options.view:
            drawn = draw_boxes(
                frame.shown, boxes, self.names, options.line_thickness, options.hide_labels, options.hide_conf, usual=3
            )
            if options.images:
                self._write_drawn(frame, source, drawn)
            if options.view:
                self.quit = show(source.title, drawn) or self.quit
        if self.ledger and source.kind != VIDEO:
            self.ledger.done(frame.source)

    def _begin(self, source: int) -> None:
        """Notes that a frame of this source comes next; files come one after another, so the one before is done."""
        before, self._current = self._current, source
        if self.ledger and before not in (None, source):
            self._crops.clear()
            if self.sources[before].kind == VIDEO:
                self.close_videos()
                self.ledger.done(before)

    def _write_crop(self, name: str, stem: str, image: np.ndarray) -> None:
        if not self.ledger:
            write_crop(self.folder / "crops", name, stem, image)
            return
        # not the first unused name: a file that is done again must overwrite its own crops
        folder = crop_folder(self.folder / "crops", name)
        folder.mkdir(parents=True, exist_ok=True)
        self._crops[folder] += 1
        write_image(folder / f"{self.crop_names.name(stem, self._crops[folder])}.jpg", image)

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
        """Closes the videos that are being written."""
        while self.videos:
            self.videos.popitem()[1].close()


class Worker:
    """Makes calls one after another in a thread; at most `depth` calls wait."""

    def __init__(self, call: Callable, depth: int):
        self._call, self._waiting, self._error = call, queue.Queue(depth), None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def add(self, *arguments) -> None:
        """Adds a call. Raises the error of an earlier one."""
        if self._error:
            raise self._error
        self._waiting.put(arguments)

    def close(self, quiet: bool = False) -> None:
        """Waits for all calls. Raises the error of a call, unless `quiet`."""
        self._waiting.put(None)
        self._thread.join()
        if self._error and not quiet:
            raise self._error

    def _work(self) -> None:
        while (arguments := self._waiting.get()) is not None:
            try:
                if self._error is None:
                    self._call(*arguments)
            except BaseException as error:  # whatever it is: add and close raise it in the caller's thread
                self._error = error


# --- files that grow with every frame ---------------------------------------------------------------------------------


class VideoFile:
    """An MP4 file (codec mp4v) of images of one shape (height, width), which has its final name once it is closed.

    The codec takes even sides only: the last row or column of an odd side is left out.

    Raises OSError where the file cannot be written.
    """

    def __init__(self, path: Path, fps: float, shape: tuple[int, int]):
        self.path, self.shape = path, shape
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")
        self._writer = cv2.VideoWriter(str(self._part), cv2.VideoWriter_fourcc(*"mp4v"), fps, shape[::-1])
        if not self._writer.isOpened():
            raise OSError(
                f"{path}: OpenCV cannot write a video of {shape[1]} x {shape[0]} at {fps:g} frames per second"
            )

    def add(self, image: np.ndarray) -> None:
        """Adds an image, BGR uint8. One of another shape, as a camera that is turned sends it, is resized."""
        if image.shape[:2] != self.shape:
            image = cv2.resize(image, self.shape[::-1], interpolation=cv2.INTER_AREA)
        self._writer.write(image)

    def close(self) -> None:
        """Closes the file."""
        self._writer.release()
        os.replace(self._part, self.path)


class JsonTable:
    """A JSON array of detections: COCO's image_id, category_id, bbox, score; and file, name, frame, track."""

    def __init__(self, path: Path):
        self._file = open(
            path, "w", encoding="utf-8", errors="backslashreplace"
        )  # which is how JSON writes a surrogate
        self._separator = "[\n"

    def add(
        self, title: str, image_id: int | str, number: int | None, boxes: torch.Tensor, names: Sequence[str]
    ) -> None:
        """Adds detections (n, 6 or 7) in pixels of their image."""
        corner_and_size = xyxy_to_xywh(boxes[:, :4].double())
        corner_and_size[:, :2] -= corner_and_size[:, 2:] / 2
        for box, (confidence, c, *track) in zip(corner_and_size.tolist(), boxes[:, 4:].tolist()):
            row = {
                "image_id": image_id,
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
        """Closes the array and the file."""
        self._file.write("[]\n" if self._separator == "[\n" else "\n]\n")
        self._file.close()


class CsvTable:
    """A CSV file of detections: file, frame, class, name, confidence, xmin, ymin, xmax, ymax, track."""

    COLUMNS = ("file", "frame", "class", "name", "confidence", "xmin", "ymin", "xmax", "ymax", "track")

    def __init__(self, path: Path):
        self._file = open(path, "w", encoding="utf-8", errors="backslashreplace", newline="")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(self.COLUMNS)

    def add(
        self, title: str, image_id: int | str, number: int | None, boxes: torch.Tensor, names: Sequence[str]
    ) -> None:
        """Adds detections (n, 6 or 7) in pixels of their image."""
        for row in boxes.tolist():
            box, (confidence, c), track = row[:4], row[4:6], [int(v) or "" for v in row[6:]] or [""]
            start = [csv_field(title), "" if number is None else number, int(c), csv_field(names[int(c)])]
            self._rows.writerow([*start, f"{confidence:.5f}", *(f"{v:.3f}" for v in box), *track])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


# --- a window ---------------------------------------------------------------------------------------------------------


def has_display() -> bool:
    """Returns whether a window can be opened: there is a display, and OpenCV was built for it."""
    # checked first, because without a display OpenCV's Qt ends the whole process
    if sys.platform not in HAVE_DISPLAY and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        cv2.namedWindow("test")
        cv2.destroyWindow("test")
    except cv2.error:  # the headless build
        return False
    return True


def show(title: str, image: np.ndarray) -> bool:
    """Shows an image in the window of this title and returns whether q was pressed."""
    cv2.imshow(title, image)
    return cv2.waitKey(1) & 0xFF == ord("q")
