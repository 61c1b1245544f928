"""What the data set doctor knows how to say: its kinds of findings, and a table, JSON or an HTML page of them."""

import base64
import html
import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.data.checks import KINDS, Contents, Finding
from utils.data.images import read_image

SHOWN = 12  # pictures per finding of the HTML page


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
        lines += [f"      - {place}" for place in finding.locations[:examples]]
        if finding.count > examples and len(finding.locations) > examples:
            lines.append(f"      - ... and {len(finding.locations) - examples} more (--json lists all)")
    return "\n".join(lines)


def as_json(contents: Contents, findings: list[Finding]) -> str:
    """All findings with all their places."""
    told = [
        dict(zip(("severity", "what", "why", "do"), KINDS[f.kind]), kind=f.kind, count=f.count, places=f.locations)
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
        parts += [f"<li>{html.escape(place)}" for place in finding.locations[:SHOWN]]
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
