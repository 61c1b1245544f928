"""Downloads files, only when the user asked for it, and unpacks the archives of data sets."""

import errno
import hashlib
import http.client
import logging
import os
import re
import shutil
import stat
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from utils.files import atomic_write
from utils.log import LOGGER

RELEASE = "https://github.com/ultralytics/yolov5/releases/download/v6.1"
# errors of this machine's disk, not of the network
DISK_ERRORS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
RELEASE_WEIGHTS = tuple(f"yolov5{size}{p6}.pt" for p6 in ("", "6") for size in "nsmlx")


def download(url: str, path: str | Path, sha256: str = "", timeout: float = 30.0) -> Path:
    """Downloads url to path, whole or not at all.

    sha256:  64 hexadecimal digits that the file must have; "" for any.
    timeout: seconds without data after which the download fails.

    Raises FileNotFoundError where the server does not send the file, OSError where the disk does not take it, and
    ValueError where its SHA-256 differs; then no file is left.
    """
    path = Path(path)
    LOGGER.info(f"downloading {url} to {path}")
    digest = hashlib.sha256()
    quiet = not LOGGER.isEnabledFor(logging.INFO)
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response, atomic_write(path) as file:
            promised = response.headers.get("Content-Length")
            with tqdm(total=int(promised or 0) or None, unit="B", unit_scale=True, disable=quiet, leave=False) as bar:
                while block := response.read(1 << 20):
                    digest.update(block)
                    file.write(block)
                    bar.update(len(block))
            if promised and int(promised) != file.tell():
                raise OSError(f"the connection broke after {file.tell()} of {promised} bytes")
            if sha256 and digest.hexdigest() != sha256:
                raise ValueError(f"{url}: SHA-256 is {digest.hexdigest()}, expected {sha256}; the file was not kept")
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise FileNotFoundError(
            f"could not download {url}: {error}; download it yourself and save it as {path}"
        ) from None
    return path


def download_weights(path: str | Path) -> Path:
    """Downloads an official v6.1 checkpoint (`yolov5s.pt` ...) to path; FileNotFoundError for any other name."""
    path = Path(path)
    if path.name not in RELEASE_WEIGHTS:
        raise FileNotFoundError(f"no such file: {path}; --download can fetch {', '.join(RELEASE_WEIGHTS)}")
    return download(f"{RELEASE}/{path.name}", path)


def attempt_download(file: str | Path, repo: str = "") -> str:
    """Returns the path of weights, which are downloaded where they are missing and official; v6.1's name.

    repo: accepted for v6.1's sake. Raises FileNotFoundError where they are neither here nor official.
    """
    path = Path(str(file).strip().replace("'", ""))
    return str(path if path.exists() else download_weights(path))


# --- data sets --------------------------------------------------------------------------------------------------------


def _unsafe(name: str) -> bool:
    """Returns whether a path is absolute, contains "..", or means another path on Windows."""
    return name.startswith("/") or "\\" in name or "\0" in name or name[1:2] == ":" or ".." in PurePosixPath(name).parts


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A zip or tar file of a data set.

    url:    http or https.
    sha256: 64 hexadecimal digits.
    folder: in the data set's root, where it is unpacked; "" for the root itself.
    """

    url: str
    sha256: str
    folder: str = ""

    def __post_init__(self):
        if not re.match(r"https?://", self.url):
            raise ValueError(f"url must start with http:// or https://, got {self.url!r}")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 of {self.url} must be 64 digits 0-9 a-f, got {self.sha256!r}")
        if _unsafe(self.folder):
            raise ValueError(f"folder of {self.url} must be in the data set's root, got {self.folder!r}")


COCO, VOC = "http://images.cocodataset.org", "http://pjreddie.com/media/files"
KNOWN_SETS = {  # checksums as TensorFlow Datasets publishes them
    "coco2017": (
        Archive(
            url=f"{COCO}/annotations/annotations_trainval2017.zip",
            sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        ),
        Archive(
            url=f"{COCO}/zips/val2017.zip",
            sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            folder="images",
        ),
        Archive(
            url=f"{COCO}/zips/train2017.zip",
            sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            folder="images",
        ),
    ),
    "voc2007": (
        Archive(
            url=f"{VOC}/VOCtrainval_06-Nov-2007.tar",
            sha256="7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
        ),
        Archive(
            url=f"{VOC}/VOCtest_06-Nov-2007.tar",
            sha256="6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
        ),
    ),
    "voc2012": (
        Archive(
            url=f"{VOC}/VOCtrainval_11-May-2012.tar",
            sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        ),
    ),
}
MAX_EXPANSION = 100  # an archive that unpacks to more times its size is a bomb; images are hardly compressed at all
ALWAYS_ALLOWED = 1 << 24  # bytes, whatever the size of the archive
BLOCK = 512  # bytes that a file counts at least, so that very many empty files are a bomb too


def download_dataset(archives: list[Archive], root: Path) -> None:
    """Downloads archives and unpacks them in root; they are deleted when all are unpacked.

    An archive that an interrupted call left whole is not downloaded again. Raises FileNotFoundError where one cannot be
    downloaded, ValueError where its SHA-256 differs, or it is not safe to unpack; then no file of it is unpacked.
    """
    store = root / ".downloads"
    store.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        file = store / archive.sha256
        if not (file.is_file() and _sha256(file) == archive.sha256):
            download(archive.url, file, archive.sha256)
        LOGGER.info(f"unpacking {archive.url} into {root / archive.folder}")
        unpack(file, root / archive.folder, archive.url)
    shutil.rmtree(store)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def unpack(archive: Path, folder: Path, name: str = "") -> None:
    """Unpacks a zip or tar file into a folder, whole or not at all; files of the same names are replaced.

    name: of the archive in errors; its path by default.

    Raises ValueError for an entry that is not a plain file or folder (such as a link), for a name outside the folder,
    and for more than MAX_EXPANSION times the size of the archive or than the free space of the disk.
    """
    name = name or str(archive)
    folder.mkdir(parents=True, exist_ok=True)
    maximum = min(max(MAX_EXPANSION * archive.stat().st_size, ALWAYS_ALLOWED), shutil.disk_usage(folder).free)
    unpacked = Path(tempfile.mkdtemp(prefix=".unpacked", dir=archive.parent))
    try:
        total = 0
        for member, size, file in _members(archive, name):
            total += BLOCK + size
            if total > maximum:
                raise ValueError(
                    f"{name}: unpacks to more than {maximum} bytes, {MAX_EXPANSION} times its size or all free space"
                )
            if _unsafe(member):
                raise ValueError(f"{name}: {member!r} would be written outside the folder; no file is unpacked")
            _write_member(unpacked / member, file, name)
        _move_files(unpacked, folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{name}: a damaged archive: {error}") from None
    finally:
        shutil.rmtree(unpacked)


def _members(archive: Path, name: str) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Yields the name, size in bytes and content of each entry of an archive; the content of a folder is None."""
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            for member in tar:
                if not (member.isfile() or member.isdir()):
                    raise ValueError(f"{name}: {member.name!r} is a link or device; no file is unpacked")
                yield member.name, member.size, tar.extractfile(member)
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            for entry in bundle.infolist():
                if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise ValueError(f"{name}: {entry.filename!r} is a link or device; no file is unpacked")
                if entry.flag_bits & 1:
                    raise ValueError(f"{name}: {entry.filename!r} is encrypted; no file is unpacked")
                yield entry.filename, entry.file_size, None if entry.is_dir() else bundle.open(entry)
    else:
        raise ValueError(f"{name}: must be a zip or a tar file, and is neither")


def _write_member(path: Path, content: IO[bytes] | None, name: str) -> None:
    try:
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with content, open(path, "xb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{name}: contains {path.name!r} twice; no file is unpacked") from None


def _move_files(source: Path, folder: Path) -> None:
    for parent, _, files in os.walk(source):
        place = folder / os.path.relpath(parent, source)
        place.mkdir(parents=True, exist_ok=True)
        for file in files:
            os.replace(os.path.join(parent, file), place / file)
