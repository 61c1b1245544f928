"""Unpacks zip and tar files that may come from anybody: nothing gets out of its folder, over a file, or out of hand."""

import bz2
import errno
import filecmp
import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

MAX_EXPANSION = 100  # an archive that unpacks to more times its size is a bomb; images are hardly compressed at all
ALWAYS_ALLOWED = 1 << 24  # bytes, whatever the size of the archive
BLOCK = 4096  # bytes that a file counts at least, so that very many empty files are a bomb too
MAX_MEMBERS = 5_000_000
MAX_METADATA = 1 << 22  # bytes of the headers of one file in a tar

DAMAGES = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError, struct.error,
    OverflowError, LookupError, UnicodeError, RuntimeError,
)  # fmt: skip


def is_unsafe(name: str) -> bool:
    """Returns whether a path is empty, absolute, contains "..", or means another path on Windows."""
    parts = PurePosixPath(name).parts
    return not parts or name.startswith("/") or "\\" in name or "\0" in name or name[1:2] == ":" or ".." in parts


def unpack(archive: Path, folder: Path, name: str = "", root: Path | None = None) -> None:
    """Unpacks a zip or tar file into a folder, whole or not at all.

    name: of the archive in errors; its path by default.
    root: the folder, or one above it; no link below it is followed. By default the folder.

    Raises ValueError for an entry that is not a plain file or folder (such as a link), for a name outside the folder,
    for a file that is there already with other content, and for more than MAX_EXPANSION times the size of the archive
    or than the free space of the disk.
    """
    name = name or str(archive)
    _check_target(folder, root or folder, name)
    folder.mkdir(parents=True, exist_ok=True)
    maximum = min(max(MAX_EXPANSION * archive.stat().st_size, ALWAYS_ALLOWED), shutil.disk_usage(folder).free)
    unpacked = Path(tempfile.mkdtemp(prefix=".yolov5-unpacked-", dir=folder))
    try:
        total = 0
        for number, (member, size, file) in enumerate(_members(archive, name, maximum)):
            total += BLOCK + size
            if total > maximum or number >= MAX_MEMBERS:
                raise ValueError(
                    f"{name}: unpacks to more than {maximum} bytes, {MAX_EXPANSION} times its size or all free space, "
                    f"or to more than {MAX_MEMBERS} files"
                )
            if is_unsafe(member):
                raise ValueError(f"{name}: {member!r} would be written outside the folder; no file is unpacked")
            _write_member(unpacked / member, file, name)
        _move_files(unpacked, folder, name)
    except (*DAMAGES, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of the disk
            raise
        raise ValueError(f"{name}: the archive is damaged: {error}; copy or download it again") from None
    finally:
        shutil.rmtree(unpacked)


def _check_target(path: Path, root: Path, name: str) -> None:
    """Raises ValueError where a folder that is to be made or used below root is a link or a file."""
    for part in (path, *path.parents):
        if part == root:
            break
        if part.is_symlink() or (os.path.lexists(part) and not part.is_dir()):
            raise ValueError(f"{name}: needs {part} as a folder, and that is a link or a file; no file is unpacked")


# --- what is in an archive --------------------------------------------------------------------------------------------


class LimitedFile:
    """A file of which no read may be large, and all reads together at most `maximum` bytes.

    Python's tarfile reads the headers of a file at once, however large they claim to be.
    """

    def __init__(self, file: IO[bytes], maximum: int, name: str):
        self._file, self._left, self._name = file, maximum, name
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_METADATA:
            raise ValueError(f"{self._name}: the headers of a file in it have more than {MAX_METADATA} bytes")
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"{self._name}: unpacks to more bytes than are allowed, as it has large headers")
        return data


@contextmanager
def _decompressed(archive: Path) -> Iterator[IO[bytes]]:
    with open(archive, "rb") as file:
        head = file.read(6)
    kinds = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    opened = next((kind for magic, kind in kinds.items() if head.startswith(magic)), open)
    with opened(archive, "rb") as file:
        yield file


def _members(archive: Path, name: str, maximum: int) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Yields the name, size in bytes and content of each entry of an archive; the content of a folder is None."""
    with open(archive, "rb") as file:
        is_zip = file.read(4) in (b"PK\3\4", b"PK\5\6")
    if is_zip:
        yield from _zip_members(archive, name)
        return
    with _decompressed(archive) as file:
        try:
            tar = tarfile.open(fileobj=LimitedFile(file, 2 * maximum + ALWAYS_ALLOWED, name), mode="r:")
        except tarfile.ReadError:
            raise ValueError(f"{name}: must be a zip or a tar file, and is neither, or is damaged") from None
        with tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # it would keep all of them
                if not (member.isfile() or member.isdir()) or member.issparse():
                    raise ValueError(f"{name}: {member.name!r} is a link or device; no file is unpacked")
                if member.size < 0:
                    raise ValueError(f"{name}: {member.name!r} has a size below zero; no file is unpacked")
                yield member.name, member.size, tar.extractfile(member)


def _zip_members(archive: Path, name: str) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    with zipfile.ZipFile(archive) as bundle:
        for entry in bundle.infolist():
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"{name}: {entry.filename!r} is a link or device; no file is unpacked")
            if entry.flag_bits & 1:
                raise ValueError(f"{name}: {entry.filename!r} is encrypted; no file is unpacked")
            folder = entry.filename.endswith("/")
            yield entry.filename, entry.file_size, None if folder or not entry.filename else bundle.open(entry)


# --- what is written --------------------------------------------------------------------------------------------------


def _write_member(path: Path, content: IO[bytes] | None, name: str) -> None:
    try:
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with content, open(path, "xb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise ValueError(f"{name}: contains {path.name!r} twice; no file is unpacked") from None


def _move_files(source: Path, folder: Path, name: str) -> None:
    """Moves the files into the folder, after every target is checked: no link on the way, and no other file there."""
    moves = []
    for parent, _, files in os.walk(source):
        target = folder / os.path.relpath(parent, source)
        _check_target(target, folder, name)
        moves.append((target, None))
        for file in files:
            found, wanted = target / file, Path(parent, file)
            if not os.path.lexists(found):
                moves.append((found, wanted))
            elif found.is_symlink() or not found.is_file() or not filecmp.cmp(found, wanted, shallow=False):
                raise ValueError(
                    f"{name}: would replace {found}, which is there already; no file is unpacked. Move it away, or "
                    "unpack the archive yourself"
                )
    for target, file in moves:
        if file is None:
            target.mkdir(parents=True, exist_ok=True)
        else:
            os.replace(file, target)
