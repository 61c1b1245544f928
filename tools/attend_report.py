"""Writes the text and the HTML page of tools/attend.py from what attend_measures.py measures."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
import torch

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.attention_view import Spectrum
from utils import page
from utils.drawing import class_name, draw_boxes
from utils.inference.features import MIN_CONTRAST, draw_emphasis, draw_heat, draw_maps

CHANNELS = 4  # number of channels shown with the highest gates, and with the lowest
DETECTIONS = 20  # rows of a table of detections
COLOURS = ("#0072b2", "#d55e00")  # of the first and the second curve: blue and vermilion of Okabe and Ito
SIDE = 640  # pixels to which the longer side of a smaller image is enlarged, so that lines and text are fine
FLOOR = 1e-9  # eigenvalues below it are rounding of the float32 map

STYLE = """
h2{margin:2em 0 0;border-top:1px solid #ccc;padding-top:.6em}p{max-width:75ch}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:0 2em}.pair>div{min-width:0}
.row{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,200px),1fr));gap:8px}
.maps{display:grid;grid-template-columns:repeat(4,1fr);gap:6px;max-width:640px}.one{max-width:640px}
.maps img{image-rendering:pixelated}
.plot{display:flex;gap:6px;height:150px}.plot svg{flex:1;min-width:0;height:100%;border:1px solid #ccc;background:#fff}
.ticks{display:flex;flex-direction:column;justify-content:space-between;font-size:11px;text-align:right;min-width:4.2em}
.x{display:flex;justify-content:space-between;font-size:11px;margin-left:calc(4.2em + 6px)}
"""


@dataclass(frozen=True)
class ScoredDetection:
    """A detection, and the score of the same prediction without the gate."""

    box: np.ndarray  # (6,): x1, y1, x2, y2 in pixels of the frame, confidence, class
    stride: int  # of the map that predicted it, in pixels
    without: float


@dataclass(frozen=True)
class Block:
    """The input, the gate and the effect of one attention block."""

    name: str
    maps: np.ndarray  # (C, h, w), the input
    gate: np.ndarray  # (C,)
    heat: list[tuple[np.ndarray | None, np.ndarray | None]]  # Grad-CAM of the detections shown, with and without
    gate_of_zeros: np.ndarray | None = None  # (C,) of SOCA and SE, the gate for a statistic of zeros
    spectrum: Spectrum | None = None  # of SOCA, where the map varies
    gate_of_root: np.ndarray | None = None  # (C,) of SOCA, the gate for the statistic of the true root

    @property
    def order(self) -> np.ndarray:
        """Returns the channels, the highest gate first."""
        return np.argsort(-self.gate, kind="stable")


@dataclass(frozen=True)
class ModelView:
    """Everything that the page shows of one model."""

    title: str
    names: list[str]
    frame: np.ndarray  # BGR uint8 (H, W, 3), the image as the network sees it
    detections: list[ScoredDetection]
    without: np.ndarray  # (m, 6), the detections where every gate is replaced
    shown: list[int]  # of `detections`, those that Grad-CAM explains
    blocks: list[Block]

    @property
    def enlarged(self) -> np.ndarray:
        """Returns the frame as it is drawn on: of a longer side of at least SIDE pixels."""
        scale = self.scale
        return self.frame if scale == 1 else cv2.resize(self.frame, None, fx=scale, fy=scale)

    @property
    def scale(self) -> float:
        """Returns the pixels of `enlarged` per pixel of the frame."""
        return max(1, SIDE / max(self.frame.shape[:2]))


# --- text -------------------------------------------------------------------------------------------------------------


def as_text(one: ModelView) -> str:
    """Returns a few lines about one model, for a terminal."""
    height, width = one.frame.shape[:2]
    counts = f"{len(one.detections)} with the gate, {len(one.without)} without"
    lines = [f"{one.title}, {width} x {height} px: detections: {counts}"]
    for block in one.blocks:
        lines.append(f"  {block.name}: {_summary(block)}")
        if block.spectrum:
            lines.append(f"    {_five_steps(block)}")
    return "\n".join(lines)


def _summary(block: Block) -> str:
    gate = block.gate
    change = (
        ""
        if block.gate_of_zeros is None
        else f"; the image changes it by up to {np.abs(gate - block.gate_of_zeros).max():.4f}"
    )
    return (
        f"{len(gate)} channels on a map of {block.maps.shape[2]} x {block.maps.shape[1]}; gate {gate.min():.3f} to "
        f"{gate.max():.3f}, mean {gate.mean():.3f}, standard deviation {gate.std():.4f}{change}"
    )


def _five_steps(block: Block) -> str:
    s = block.spectrum
    return (
        f"effective rank {s.effective_rank:.1f} of {len(s.eigenvalues)}; five steps against the root: matrix "
        f"{100 * s.matrix_distance:.0f} % off, statistic {100 * s.statistic_distance:.1f} %, "
        f"gate by at most {np.abs(block.gate - block.gate_of_root).max():.4f}"
    )


# --- page -------------------------------------------------------------------------------------------------------------


def as_html(models: Sequence[ModelView], image: str, without: str, confidence: float) -> str:
    """Returns a page that needs no other file.

    image: name of the image; without: in words, what replaces the gates; confidence: the minimum that is shown.
    """
    parts = [
        page.paragraph(
            f"Without the gate means: every gate is replaced by {without}. Nothing was trained again, so this shows "
            "what the network does with its gate, not how good it would have become without one. How much the image "
            "changes a gate of SOCA or SE is measured against the gate that its small network computes from a "
            "statistic of zeros: a gate that no image changes is a constant, which the next layer could learn as well."
        ),
        page.heading("Detections"),
        page.paragraph(
            f"Boxes of confidence {confidence:g} or more. The tables give the confidence of the same prediction "
            "without the gate, and the stride of the map that predicted it.",
            note=True,
        ),
        page.group("pair", (_detections(one) for one in models)),
    ]
    for same_place in zip_longest(*(one.blocks for one in models)):
        there = [(one, block) for one, block in zip(models, same_place) if block]
        parts.append(page.heading(" beside ".join(dict.fromkeys(block.name for _, block in there))))
        if len(there) > 1:
            parts.append(_sorted_gates(there))
        parts.append(page.group("pair", (_block(one, block) for one, block in there)))
    return page.page(f"What attention does with {image}", parts, STYLE)


def _detections(one: ModelView) -> str:
    boxes = np.array([f.box for f in one.detections]).reshape(-1, 6)
    images = [
        page.figure(_drawn(one, _numbered(boxes)), f"with the gate: {len(boxes)}, numbered as in the table"),
        page.figure(_drawn(one, one.without), f"without the gate: {len(one.without)}"),
    ]
    parts = [page.heading(one.title, 3), page.group("row", images)]
    rows = [
        [str(i), class_name(one.names, int(f.box[5])), f"{f.box[4]:.3f}", f"{f.without:.3f}", str(f.stride)]
        for i, f in enumerate(one.detections[:DETECTIONS], 1)
    ]
    if rows:
        parts.append(page.table(["no.", "class", "confidence", "without", "stride"], rows, left=2))
    else:
        parts.append(page.paragraph("No detections with the gate."))
    if len(one.detections) > DETECTIONS:
        parts.append(page.paragraph(f"... and {len(one.detections) - DETECTIONS} more.", note=True))
    return page.group("model", parts)


def _sorted_gates(there: Sequence[tuple[ModelView, Block]]) -> str:
    """Returns the gates of both models in falling order, in one chart."""
    series = [(f"{block.name}, {one.title}", np.sort(block.gate)[::-1]) for one, block in there]
    note = (
        "Channel k of one model corresponds to channel k of the other only if both were trained from the same weights."
    )
    return _lines("gates, each in falling order", series, "channels, sorted", gate=True) + page.paragraph(
        note, note=True
    )


def _block(one: ModelView, block: Block) -> str:
    emphasis = draw_emphasis(block.maps, block.gate, one.enlarged)
    caption = "red: the channels that are strong here have a gate above the mean; blue: below"
    parts = [
        page.heading(f"{block.name}, {one.title}", 3),
        page.paragraph(f"{_summary(block)}."),
        _bars("gate of each channel, drawn from their mean", block.gate),
        page.heading("Highest gates", 4),
        _channels(block, block.order[:CHANNELS]),
        page.heading("Lowest gates", 4),
        _channels(block, block.order[::-1][:CHANNELS]),
        page.heading("Regions that the gate raises and lowers", 4),
        page.group("one", [page.figure(emphasis, caption)]),
        _grad_cam(one, block),
    ]
    if block.spectrum:
        parts.append(_spectrum(block))
    elif block.name.endswith("-SOCA"):
        parts.append(
            page.paragraph("This map is constant, so there is no covariance: the gate is the small network at 0.")
        )
    return page.group("block", parts)


def _channels(block: Block, channels: np.ndarray) -> str:
    energy = np.square(block.maps.astype(np.float64)).sum((1, 2))
    share = 100 * energy / max(energy.sum(), 1e-300)
    figures = (
        page.figure(draw_maps(block.maps[[c]]), f"channel {c}: {block.gate[c]:.3f}; {share[c]:.1f} % of the map", "png")
        for c in channels
    )
    return page.group("maps", figures)


def _grad_cam(one: ModelView, block: Block) -> str:
    parts = [
        page.heading("Features that support a detection (Grad-CAM at this block's output)", 4),
        page.paragraph(
            "Bright: the features there raise objectness times class score most. At a block directly before Detect, "
            "only the cell of the detection itself contributes; the rest of the overlay shows where else in the image "
            "the same features are.",
            note=True,
        ),
    ]
    if not block.heat:
        parts.append(page.paragraph("No detections, so nothing to show."))
    unreached = []
    for i, heats in zip(one.shown, block.heat):
        finding = one.detections[i]
        if all(heat is None for heat in heats):
            unreached.append(f"{i + 1} (stride {finding.stride})")
            continue
        parts.append(page.group("row", _heat_figures(one, i, heats)))
    if unreached:
        parts.append(
            page.paragraph(f"This block does not affect detection {', '.join(unreached)}: its map does not lead there.")
        )
    return "\n".join(parts)


def _heat_figures(one: ModelView, number: int, heats: tuple) -> list[str]:
    """Returns detection `number` with and without the gate, on the same scale of brightness."""
    finding = one.detections[number]
    name = class_name(one.names, int(finding.box[5]))
    brightest = max(float(heat.max()) for heat in heats if heat is not None)
    figures = []
    for heat, when, score in zip(heats, ("with the gate", "without the gate"), (finding.box[4], finding.without)):
        words = f"{number + 1}, {name}: {score:.3f} {when}"
        if heat is None or not heat.any():
            words += "; no feature here supports it"
        heat = np.zeros((1, 1)) if heat is None else heat / max(brightest, 1e-30)
        drawn = _drawn(one, finding.box[None], draw_heat(heat, one.enlarged), hide_labels=True)
        figures.append(page.figure(drawn, words))
    return figures


def _spectrum(block: Block) -> str:
    s = block.spectrum
    order = np.argsort(-s.s_root, kind="stable")
    rank = max(int((s.eigenvalues > FLOOR).sum()), 1)
    steps = _five_steps(block)
    return "\n".join([
        page.heading("Covariance of the channels, and its root", 4),
        page.paragraph(f"{steps[0].upper()}{steps[1:]}. The weights were trained with five steps, so the distance is "
        "not an error."),
        _lines(
            f"eigenvalues a of A = S / trace(S), the {rank} above {FLOOR:g}; their sum is 1",
            [("a", s.eigenvalues[:rank])], "eigenvalues, sorted", log=True,
        ),
        _lines(
            "the root of each, and the result of five steps",
            [("root of a", s.root[:rank]), ("f(a), five steps", s.five[:rank])], "eigenvalues, sorted", log=True,
        ),
        _lines(
            "statistic s, which the gate's small network sees", [("s of the root", s.s_root[order]),
            ("s of five steps", s.s_five[order])], "channels, sorted by s of the root",
        ),
    ])  # fmt: skip


# --- images and charts ----------------------------------------------------------------------------------------------


def _drawn(one: ModelView, boxes: np.ndarray, on: np.ndarray | None = None, hide_labels: bool = False) -> np.ndarray:
    """Draws boxes, in pixels of the frame, on the enlarged frame or on a drawing of its size.

    boxes: (n, 6), or (n, 7) with their numbers, which then stand in the place of the confidences.
    """
    boxes = np.array(boxes, np.float32)
    boxes[:, :4] *= one.scale
    numbered = boxes.shape[1] > 6
    return draw_boxes(
        one.enlarged if on is None else on, torch.from_numpy(boxes), one.names, hide_labels=hide_labels,
        hide_conf=numbered,
    )  # fmt: skip


def _numbered(boxes: np.ndarray) -> np.ndarray:
    """Returns boxes (n, 6) with their numbers from 1 in another column, which `draw_boxes` writes as #1, #2, ..."""
    return np.column_stack([boxes, np.arange(1, len(boxes) + 1)])


def _bars(title: str, values: np.ndarray) -> str:
    """Returns a chart of values as bars that start at their mean, those above it in the first colour."""
    low, high = _range([values], gate=True)
    heights = (100 * (high - values) / (high - low)).tolist()
    mean = 100 * (high - float(values.mean())) / (high - low)
    bars = [[], []]
    for i, height in enumerate(heights):
        bars[height > mean].append(f"M{i} {mean:.2f}H{i + 1}V{height:.2f}H{i}z")
    paths = "".join(f"<path d='{''.join(some)}' fill='{colour}'/>" for some, colour in zip(bars, COLOURS))
    return _chart(title, paths, len(values), [f"{v:.3f}" for v in (high, (low + high) / 2, low)], "channels")


def _lines(title: str, series: Sequence[tuple[str, np.ndarray]], x: str, log: bool = False, gate: bool = False) -> str:
    """Returns a chart of curves over the indices of their values."""
    curves = [np.log10(v) if log else v for _, v in series]
    low, high = _range(curves, gate)
    paths, words = [], []
    for curve, (name, _), colour in zip(curves, series, COLOURS):
        points = " ".join(f"{i + 0.5:g},{100 * (high - v) / (high - low):.2f}" for i, v in enumerate(curve.tolist()))
        paths.append(
            f"<polyline points='{points}' fill=none stroke='{colour}' stroke-width=2 "
            "vector-effect=non-scaling-stroke />"
        )
        words.append(f"<span style='color:{colour}'>&#9644; {page.escape(name)}</span>")
    ticks = [f"{10**v:.1e}" if log else f"{v:.3g}" for v in (high, (low + high) / 2, low)]
    legend = f": {', '.join(words)}" if len(words) > 1 else ""
    return _chart(title, "".join(paths), max(len(v) for _, v in series), ticks, x, legend)


def _range(curves: Sequence[np.ndarray], gate: bool = False) -> tuple[float, float]:
    """Returns the ends of an axis that holds all curves; those of gates up to 1 lie between 0 and 1.

    Gates that hardly differ span MIN_CONTRAST, so that rounding does not look like a difference.
    """
    low, high = min(float(c.min()) for c in curves), max(float(c.max()) for c in curves)
    margin = 0.05 * (high - low) or 0.01
    if gate:
        margin = max(margin, (MIN_CONTRAST - (high - low)) / 2)
        return max(low - margin, 0), min(high + margin, 1) if high <= 1 else high + margin
    return low - margin, high + margin


def _chart(title: str, paths: str, count: int, ticks: Sequence[str], x: str, legend: str = "") -> str:
    """Returns a figure whose curves stretch with the page and whose text does not.

    paths: SVG in units of count x 100, y downwards.
    """
    ladder = "".join(f"<span>{tick}</span>" for tick in ticks)
    return (
        f"<figure><figcaption>{page.escape(title)}{legend}</figcaption><div class=plot><div class=ticks>{ladder}</div>"
        f"<svg role=img aria-label='{page.escape(title)}' viewBox='0 0 {count} 100' preserveAspectRatio=none>{paths}"
        f"</svg></div><div class=x><span>0</span><span>{page.escape(x)}</span><span>{count - 1}</span></div></figure>"
    )
