"""Images of a data set and of an evaluation: mosaics of batches, charts of labels; how every chart is written.

Charts are matplotlib `Figure` objects without pyplot, so that no backend is chosen and the caller's figures are left
alone. matplotlib is imported where it is used. No function changes its arguments.

`names` is always a list of class names or a dict from class number to name; a class without a name shows its number.
"""

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from utils.boxes import xywhn_to_xyxy, xyxy_to_xywhn
from utils.drawing import Annotator, Names, class_name, colors, find_font, shorten, visible, write_image
from utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CENTRED_BOXES = 1000  # of labels.jpg
MOSAIC_IMAGES = 16


# --- mosaics of batches -----------------------------------------------------------------------------------------------


def detections_to_targets(detections: Sequence[torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
    """Returns the detections of a batch as rows (T, 7) for `plot_batch`: image, class, x, y, w, h (0-1), confidence.

    detections: per image (n, 6): x1, y1, x2, y2 in pixels of the input, confidence, class.
    shape:      (height, width) of the input in pixels.
    """
    rows = []
    for i, boxes in enumerate(detections):
        boxes = boxes.detach().cpu().float()
        image = torch.full((len(boxes), 1), float(i))
        xywhn = xyxy_to_xywhn(boxes[:, :4], shape[1], shape[0])
        rows.append(torch.cat([image, boxes[:, 5:6], xywhn, boxes[:, 4:5]], 1))
    return torch.cat(rows) if rows else torch.zeros(0, 7)


def plot_batch(
    images: torch.Tensor,
    targets: torch.Tensor,
    path: str | Path,
    names: Names | None = None,
    image_paths: Sequence[str | Path] | None = None,
    conf_thres: float = 0.25,
    max_images: int = MOSAIC_IMAGES,
    max_side: int = 1920,
    min_tile: int = 320,
) -> None:
    """Writes a mosaic of the first images of a batch with their boxes, column by column.

    images:      (B, C, H, W) RGB, else the first channel in grey; uint8, or floating point 0-1.
    targets:     (T, 6) labels: image index, class, x, y, w, h, 0-1 of the image; or (T, 7) detections with their
                 confidence last, of which those above conf_thres are drawn.
    image_paths: the file of each image, whose name is written on its tile.
    max_side:    maximum of the mosaic's longer side in pixels.
    min_tile:    smaller tiles are enlarged to this side in pixels, as far as max_side allows.
    """
    images, targets = images[:max_images].detach().cpu(), targets.detach().cpu().float().numpy()
    if not len(images):
        return
    height, width = images.shape[2:]
    rows = math.ceil(math.sqrt(len(images)))
    columns = math.ceil(len(images) / rows)
    longest = max(height, width)
    scale = min(max(1, min_tile / longest), max_side / rows / longest)
    tile_h, tile_w = int(height * scale), int(width * scale)

    mosaic = np.full((rows * tile_h, columns * tile_w, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        title = shorten(Path(image_paths[i]).name, 40) if image_paths is not None else ""
        tile = cv2.resize(_to_pixels(image), (tile_w, tile_h), interpolation=_interpolation(scale))
        tile = _annotate_tile(tile, targets[targets[:, 0] == i, 1:], names, title, conf_thres)
        tile[[0, -1]], tile[:, [0, -1]] = 255, 255
        x, y = i // rows * tile_w, i % rows * tile_h
        mosaic[y : y + tile_h, x : x + tile_w] = tile
    write_image(path, mosaic[..., ::-1])


def _to_pixels(image: torch.Tensor) -> np.ndarray:
    """Returns an image (C, H, W), uint8 or floating point 0-1, as uint8 (H, W, 3)."""
    if len(image) != 3:
        image = image[:1].expand(3, -1, -1)
    if image.is_floating_point():
        image = (image.float() * 255).round().clamp(0, 255).byte()
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _interpolation(scale: float) -> int:
    return cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR


def _annotate_tile(
    tile: np.ndarray, rows: np.ndarray, names: Names | None, title: str, conf_thres: float
) -> np.ndarray:
    """Returns a copy of an image with boxes, rows (n, 5 or 6): class, x, y, w, h (0-1), confidence if any."""
    if rows.shape[1] > 5:
        rows = rows[rows[:, 5] > conf_thres]
    labels = [class_name(names, int(row[0]), 24) + "".join(f" {c:.1f}" for c in row[5:]) for row in rows]
    side = max(tile.shape)
    annotator = Annotator(
        tile, max(round(side / 200), 1), max(round(side / 36), 11), pil=True, example="".join(labels) + title
    )
    boxes = xywhn_to_xyxy(rows[:, 1:5], tile.shape[1], tile.shape[0])
    for box, row in zip(boxes, rows):
        annotator.rectangle(box, colors(row[0]))
    # texts after all outlines, so that no line crosses them; the title at the bottom, where captions are rare
    taken = [annotator.text((1, tile.shape[0]), title)] if title else []
    annotator.captions(boxes, labels, [colors(row[0]) for row in rows], taken)
    return annotator.result()


# --- charts -----------------------------------------------------------------------------------------------------------


def new_figure(width: float, height: float) -> "Figure":
    """Returns an empty figure of that many inches, whose layout makes room for every text."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path, dpi: int) -> None:
    """Writes a figure."""
    with atomic_write(path) as file:
        file.write(figure_bytes(figure, dpi, path.suffix[1:]))


def figure_bytes(figure: "Figure", dpi: int, kind: str = "png") -> bytes:
    """Returns the file of a figure. Its layout is computed once; savefig alone would draw the whole figure for it."""
    figure.set_dpi(dpi)
    with warnings.catch_warnings(), io.BytesIO() as file:
        warnings.filterwarnings("ignore", "Glyph .* missing")  # find_font has warned already
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine(None)
        options = {"compress_level": 1} if kind == "png" else {}  # a third of the time for a fifth more bytes
        figure.savefig(file, format=kind, dpi=dpi, pil_kwargs=options)
        return file.getvalue()


def font_family(texts: Sequence[str]) -> list[str]:
    """Returns font families for matplotlib, which takes each character from the first that has it."""
    return list(dict.fromkeys(["DejaVu Sans", find_font(visible("".join(texts)))[1]]))


def plain_text(text: str) -> str:
    """Escapes a text, so that matplotlib shows it as it is and does not leave it out of the legend."""
    text = text.replace("$", r"\$")
    return " " + text if text.startswith("_") else text


def tick_rotation(ticks: Sequence[str], room: int) -> int:
    """Returns the degrees by which to turn the names below an axis with room for that many characters."""
    widest = max(map(len, ticks), default=0)
    return 0 if len(ticks) * (widest + 1) <= room else 90


def class_rgb(i: int) -> tuple[float, ...]:
    """Returns the colour of class i as matplotlib takes it, red, green and blue of 0-1."""
    return tuple(v / 255 for v in colors(i))


def plot_labels(labels: np.ndarray, names: Names | None, save_dir: str | Path) -> None:
    """Writes labels.jpg (classes, boxes, positions, sizes) and labels_correlogram.jpg of a data set.

    labels: (n, 5): class, x, y, w, h, 0-1 of the image.
    """
    save_dir = Path(save_dir)
    save_figure(labels_figure(labels, names), save_dir / "labels.jpg", dpi=200)
    _plot_correlogram(labels[:, 1:5], save_dir / "labels_correlogram.jpg")


def labels_figure(labels: np.ndarray, names: Names | None) -> "Figure":
    """Returns the four charts of labels.jpg; labels as in `plot_labels`."""
    figure = new_figure(8, 8)
    (classes, boxes), (positions, sizes) = figure.subplots(2, 2)
    _class_histogram(classes, labels[:, 0].astype(int), names)
    # drawn by lot: where a data set is sorted, the first boxes are all of one class
    sample = labels[np.random.default_rng(0).permutation(len(labels))[:CENTRED_BOXES]]
    boxes.imshow(_centred_boxes(sample), extent=(0, 1, 1, 0))
    drawn_by_lot = f"{len(sample)} random boxes" if len(labels) > len(sample) else f"{len(labels)} boxes"
    boxes.set(title=f"{drawn_by_lot} on one centre", xticks=[], yticks=[])
    _density(positions, labels[:, 1], labels[:, 2])
    positions.set(xlabel="x", ylabel="y", title="centres")
    positions.invert_yaxis()  # as in the image: y points down
    _density(sizes, labels[:, 3], labels[:, 4])
    sizes.set(xlabel="width", ylabel="height", title="sizes")
    return figure


def _class_histogram(axes: "Axes", classes: np.ndarray, names: Names | None) -> None:
    n_classes = max(len(names or ()), classes.max(initial=0) + 1)
    counts = np.bincount(classes, minlength=n_classes)
    axes.bar(np.arange(n_classes), counts, width=0.8, color=[class_rgb(i) for i in range(n_classes)])
    axes.set(ylabel="instances", title=f"{len(classes)} labels, {n_classes} classes")
    axes.margins(x=0.02)
    if 0 < n_classes < 30:
        ticks = [plain_text(class_name(names, i, 20)) for i in range(n_classes)]
        axes.set_xticks(
            range(n_classes), ticks, rotation=tick_rotation(ticks, 40), fontsize=9, family=font_family(ticks)
        )
    else:
        axes.set_xlabel("class")


def _centred_boxes(labels: np.ndarray, side: int = 1000) -> np.ndarray:
    """Returns a white canvas (side, side, 3) with the outline of each box around the middle."""
    canvas = np.full((side, side, 3), 255, dtype=np.uint8)
    for label, _, _, width, height in labels[np.argsort(-labels[:, 3] * labels[:, 4], kind="stable")]:
        corner = (np.array([width, height]) * side / 2).astype(int)
        middle = np.array([side // 2, side // 2])
        cv2.rectangle(canvas, (middle - corner).tolist(), (middle + corner).tolist(), colors(label), 1, cv2.LINE_AA)
    return canvas


def _density(axes: "Axes", x: np.ndarray, y: np.ndarray) -> None:
    """Draws the density of points in the unit square; the tenth of the cells with the most points is equally dark."""
    bins = int(np.clip(np.sqrt(len(x)), 10, 50))  # few points need large cells to be seen
    counts = np.histogram2d(y, x, bins, range=((0, 1), (0, 1)))[0]
    darkest = np.quantile(counts[counts > 0], 0.9) if counts.any() else 1
    visible = np.ma.masked_equal(counts, 0)
    axes.imshow(visible, cmap="viridis_r", vmin=0, vmax=darkest, origin="lower", extent=(0, 1, 0, 1), aspect="auto")


def _plot_correlogram(xywh: np.ndarray, path: Path) -> None:
    """Writes a chart of x, y, w and h against each other: densities below the diagonal, histograms on it."""
    quantities = ("x", "y", "width", "height")
    figure = new_figure(8, 8)
    grid = figure.subplots(4, 4, sharex="col")
    for row, column in np.ndindex(4, 4):
        axes = grid[row, column]
        if column > row:
            axes.remove()
            continue
        if row == column:
            axes.hist(xywh[:, row], bins=50, range=(0, 1), color="#2C99A8")
            axes.set_yticks([])
        else:
            _density(axes, xywh[:, column], xywh[:, row])
        axes.set_xlim(0, 1)
        axes.tick_params(labelbottom=row == 3, labelleft=column == 0 and row > 0)
        if row == 3:
            axes.set_xlabel(quantities[column])
        if column == 0:
            axes.set_ylabel(quantities[row])
    save_figure(figure, path, dpi=200)
