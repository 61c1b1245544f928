"""What the data set doctor knows how to say: its kinds of findings, and a table, JSON or an HTML page of them."""

import base64
import html
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.data.images import read_image

SHOWN = 12  # pictures per finding of the HTML page

FAULT, HINT = "fault", "hint"
# kind: (severity, what is found, why it matters, what to do)
KINDS = {
    "image-unreadable": (FAULT, "images that cannot be read",
        "training leaves them out or stops", "save them anew, or remove them with their labels"),
    "label-format": (FAULT, "label lines that cannot be read",
        "the whole image is left out", "write 'class x y width height', or a polygon"),
    "label-class": (FAULT, "labels of a class that does not exist",
        "training stops", "correct the class, or nc and names in the YAML"),
    "label-range": (FAULT, "labels outside 0-1",
        "the whole image is left out", "divide by the image's width and height; clip"),
    "box-degenerate": (FAULT, "boxes less than a pixel wide or high",
        "no detector can find them; they pull at the loss", "delete or redraw them"),
    "box-duplicate": (FAULT, "boxes drawn twice (same class, IoU 0.9 and more)",
        "the second one counts as missed", "delete one of each pair"),
    "leak-same": (FAULT, "images that are in two splits, byte for byte",
        "val and test figures come out too good", "keep each in one split"),
    "label-shared": (FAULT, "images that share a label file (a.jpg, a.png)",
        "both get the same boxes", "rename one of them"),
    "class-absent": (FAULT, "classes without a box in train",
        "they cannot be learned", "add examples, or drop them from names"),
    "leak-near": (HINT, "images that look like one of another split",
        "val and test figures come out too good", "look at the pairs; keep frames of one scene in one split"),
    "image-rotated": (HINT, "images that EXIF data turns",
        "boxes drawn by a tool that ignores EXIF lie elsewhere", "look at the boxes here; save the images upright"),
    "image-odd": (HINT, "images not of 8-bit grey or RGB, or odd otherwise",
        "transparency is dropped, 16 bits become 8", "check that the picture still shows what you labelled"),
    "duplicate-same": (HINT, "identical images within a split",
        "they count twice", "keep one"),
    "duplicate-near": (HINT, "images that look like another of their split",
        "they count almost twice", "thin them out if they are frames of one scene"),
    "label-missing": (HINT, "images without a label file",
        "they are trained as background", "label them; an empty file says that nothing is there"),
    "label-orphan": (HINT, "label files without an image",
        "they are not used", "bring back the image, or delete them"),
    "label-mixed": (HINT, "remarks of the label reader",
        "boxes among polygons are read as two corners", "see the message"),
    "box-outside": (HINT, "boxes that reach out of the image by over a pixel",
        "they are clipped, their centre stays", "clip them"),
    "box-conflict": (HINT, "places with boxes of two classes (IoU 0.9 and more)",
        "the detector must be wrong once", "decide for one class, if the two exclude each other"),
    "box-overlap": (HINT, "pairs of one class that overlap by IoU 0.6 to 0.9",
        "suppression at IoU 0.6 drops one of them", "raise --iou-thres if they are real, merge them if not"),
    "box-tiny": (HINT, "boxes under 3 pixels at the training size",
        "hardly a cell of the finest map; mostly not learned",
        "train with a larger --img, or cut the images into tiles"),
    "box-huge": (HINT, "boxes as large as the image",
        "often a mistake of the labelling tool", "look at them"),
    "box-crowd": (HINT, "images with over 300 boxes",
        "suppression keeps 300 per image", "raise --max-det, or cut the images into tiles"),
    "class-untested": (HINT, "classes without a box in val",
        "their figures are missing or mean nothing", "move some examples to val"),
    "class-rare": (HINT, "classes ten times rarer than the commonest in train",
        "they are learned late and badly", "add examples; try --image-weights"),
    "anchors": (HINT, "boxes that no anchor matches, of all in train",
        "they do not train the box branch", "leave AutoAnchor on (do not pass --noautoanchor)"),
}  # fmt: skip


@dataclass
class Finding:
    """One kind of trouble: how often, and where, the worst first."""

    kind: str
    count: int
    places: list[str]  # file:line, and what is there
    views: list[tuple[int, list[int]]] = field(default_factory=list)  # (image, its rows to mark)


@dataclass
class Contents:
    """A data set in arrays: n images and N boxes. Row r is a box of image owner[r] and line lines[r] of its label file.

    An image of two splits is there twice. Of unreadable images there are no rows.
    """

    names: list[str]
    images: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    sizes: np.ndarray = None  # (n, 2) int: width, height in pixels; 0, 0 where unreadable
    digests: list[str] = field(default_factory=list)  # of the bytes
    thumbs: np.ndarray = None  # (n, 16, 17) uint8, grey
    labels: np.ndarray = None  # (N, 5): class, x, y, width, height, 0-1
    owner: np.ndarray = None  # (N,) int
    lines: np.ndarray = None  # (N,) int
    remarks: list[tuple[str, str, int]] = field(default_factory=list)  # kind, text with its place, image


def as_text(contents: Contents, findings: list[Finding], examples: int = 3) -> str:
    """The table, and under each finding why, what to do, and the first places."""
    counts = ", ".join(f"{contents.splits.count(split)} {split}" for split in dict.fromkeys(contents.splits))
    lines = [f"{counts} images, {len(contents.labels)} boxes, {len(contents.names)} classes"]
    if not findings:
        return lines[0] + "\nnothing found: no fault, no hint"
    width = max(len(finding.kind) for finding in findings)
    for finding in findings:
        severity, what, why, advice = KINDS[finding.kind]
        lines += ["", f"{severity:6}{finding.kind:{width + 2}}{finding.count:6}  {what}"]
        lines += [f"      why: {why}", f"      do:  {advice}"]
        lines += [f"      - {place}" for place in finding.places[:examples]]
        if finding.count > examples and len(finding.places) > examples:
            lines.append(f"      - ... and {len(finding.places) - examples} more (--json lists all)")
    return "\n".join(lines)


def as_json(contents: Contents, findings: list[Finding]) -> str:
    """All findings with all their places."""
    told = [
        dict(zip(("severity", "what", "why", "do"), KINDS[f.kind]), kind=f.kind, count=f.count, places=f.places)
        for f in findings
    ]
    counts = {split: contents.splits.count(split) for split in dict.fromkeys(contents.splits)}
    return json.dumps({"images": counts, "boxes": len(contents.labels), "findings": told}, indent=1)


def as_html(contents: Contents, findings: list[Finding], title: str) -> str:
    """One page that needs no other file: the text, and the worst places drawn."""
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1180px;padding:0 1em;color:#222}"
        "h2{margin:1.6em 0 0}.fault{color:#b00020}.hint{color:#8a5a00}figure{display:inline-block;margin:8px 8px 0 0;"
        "width:280px;vertical-align:top}figure img{max-width:280px;max-height:280px;border:1px solid #ccc}"
        "figcaption,li{font-size:12px;overflow-wrap:anywhere}"
    )
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"]
    parts += [f"<h1>{html.escape(title)}</h1><p>{html.escape(as_text(contents, findings).splitlines()[0])}"]
    for finding in findings:
        severity, what, why, advice = (html.escape(text) for text in KINDS[finding.kind])
        parts.append(f"<h2><span class={severity}>{severity}</span> {what}: {finding.count}</h2>")
        parts.append(f"<p><b>Why:</b> {why}. <b>Do:</b> {advice}.<ul>")
        parts += [f"<li>{html.escape(place)}" for place in finding.places[:SHOWN]]
        parts.append("</ul>")
        for image, rows in finding.views[:SHOWN]:
            data = base64.b64encode(draw(contents, image, rows)).decode()
            caption = f"{contents.splits[image]}: {os.path.basename(contents.images[image])}"
            caption = html.escape(caption + (f", lines {sorted(contents.lines[rows].tolist())}" if rows else ""))
            parts.append(
                f"<figure><img src='data:image/jpeg;base64,{data}'><figcaption>{caption}</figcaption></figure>"
            )
    if not findings:
        parts.append("<p>Nothing found: no fault, no hint.")
    return "\n".join(parts)


def draw(contents: Contents, image: int, rows: list[int], side: int = 560) -> bytes:
    """A JPEG of an image with its boxes, those of `rows` red and thick, the others thin and blue."""
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
