"""Measures what the gates of a detector are worth on a split: as they are, constant, of another image, and absent.

tools/attend.py --data uses it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.attention_view import GateRecorder, fixed_gates
from utils import page
from utils.class_names import difference
from utils.data.dataset_yaml import load_dataset_yaml
from utils.data.loader import create_dataloader
from utils.data.options import LoaderOptions
from utils.evaluation.evaluator import evaluate
from utils.log import LOGGER

DRAWS = 3  # of the images that give their gates to others


@dataclass(frozen=True)
class Row:
    """What the detector reaches with its gates in one state."""

    gates: str
    map50: float
    map: float


@dataclass(frozen=True)
class Spread:
    """The gates of one block over a split."""

    name: str
    lowest: float
    highest: float
    over_images: np.ndarray  # (C,), the standard deviation of each channel's gate over the images


@dataclass(frozen=True)
class SplitView:
    """Everything that is said of one model on a split."""

    title: str
    images: int
    rows: list[Row]  # the first one with the gates as they are
    blocks: list[Spread]


def measure_split(
    model: torch.nn.Module, title: str, data: str | Path, split: str, size: int, batch_size: int = 32, workers: int = 8
) -> SplitView:
    """Returns mAP with the gates, with their means over the split, with those of other images, and without them.

    The gates of the first pass are put into the later ones, so of several blocks in a row each gets the gate that it
    has in the whole network. `with` is what val.py measures.

    Raises ValueError where the classes are not those of the data set, or the split has fewer than two images.
    """
    content = load_dataset_yaml(data, (split,))
    names = content["names"]
    if len(names) != len(model.names):
        raise ValueError(f"{title} has {len(model.names)} classes, but {data} has {len(names)}; give its own data set")
    if words := difference(model.names, names, title, data):
        LOGGER.warning(f"the classes are named {words}; classes are compared by number")
    options = LoaderOptions(
        image_size=size, batch_size=batch_size, stride=model.image_multiple, pad=0.5, rect=True, workers=workers,
        nc=len(names), prefix=f"{split}: ", channels=model.yaml["ch"],
    )  # fmt: skip
    loader, _ = create_dataloader(content[split], options)
    device = next(model.parameters()).device

    def reached(gates: AbstractContextManager) -> np.ndarray:
        with gates:
            return np.array(evaluate(model, loader, names, device).results[2:4])

    return _measured(model, title, reached)


def _measured(model: torch.nn.Module, title: str, reached: Callable[[AbstractContextManager], np.ndarray]) -> SplitView:
    """Returns the view of a model. reached: a pass over the split inside a context -> mAP50 and mAP50-95."""
    recorder = GateRecorder(model)
    as_they_are = reached(recorder)
    gates = recorder.gates
    images = len(next(iter(gates.values())))
    if images < 2:
        raise ValueError(f"{title}: the split must have at least two images, so that one can get another one's gate")
    found = {
        "as they are": as_they_are,
        "their means over the split": reached(fixed_gates(model, {k: g.mean(0) for k, g in gates.items()})),
        "of another image": np.mean(
            [
                reached(fixed_gates(model, {k: g[other] for k, g in gates.items()}))
                for other in (others(images, seed) for seed in range(DRAWS))
            ],
            axis=0,
        ),
        "none": reached(fixed_gates(model, {k: np.ones_like(g[0]) for k, g in gates.items()})),
    }
    rows = [Row(what, *map(float, numbers)) for what, numbers in found.items()]
    spreads = [Spread(name, float(g.min()), float(g.max()), g.std(0)) for name, g in gates.items()]
    return SplitView(title=title, images=images, rows=rows, blocks=spreads)


def others(count: int, seed: int) -> np.ndarray:
    """Returns for each of `count` images the number of another one, each number once; by chance, as the seed says."""
    order = np.random.default_rng(seed).permutation(count)
    chosen = np.empty(count, int)
    chosen[order] = np.roll(order, 1)
    return chosen


# --- text and page ----------------------------------------------------------------------------------------------------

HEADS = ["gates", "mAP50", "mAP50-95", "difference in mAP50-95"]
NOTE = (
    "The difference of a line to the first one is what is lost with it. Means and gates of another image are still "
    "gates: what is lost there is owed to looking at this image. Nothing was trained again, so the last line does not "
    "say how good the network would have become without gates. Of a gate that differs between positions, the other "
    "lines have one number per channel. It is one model and one split: train several seeds before you conclude."
)


def cells(one: SplitView) -> list[list[str]]:
    """Returns the rows of the table of one model."""
    first = one.rows[0]
    return [
        [row.gates, f"{row.map50:.4f}", f"{row.map:.4f}", "" if row is first else f"{row.map - first.map:+.4f}"]
        for row in one.rows
    ]


def spread_line(block: Spread) -> str:
    """Returns how far the images move the gate of a block, as a sentence."""
    deviation = block.over_images
    return (
        f"{block.name}: gate {block.lowest:.3f} to {block.highest:.3f}; standard deviation over the images "
        f"{deviation.mean():.4f} on average of its {len(deviation)} channels, {deviation.max():.4f} at most"
    )


def as_text(one: SplitView) -> str:
    """Returns the table and the gates of one model, for a terminal."""
    lines = [f"{one.title}: {one.images} images"]
    widths = [max(map(len, column)) for column in zip(HEADS, *cells(one))]
    for row in (HEADS, *cells(one)):
        first, *rest = (cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths)))
        lines.append("  ".join(("", first, *rest)).rstrip())
    return "\n".join([*lines, *(f"  {spread_line(block)}" for block in one.blocks)])


def as_html(models: list[SplitView], data: str, split: str) -> str:
    """Returns a page that needs no other file."""
    parts = [page.paragraph(NOTE)]
    for one in models:
        parts += [page.heading(f"{one.title}: {one.images} images"), page.table(HEADS, cells(one))]
        parts.append(page.bullets(map(spread_line, one.blocks)))
    return page.page(f"What the gates are worth on {split} of {data}", parts)
