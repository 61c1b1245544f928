"""Which files of a run are done, kept where it outlives a kill: so runs are resumed, and shared among processes.

A process takes the files whose place in the run's list, modulo the number of processes, is its rank. So processes need
to agree on nothing but the list, which lies in the run's folder, and none waits for another: what an earlier start has
done is known before this one begins, and nothing of it is in another process's share. What is done stands in journals,
one for each process and start, a line at a time; whichever process finds at its end that no file is left, finishes.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from utils.files import atomic_write
from utils.inference.sources import Source

HIDDEN = ".unfinished"  # in the run's folder, until all is done


class Ledger:
    """What is done of an unfinished run, and what is still to do.

    Attributes: folder: the run's; sources: its files; options: those it was begun with; places: of each file that is
    done, where its journal begins to speak of it, and None of one that could not be read.

    Raises ValueError where the folder holds no unfinished run.
    """

    def __init__(self, folder: Path):
        self.folder, self._hidden = folder, folder / HIDDEN
        try:
            record = json.loads((self._hidden / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(
                f"{folder}: holds no unfinished run of detect; leave --resume out to begin another"
            ) from None
        self.sources = [Source(*source) for source in record["sources"]]
        self.options: dict[str, Any] = record["options"]
        relative = [source.title for source in self.sources if not os.path.isabs(source.name)]
        if relative and record["where"] != os.getcwd():
            raise ValueError(f"{folder}: go on where it was begun, in {record['where']}: there is {relative[0]}")
        self.places = self._read()
        self._journal = None

    @classmethod
    def begin(cls, folder: Path, sources: Iterable[Source], options: dict[str, Any], alone: bool) -> "Ledger":
        """A new run.

        alone: no other process begins this run, and the folder is there, made for it; what an interrupted run left
            of its own record is taken away. Otherwise the folder is made here, whole, and where another process was
            first the run is that one's.
        """
        unique = uuid.uuid4().hex
        part = folder / f"{HIDDEN}.{unique}" if alone else folder.with_name(f".{folder.name}.{unique}")
        record = part if alone else part / HIDDEN
        record.mkdir(parents=True)
        try:
            with atomic_write(record / "run.json", "w", sync=False) as file:
                json.dump({"options": options, "where": os.getcwd(), "sources": list(sources)}, file)
            if alone:
                shutil.rmtree(folder / HIDDEN, ignore_errors=True)
                os.rename(part, folder / HIDDEN)
            else:
                try:
                    os.rename(part, folder)
                except OSError:
                    if not folder.is_dir():  # another process has not been first
                        raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return cls(folder)

    def todo(self, rank: int, processes: int) -> list[int]:
        """What is left of the share of one process, rank 0 to processes - 1."""
        return [i for i in range(rank, len(self.sources), processes) if i not in self.places]

    def record(self, source: int, number: int | None, boxes: torch.Tensor) -> None:
        """Keeps the boxes (n, 6 or 7) of a frame for `rows`; they count once `done` says that the file is."""
        self._append({"source": source, "frame": number, "boxes": boxes.tolist()})

    def done(self, source: int) -> None:
        """All results of a file are written."""
        self._append({"source": source, "done": True})

    def left_out(self, source: int) -> None:
        """A file cannot be read."""
        self._append({"source": source, "done": False})

    def complete(self) -> bool:
        """Whether no process has anything left to do. Looks anew."""
        self.places = self._read()
        return len(self.places) == len(self.sources)

    def rows(self) -> Iterator[tuple[int, int | None, torch.Tensor]]:
        """(source, frame number, boxes) that were recorded of all files that are done, in the order of the files."""
        with contextlib.ExitStack() as opened:
            journals: dict[Path, Any] = {}
            for source, place in sorted(self.places.items()):
                if place is None:
                    continue
                path, offset = place
                if path not in journals:
                    journals[path] = opened.enter_context(open(path, "rb"))
                journals[path].seek(offset)
                for entry in _entries(journals[path]):
                    if entry["source"] == source:
                        if "done" in entry:
                            break
                        yield source, entry["frame"], torch.tensor(entry["boxes"])

    def scratch(self, name: str) -> Path:
        """A path of this process alone, on the disk of the run's folder."""
        return self._hidden / f"{uuid.uuid4().hex}-{name}"

    def finish(self) -> None:
        """Takes away the record, and what killed processes have left half-written. Several may call it at once."""
        self.close()
        gone = self._hidden.with_name(f"{HIDDEN}.{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            for part in self.folder.rglob(".*.part*"):
                part.unlink(missing_ok=True)
            os.rename(self._hidden, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def close(self) -> None:
        """Ends the journal."""
        if self._journal:
            self._journal.close()
            self._journal = None

    def _append(self, entry: dict[str, Any]) -> None:
        if self._journal is None:
            self._journal = open(self._hidden / f"journal-{uuid.uuid4().hex}", "ab", buffering=0)
        self._journal.write(json.dumps(entry).encode() + b"\n")

    def _read(self) -> dict[int, tuple[Path, int] | None]:
        places: dict[int, tuple[Path, int] | None] = {}
        for path in sorted(self._hidden.glob("journal-*")):
            begins: dict[int, int] = {}
            with open(path, "rb") as file:
                position = 0
                for entry in _entries(file):
                    source = entry["source"]
                    begins.setdefault(source, position)
                    if "done" in entry:
                        places[source] = (path, begins[source]) if entry["done"] else None
                    position = file.tell()
        return places


def _entries(file) -> Iterator[dict[str, Any]]:
    """The lines from here on; not the last one where its process was killed while it wrote it."""
    while (line := file.readline()).endswith(b"\n"):
        yield json.loads(line)
