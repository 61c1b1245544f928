"""From pictures of any size to boxes in their pixels: frame, network, suppression; in tiles where that is asked for."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import nn

from utils.boxes import xywh_to_xyxy, xyxy_to_xywh
from utils.data.letterbox import scale_boxes, to_input
from utils.device import Timer
from utils.nms import non_max_suppression

TILES_AT_ONCE = 8
NEAR = 2  # pixels from a tile's edge at which a box counts as cut by it


class Finder:
    """Finds boxes in pictures with a trained detector.

    Args:
        model: called with images (B, 3, h, w), 0-1, and `augment`; has `stride` and `dtype`.
        size: frame (height, width) in pixels.
        tile: share of a tile, 0 to below 1, by which neighbouring tiles overlap; None looks at the picture as a whole.
        suppression: further arguments of `non_max_suppression`, conf_thres among them.

    Attributes: timers: of framing, network and suppression; seconds: of the network per picture, the last time.
    """

    def __init__(
        self,
        model: nn.Module,
        size: Sequence[int],
        device: torch.device,
        augment: bool = False,
        tile: float | None = None,
        **suppression,
    ):
        self.model, self.size, self.device, self.augment, self.tile = model, tuple(size), device, augment, tile
        self.suppression = suppression
        self.timers = [Timer(device) for _ in range(3)]
        self.seconds = 0.0

    def __call__(self, pictures: Sequence[np.ndarray]) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
        """BGR pictures (H, W, 3) uint8 -> per picture boxes (n, 6) on the CPU, and the frame (h, w) the network saw.

        Boxes are x1, y1, x2, y2 in pixels of the picture, not rounded, confidence, class; the most confident first.
        """
        before = self.timers[1].total
        if self.tile is None:
            found = self._whole(pictures)
        else:
            found = [self._tiled(picture) for picture in pictures]
        self.seconds = (self.timers[1].total - before) / len(pictures)
        return [boxes for boxes, _ in found], [frame for _, frame in found]

    def _whole(self, pictures: Sequence[np.ndarray]) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        with self.timers[0]:
            framed = [to_input(picture, self.size, self.model.stride) for picture in pictures]
        found: list = [None] * len(pictures)
        for i, decoded in self._decode(framed):
            with self.timers[2]:
                boxes = non_max_suppression(decoded[None], **self.suppression)[0]
                frame = framed[i][1]
                corners = scale_boxes(boxes[:, :4], frame, pictures[i].shape[:2])
                found[i] = torch.cat((corners, boxes[:, 4:]), 1).cpu(), frame
        return found

    def _decode(self, framed: list[tuple[torch.Tensor, tuple[int, int]]]):
        """(index, decoded rows (N, 5 + nc)) of each framed picture; those of one shape pass the network together."""
        for shape in dict.fromkeys(shape for _, shape in framed):
            alike = [i for i, (_, other) in enumerate(framed) if other == shape]
            with self.timers[0]:
                pixels = torch.cat([framed[i][0] for i in alike]).to(self.device).to(self.model.dtype) / 255
            with self.timers[1], torch.inference_mode():
                decoded = self.model(pixels, augment=self.augment)[0]
            yield from zip(alike, decoded)

    def _tiled(self, picture: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        """Boxes of one picture, looked for in all of it and in tiles as large as the frame, suppressed together.

        A box that a tile's edge may have cut is left out: what is smaller than the overlap lies whole in another tile,
        what is larger is found in the picture as a whole.
        """
        shape = picture.shape[:2]
        tile = min(self.size[0], shape[0]), min(self.size[1], shape[1])
        rows = self._rows([picture])
        if tile != shape:
            corners = list(product(_starts(shape[0], tile[0], self.tile), _starts(shape[1], tile[1], self.tile)))
            for some in (corners[i : i + TILES_AT_ONCE] for i in range(0, len(corners), TILES_AT_ONCE)):
                tiles = [picture[y : y + tile[0], x : x + tile[1]] for y, x in some]
                rows += [_uncut(r, corner, tile, shape) for r, corner in zip(self._rows(tiles), some)]
        with self.timers[2]:
            return non_max_suppression(torch.cat(rows)[None], **self.suppression)[0].cpu(), self.size

    def _rows(self, pictures: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Decoded rows (n, 5 + nc) of each picture in its own pixels, those that may pass the confidence."""
        with self.timers[0]:
            framed = [to_input(picture, self.size, self.model.stride) for picture in pictures]
        rows: list = [None] * len(pictures)
        for i, decoded in self._decode(framed):
            decoded = decoded[decoded[:, 4] > self.suppression["conf_thres"]]
            corners = scale_boxes(xywh_to_xyxy(decoded[:, :4]), framed[i][1], pictures[i].shape[:2])
            rows[i] = torch.cat((xyxy_to_xywh(corners), decoded[:, 4:]), 1)
        return rows


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin that cover 0 to length evenly, neighbours sharing at least this share of a tile."""
    steps = math.ceil((length - tile) / max(tile * (1 - overlap), 1))
    return [round(i * (length - tile) / steps) for i in range(steps + 1)] if steps else [0]


def _uncut(rows: torch.Tensor, corner: tuple[int, int], tile: tuple[int, int], shape: tuple[int, int]) -> torch.Tensor:
    """Rows (n, 5 + nc) of a tile in pixels of its picture, without those that reach an edge where the picture goes on.

    corner: (top, left) of the tile; tile, shape: (height, width) of the tile and of the picture.
    """
    (top, left), (height, width) = corner, tile
    x1, y1, x2, y2 = xywh_to_xyxy(rows[:, :4]).unbind(1)
    cut = torch.zeros_like(x1, dtype=torch.bool)
    if left > 0:
        cut |= x1 < NEAR
    if top > 0:
        cut |= y1 < NEAR
    if left + width < shape[1]:
        cut |= x2 > width - NEAR
    if top + height < shape[0]:
        cut |= y2 > height - NEAR
    offset = rows.new_zeros(rows.shape[1])
    offset[0], offset[1] = left, top
    return (rows + offset)[~cut]
