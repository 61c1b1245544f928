"""What the data set doctor prints of its findings: text, JSON, or an HTML page."""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.data.checks import KINDS, Finding
from utils.data.contents import Contents, class_rows, count_classes
from utils.data.images import read_image
from utils.drawing import PALETTE, draw_labels, shorten
from utils.page import bullets, figure, group, heading, page, paragraph, table

SHOWN = 12  # images and lines per finding of the HTML page
SHOWN_OF_GROUP = 4  # images of a group that are drawn
TEXT_CLASSES = 40  # with more, the text has no table of classes
MARKED, OTHER = (tuple(bytes.fromhex(PALETTE[i])[::-1]) for i in (0, 1))  # BGR: vermilion and sky blue
STYLE = """
.fault{color:#b00020}.hint{color:#8a5a00}li{font-size:12px}.images{display:flex;flex-wrap:wrap;gap:8px;margin:8px 0}
.images figure{width:280px;margin:0}@media(max-width:620px){.images figure{width:100%}}
.alike{border-left:3px solid #888;padding-left:8px;margin:1em 0}
@media(max-width:620px){.alike .images figure{width:calc(50% - 4px)}}
"""


def as_text(contents: Contents, findings: list[Finding], examples: int = 3) -> str:
    """Writes the findings as text: what was found, why it matters, what to do, and the first locations of each."""
    lines = [_summary(contents)]
    if len(contents.names) <= TEXT_CLASSES:
        lines += ["", *_columns(*class_rows(contents.names, count_classes(contents)))]
    if not findings:
        return "\n".join([*lines, "", "nothing found: no fault, no hint"])
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


def _columns(titles: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[shorten(cell, 30) for cell in row] for row in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return [
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths)))
        for row in cells
    ]


def as_json(contents: Contents, findings: list[Finding]) -> str:
    """Writes the findings as JSON, with all their locations."""
    listed = [
        dict(zip(("severity", "what", "why", "do"), KINDS[f.kind]), kind=f.kind, count=f.count, places=f.locations)
        | ({"groups": [[contents.images[i] for i in group] for group in f.groups]} if f.groups else {})
        for f in findings
    ]
    counts = {split: contents.splits.count(split) for split in dict.fromkeys(contents.splits)}
    classes = [
        {"name": name, **{split: {"boxes": int(c.boxes[i]), "images": int(c.images[i])} for split, c in of.items()}}
        for of in [count_classes(contents)]
        for i, name in enumerate(contents.names)
    ]
    told = {"images": counts, "boxes": len(contents.labels), "classes": classes, "findings": listed}
    return json.dumps(told, indent=1)


def as_html(contents: Contents, findings: list[Finding], title: str) -> str:
    """Writes the findings as a page that needs no other file, with the worst ones drawn."""
    parts = [paragraph(_summary(contents)), table(*class_rows(contents.names, count_classes(contents)))]
    for finding in findings:
        kind = KINDS[finding.kind]
        parts.append(heading(f"{kind.what}: {finding.count}", label=kind.severity))
        parts.append(paragraph(f"*Why:* {kind.why}. *Do:* {kind.advice}."))
        parts.append(bullets(finding.locations[:SHOWN]))
        if finding.groups:
            parts += [_group(contents, alike) for alike in finding.groups[:SHOWN]]
        elif finding.views:
            parts.append(group("images", (_view(contents, image, rows) for image, rows in finding.views[:SHOWN])))
    if not findings:
        parts.append(paragraph("Nothing found: no fault, no hint."))
    return page(title, parts, STYLE)


def _group(contents: Contents, alike: list[int]) -> str:
    """Shows images that are alike beside each other: the first of each split, then the others."""
    firsts = list({contents.splits[i]: i for i in reversed(alike)}.values())[::-1]
    shown = [*firsts, *(i for i in alike if i not in firsts)][:SHOWN_OF_GROUP]
    more = paragraph(f"... and {len(alike) - len(shown)} more.", note=True) if len(alike) > len(shown) else ""
    return group("alike", [group("images", (_view(contents, i, []) for i in shown)), more])


def _view(contents: Contents, image: int, rows: list[int]) -> str:
    caption = f"{contents.splits[image]}: {os.path.basename(contents.images[image])}"
    if rows:
        caption += f", {'lines' if len(rows) > 1 else 'line'} {', '.join(map(str, sorted(contents.lines[rows])))}"
    return figure(draw(contents, image, rows), caption)


def draw(contents: Contents, image: int, rows: list[int], side: int = 560) -> bytes:
    """Draws a JPEG of an image with its boxes and their classes: those of `rows` marked, the others thin and blue."""
    mine = np.flatnonzero(contents.owner == image)
    thick = np.flatnonzero(np.isin(mine, rows)).tolist()
    fills = [MARKED if i in thick else OTHER for i in range(len(mine))]
    drawn = draw_labels(read_image(contents.images[image]), contents.labels[mine], contents.names, side, thick, fills)
    return cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
