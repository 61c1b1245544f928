"""Downloads files, only when the user asked for it, and unpacks the archives of data sets.

What comes from elsewhere has limits: of size, time and place. No file of the user is ever replaced.
"""

import contextlib
import errno
import hashlib
import http.client
import logging
import os
import re
import shutil
import socket
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from utils.archives import is_unsafe, unpack
from utils.files import GIB, atomic_write, home
from utils.log import LOGGER
from utils.progress import Bar
from utils.text import redact

RELEASE = "https://github.com/ultralytics/yolov5/releases/download/v6.1"
# errors of this machine's disk, not of the network
DISK_ERRORS = (
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO,
    errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip
RELEASE_WEIGHTS = tuple(f"yolov5{size}{p6}.pt" for p6 in ("", "6") for size in "nsmlx")


@dataclass(frozen=True)
class Limits:
    """Of one download: bytes, seconds, and the bytes per second that must come on average after the first minute."""

    bytes: int
    seconds: float
    speed: float = 1000.0


FILE = Limits(GIB // 4, 3600)  # an image, a video
WEIGHTS = Limits(GIB, 3 * 3600)
ARCHIVE = Limits(64 * GIB, 48 * 3600)
SLOW_AFTER = 60.0  # seconds, before which the speed is not judged


class _SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows redirects from https to https, and from http to http or https; to nothing else."""

    def redirect_request(self, request, response, code, message, headers, url):
        allowed = ("https",) if request.type == "https" else ("http", "https")
        if url.partition(":")[0].lower() not in allowed:
            raise OSError(f"it is redirected from {request.type} to {redact(url)}, which is not allowed")
        return super().redirect_request(request, response, code, message, headers, url)


def _opener(seconds: float) -> urllib.request.OpenerDirector:
    """Returns what opens http and https, and, unlike urllib's usual opener, neither files nor FTP.

    seconds: after which a connection is cut, whatever it sends: of headers too, which come line by line.
    """
    opener = urllib.request.OpenerDirector()

    class Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        def do_open(self, connection, request, **options):
            return super().do_open(_cut(connection, seconds), request, **options)

    for handler in (
        urllib.request.ProxyHandler, Handler, _SameScheme, urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _cut(connection: type[http.client.HTTPConnection], seconds: float) -> type[http.client.HTTPConnection]:
    """Returns a class of connections that end after so many seconds."""

    class Cut(connection):
        def connect(self) -> None:
            super().connect()
            connected = self.sock  # the response keeps it after the connection gave it up

            def cut() -> None:
                with contextlib.suppress(OSError):  # it may be closed
                    connected.shutdown(socket.SHUT_RDWR)

            timer = threading.Timer(seconds, cut)
            timer.daemon = True
            timer.start()

    return Cut


def download(url: str, path: str | Path, sha256: str = "", timeout: float = 30.0, limits: Limits = FILE) -> Path:
    """Downloads url to path, where no file may be, whole or not at all. Address and target are logged first.

    sha256:  64 hexadecimal digits that the file must have; "" for any.
    timeout: seconds without data after which the download fails.
    limits:  of its size and time. What the disk has free is a limit too.

    Raises FileNotFoundError where the server does not send the file, FileExistsError where there is one, OSError where
    the disk does not take it, and ValueError where its SHA-256 differs or it exceeds a limit; then no file is left.
    """
    path = Path(path)
    LOGGER.info(f"downloading {redact(url)} to {path.absolute()}")
    if not re.match(r"https?://", url, re.IGNORECASE):
        raise ValueError(f"an address to download must start with http:// or https://, got {redact(url)!r:.200}")
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "a download does not replace a file, and this one exists", str(path))
    start = time.monotonic()
    try:
        free = shutil.disk_usage(path.absolute().parent).free
        with _opener(limits.seconds).open(url, timeout=timeout) as response, atomic_write(path) as file:
            digest = _receive(response, file, start, free, url, limits)
            if sha256 and digest != sha256:
                raise ValueError(f"{redact(url)}: SHA-256 is {digest}, expected {sha256}; the file was not kept")
            if os.path.lexists(path):  # since
                raise FileExistsError(
                    errno.EEXIST, "a download does not replace a file, and this one exists", str(path)
                )
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise FileNotFoundError(
            f"could not download {redact(url)}: {redact(str(error), [url])}; download it yourself and save it as {path}"
        ) from None
    return path


def _receive(
    response: http.client.HTTPResponse, file: IO[bytes], start: float, free: int, url: str, limits: Limits
) -> str:
    """Writes what a server sends to a file, and returns its SHA-256.

    start: of the download, by the monotonic clock; free: bytes of the disk.
    """
    promised = response.headers.get("Content-Length")
    if promised is not None and not (promised.isascii() and promised.isdecimal() and len(promised) < 20):
        raise OSError(f"the server states its size as {promised!r:.40}, which is not a number")
    expected = int(promised) if promised else None
    if expected is not None:
        _check_size(expected, free, url, limits)
    digest, received = hashlib.sha256(), 0
    quiet = not LOGGER.isEnabledFor(logging.INFO)
    with Bar(total=expected, unit="B", unit_scale=True, disable=quiet, leave=False) as bar:
        while block := response.read1(1 << 20):  # what is there: `read` would wait for all of a slow server
            received += len(block)
            _check_size(received, free, url, limits)
            _check_time(received, time.monotonic() - start, url, limits)
            digest.update(block)
            file.write(block)
            bar.update(len(block))
    _check_time(received, time.monotonic() - start, url, limits)  # a connection that was cut ends like a whole file
    if expected is not None and expected != received:
        raise OSError(f"the connection broke after {received} of {expected} bytes")
    return digest.hexdigest()


def _check_size(size: int, free: int, url: str, limits: Limits) -> None:
    if size > limits.bytes:
        raise ValueError(
            f"{redact(url)}: has more than {limits.bytes / 1e6:.0f} MB, the limit of such a file; the file was not "
            "kept. Download it yourself if it is right"
        )
    if size > free:
        raise OSError(errno.ENOSPC, f"the disk has {free / 1e6:.0f} MB free, less than the size of {redact(url)}")


def _check_time(received: int, seconds: float, url: str, limits: Limits) -> None:
    if seconds >= limits.seconds:
        raise ValueError(
            f"{redact(url)}: not complete after {limits.seconds / 3600:g} hours, the limit; the file was not kept. "
            "Download it yourself"
        )
    if seconds > SLOW_AFTER and received < limits.speed * seconds:
        raise ValueError(
            f"{redact(url)}: sends fewer than {limits.speed / 1000:g} kB per second; the file was not kept. Download "
            "it yourself"
        )


def download_weights(path: str | Path) -> Path:
    """Downloads an official v6.1 checkpoint (`yolov5s.pt` ...) to path; FileNotFoundError for any other name."""
    path = Path(path)
    if path.name not in RELEASE_WEIGHTS:
        raise FileNotFoundError(f"no such file: {path}; --download can fetch {', '.join(RELEASE_WEIGHTS)}")
    return download(f"{RELEASE}/{path.name}", path, limits=WEIGHTS)


def attempt_download(file: str | Path, repo: str = "") -> str:
    """Returns the path of weights, which are downloaded where they are missing and official; v6.1's name.

    repo: accepted for v6.1's sake. Raises FileNotFoundError where they are neither here nor official.
    """
    path = Path(str(file).strip().replace("'", ""))
    return str(path if path.exists() else download_weights(path))


# --- data sets --------------------------------------------------------------------------------------------------------


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
        if self.folder and is_unsafe(self.folder):
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
MARK = ".yolov5-data"  # file in the folder of a data set that was fetched
STORE = ".yolov5-downloads"  # folder in it for archives, until all are unpacked
DATASETS = "datasets"  # folder, beside that of the project, where the YAMLs in data/ have their data sets, as v6.1's


def download_dataset(archives: list[Archive], root: Path, to: str | Path | None = None) -> None:
    """Downloads archives and unpacks them in root; they are deleted when all are unpacked.

    An archive that an interrupted call left whole is not downloaded again.

    root: a folder that is new, empty, or was fetched before.
    to:   folder below which it must be; "" for `datasets` beside the project, None for anywhere.

    Raises ValueError for another root, FileNotFoundError where an archive cannot be downloaded, ValueError where its
    SHA-256 differs, or it is not safe to unpack; then no file of it is unpacked.
    """
    root = Path(root).resolve()
    check_place(root, to)
    _check_root(root)
    for archive in archives:
        LOGGER.info(f"to download: {redact(archive.url)} into {root / archive.folder}")
    store = root / STORE
    store.mkdir(parents=True, exist_ok=True)
    if not (root / MARK).exists():
        with atomic_write(root / MARK, "w") as file:
            file.write("Fetched with --download data, which may add files here as long as this file is there.\n")
    for archive in archives:
        file = store / archive.sha256
        if not (file.is_file() and not file.is_symlink() and _sha256(file) == archive.sha256):
            file.unlink(missing_ok=True)
            download(archive.url, file, archive.sha256, limits=ARCHIVE)
        LOGGER.info(f"unpacking {redact(archive.url)} into {root / archive.folder}")
        unpack(file, root / archive.folder, redact(archive.url), root)
    shutil.rmtree(store)


def check_place(root: Path, to: str | Path | None) -> None:
    """Raises ValueError where a data set would be fetched or drawn elsewhere than below `to`.

    to: a folder; "" for `datasets` beside the project, None for anywhere.
    """
    base = None if to is None else (Path(to).expanduser() if to else home().parent / DATASETS).resolve()
    if base and root != base and base not in root.parents:
        raise ValueError(
            f"data sets are fetched and drawn below {base}, and `path` of this one is {root}; if it is to be written "
            f"there, add --download-to {root}"
        )


def _check_root(root: Path) -> None:
    """Raises ValueError where files of the user could be among those of a data set."""
    if root.is_dir() and not os.path.lexists(root / MARK) and any(root.iterdir()):
        raise ValueError(
            f"{root} holds files that --download did not write, so nothing is unpacked there; move them away, or "
            "change `path` to a folder that is new or empty"
        )
    if os.path.lexists(root) and not root.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a data set needs a folder, and this is a file", str(root))
    for name in (MARK, STORE):
        if (root / name).is_symlink():
            raise ValueError(f"{root / name} is a link; remove it")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
