"""What the data set doctor prints of its findings: text, JSON, or an HTML page."""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.data.checks import KINDS, Contents, Finding
from utils.data.images import read_image
from utils.page import bullets, figure, group, heading, page, paragraph

SHOWN = 12  # images and lines per finding of the HTML page
STYLE = """
.fault{color:#b00020}.hint{color:#8a5a00}li{font-size:12px}.images{display:flex;flex-wrap:wrap;gap:8px}
.images figure{width:280px;margin:0}@media(max-width:620px){.images figure{width:100%}}
"""


def as_text(contents: Contents, findings: list[Finding], examples: int = 3) -> str:
    """Writes the findings as text: what was found, why it matters, what to do, and the first locations of each."""
    lines = [_summary(contents)]
    if not findings:
        return lines[0] + "\nnothing found: no fault, no hint"
    width = max(len(finding.kind) for finding in findings)
    for finding in findings:
        kind = KINDS[finding.kind]
        lines += ["", f"{kind.severity:6}{finding.kind:{width + 2}}{finding.count:6}  {kind.what}"]
        lines += [f"      why: {kind.why}", f"      do:  {kind.advice}"]
        lines += [f"      - {location}" for location in finding.locations[:examples]]
        if finding.count > examples and len(finding.locations) > examples:
            lines.append(f"      - ... and {len(finding.locations) - examples} more (--json lists all)")
    return "\n".join(lines)


def _summary(contents: Contents) -> str:
    counts = ", ".join(f"{contents.splits.count(split)} {split}" for split in dict.fromkeys(contents.splits))
    return f"{counts} images, {len(contents.labels)} boxes, {len(contents.names)} classes"


def as_json(contents: Contents, findings: list[Finding]) -> str:
    """Writes the findings as JSON, with all their locations."""
    listed = [
        dict(zip(("severity", "what", "why", "do"), KINDS[f.kind]), kind=f.kind, count=f.count, places=f.locations)
        for f in findings
    ]
    counts = {split: contents.splits.count(split) for split in dict.fromkeys(contents.splits)}
    return json.dumps({"images": counts, "boxes": len(contents.labels), "findings": listed}, indent=1)


def as_html(contents: Contents, findings: list[Finding], title: str) -> str:
    """Writes the findings as a page that needs no other file, with the worst ones drawn."""
    parts = [paragraph(_summary(contents))]
    for finding in findings:
        kind = KINDS[finding.kind]
        parts.append(heading(f"{kind.what}: {finding.count}", label=kind.severity))
        parts.append(paragraph(f"*Why:* {kind.why}. *Do:* {kind.advice}."))
        parts.append(bullets(finding.locations[:SHOWN]))
        views = (_view(contents, image, rows) for image, rows in finding.views[:SHOWN])
        parts.append(group("images", views) if finding.views else "")
    if not findings:
        parts.append(paragraph("Nothing found: no fault, no hint."))
    return page(title, parts, STYLE)


def _view(contents: Contents, image: int, rows: list[int]) -> str:
    caption = f"{contents.splits[image]}: {os.path.basename(contents.images[image])}"
    if rows:
        caption += f", {'lines' if len(rows) > 1 else 'line'} {', '.join(map(str, sorted(contents.lines[rows])))}"
    return figure(draw(contents, image, rows), caption)


def draw(contents: Contents, image: int, rows: list[int], side: int = 560) -> bytes:
    """Draws a JPEG of an image with its boxes: those of `rows` red and thick, the others thin and blue."""
    pixels = read_image(contents.images[image])
    scale = side / max(pixels.shape[:2])
    pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    height, width = pixels.shape[:2]
    mine = np.flatnonzero(contents.owner == image)
    for row in [*np.setdiff1d(mine, rows), *rows]:
        centre, half = contents.labels[row, 1:3], contents.labels[row, 3:] / 2
        low, high = (np.stack([centre - half, centre + half]) * (width, height)).round().astype(int).tolist()
        if row in rows and min(np.subtract(high, low)) < 8:  # too small to see: a ring around it
            cv2.circle(pixels, [(a + b) // 2 for a, b in zip(low, high)], 14, (0, 0, 255), 3)
        colour, thickness = ((0, 0, 255), 3) if row in rows else ((255, 144, 30), 1)
        cv2.rectangle(pixels, low, high, colour, thickness)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
