"""Which exported files that are programs may be opened: those that this installation wrote, or that the user trusts.

TorchScript, `.pt2`, SavedModel, GraphDef, ExecuTorch and TensorRT files are programs: opening one runs what is in it.
export.py notes the SHA-256 of each that it writes, and no other is opened unless the user says so.
"""

import argparse
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from utils.files import atomic_write, state_folder

NOTES = "exported.txt"  # in the state folder: a line "DIGEST SIZE" for each file, the newest last
NOTED = 10_000  # files, of which the oldest are forgotten
BLOCK = 2**20  # bytes that are read at once


def add_trust(group: argparse._ActionsContainer) -> None:
    """Adds --trust-weights."""
    group.add_argument(
        "--trust-weights",
        action="store_true",
        help="open weights that are programs (.torchscript, .pt2, .pte, .engine, .pb, *_saved_model) even if export.py "
        "of this installation did not write them. A program can do everything that you can do on this computer. "
        "Other kinds of weights are data and do not need this option",
    )


def note(path: Path) -> None:
    """Notes that this installation wrote a file or folder; OSError where the note cannot be written."""
    from filelock import FileLock

    size, digest = _size(path), _digest(path)
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{NOTES}.lock"):
        lines = [line for line in _lines() if line != (digest, size)]
        with atomic_write(folder / NOTES, "w", sync=False) as file:
            file.writelines(f"{d} {s}\n" for d, s in [*lines, (digest, size)][-NOTED:])


def open_copy(path: Path, what: str) -> tuple[tempfile.TemporaryDirectory, Path]:
    """Copies a file or folder that this installation wrote to where no other user can change it.

    The bytes that are checked are those of the copy, so that what is opened is what was checked.

    what: it is, such as "a TorchScript file", for the message.

    Returns the folder of the copy, which is removed when it is no longer used, and the copy. Raises ValueError where
    this installation did not write it.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    refusal = ValueError(
        f"{path}: {what} is a program that can do everything that you can do on this computer, and export.py of "
        "this installation did not write this one; if you trust its origin, give --trust-weights (trust=True in "
        "Python), otherwise export its .pt file here"
    )
    sizes = {size for _, size in _lines()}
    size = _size(path)
    if size not in sizes:
        raise refusal
    folder = tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True)
    copy = Path(folder.name, path.name)
    if (_digest(path, copy, limit=size), size) not in set(_lines()):
        folder.cleanup()
        raise refusal
    return folder, copy


def _lines() -> list[tuple[str, int]]:
    """Returns the (digest, size in bytes) of each file noted; lines that are not of this form are left out."""
    file = state_folder() / NOTES
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [(m[1], int(m[2])) for line in text.splitlines() if (m := re.fullmatch(r"([0-9a-f]{64}) (\d{1,18})", line))]


def _files(path: Path) -> Iterator[Path]:
    """Yields the file, or all files in a folder, in the order of their names; ValueError for links and devices."""
    for file in [path] if not path.is_dir() else sorted(path.rglob("*"), key=lambda p: p.relative_to(path).as_posix()):
        if file.is_symlink() and file != path:
            raise ValueError(f"{file}: the folder of a model must hold plain files, and this is a link; copy it there")
        if file.is_dir():
            continue
        if not stat.S_ISREG(file.stat().st_mode):
            raise ValueError(f"{file}: a model must be a plain file, and this is a pipe or a device")
        yield file


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path))


def _digest(path: Path, copy: Path | None = None, limit: int | None = None) -> str:
    """Returns the SHA-256 of a file, or of the names and contents of the files in a folder, in hexadecimal digits.

    copy:  where the bytes are written too, as they are read.
    limit: number of bytes after which reading ends; a file that grew in the meantime has another digest then.
    """
    if not path.is_dir():
        return _digest_of_file(path, copy, limit)
    whole = hashlib.sha256(b"folder")
    for file in _files(path):
        name = file.relative_to(path)
        part = _digest_of_file(file, copy / name if copy else None, limit)
        whole.update(f"{part} {name.as_posix()}\0".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _digest_of_file(path: Path, copy: Path | None, limit: int | None) -> str:
    digest = hashlib.sha256()
    if copy:
        copy.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as file, open(copy or os.devnull, "wb") as written:
        while block := file.read(BLOCK if limit is None else min(BLOCK, limit + 1)):
            digest.update(block)
            written.write(block)
            if limit is not None and (limit := limit - len(block)) < 0:
                break
    return digest.hexdigest()
