"""How found boxes are written: lines of label files, crops, the one-line summary."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from utils.boxes import clip_boxes, xywh_to_xyxy, xyxy_to_xywh, xyxy_to_xywhn
from utils.files import increment_path


def label_lines(boxes: torch.Tensor, shape: tuple[int, int], save_conf: bool = False) -> list[str]:
    """Lines of a label file: class x y w h [confidence], 0-1 of the image, six digits each.

    boxes: (n, 6): x1, y1, x2, y2 in pixels of an image of shape (height, width), confidence, class.
    """
    boxes = boxes.cpu().double()
    columns = torch.cat((boxes[:, 5:6], xyxy_to_xywhn(boxes[:, :4], shape[1], shape[0]), boxes[:, 4:5]), 1)
    return [" ".join(f"{v:g}" for v in row[: 6 if save_conf else 5]) + "\n" for row in columns.tolist()]


def summary(boxes: torch.Tensor, names: Sequence[str]) -> str:
    """What was found, in words: `2 persons, 1 bus`. boxes: (n, 6) with the class last."""
    counts = Counter(boxes[:, 5].int().tolist())
    return ", ".join(f"{n} {names[c]}{'s' * (n > 1)}" for c, n in sorted(counts.items())) or "(nothing found)"


def crop(image: np.ndarray, box: torch.Tensor, gain: float = 1.02, margin: int = 10) -> np.ndarray:
    """The part of a picture (H, W, 3) inside an xyxy box in pixels, enlarged by `gain` and by `margin` pixels."""
    x, y, w, h = xyxy_to_xywh(box.float())
    corners = xywh_to_xyxy(torch.stack((x, y, w * gain + margin, h * gain + margin))).trunc()
    x1, y1, x2, y2 = clip_boxes(corners, image.shape[:2]).int().tolist()
    return image[y1:y2, x1:x2]


def write_crop(folder: Path, class_name: str, stem: str, picture: np.ndarray) -> Path:
    """Saves a crop as folder/<class>/<stem>.jpg, <stem>2.jpg ... ; a class name can not lead out of the folder."""
    safe = re.sub(r"[^\w .()+-]", "_", class_name).strip(". ") or "_"
    path = folder / safe / f"{stem}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path = increment_path(path)
    write_image(path, picture)
    return path


def write_image(path: str | Path, picture: np.ndarray) -> None:
    """Writes a BGR picture in the format of the path's suffix. OSError when that can not be done."""
    path = Path(path)
    done, data = cv2.imencode(path.suffix, picture)
    if not done:
        raise OSError(f"{path}: OpenCV cannot write {path.suffix} pictures")
    # not cv2.imwrite, which on Windows opens no path with letters outside the local code page
    path.write_bytes(data.tobytes())
