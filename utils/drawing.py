"""Drawing of boxes and captions on images: colours of classes, a font for all characters, writing of image files.

Pillow and matplotlib's list of fonts are imported where they are used. No function changes its arguments.

`names` is always a list of class names or a dict from class number to name; a class without a name shows its number.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch

from utils.files import atomic_write
from utils.log import LOGGER
from utils.text import printable

Names = Sequence[str] | Mapping[int, str]
Colour = tuple[int, int, int]

# Okabe and Ito's seven colours (jfly.uni-koeln.de/color, 2008) and thirteen more, each as far as possible from those
# before it for normal sight and three kinds of colour blindness (Machado et al., 2009). In the worst of these cases the
# smallest distance in CIELAB is 15; in v6.1's palette it is 3.
PALETTE = (
    "D55E00 56B4E9 009E73 F0E442 0072B2 E69F00 CC79A7 8700F0 C3F0C3 693C1E "
    "69FF87 9678FF 960069 FF005A 4B3CB4 FFB4D2 87C387 C3A54B A5004B 870F87"
).split()
MIN_SCALE = 0.4  # minimum scale of OpenCV's font, at which it can still be read
MAX_HIDDEN = 0.25  # of a caption, below others; one that would be hidden more is left out, for nobody could read it
BLACK, WHITE, GREY = (0, 0, 0), (255, 255, 255), (128, 128, 128)


# --- colours, names, fonts --------------------------------------------------------------------------------------------


class Colors:
    """The 20 colours of classes: `colors(3)` is RGB, `colors(3, bgr=True)` is for images that OpenCV read.

    The colour-blind can tell them apart, see PALETTE.
    """

    def __init__(self):
        self.palette = [tuple(bytes.fromhex(colour)) for colour in PALETTE]

    def __call__(self, i: int, bgr: bool = False) -> Colour:
        colour = self.palette[int(i) % len(self.palette)]
        return colour[::-1] if bgr else colour


colors = Colors()


def class_name(names: Names | None, i: int, limit: int = 40) -> str:
    """Returns the name of class i in up to `limit` characters; its number if it has no name."""
    known = names is not None and (i in names if isinstance(names, Mapping) else i < len(names))
    return shorten(str(names[i]) if known else str(i), limit)


def shorten(text: str, limit: int) -> str:
    """Returns the text, with its end replaced by `..` if it has more than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 2] + ".."


def visible(text: str) -> frozenset[str]:
    """Returns the characters of a text that a font must have."""
    return frozenset(c for c in text if c.isprintable() and not c.isspace())


@lru_cache(maxsize=256)
def find_font(characters: frozenset[str]) -> tuple[str, str]:
    """Returns (file, family) of a font with these characters: DejaVu Sans, a part of matplotlib, or an installed font.

    Nothing is downloaded. If no font has them all it is the font that has the most, and a warning says so once.
    """
    needed = {ord(c) for c in characters}
    default, has = _default_font()
    fewest_missing, best = len(needed - has), default
    if not fewest_missing:
        return default

    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    for fonts in (lambda: fontManager.ttflist, _fonts_since_matplotlib_looked):
        # the font named Last Resort has only placeholders
        real = [font for font in fonts() if not font.name.startswith("Last Resort")]
        for font in sorted(real, key=lambda f: (f.style != "normal", abs(_weight(f.weight) - 400), f.name, f.fname)):
            try:
                missing = len(needed - FT2Font(font.fname).get_charmap().keys())
            except (OSError, RuntimeError):  # removed since the list was made, or not scalable
                continue
            if missing < fewest_missing:
                fewest_missing, best = missing, (font.fname, font.name)
            if not missing:
                return best
    _warn_missing_characters()
    return best


def _fonts_since_matplotlib_looked() -> list:
    """Returns fonts installed after matplotlib made its list, which it keeps in a file, and adds them to it."""
    from matplotlib import font_manager

    known = list(font_manager.fontManager.ttflist)
    files = {font.fname for font in known}
    for file in sorted(set(font_manager.findSystemFonts()) - files):
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # matplotlib cannot read its format
            font_manager.fontManager.addfont(file)
    return font_manager.fontManager.ttflist[len(known) :]


@lru_cache(maxsize=1)
def _default_font() -> tuple[tuple[str, str], frozenset[int]]:
    """Returns (file, family) of DejaVu Sans, and its characters."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    file = str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))
    return (file, "DejaVu Sans"), frozenset(FT2Font(file).get_charmap())


def _weight(weight: int | str) -> int:
    return weight if isinstance(weight, int) else 700 if "bold" in weight else 400


@lru_cache(maxsize=1)  # once
def _warn_missing_characters() -> None:
    LOGGER.warning(
        "no installed font has all characters of the class and file names, so images show empty boxes in their place; "
        "install a font of that script (such as Noto Sans CJK), or use ASCII names"
    )


# --- boxes on an image ------------------------------------------------------------------------------------------------


def automatic_line_width(shape: tuple[int, int], usual: int = 2, reach: float = math.inf) -> int:
    """Returns the line width in pixels for an image (height, width): `usual`, more if it is large, less if small.

    reach: the usual side of the boxes in pixels: in a large image of small objects lines stay thin.
    """
    side = sum(shape[:2]) / 2
    return max(min(round(side * 0.003), int(min(reach, 2**15) / 40)), min(usual, 1 + int(side // 200)))


def usual_side(boxes: np.ndarray) -> float:
    """Returns the median of the mean sides (n,) of xyxy boxes (n, 4) in pixels, infinity without a box."""
    if not len(boxes):
        return math.inf
    return float(np.median(np.sqrt(np.abs((boxes[:, 2:4] - boxes[:, :2]).prod(1)))))


class Annotator:
    """Draws boxes with captions on a copy of an image; captions stay inside the image.

    image:      uint8 (H, W, 3); colours are given in the image's own channel order.
    line_width: pixels; None chooses it by the image size.
    font_size:  pixels, for text drawn with Pillow; None chooses it by the image size.
    pil:        draw with Pillow from the start. OpenCV is faster but draws ASCII only; from the first other character
                on the image is drawn with Pillow.
    example:    the text to expect, such as all class names joined, by which the font is chosen.
    reach:      the usual side of the boxes in pixels, to which line and text are scaled where they are not given.

    Raises ValueError for an image of another shape or type.
    """

    def __init__(
        self,
        image: np.ndarray,
        line_width: int | None = None,
        font_size: int | None = None,
        pil: bool = False,
        example: str = "abc",
        reach: float = math.inf,
    ):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image must be uint8 with shape (H, W, 3), got {image.dtype} {image.shape}")
        self.height, self.width = image.shape[:2]
        self.line_width = line_width or automatic_line_width((self.height, self.width), reach=reach)
        self.font_size = font_size or max(round(min((self.height + self.width) / 2 * 0.035, reach / 3)), 10)
        self.reach = reach
        self._array = np.array(image, order="C")
        self._image = self._draw = self._font = None  # of Pillow, once it draws
        self._characters = visible(example)  # that the font must have
        if pil or not example.isascii():
            self._use_pillow()

    def box_label(
        self, box: Sequence[float], label: str = "", color: Colour = GREY, txt_color: Colour | None = None
    ) -> None:
        """Draws an xyxy box in pixels, with its label on a filled strip above it, or inside if there is no room."""
        self.rectangle(box, color)
        if label:
            self.caption(box, label, color, txt_color)

    def rectangle(self, box: Sequence[float], color: Colour = GREY) -> None:
        """Draws the outline of an xyxy box in pixels."""
        x1, y1, x2, y2 = self._corners(box)
        if self._draw:
            ordered = [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]
            self._draw.rectangle(ordered, outline=color, width=self.line_width)
        else:
            cv2.rectangle(self._array, (x1, y1), (x2, y2), color, self.line_width)

    def ring(self, box: Sequence[float], color: Colour, radius: int = 14) -> None:
        """Draws a ring of that many pixels around the middle of an xyxy box."""
        x1, y1, x2, y2 = self._corners(box)
        x, y = (x1 + x2) // 2, (y1 + y2) // 2
        if self._draw:
            self._draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=color, width=self.line_width)
        else:
            cv2.circle(self._array, (x, y), radius, color, self.line_width)

    def caption(self, box: Sequence[float], text: str, color: Colour = GREY, txt_color: Colour | None = None) -> None:
        """Draws text on a filled strip at the top of an xyxy box, by default black or white, the more readable one."""
        x1, y1 = self._corners(box)[:2]
        text, width, height = self._fit(text)
        y = y1 - height if y1 >= height else y1
        self._strip(x1, y, text, width, height, color, txt_color)

    def captions(
        self,
        boxes: Sequence[Sequence[float]],
        texts: Sequence[str],
        fills: Sequence[Colour],
        taken: Sequence[Sequence[float]] = (),
    ) -> None:
        """Draws texts on strips above, below or inside xyxy boxes, wherever they are hidden the least by earlier texts.

        One that would be hidden by more than MAX_HIDDEN of its area is left out. taken: xyxy areas of other texts.
        """
        taken, placed = np.array(taken, float).reshape(-1, 4), []
        for box, text, color in zip(boxes, texts, fills):
            x1, y1, _, y2 = self._corners(box)
            text, width, height = self._fit(text)
            x = max(min(x1, self.width - width), 0)
            heights = [y for y in (y1 - height, y2 + 1, y1) if 0 <= y <= self.height - height] or [max(y1, 0)]
            strips = np.array([[x, y, x + width, y + height] for y in heights])
            low = np.maximum(strips[:, None, :2], taken[None, :, :2])
            high = np.minimum(strips[:, None, 2:], taken[None, :, 2:])
            hidden = (high - low).clip(0).prod(2).sum(1)  # pixels of earlier texts
            best = int(hidden.argmin())
            if hidden[best] > MAX_HIDDEN * width * height:
                continue
            taken = np.concatenate([taken, strips[best : best + 1]])
            placed.append((x, heights[best], text, width, height, color, None))
        for strip in reversed(placed):
            self._strip(*strip)

    def text(
        self, xy: tuple[float, float], text: str, txt_color: Colour = WHITE, color: Colour = BLACK
    ) -> tuple[int, int, int, int]:
        """Draws text on a filled strip whose upper left corner is at xy in pixels; returns where the strip is, xyxy."""
        text, width, height = self._fit(text)
        return self._strip(int(xy[0]), int(xy[1]), text, width, height, color, txt_color)

    def result(self) -> np.ndarray:
        """Returns the annotated image, uint8 (H, W, 3)."""
        return np.array(self._image) if self._image else self._array

    def _corners(self, box: Sequence[float]) -> tuple[int, int, int, int]:
        # far outside is drawn like just outside, and OpenCV refuses numbers beyond 16 bits
        x1, y1, x2, y2 = (float(v) for v in box)
        far = self.line_width + 1
        x1, x2 = (int(min(max(x, -far), self.width + far)) for x in (x1, x2))
        y1, y2 = (int(min(max(y, -far), self.height + far)) for y in (y1, y2))
        return x1, y1, x2, y2

    def _use_pillow(self) -> None:
        from PIL import Image, ImageDraw, ImageFont

        if not self._image:
            self._image = Image.fromarray(self._array)
            self._draw = ImageDraw.Draw(self._image)
        self._font = ImageFont.truetype(find_font(self._characters)[0], self.font_size)

    def _fit(self, text: str) -> tuple[str, int, int]:
        """Returns the text, shortened until it is no wider than the image, and the width and height of its strip."""
        text = printable(text, lines=False)  # fonts have no control characters
        if not text.isascii() and not (self._font and visible(text) <= self._characters):
            self._characters |= visible(text)
            self._use_pillow()
        width, height = self._measure(text)
        shorter = text
        while width > self.width and len(shorter) > 1:
            shorter = shorter[:-1]
            width, height = self._measure(shorter + "..")
        return text if shorter == text else shorter + "..", width, height

    def _measure(self, text: str) -> tuple[int, int]:
        margin = 2 + self.line_width
        if self._font:
            return math.ceil(self._font.getlength(text)) + margin, sum(self._font.getmetrics()) + 1
        (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, *self._stroke())
        return width + margin, sum(self._ascent_descent()) + 1

    def _ascent_descent(self) -> tuple[int, int]:
        """Returns the pixels of OpenCV's text above and below its base line, the same for any letters."""
        (_, ascent), descent = cv2.getTextSize("Ag", cv2.FONT_HERSHEY_SIMPLEX, *self._stroke())
        return ascent, descent

    def _stroke(self) -> tuple[float, int]:
        """Returns font scale and thickness for OpenCV."""
        scale = max(min(self.line_width / 3, (self.height + self.width) / 1600, self.reach / 60), MIN_SCALE)
        return scale, max(self.line_width - 1, 1) if scale > 0.6 else 1

    def _strip(
        self, x: int, y: int, text: str, width: int, height: int, color: Colour, txt_color: Colour | None
    ) -> tuple[int, int, int, int]:
        x, y = max(min(x, self.width - width), 0), max(min(y, self.height - height), 0)
        txt_color = txt_color or _readable_on(color)
        indent = 1 + self.line_width // 2
        if self._draw:
            self._draw.rectangle([x, y, x + width - 1, y + height - 1], fill=color)
            self._draw.text((x + indent, y), text, fill=txt_color, font=self._font)
            return x, y, x + width, y + height
        scale, thickness = self._stroke()
        cv2.rectangle(self._array, (x, y), (x + width - 1, y + height - 1), color, cv2.FILLED)
        origin = x + indent, y + self._ascent_descent()[0]
        cv2.putText(self._array, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, txt_color, thickness, cv2.LINE_AA)
        return x, y, x + width, y + height


def _readable_on(color: Colour) -> Colour:
    """Returns black or white, whichever has more contrast with a colour (WCAG 2.1, relative luminance)."""
    linear = [(v / 255 / 12.92) if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in color]
    # equal weights of red and blue, so that the channel order does not matter
    luminance = 0.14 * linear[0] + 0.72 * linear[1] + 0.14 * linear[2]
    return BLACK if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else WHITE


def draw_boxes(
    image: np.ndarray,
    boxes: torch.Tensor,
    names: Names,
    line_width: int | None = None,
    hide_labels: bool = False,
    hide_conf: bool = False,
    bgr: bool = True,
    usual: int = 2,
) -> np.ndarray:
    """Returns a copy of an image (H, W, 3) uint8 with boxes, the most confident on top, and captions above all boxes.

    boxes: (n, 6 or 7): x1, y1, x2, y2 in pixels, confidence, class, and the track number if any, 0 for none; the most
        confident first.
    bgr:   the channel order of the image; False for RGB.
    usual: line width in pixels for an image of usual size, where line_width is None and the image and the boxes decide.
    """
    letters = "".join(class_name(names, i) for i in range(len(names))) + "#.0123456789"
    reach = math.inf if line_width else usual_side(boxes[:, :4].numpy())
    width = line_width or automatic_line_width(image.shape, usual, reach)
    annotator = Annotator(image, width, example=letters, reach=reach)
    rows = boxes[:, :6].tolist()
    fills = [colors(int(row[5]), bgr=bgr) for row in rows]
    for row, color in reversed(list(zip(rows, fills))):
        annotator.rectangle(row[:4], color)
    if not hide_labels:
        tracks = [f" #{int(t)}" if t else "" for t in boxes[:, 6].tolist()] if boxes.shape[1] > 6 else [""] * len(rows)
        scores = ["" if hide_conf else f" {row[4]:.2f}" for row in rows]
        texts = [class_name(names, int(row[5])) + track + score for row, track, score in zip(rows, tracks, scores)]
        annotator.captions([row[:4] for row in rows], texts, fills)
    return annotator.result()


def draw_labels(
    image: np.ndarray,
    labels: np.ndarray,
    names: Names,
    side: int = 560,
    thick: Sequence[int] = (),
    fills: Sequence[Colour] | None = None,
) -> np.ndarray:
    """Returns a BGR image (h, w, 3) uint8, its longer side resized to `side` pixels, with boxes and their classes.

    It is resized first, so that lines and text are as fine in a small image as in a large one.

    labels: (n, 5): class, x, y, w, h, 0-1 of the image.
    thick:  rows whose lines are thick, with a ring round a box that is too small to see; their captions come first.
    fills:  BGR colour of each row; None for those of the classes.
    """
    scale = side / max(image.shape[:2])
    size = [max(round(length * scale), 1) for length in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    half = labels[:, 3:5] / 2
    boxes = np.concatenate([labels[:, 1:3] - half, labels[:, 1:3] + half], 1) * [*size, *size]
    fills = [colors(int(label), bgr=True) for label in labels[:, 0]] if fills is None else fills
    texts = [class_name(names, int(label), 24) for label in labels[:, 0]]
    annotator = Annotator(image, 1, example="".join(texts), reach=usual_side(boxes))
    chosen = set(thick)
    order = [row for row in range(len(boxes)) if row not in chosen] + list(thick)
    for row in order:
        annotator.line_width = 4 if row in chosen else 2  # the images are often shown at half their size
        annotator.rectangle(boxes[row], fills[row])
        if row in chosen and (boxes[row, 2:] - boxes[row, :2]).min() < 8:
            annotator.ring(boxes[row], fills[row])
    annotator.line_width = 2
    annotator.captions(*([column[row] for row in order[::-1]] for column in (boxes, texts, fills)))
    return annotator.result()


def rescaled(image: np.ndarray, scale: float) -> np.ndarray:
    """Returns an image (h, w, 3) with its sides times `scale`; enlarged first, text drawn on it is sharp."""
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=way)


def write_image(path: str | Path, image: np.ndarray) -> Path:
    """Writes a BGR image in the format of the path's suffix, or as .jpg if OpenCV cannot write that format.

    Returns the path written.
    """
    path = Path(path)
    # asked with an invented name: OpenCV crashes over a real one whose bytes are not UTF-8
    if not (path.suffix and path.suffix.isascii() and cv2.haveImageWriter(f"a{path.suffix}")):
        path = path.with_name(f"{path.stem}.jpg")
    # not cv2.imwrite, which on Windows opens no path with letters outside the local code page
    with atomic_write(path, sync=False) as file:
        file.write(cv2.imencode(path.suffix, image)[1].tobytes())
    return path
