"""Fetching a file, only ever when the user asked for it."""

import hashlib
import http.client
import urllib.request
from pathlib import Path

from utils.files import atomic_write
from utils.log import LOGGER

RELEASE = "https://github.com/ultralytics/yolov5/releases/download/v6.1"
RELEASE_WEIGHTS = tuple(f"yolov5{size}{p6}.pt" for p6 in ("", "6") for size in "nsmlx")


def download(url: str, path: str | Path, sha256: str = "", timeout: float = 30.0) -> Path:
    """Fetches url to path, whole or not at all; a SHA-256 that differs is a ValueError and leaves nothing."""
    path = Path(path)
    LOGGER.info(f"downloading {url} to {path}")
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response, atomic_write(path) as file:
            while block := response.read(1 << 20):
                digest.update(block)
                file.write(block)
            promised = response.headers.get("Content-Length")
            if promised and int(promised) != file.tell():
                raise OSError(f"the connection broke after {file.tell()} of {promised} bytes")
            if sha256 and digest.hexdigest() != sha256:
                raise ValueError(f"{url}: SHA-256 is {digest.hexdigest()}, expected {sha256}; nothing was kept")
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(f"could not download {url}: {error}; fetch it by hand and save it as {path}") from None
    return path


def download_weights(path: str | Path) -> Path:
    """Fetches an official v6.1 checkpoint (`yolov5s.pt` ...) to path."""
    path = Path(path)
    if path.name not in RELEASE_WEIGHTS:
        raise FileNotFoundError(f"no such file: {path}; --download knows {', '.join(RELEASE_WEIGHTS)}")
    return download(f"{RELEASE}/{path.name}", path)
