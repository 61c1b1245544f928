"""The record of which files of a run are done; with it runs are resumed, and shared among processes.

A process takes the files whose index in the run's list, modulo the number of processes, is its rank. So the processes
share only the list, which lies in the run's folder, and none waits for another. Each process writes a journal of its
own, line by line, which survives a kill. The process that sees at its end that no file is left finishes the run.
"""

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from utils.files import atomic_write
from utils.inference.sources import IMAGE, VIDEO, Source

RECORD = ".unfinished"  # folder of the record in the run's folder, until the run is finished
MAX_RECORD = 1 << 30  # bytes of run.json, enough for millions of files
MAX_LINE = 1 << 26  # bytes of a line of a journal, which has the boxes of one frame


class Ledger:
    """The record of an unfinished run.

    Attributes: folder: of the run; file: which lists its files; sources: its files; options: those the run was begun
    with; positions: for the index of each file that is done the (journal, offset) of its first line, None for a file
    that could not be read.

    Raises ValueError where the folder holds no unfinished run, one with relative paths of another folder, or a record
    that this program did not write.
    """

    def __init__(self, folder: Path):
        self.folder, self._hidden = folder, folder / RECORD
        self.file = self._hidden / "run.json"
        if not self.file.exists():
            raise ValueError(
                f"{folder}: holds no unfinished run of detect; to begin a run, leave --resume out or name a new folder"
            )
        record = _read_record(self.file)
        self.sources = [Source(*source) for source in record["sources"]]
        self.options: dict[str, Any] = record["options"]
        relative = [source.title for source in self.sources if not os.path.isabs(source.name)]
        if relative and record["where"] != os.getcwd():
            raise ValueError(
                f"{folder}: the paths of this run, such as {relative[0]}, are relative to {record['where']}; resume "
                "it there"
            )
        self.positions = self._read()
        self._journal = None

    @classmethod
    def begin(cls, folder: Path, sources: Iterable[Source], options: dict[str, Any], alone: bool) -> "Ledger":
        """Begins a run and returns its ledger.

        alone: no other process begins this run, and its folder exists already; the record of an interrupted run in it
            is removed. Otherwise the folder is made here in one step, and if another process was first, the ledger of
            that process is returned.
        """
        unique = uuid.uuid4().hex
        part = folder / f"{RECORD}.{unique}" if alone else folder.with_name(f".{folder.name}.{unique}")
        record = part if alone else part / RECORD
        record.mkdir(parents=True)
        try:
            with atomic_write(record / "run.json", "w", sync=False) as file:
                json.dump({"options": options, "where": os.getcwd(), "sources": list(sources)}, file)
            if alone:
                shutil.rmtree(folder / RECORD, ignore_errors=True)
                os.rename(part, folder / RECORD)
            else:
                try:
                    os.rename(part, folder)
                except OSError:
                    if not folder.is_dir():  # not because another process was first
                        raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return cls(folder)

    def todo(self, rank: int, processes: int) -> list[int]:
        """Returns the files that one process, of rank 0 to processes - 1, still has to do."""
        return [i for i in range(rank, len(self.sources), processes) if i not in self.positions]

    def record(self, source: int, number: int | None, boxes: torch.Tensor) -> None:
        """Records the boxes (n, 6 or 7) of a frame for `rows`, which gives them once the file is done."""
        self._append({"source": source, "frame": number, "boxes": boxes.tolist()})

    def done(self, source: int) -> None:
        """Records that all results of a file are written."""
        self._append({"source": source, "done": True})

    def left_out(self, source: int) -> None:
        """Records that a file cannot be read."""
        self._append({"source": source, "done": False})

    def complete(self) -> bool:
        """Reads the journals of all processes again and returns whether all files are done."""
        self.positions = self._read()
        return len(self.positions) == len(self.sources)

    def rows(self, classes: int) -> Iterator[tuple[int, int | None, torch.Tensor]]:
        """Yields the recorded (source, frame number, boxes) of all files that are done, in the order of the files.

        classes: of the model. Raises ValueError for boxes of others.
        """
        with contextlib.ExitStack() as opened:
            journals: dict[Path, Any] = {}
            for source, position in sorted(self.positions.items()):
                if position is None:
                    continue
                path, offset = position
                if path not in journals:
                    journals[path] = opened.enter_context(open(path, "rb"))
                journals[path].seek(offset)
                for entry in _entries(journals[path], path, len(self.sources)):
                    if entry["source"] == source:
                        if "done" in entry:
                            break
                        yield source, entry["frame"], _boxes(entry["boxes"], classes, path)

    def scratch(self, name: str) -> Path:
        """Returns a path that no other process uses, on the disk of the run's folder."""
        return self._hidden / f"{uuid.uuid4().hex}-{name}"

    def finish(self) -> None:
        """Removes the record, and unfinished files of killed processes. Several processes may call it at once."""
        self.close()
        removed = self._hidden.with_name(f"{RECORD}.{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            for part in self.folder.rglob(".*.part*"):
                part.unlink(missing_ok=True)
            os.rename(self._hidden, removed)
            shutil.rmtree(removed, ignore_errors=True)

    def close(self) -> None:
        """Closes the journal."""
        if self._journal:
            self._journal.close()
            self._journal = None

    def _append(self, entry: dict[str, Any]) -> None:
        if self._journal is None:
            self._journal = open(self._hidden / f"journal-{uuid.uuid4().hex}", "ab", buffering=0)
        self._journal.write(json.dumps(entry).encode() + b"\n")

    def _read(self) -> dict[int, tuple[Path, int] | None]:
        positions: dict[int, tuple[Path, int] | None] = {}
        for path in sorted(self._hidden.glob("journal-*")):
            begins: dict[int, int] = {}
            with open(path, "rb") as file:
                offset = 0
                for entry in _entries(file, path, len(self.sources)):
                    source = entry["source"]
                    begins.setdefault(source, offset)
                    if "done" in entry:
                        positions[source] = (path, begins[source]) if entry["done"] else None
                    offset = file.tell()
        return positions


# --- files that may come from elsewhere -------------------------------------------------------------------------------


def _read_record(file: Path) -> dict[str, Any]:
    """Returns the content of run.json, of which the kinds are checked."""
    if file.stat().st_size > MAX_RECORD:
        raise ValueError(f"{file}: has more than {MAX_RECORD} bytes, the maximum; begin the run anew")
    record = _parse(file.read_bytes(), file)
    sound = isinstance(record, dict) and isinstance(record.get("options"), dict) and _is_text(record.get("where"))
    if not (sound and isinstance(record.get("sources"), list)):
        raise ValueError(f"{file}: must hold options, where and sources, as detect.py writes them; begin the run anew")
    for number, source in enumerate(record["sources"]):
        is_pair = isinstance(source, list) and len(source) == 2 and all(map(_is_text, source))
        if not is_pair or source[1] not in (IMAGE, VIDEO) or source[0] == "-" or "://" in source[0]:
            raise ValueError(f"{file}: source {number} must be the path of an image or video; begin the run anew")
    return record


def _parse(text: bytes, file: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not the JSON that detect.py writes: {error}; begin the run anew") from None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_whole(value: Any, stop: float) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < stop


def _entries(file: IO[bytes], path: Path, sources: int) -> Iterator[dict[str, Any]]:
    """Yields the lines from here on, without a last line that a killed process left unfinished."""
    while (line := file.readline(MAX_LINE)).endswith(b"\n"):
        entry = _parse(line, path)
        if not isinstance(entry, dict) or not _is_whole(entry.get("source"), sources):
            raise ValueError(f"{path}: a line must be of one of the {sources} files of the run; begin the run anew")
        if "done" not in entry:
            frame = entry.get("frame", "")  # None is that of an image
            if not isinstance(entry.get("boxes"), list) or not (frame is None or _is_whole(frame, math.inf)):
                raise ValueError(f"{path}: a line must have frame and boxes; begin the run anew")
        yield entry


def _boxes(rows: list, classes: int, path: Path) -> torch.Tensor:
    """Returns the boxes (n, 6 or 7) of a line."""
    try:
        boxes = torch.tensor(rows)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: boxes must be rows of numbers: {error}; begin the run anew") from None
    if len(rows):
        sound = boxes.ndim == 2 and boxes.shape[1] in (6, 7) and boxes.is_floating_point() and boxes.isfinite().all()
        if not sound or not ((boxes[:, 5] >= 0) & (boxes[:, 5] < classes)).all():
            raise ValueError(f"{path}: a box must be 6 or 7 numbers, of class 0 to {classes - 1}; begin the run anew")
    return boxes
