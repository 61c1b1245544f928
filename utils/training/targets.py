"""Assigns objects to the cells and anchors that should predict them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

# Subtracted from the centre (x, y) of an object, in cells. The integer part of the result is then its own cell, or the
# left, upper, right or lower neighbour, in this order.
_SHIFTS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0), (0.0, -0.5))


class LevelTargets(NamedTuple):
    """The P positives of one detection level: pairs of an object and an anchor in a cell. Several may share a cell."""

    image: torch.Tensor  # (P,) int64, index in the batch
    anchor: torch.Tensor  # (P,) int64, index in the level
    row: torch.Tensor  # (P,) int64, cell index downwards
    column: torch.Tensor  # (P,) int64, cell index to the right
    box: torch.Tensor  # (P, 4) centre relative to the cell's corner, width and height; in cells
    anchor_wh: torch.Tensor  # (P, 2) width and height of the anchor, in cells
    label: torch.Tensor  # (P,) int64, class


def build_targets(
    targets: torch.Tensor, anchors: torch.Tensor, grids: Sequence[tuple[int, int]], anchor_t: float
) -> list[LevelTargets]:
    """Assigns objects to anchors and cells, level by level.

    An object matches every anchor, on any level, whose width and height both differ from its own by a factor below
    `anchor_t`. With each such anchor its own cell and the nearer neighbours in x and in y, where the grid has them,
    become positives: up to three, so a centre may lie (-0.5, 1.5) cells from the corner of its cell.

    Args:
        targets: (T, 6) image index, class, x, y, w, h; centre form, 0-1 of the image.
        anchors: (levels, A, 2) widths and heights in cells of their level.
        grids: (rows, columns) of each level.
        anchor_t: ratio of sides that is the first not to match.

    Returns:
        One LevelTargets per level, ordered by cell (own, left, upper, right, lower), anchor, object.
    """
    return [_build_level(targets, wh, grid, anchor_t) for wh, grid in zip(anchors, grids)]


def _build_level(targets: torch.Tensor, anchors: torch.Tensor, grid: tuple[int, int], anchor_t: float) -> LevelTargets:
    rows, columns = grid
    size = targets.new_tensor([columns, rows])
    centre, wh = targets[:, 2:4] * size, targets[:, 4:6] * size  # (T, 2) in cells

    ratio = wh[None] / anchors[:, None]  # (A, T, 2)
    matches = torch.maximum(ratio, 1 / ratio).amax(2) < anchor_t  # (A, T)

    # A neighbour is used where the centre is less than half a cell from it and the grid has it
    from_end = size - centre
    left, upper = ((centre % 1 < 0.5) & (centre > 1)).T
    right, lower = ((from_end % 1 < 0.5) & (from_end > 1)).T
    used = torch.stack([torch.ones_like(left), left, upper, right, lower])  # (5, T)

    # only nonzero makes the host wait for the device; its order is the order of the result
    neighbour, anchor, target = (used[:, None] & matches).nonzero(as_tuple=True)  # (P,) each, of (5, A, T)

    cell = (centre[target] - centre.new_tensor(_SHIFTS)[neighbour]).long()
    column, row = cell[:, 0].clamp(0, columns - 1), cell[:, 1].clamp(0, rows - 1)
    corner = torch.stack([column, row], 1)
    image, label = targets[target, :2].long().T
    box = torch.cat([centre[target] - corner, wh[target]], 1)
    return LevelTargets(image, anchor, row, column, box, anchors[anchor], label)
