"""Writes an HTML page that needs no other file. Every function takes plain text, escapes it, and returns HTML.

Text from elsewhere may be anything: what steers a terminal or a browser, and bytes that are no UTF-8, are shown.
"""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.text import brief, printable

REPORT = "report.html"  # the page of a run, in its folder
MOST_BYTES = 90_000  # of a photograph on a page
MOST_TEXT = 300  # characters of a value in a table of settings

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1180px;padding:0 1em;color:#222}
h1{line-height:1.25;overflow-wrap:anywhere}h2{margin:1.8em 0 .3em;overflow-wrap:anywhere}h3,h4{margin:1em 0 0}
h3{overflow-wrap:anywhere}p{margin:.4em 0}.note{color:#555;font-size:13px;max-width:90ch}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px}
td,th{padding:3px 16px 3px 0;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
.left1 tr>:nth-child(-n+1),.left2 tr>:nth-child(-n+2){text-align:left}em{font-weight:600;font-style:normal}
figure{margin:.4em 0}figure img{width:100%;display:block;border:1px solid #ccc;box-sizing:border-box}
figcaption{font-size:12px;overflow-wrap:anywhere}li{font-size:14px;overflow-wrap:anywhere}ul{padding-left:1.4em}
summary{cursor:pointer;margin:.6em 0}.facts{display:flex;flex-wrap:wrap;gap:.4em 2.2em;margin:.8em 0}
.facts p{margin:0}.facts em{font-size:22px;display:block}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:10px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:4px 10px;margin:0 0 1em}
.wide{overflow-x:auto}.wide img{max-width:800px}@media(max-width:620px){.wide img{min-width:560px}}
pre{background:#f4f4f4;padding:.7em;white-space:pre-wrap;overflow-wrap:anywhere}
"""


def escape(text: str) -> str:
    """Returns text as HTML that shows it."""
    return html.escape(printable(text))


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """Returns the whole page. body: HTML, piece by piece; style: CSS beyond STYLE."""
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style><h1>{escape(title)}</h1>"
    )
    return "\n".join([head, *body]) + "\n"


def heading(text: str, level: int = 2, label: str = "") -> str:
    """Returns a heading; a label before it is of the CSS class of its own name, so that it can have a colour."""
    before = f"<span class={escape(label)}>{escape(label)}</span> " if label else ""
    return f"<h{level}>{before}{escape(text)}</h{level}>"


def paragraph(text: str, note: bool = False) -> str:
    """Returns a paragraph; a note is smaller and grey."""
    return f"<p{' class=note' if note else ''}>{emphasised(text)}</p>"


def emphasised(text: str) -> str:
    """Escapes text in which *better*, *worse*, *Why:* and *Do:* become emphasised."""
    text = escape(text)
    for word in ("better", "worse", "Why:", "Do:"):
        text = text.replace(f"*{word}*", f"<em>{word}</em>")
    return text


def bullets(lines: Iterable[str]) -> str:
    """Returns a list of lines."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Returns a table, which scrolls where it is wider than the page. left: number of left-aligned columns, 1 or 2."""
    lines = ["<tr>" + "".join(f"<th>{escape(head)}" for head in heads)]
    lines += ["<tr>" + "".join(f"<td>{emphasised(cell)}" for cell in row) for row in rows]
    return f"<div class=scroll><table class=left{left}>" + "\n".join(lines) + "</table></div>"


def preformatted(text: str) -> str:
    """Returns text as it stands, such as a command."""
    return f"<pre>{escape(text)}</pre>"


def mapping(heads: tuple[str, str], content: Mapping[str, object]) -> str:
    """Returns a table of names and values, long values cut."""
    return table(heads, ((name, shown(value)) for name, value in content.items()), left=2)


def shown(value: object) -> str:
    """Returns a value of a setting as text of at most MOST_TEXT characters."""
    if isinstance(value, list | tuple):
        text = ", ".join(item[:MOST_TEXT] if isinstance(item, str) else brief(item) for item in value[:MOST_TEXT])
    else:  # a mapping of a file can hold the same long text a million times
        text = brief(value) if isinstance(value, int | dict | set) else str(value)
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ..."


def details(summary: str, parts: Iterable[str]) -> str:
    """Returns parts that are hidden until the reader opens them."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def files(folder: Path, most: int = 200) -> str:
    """Returns a table of the files in a folder and below it, with their sizes."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    rows = [(path.relative_to(folder).as_posix(), size(path.stat().st_size)) for path in found[:most]]
    more = paragraph(f"... and {len(found) - most} more.", note=True) if len(found) > most else ""
    return table(("file", "size"), rows) + more


def size(count: int) -> str:
    """Returns a number of bytes as a reader takes it in."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def group(name: str, parts: Iterable[str]) -> str:
    """Returns parts in an element of the CSS class `name`, which says how they are arranged."""
    return f"<div class={name}>{''.join(parts)}</div>"


def figure(image: np.ndarray | bytes, caption: str, kind: str = "jpg") -> str:
    """Returns an embedded image with a caption, which is its description too.

    image: BGR uint8 (h, w, 3), or the bytes of a file of the kind jpg or png.
    """
    if not isinstance(image, bytes):
        image = cv2.imencode(f".{kind}", image)[1].tobytes()
    data, words = base64.b64encode(image).decode(), escape(caption)
    source = f"data:image/{'jpeg' if kind == 'jpg' else kind};base64,{data}"
    return f"<figure><img alt='{words}' src='{source}'><figcaption>{words}</figcaption></figure>"


def photo(image: np.ndarray, caption: str, side: int = 640, most: int = MOST_BYTES) -> str:
    """Returns a figure of a BGR image, its longer side at most `side` pixels and its file at most `most` bytes."""
    image = shrunk(image, side)
    for quality in (85, 70, 50, 30):
        data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()
        if len(data) <= most:
            return figure(data, caption)
    return photo(image, caption, max(image.shape[:2]) * 3 // 4, most)


def chart(file: Path, caption: str, width: int = 1000) -> str:
    """Returns a figure of a chart in a PNG file, at most `width` pixels wide."""
    image = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR)
    wide = cv2.resize(image, (width, round(image.shape[0] * width / image.shape[1])), interpolation=cv2.INTER_AREA)
    return figure(wide if image.shape[1] > width else image, caption, "png")


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """Returns an image whose longer side is at most `side` pixels."""
    scale = side / max(image.shape[:2])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
