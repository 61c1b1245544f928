"""Detection in images of any size: pre-processing, inference and NMS, in tiles if asked for."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import nn

from utils.boxes import xywh_to_xyxy, xyxy_to_xywh
from utils.data.images import fit_channels
from utils.data.letterbox import scale_boxes, to_input
from utils.device import Timer
from utils.nms import non_max_suppression

TILES_AT_ONCE = 8
EDGE_MARGIN = 2  # pixels: a box this close to the edge of a tile counts as cut by it


class Detector:
    """Detects objects in images of any size with a trained model.

    Args:
        model: called with images (B, C, h, w), 0-1, and `augment`; has `stride`, `dtype` and maybe `channels`, C.
        size: (height, width) in pixels to which images are letterboxed.
        tile: share of a tile, 0 to below 1, that it has in common with the next tile; None uses no tiles.
        nms: further arguments of `non_max_suppression`; conf_thres must be one of them.

    Attributes: timers: of pre-processing, inference and NMS; seconds: of inference per image in the last call.
    """

    def __init__(
        self,
        model: nn.Module,
        size: Sequence[int],
        device: torch.device,
        augment: bool = False,
        tile: float | None = None,
        **nms,
    ):
        self.model, self.size, self.device, self.augment, self.tile = model, tuple(size), device, augment, tile
        self.nms = nms
        self.channels = getattr(model, "channels", 3)
        self.timers = [Timer(device) for _ in range(3)]
        self.seconds = 0.0

    def __call__(self, images: Sequence[np.ndarray]) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
        """Returns the detections (n, 6) in each image, on the CPU, and the input shapes (h, w).

        images: (H, W, C) uint8, of three channels in BGR order.

        A detection is x1, y1, x2, y2 in pixels of the image, not rounded, confidence, class; the most confident first.
        """
        before = self.timers[1].total
        if self.tile is None:
            results = self._whole(images)
        else:
            results = [self._tiled(image) for image in images]
        self.seconds = (self.timers[1].total - before) / len(images)
        return [boxes for boxes, _ in results], [shape for _, shape in results]

    def _whole(self, images: Sequence[np.ndarray]) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        with self.timers[0]:
            inputs = self._inputs(images)
        results: list = [None] * len(images)
        for i, decoded in self._decode(inputs):
            with self.timers[2]:
                boxes = non_max_suppression(decoded[None], **self.nms)[0]
                shape = inputs[i][1]
                corners = scale_boxes(boxes[:, :4], shape, images[i].shape[:2])
                results[i] = torch.cat((corners, boxes[:, 4:]), 1).cpu(), shape
        return results

    def _inputs(self, images: Sequence[np.ndarray]) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        stride = self.model.stride
        return [to_input(fit_channels(image, self.channels), self.size, stride) for image in images]

    def _decode(self, inputs: list[tuple[torch.Tensor, tuple[int, int]]]):
        """Yields (index, decoded rows (N, 5 + nc)) of each input; inputs of one shape are a batch."""
        for shape in dict.fromkeys(shape for _, shape in inputs):
            alike = [i for i, (_, other) in enumerate(inputs) if other == shape]
            with self.timers[0]:
                pixels = torch.cat([inputs[i][0] for i in alike]).to(self.device).to(self.model.dtype) / 255
            with self.timers[1], torch.inference_mode():
                decoded = self.model(pixels, augment=self.augment)[0]
            yield from zip(alike, decoded)

    def _tiled(self, image: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        """Detects in the whole image and in tiles of the input size, with one NMS over all boxes.

        A box that the edge of a tile may have cut is dropped: an object smaller than the overlap lies whole in another
        tile, and a larger one is detected in the whole image.
        """
        shape = image.shape[:2]
        tile = min(self.size[0], shape[0]), min(self.size[1], shape[1])
        rows = self._rows([image])
        if tile != shape:
            corners = list(
                product(_tile_starts(shape[0], tile[0], self.tile), _tile_starts(shape[1], tile[1], self.tile))
            )
            for some in (corners[i : i + TILES_AT_ONCE] for i in range(0, len(corners), TILES_AT_ONCE)):
                tiles = [image[y : y + tile[0], x : x + tile[1]] for y, x in some]
                rows += [_uncut(r, corner, tile, shape) for r, corner in zip(self._rows(tiles), some)]
        with self.timers[2]:
            return non_max_suppression(torch.cat(rows)[None], **self.nms)[0].cpu(), self.size

    def _rows(self, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Returns decoded rows (n, 5 + nc) of each image in its own pixels, without those of low objectness."""
        with self.timers[0]:
            inputs = self._inputs(images)
        rows: list = [None] * len(images)
        for i, decoded in self._decode(inputs):
            decoded = decoded[decoded[:, 4] > self.nms["conf_thres"]]
            corners = scale_boxes(xywh_to_xyxy(decoded[:, :4]), inputs[i][1], images[i].shape[:2])
            rows[i] = torch.cat((xyxy_to_xywh(corners), decoded[:, 4:]), 1)
        return rows


def _tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Returns where tiles begin that cover 0 to length evenly and overlap by at least the share `overlap`."""
    steps = math.ceil((length - tile) / max(tile * (1 - overlap), 1))
    return [round(i * (length - tile) / steps) for i in range(steps + 1)] if steps else [0]


def _uncut(rows: torch.Tensor, corner: tuple[int, int], tile: tuple[int, int], shape: tuple[int, int]) -> torch.Tensor:
    """Returns rows (n, 5 + nc) of a tile in pixels of its image, without those that reach an edge inside it.

    corner: (top, left) of the tile; tile, shape: (height, width) of the tile and of the image.
    """
    (top, left), (height, width) = corner, tile
    x1, y1, x2, y2 = xywh_to_xyxy(rows[:, :4]).unbind(1)
    cut = torch.zeros_like(x1, dtype=torch.bool)
    if left > 0:
        cut |= x1 < EDGE_MARGIN
    if top > 0:
        cut |= y1 < EDGE_MARGIN
    if left + width < shape[1]:
        cut |= x2 > width - EDGE_MARGIN
    if top + height < shape[0]:
        cut |= y2 > height - EDGE_MARGIN
    offset = rows.new_zeros(rows.shape[1])
    offset[0], offset[1] = left, top
    return (rows + offset)[~cut]
