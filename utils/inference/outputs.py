"""How detections are written: names of result files, lines of label files, crops, the one-line summary."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch

from utils.boxes import clip_boxes, xywh_to_xyxy, xyxy_to_xywh, xyxy_to_xywhn
from utils.data.images import VIDEO_SUFFIXES
from utils.drawing import write_image
from utils.files import atomic_write, increment_path
from utils.text import file_name, printable


def result_stems(files: Sequence[str | Path]) -> list[str]:
    """Returns a unique name, without suffix, for the results of each file.

    It is the file's own name if no other file has it. Otherwise the folders below the common one come first
    (`cam1/7.jpg` -> `cam1_7`), or a number follows (`a.jpg`, `a.png` -> `a`, `a_2`). Where another file has the name of
    a video's frame, `a_1`, the video's suffix is added: `a.mp4` -> `a_mp4`.
    """
    files = _apart_from_frames([Path(file) for file in files])
    paths = [Path(os.path.abspath(file)) for file in files]
    columns = zip(*(path.parent.parts for path in paths))
    shared = max(sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, columns)), 1)
    same = Counter(path.stem.lower() for path in paths)  # some file systems ignore case
    taken = {stem for stem, count in same.items() if count == 1}
    stems = []
    for path in paths:
        name = path.stem
        if same[name.lower()] > 1:
            long = name = "_".join([*path.parent.parts[shared:], name])
            number = 1
            while name.lower() in taken:
                number += 1
                name = f"{long}_{number}"
            taken.add(name.lower())
        stems.append(name)
    return stems


def number_stems(stems: Sequence[str]) -> list[int | str] | None:
    """Returns COCO's ids of files of these stems, numbers where they are some; None where two would have the same."""
    ids = [int(stem) if stem.isascii() and stem.isdecimal() else stem for stem in stems]
    return ids if len(set(ids)) == len(ids) else None


def _apart_from_frames(files: list[Path]) -> list[Path]:
    numbered = {stem.rpartition("_")[0].lower() for f in files if (stem := f.stem).rpartition("_")[2].isdecimal()}
    return [
        f.with_name(f"{f.stem}_{f.suffix[1:]}{f.suffix}")
        if f.stem.lower() in numbered and f.suffix[1:].lower() in VIDEO_SUFFIXES
        else f
        for f in files
    ]


def _label_lines(boxes: torch.Tensor, shape: tuple[int, int], save_conf: bool = False) -> list[str]:
    """Returns the lines of a label file: class x y w h [confidence] [track], 0-1, six digits each.

    boxes: (n, 6 or 7): x1, y1, x2, y2 in pixels of an image of shape (height, width), confidence, class, track number.
    """
    boxes = boxes.cpu().double()
    confidence = boxes[:, 4:5] if save_conf else boxes[:, :0]
    xywhn = xyxy_to_xywhn(boxes[:, :4], shape[1], shape[0])
    columns = torch.cat((boxes[:, 5:6], xywhn, confidence, boxes[:, 6:]), 1)
    return [" ".join(f"{v:g}" for v in row) + "\n" for row in columns.tolist()]


def write_labels(path: str | Path, boxes: torch.Tensor, shape: tuple[int, int], save_conf: bool = False) -> None:
    """Writes `_label_lines` to a file; without boxes no file is written."""
    if len(boxes):
        with atomic_write(path, "w", sync=False) as file:
            file.writelines(_label_lines(boxes, shape, save_conf))


def summary(boxes: torch.Tensor, names: Sequence[str]) -> str:
    """Returns the number of detections of each class: `2 persons, 1 bus`. boxes: (n, 6) with the class last."""
    counts = Counter(boxes[:, 5].int().tolist())
    plural = {c: "s" * (n > 1 and not names[c].endswith("s")) for c, n in counts.items()}
    return (
        ", ".join(f"{n} {printable(names[c], lines=False)}{plural[c]}" for c, n in sorted(counts.items()))
        or "(no detections)"
    )


def crop(image: np.ndarray, box: torch.Tensor, gain: float = 1.02, margin: int = 10) -> np.ndarray:
    """Returns the part of an image (H, W, 3) in an xyxy box in pixels, enlarged by `gain` and by `margin` pixels."""
    x, y, w, h = xyxy_to_xywh(box.float())
    corners = xywh_to_xyxy(torch.stack((x, y, w * gain + margin, h * gain + margin))).trunc()
    x1, y1, x2, y2 = clip_boxes(corners, image.shape[:2]).int().tolist()
    return image[y1:y2, x1:x2]


def crop_folder(folder: Path, class_name: str) -> Path:
    """Returns folder/<class>, a folder of its own for each class name; signs that could lead elsewhere are replaced."""
    return folder / file_name(class_name)


def write_crop(folder: Path, class_name: str, stem: str, image: np.ndarray) -> Path:
    """Writes a crop as the first of folder/<class>/<stem>.jpg, <stem>2.jpg ... that does not exist."""
    path = crop_folder(folder, class_name) / f"{stem}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_image(increment_path(path), image)


class CropNames:
    """The names of the crops of several sources, which depend on the stems of the sources only: a, a2, a3 ...

    Where such a name could belong to another source, as the second crop of frame1 to frame12, they are a, a-2, a-3 ...
    """

    def __init__(self, stems: Sequence[str]):
        self._known = {stem.lower() for stem in stems}
        self._between = ""
        while any(self.source_of(stem) != stem for stem in self._known):
            self._between += "-"

    def name(self, stem: str, number: int) -> str:
        """Returns the name of the number-th crop, from 1, of a class in a source."""
        return stem if number == 1 else f"{stem}{self._between}{number}"

    def source_of(self, name: str) -> str | None:
        """Returns the stem, in lower case, of the source to which a crop of this name belongs, or None."""
        name = name.lower()
        digits = re.search(r"[0-9]*$", name)[0]
        for k in range(1, len(digits) + 1):
            if name[-k] != "0" and (stem := name[:-k]).endswith(self._between):
                stem = stem[: len(stem) - len(self._between)]
                if stem in self._known:
                    return stem
        return name if name in self._known else None
