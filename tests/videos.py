"""Videos that the tests write and read."""

from pathlib import Path

import cv2
import numpy as np
from small_world import W, boxes_image, labels_in

FPS = 12.5


def write_video(path: Path, frames: list[np.ndarray], fps: float = FPS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path))
    fps, frames = capture.get(cv2.CAP_PROP_FPS), []
    while (image := capture.read()[1]) is not None:
        frames.append(image)
    return frames, fps


def moving(n: int) -> list[np.ndarray]:
    """Images in which the red box moves by two pixels a frame."""
    return [boxes_image((4 + 2 * i, 10, 26 + 2 * i, 40), None) for i in range(n)]


def left_edges(folder: Path, names: list[str]) -> list[float]:
    """x1 in pixels of the first box in each label file."""
    rows = [labels_in(folder / "labels" / f"{name}.txt")[0] for name in names]
    return [(row[1] - row[3] / 2) * W for row in rows]
