"""Drawing by v6.1's names, for programs written for it: `from utils.plots import Annotator, colors, save_one_box`.

Nothing in the project imports this file. The colours are this project's, which the colour-blind can tell apart.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from utils import drawing as _drawing
from utils.boxes import clip_boxes, xywh_to_xyxy, xyxy_to_xywh
from utils.drawing import Colors, colors
from utils.evaluation import charts as _charts
from utils.evaluation import plots as _plots
from utils.files import increment_path

__all__ = [
    "Annotator",
    "Colors",
    "colors",
    "feature_visualization",
    "output_to_target",
    "plot_images",
    "plot_labels",
    "plot_one_box",
    "plot_results",
    "save_one_box",
]


class Annotator(_drawing.Annotator):
    """Draws boxes with captions on an image, as v6.1's does: `im` itself is changed where OpenCV draws.

    im:         BGR or RGB uint8 (H, W, 3), or a Pillow image, which is copied.
    line_width: pixels; None chooses it by the image size, as font_size does.
    font:       accepted for v6.1's sake; a font that has all characters is found.
    pil:        draw with Pillow. example: text to expect, such as the names of all classes.
    """

    def __init__(
        self, im: Any, line_width: int | None = None, font_size: int | None = None, font: str = "Arial.ttf",
        pil: bool = False, example: Any = "abc",
    ):  # fmt: skip
        own = isinstance(im, np.ndarray)
        image = im if own else np.asarray(im.convert("RGB"))
        super().__init__(image, line_width and int(line_width), font_size and int(font_size), pil, str(example))
        if own and im.flags.writeable and im.flags.c_contiguous:
            self._array = im
        self.pil, self.lw = bool(self._draw), self.line_width

    @property
    def im(self) -> Any:
        """Returns the image as it is drawn: an array, or a Pillow image."""
        return self._image or self._array

    def box_label(
        self, box: Sequence[float], label: str = "", color: Sequence[int] = (128, 128, 128),
        txt_color: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """Draws an xyxy box in pixels with its label; txt_color: by default black or white, whichever reads better."""
        self.rectangle(box, outline=color)
        if label:
            self.caption(box, label, _tuple(color), txt_color and _tuple(txt_color))

    def rectangle(
        self, xy: Sequence[float], fill: Any = None, outline: Sequence[int] = (128, 128, 128), width: int = 0
    ) -> None:
        """Draws an xyxy rectangle in pixels, filled if a colour `fill` is given; width: of its line, in pixels."""
        if fill is not None:
            x1, y1, x2, y2 = self._corners(xy)
            if self._draw:
                self._draw.rectangle([x1, y1, x2, y2], fill=_tuple(fill))
            else:
                cv2.rectangle(self._array, (x1, y1), (x2, y2), _tuple(fill), cv2.FILLED)
        usual, self.line_width = self.line_width, int(width) or self.line_width
        super().rectangle(xy, _tuple(outline if outline is not None else fill))
        self.line_width = usual

    def text(self, xy: Sequence[float], text: str, txt_color: Sequence[int] = (255, 255, 255), **ignored: Any) -> None:
        """Draws text on a black strip whose upper left corner is at xy in pixels; v6.1's has no strip."""
        super().text(tuple(xy), text, _tuple(txt_color))


def _tuple(color: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(c) for c in color)


def plot_one_box(
    x: Sequence[float], img: np.ndarray, color: Any = None, label: str | None = None, line_thickness: int | None = None
) -> None:
    """Draws an xyxy box in pixels, with its label, on an image (H, W, 3) uint8; changes the image. v5.0's name."""
    annotator = Annotator(img, line_thickness, example=label or "")
    annotator.box_label(x, label or "", color if color is not None else colors(0, bgr=True))
    if annotator.result() is not img:
        img[:] = annotator.result()


def save_one_box(
    xyxy: Any, im: np.ndarray, file: str | Path = "im.jpg", gain: float = 1.02, pad: int = 10, square: bool = False,
    BGR: bool = False, save: bool = True,
) -> np.ndarray:  # fmt: skip
    """Returns the part of an image in an xyxy box, enlarged by gain and pad, and writes it to the first free file name.

    xyxy: (4,) in pixels. square: enlarge the shorter side to the longer one. BGR: the image is BGR, else RGB, whose
    crop is BGR as OpenCV writes it.
    """
    box = torch.as_tensor(np.asarray([float(v) for v in np.ravel(_numbers(xyxy))]), dtype=torch.float32)
    x, y, w, h = xyxy_to_xywh(box)
    if square:
        w = h = torch.maximum(w, h)
    corners = xywh_to_xyxy(torch.stack((x, y, w * gain + pad, h * gain + pad))).trunc()
    x1, y1, x2, y2 = clip_boxes(corners, im.shape[:2]).int().tolist()
    crop = im[y1:y2, x1:x2, :: 1 if BGR else -1]
    if save and crop.size:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        _drawing.write_image(increment_path(Path(file).with_suffix(".jpg")), np.ascontiguousarray(crop))
    return crop


def _numbers(xyxy: Any) -> Any:
    return xyxy.detach().cpu() if isinstance(xyxy, torch.Tensor) else xyxy


def output_to_target(output: Sequence[torch.Tensor]) -> np.ndarray:
    """Returns detections (n, 6) per image as rows (T, 7): image, class, x, y, w, h in pixels, confidence."""
    return _plots.detections_to_targets(output, (1, 1)).numpy()


def plot_images(
    images: Any, targets: Any, paths: Sequence[str] | None = None, fname: str | Path = "images.jpg",
    names: Any = None, max_size: int = 1920, max_subplots: int = 16,
) -> None:  # fmt: skip
    """Writes a mosaic of images (B, C, H, W) with their boxes.

    targets: (T, 6) image, class, x, y, w, h, or (T, 7) with the confidence last; 0-1 of the image, or in pixels where
    one is above 1.01.
    """
    images = torch.as_tensor(images)
    rows = torch.as_tensor(targets).detach().cpu().float().clone()
    if len(rows) and rows[:, 2:6].max() > 1.01:
        height, width = images.shape[2:]
        rows[:, 2:6] /= torch.tensor([width, height, width, height])
    _plots.plot_batch(images, rows, fname, names, paths, max_images=max_subplots, max_side=max_size)


def plot_results(file: str | Path = "path/to/results.csv", dir: str | Path = "") -> None:  # noqa: A002
    """Draws each `results*.csv` in a folder, by default the folder of `file`, as curves in results.png."""
    folder = Path(dir) if str(dir) else Path(file).parent
    files = sorted(folder.glob("results*.csv"))
    if not files:
        raise FileNotFoundError(f"no results*.csv in {folder.resolve()}; give the folder of a training run")
    for table in files:
        _charts.plot_results(table)


def plot_labels(labels: np.ndarray, names: Sequence[str] = (), save_dir: str | Path = "") -> None:
    """Writes charts of labels (n, 5), class, x, y, w, h, 0-1 of their images."""
    _plots.plot_labels(labels, names, Path(save_dir))


def feature_visualization(x: torch.Tensor, module_type: str, stage: int, n: int = 32, save_dir: Any = "") -> None:
    """Writes up to n feature maps of the first image of x (B, C, h, w), and all of them as `.npy`, to a folder."""
    from utils.inference.features import draw_maps

    if "Detect" in module_type or min(x.shape[2:]) <= 1:
        return
    maps = x[0].detach().float().cpu().numpy()
    name = re.sub(r".*\.", "", module_type)
    path = Path(save_dir) / f"stage{stage}_{name}_features.png"
    _drawing.write_image(path, draw_maps(maps[:n]))
    np.save(path.with_suffix(".npy"), maps)
