"""Video files: opened by their content, never by what their name could mean to a decoder."""

import os
from pathlib import Path

import cv2

from utils.data.image_header import LIMIT_VARIABLE, max_pixels

# The first bytes of each kind: (position, any of these). Playlists and session descriptions, which name other files and
# addresses, are none of them.
STARTS = {
    "AVI": (0, (b"RIFF",)),
    "GIF": (0, (b"GIF87a", b"GIF89a")),
    "Matroska": (0, (b"\x1a\x45\xdf\xa3",)),  # and WebM
    "ASF": (0, (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",)),  # and WMV
    "MP4": (4, (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid", b"moof", b"styp", b"sidx")),
    "MPEG": (0, (b"\x00\x00\x01", b"\x00\x00\x00\x01")),
}
SYNC = 0x47  # begins each packet of an MPEG transport stream: (position of the first, length of a packet)
PACKETS = ((0, 188), (4, 192))


def open_video(name: str) -> cv2.VideoCapture:
    """Opens a video file, and returns its frames as OpenCV's capture.

    Raises FileNotFoundError where there is no such file; ValueError where it is of no known kind, cannot be opened, or
    its frames are larger than an image may be.
    """
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no such file")
    with open(path, "rb") as file:
        kind = _kind(file.read(512))
    if kind is None:
        raise ValueError(f"{name}: video cannot be decoded: its first bytes are not those of {', '.join(STARTS)}")
    # An absolute path, as `http:a.mp4` is an address for FFmpeg; and FFmpeg alone, as `a%03d.mp4` is a row of images
    # for another reader of OpenCV.
    backend = cv2.CAP_FFMPEG
    if not cv2.videoio_registry.hasBackend(backend):
        if "%" in path.name:
            raise ValueError(
                f"{name}: a name with % needs an OpenCV with FFmpeg, and this one has none; rename the file"
            )
        backend = cv2.CAP_ANY
    capture = cv2.VideoCapture(os.path.abspath(path), backend)
    if not capture.isOpened():
        capture.release()
        raise ValueError(f"{name}: video cannot be decoded, or has no frames")
    width, height = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > (limit := max_pixels()):
        capture.release()
        raise ValueError(
            f"{name}: frames of {width} x {height} pixels, more than {limit}; for larger ones, set {LIMIT_VARIABLE} in "
            "the environment"
        )
    return capture


def _kind(start: bytes) -> str | None:
    for first, length in PACKETS:
        if len(start) > first + length and start[first] == start[first + length] == SYNC:
            return "MPEG"
    for kind, (position, texts) in STARTS.items():
        if start[position:].startswith(texts):
            return kind if kind != "AVI" or start[8:11] == b"AVI" else None
    return None
