"""The page of a run of detect.py, report.html: what was found, how often and how surely, and images of all the run."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils import page
from utils.drawing import class_name, draw_boxes, rescaled
from utils.files import atomic_write

MOST_IMAGES, SIDE = 24, 560  # images on the page, pixels of their longer side
STYLE = ".images{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,260px),1fr));gap:8px}"


class Gallery:
    """Counts the detections of a run, and keeps some of its frames: every one, then every second, fourth, eighth ...

    So the frames that are kept are spread over the run, whose length nobody knows before its end.
    """

    def __init__(self, names: Sequence[str], most: int = MOST_IMAGES):
        self.names = [class_name(names, i, 60) for i in range(len(names))]
        self.most, self.step = most, 1
        self.frames = self.empty = 0  # all frames, and those without detections
        self.detections, self.frames_with = np.zeros(len(names), int), np.zeros(len(names), int)
        self.confidence, self.highest = np.zeros(len(names)), np.zeros(len(names))
        self.kept: list[str] = []  # figures, in HTML

    def add(self, title: str, image: np.ndarray, boxes: torch.Tensor) -> None:
        """Adds a frame, BGR uint8 (H, W, 3), with its detections (n, 6 or 7): xyxy, confidence, class, track."""
        classes, confidence = boxes[:, 5].int().cpu().numpy(), boxes[:, 4].cpu().numpy()
        self.detections += np.bincount(classes, minlength=len(self.names))
        self.confidence += np.bincount(classes, confidence, minlength=len(self.names))
        self.frames_with[np.unique(classes)] += 1
        np.maximum.at(self.highest, classes, confidence)
        self.empty += not len(boxes)
        if self.frames % self.step == 0:
            if len(self.kept) == self.most:
                self.kept, self.step = self.kept[::2], 2 * self.step
            if self.frames % self.step == 0:
                self.kept.append(self._figure(title, image, boxes))
        self.frames += 1

    def _figure(self, title: str, image: np.ndarray, boxes: torch.Tensor) -> str:
        scale = SIDE / max(image.shape[:2])
        image = rescaled(image, scale)
        boxes = torch.cat([boxes[:, :4] * scale, boxes[:, 4:]], 1).cpu()
        short = [class_name(self.names, i, 20) for i in range(len(self.names))]
        return page.photo(draw_boxes(image, boxes, short, 2), f"{title}: {len(boxes)}", SIDE)

    def write(self, folder: Path, title: str, given: Mapping[str, Any], options: Mapping[str, Any]) -> Path:
        """Writes report.html into the folder of the run. given, options: those that were given, and all of them."""
        found = np.flatnonzero(self.detections)
        rows = [
            [self.names[c], f"{self.detections[c]:,}", f"{self.frames_with[c]:,}",
             f"{self.confidence[c] / self.detections[c]:.3f}", f"{self.highest[c]:.3f}"]
            for c in found[np.argsort(-self.detections[found], kind="stable")][:150]
        ]  # fmt: skip
        facts = {"images or frames": self.frames, "detections": self.detections.sum(), "without any": self.empty}
        parts = [
            page.group("facts", (f"<p><em>{value:,}</em>{page.escape(name)}</p>" for name, value in facts.items())),
            page.heading("Classes"),
            page.table(("class", "detections", "images with it", "mean confidence", "highest"), rows)
            if rows else page.paragraph("Nothing was detected."),
            page.heading("Images"),
            page.paragraph(f"{len(self.kept)} of {self.frames:,}, spread over the run.", note=True),
            page.group("images", self.kept),
            page.heading("Settings"),
            page.mapping(("option", "given"), given) if given else page.paragraph("No option was given."),
            page.details("All options", [page.mapping(("option", "value"), options)]),
            page.heading("Files"),
            page.files(folder),
            page.paragraph(f"Written {time.strftime('%Y-%m-%d %H:%M')} with torch {torch.__version__}.", note=True),
        ]  # fmt: skip
        with atomic_write(folder / page.REPORT, "w") as file:
            file.write(page.page(title, parts, STYLE))
        return folder / page.REPORT
