"""A detection data set that is drawn, not downloaded: four classes that differ in outline, never in colour.

A scene is a list of polygons, painted back to front over a cluttered background, then "photographed" with shadow,
vignette, blur and noise. Labels come from the pixels that stay visible, so they are exact by construction.
"""

import math
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from utils.progress import Bar

NAMES = ("circle", "triangle", "rectangle", "star")
DISTRACTOR = -1  # the kind of a figure that belongs to no class
COUNTS = {"train": 640, "val": 128, "test": 64}  # images of each split
NOTE = "drawn.txt"  # says what was drawn
SIZES = ((320, 320), (320, 320), (288, 320), (320, 288), (256, 320), (320, 256))  # height, width

# How hard the set is. Lengths are fractions of the longer image side; colours run from 0 to 255.
EMPTY = 0.02  # share of scenes without any object
OBJECTS = (3, 7)  # objects in the other scenes; one that finds no room is left out
LONGEST_SIDE = (0.09, 1.0)  # of an object's box: 29 to 320 pixels in an image of 320
MIDDLE = 2.4  # pull of the sizes towards the geometric middle of that range; 1 is log-uniform
TILT = 20.0  # maximum degrees by which an outline is turned from upright
STRETCH = 1.4  # maximum factor by which an outline is stretched along one direction
PERSPECTIVE = 0.2  # maximum share by which its far side shrinks
OVER = 0.16  # share of objects that stand in front of another one
HIDDEN = (0.1, 0.3)  # how much of an object is hidden where another figure is put there to hide it; never more
CUT = 0.1  # share of objects that the image border cuts
CUT_AWAY = (0.1, 0.25)  # how much of them: a square that loses more of a corner looks like a triangle
WHOLE = 0.12  # objects smaller than this are never hidden on purpose
LOOSE = (0, 1)  # distractors that stand alone
OCCLUDERS = (0, 1)  # distractors that stand in front of an object
GROUND = (0, 115)  # range of the background's colours: darker than the figures, as behind things lit from the front
PAINT = (120, 255)  # range of the figures' colours
CONTRAST = 40.0  # minimum colour distance (CIE 1976) of a figure from nearly everything around it
GRADIENT = 35.0  # maximum change of a figure's colour from one end to the other
TEXTURE = 12.0  # maximum that a pattern adds to a figure's colour
RIM = 0.25  # share of figures with a rim of another colour
CLUTTER = (1, 4)  # lines, scribbles and words on the background
SHADE = 0.3  # maximum share of the light that a shadow or a vignette takes away
BLUR = 0.004  # maximum standard deviation of the blur: 1.3 pixels in an image of 320
NOISE = 6.0  # maximum standard deviation of the noise
JPEG = (55, 95)  # range of the JPEG quality

TRIES = 20  # attempts to find room for a figure
FINE = 4  # sub-pixels a side from which the coverage of a pixel is counted


@dataclass
class Figure:
    """One painted polygon."""

    kind: int  # class, or DISTRACTOR
    outline: np.ndarray  # (k, 2) x, y in pixels from the image's corner; may reach beyond the image
    longest: float  # longer side, in pixels, of the box around the whole outline
    pixels: int  # number of its visible pixels

    @property
    def hidden(self) -> float:
        """Returns the share of its area, 0-1, that lies behind other figures or outside the image."""
        return max(0.0, 1 - self.pixels / cv2.contourArea(self.outline.astype(np.float32)))

    @property
    def visible(self) -> float:
        """Returns the share of its area, 0-1, that is visible."""
        return 1 - self.hidden


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int] = SIZES[0]
) -> tuple[np.ndarray, np.ndarray, list[Figure]]:
    """Draws one scene of `size` (height, width); lengths grow with it.

    Returns the image, uint8 (h, w, 3) in BGR; the labels, float32 (n, 5): class, x, y, w, h, centre form, 0-1 of the
    image, around the visible part of each object; and all figures, back to front. Those that are not distractors are
    the objects, in the order of the labels.
    """
    scene = _Scene(rng, *size)
    count = 0 if rng.random() < EMPTY else rng.integers(OBJECTS[0], OBJECTS[1] + 1)
    manners = rng.choice(["over", "cut", "alone"], count, p=[OVER, CUT, 1 - OVER - CUT])
    plan = [(int(rng.integers(len(NAMES))), manner) for manner in manners]
    plan += [(DISTRACTOR, "alone")] * rng.integers(LOOSE[0], LOOSE[1] + 1)
    plan = [plan[i] for i in rng.permutation(len(plan))]
    plan += [(DISTRACTOR, "over")] * rng.integers(OCCLUDERS[0], OCCLUDERS[1] + 1)
    for kind, manner in plan:
        scene.add(kind, manner)
    return _photograph(rng, scene.image), scene.labels(), scene.figures


def write_dataset(root: str | Path, splits: dict[str, int] | None = None, seed: int = 0) -> None:
    """Draws `<root>/images/<split>/000001.jpg` and `<root>/labels/<split>/000001.txt`, all of them or nothing.

    The set appears under its name only when it is whole, and a second process that draws the same set at the same
    time does no harm. A root that already holds this set is left alone; one that holds anything else is a ValueError.
    """
    root, splits = Path(root).resolve(), dict(COUNTS if splits is None else splits)
    if not splits or any(n < 0 for n in splits.values()):
        raise ValueError(f"splits must name at least one split, with 0 or more images each, got {splits}")
    if _holds(root, splits, seed):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as folder:
        whole = Path(folder) / "whole"  # made here, so that others may read it as they may read any folder
        for split in splits:
            (whole / "images" / split).mkdir(parents=True)
            (whole / "labels" / split).mkdir(parents=True)
        jobs = [(split, i) for split, n in splits.items() for i in range(1, n + 1)]
        for split, index in Bar(jobs, f"drawing {root}", unit="image"):
            _write_pair(whole, seed, split, index)
        (whole / NOTE).write_text(_describe(splits, seed) + "\n", encoding="utf-8")
        try:
            whole.rename(root)
        except OSError:
            if not _holds(root, splits, seed):  # not another process that was faster: a real failure
                raise


def _describe(splits: dict[str, int], seed: int) -> str:
    return ", ".join(f"{n} {split} images" for split, n in splits.items()) + f" of seed {seed}"


def _holds(root: Path, splits: dict[str, int], seed: int) -> bool:
    """Returns True if this very set is in `root` already. Raises ValueError where `root` holds something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    expected = _describe(splits, seed)
    found = (root / NOTE).read_text(encoding="utf-8").strip() if (root / NOTE).is_file() else "something else"
    folders = [(root / part / split, n) for split, n in splits.items() for part in ("images", "labels")]
    if found == expected and any(len(list(folder.glob("[0-9]*"))) != n for folder, n in folders):
        found += ", but not all of them"
    if found != expected:
        raise ValueError(
            f"{root} holds {found}, but {expected} must be drawn there; remove the folder or choose another"
        )
    return True


def _write_pair(root: Path, seed: int, split: str, index: int) -> None:
    rng = np.random.default_rng(np.random.SeedSequence((seed, zlib.crc32(split.encode()), index)))
    image, labels, _ = draw_scene(rng, SIZES[rng.integers(len(SIZES))])
    quality = int(rng.integers(JPEG[0], JPEG[1] + 1))
    _, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))
    (root / "images" / split / f"{index:06}.jpg").write_bytes(data.tobytes())
    text = "".join(f"{row[0]:.0f} " + " ".join(f"{x:.6g}" for x in row[1:]) + "\n" for row in labels)
    (root / "labels" / split / f"{index:06}.txt").write_text(text, encoding="utf-8")


# Outlines: points x + iy around 0, about 1 in radius


def _class_outline(rng: np.random.Generator, kind: int) -> np.ndarray:
    turn = np.arange(60) * 2j * np.pi / 60
    match NAMES[kind]:
        case "circle":
            return np.exp(turn)
        case "triangle":
            return 1j * np.exp(turn[::20] + 1j * rng.uniform(-0.2, 0.2, 3))
        case "rectangle":
            corner = 1 + 1j * rng.uniform(0.55, 1)
            return np.array([corner, -corner.conjugate(), -corner, corner.conjugate()])
        case _:  # star
            return 1j * np.exp(turn[::6]) * np.tile([1, rng.uniform(0.36, 0.46)], 5)


def _distractor_outline(rng: np.random.Generator) -> np.ndarray:
    t, a, b = np.arange(-20, 21) / 20, *rng.uniform(0, 2 * np.pi, 2)
    match rng.integers(3):
        case 0:  # bean with two or three lobes
            turn = np.pi * t[1:]
            return np.exp(1j * turn) * (1 + 0.4 * np.cos(2 * turn + a) + 0.3 * np.cos(3 * turn + b))
        case 1:  # crescent
            outer = np.exp(2.2j * t)
            return np.concatenate([outer, (outer * (1 - 0.4 * np.cos(t * np.pi / 2)))[::-1]])
        case _:  # wavy band, too long and thin for a rectangle
            wave = t + 0.15j * np.sin(rng.uniform(2, 5) * t + a)
            return np.concatenate([wave - 0.06j, (wave + 0.06j)[::-1]])


def _view_outline(rng: np.random.Generator, outline: np.ndarray, side: float) -> np.ndarray:
    """Turns, stretches and slants an outline (k, 2), centres it on 0, 0 and makes its longer side `side` pixels."""
    stretched, slanted = np.exp(1j * rng.uniform(0, 2 * np.pi, 2))  # the directions of these
    points = outline * stretched
    points = (points.real + 1j * points.imag * rng.uniform(1 / STRETCH, 1)) * slanted / stretched
    points = points / (1 + points.real * rng.uniform(0, PERSPECTIVE)) / slanted
    points = points.conjugate() * np.exp(1j * np.radians(rng.uniform(-TILT, TILT)))  # y of pixels points down
    points = np.stack([points.real, points.imag], 1)
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) * (side / (high - low).max())


class _Scene:
    """A scene as it is painted: the image, and which figure owns each pixel."""

    def __init__(self, rng: np.random.Generator, h: int, w: int):
        self.rng, self.h, self.w = rng, h, w
        self.image = _background(rng, h, w)
        self.figures: list[Figure] = []
        self.owner = np.full((h, w), -1, np.int16)  # index of the front figure at each pixel

    def add(self, kind: int, manner: str) -> None:
        """Paints one more figure, in front of all others, where there is room; without room nothing changes."""
        rng, canvas = self.rng, np.array([self.w, self.h])
        shortest, longest = np.array(LONGEST_SIDE) * canvas.max()
        targets = [f for f in self.figures if f.kind != DISTRACTOR and f.longest >= WHOLE * canvas.max()]
        manner = "alone" if manner == "over" and not targets else manner
        for _ in range(TRIES):
            side = shortest * (longest / shortest) ** rng.beta(MIDDLE, MIDDLE)
            if manner == "over":  # sizes that can hide a fair share
                target = targets[rng.integers(len(targets))]
                side = min(max(target.longest * rng.uniform(0.4, 1.4), shortest), longest)
            outline = _distractor_outline(rng) if kind == DISTRACTOR else _class_outline(rng, kind)
            outline = _view_outline(rng, outline, side)
            half = outline.max(0)
            centre = rng.uniform(half, np.maximum(half, canvas - half))
            if manner == "over":
                away, angle = rng.uniform(0.1, 0.4) * (side + target.longest), rng.uniform(0, 2 * np.pi)
                centre = target.outline.mean(0) + away * np.array([np.cos(angle), np.sin(angle)])
                centre = np.clip(centre, half, np.maximum(half, canvas - half))
            elif manner == "cut":
                axis, inside = rng.integers(2), half * rng.uniform(0.4, 0.9)
                centre[axis] = rng.choice([inside[axis], canvas[axis] - inside[axis]])
            if self._take(Figure(kind, outline + centre, side, 0), manner):
                return

    def labels(self) -> np.ndarray:
        """Returns the labels (n, 5), as `draw_scene` does."""
        rows = []
        for i, figure in enumerate(self.figures):
            if figure.kind != DISTRACTOR:
                x, y, w, h = cv2.boundingRect((self.owner == i).astype(np.uint8))
                rows.append((figure.kind, (x + w / 2) / self.w, (y + h / 2) / self.h, w / self.w, h / self.h))
        return np.array(rows, np.float32).reshape(-1, 5)

    def _take(self, new: Figure, manner: str) -> bool:
        """Paints the figure at its position, unless it does not hide what it should, or hides too much."""
        region = _region(new.outline, self.w, self.h)
        if manner != "over" and self.owner[tuple((s.start + s.stop) // 2 for s in region)] >= 0:
            return False  # the middle is taken: the usual failure, found early
        alpha = _coverage(new.outline, region)
        mask = alpha >= 0.5
        new = replace(new, pixels=int(np.count_nonzero(mask)))
        lost = np.bincount(self.owner[region][mask] + 1, minlength=len(self.figures) + 1)[1:].tolist()
        covered = {i: replace(f, pixels=f.pixels - lost[i]) for i, f in enumerate(self.figures) if lost[i]}
        if not self._as_meant(new, list(covered.values()), manner):
            return False
        owner = self.owner.copy()
        owner[region][mask] = len(self.figures)
        if any(_in_pieces(owner[_region(f.outline, self.w, self.h)] == i) for i, f in covered.items()):
            return False
        self.owner = owner
        self.figures = [*(covered.get(i, f) for i, f in enumerate(self.figures)), new]
        _paint(self.rng, self.image, new, region, alpha)
        return True

    def _as_meant(self, new: Figure, covered: list[Figure], manner: str) -> bool:
        """Returns True if the new figure and those that it covers are hidden as much as they should be."""
        if manner == "over":
            meant = any(f.hidden >= HIDDEN[0] for f in covered if f.kind != DISTRACTOR)
        elif manner == "cut":
            meant = not covered and CUT_AWAY[0] <= new.hidden <= CUT_AWAY[1]
        else:
            meant = not covered
        small = WHOLE * max(self.h, self.w)
        return meant and all(f.hidden <= (HIDDEN[0] if f.longest < small else HIDDEN[1]) for f in (new, *covered))


def _in_pieces(mask: np.ndarray) -> bool:
    """Returns True if slivers lie apart from the main part; the box would be larger than a person would draw it."""
    areas = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    return bool((areas < 0.2 * areas.max(initial=0)).any())


def _region(outline: np.ndarray, w: int, h: int) -> tuple[slice, slice]:
    """Returns the rows and columns of the image that the outline's box covers."""
    (x1, y1), (x2, y2) = np.floor(outline.min(0)).tolist(), np.ceil(outline.max(0)).tolist()
    return slice(max(0, int(y1)), min(h, int(y2))), slice(max(0, int(x1)), min(w, int(x2)))


def _coverage(outline: np.ndarray, region: tuple[slice, slice]) -> np.ndarray:
    """Returns the share, 0-1, of each pixel of the region that lies inside the outline."""
    rows, columns = region
    size = columns.stop - columns.start, rows.stop - rows.start
    fine = np.zeros((size[1] * FINE, size[0] * FINE), np.uint8)
    points = (outline - (columns.start, rows.start)) * FINE - 0.5  # OpenCV counts from the middle of the first pixel
    cv2.fillPoly(fine, [np.round(points * 16).astype(np.int32)], 255, shift=4)
    return cv2.resize(fine, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255


# Painting


def _paint(rng, image: np.ndarray, figure: Figure, region: tuple[slice, slice], alpha: np.ndarray) -> None:
    """Fills the figure with a gradient, a pattern and maybe a rim, in colours that differ from those behind it."""
    h, w = alpha.shape
    ground = image[region]
    around = cv2.resize(ground, (8, 8), interpolation=cv2.INTER_AREA).reshape(-1, 3)
    colour = _clear_colour(rng, around)
    end = np.clip(colour + rng.uniform(-GRADIENT, GRADIENT, 3), 0, 255)
    fill = _gradient(rng, w, h, colour, end) + _pattern(rng, w, h, TEXTURE)
    if rng.random() < RIM:  # the half of it that falls outside the outline is not seen
        points = np.round((figure.outline - (region[1].start, region[0].start) - 0.5) * 16).astype(np.int32)
        thickness = max(1, round(figure.longest * rng.uniform(0.03, 0.12)))
        cv2.polylines(fill, [points], True, _clear_colour(rng, around).tolist(), thickness, cv2.LINE_AA, shift=4)
    image[region] = cv2.blendLinear(np.clip(fill, 0, 255).astype(np.uint8), ground, alpha, 1 - alpha)


def _clear_colour(rng, around: np.ndarray) -> np.ndarray:
    """Draws a colour, (3,) BGR 0-255, at least CONTRAST from nearly all of `around` (k, 3), or the clearest of some."""
    choice = rng.uniform(*PAINT, (24, 3)).astype(np.float32)
    lab = cv2.cvtColor(np.concatenate([choice, around])[None] / 255, cv2.COLOR_BGR2LAB)[0]
    distance = np.linalg.norm(lab[:24, None] - lab[24:], axis=2)
    distance = np.sort(distance, axis=1)[:, len(around) // 20]  # one patch in twenty may come closer
    return choice[np.minimum(distance, CONTRAST).argmax()]


def _ramp(rng, w: int, h: int) -> np.ndarray:
    """Returns (h, w, 1), rising evenly from 0 to 1 in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    dx, dy = math.cos(angle) * w, math.sin(angle) * h
    x = np.arange(w, dtype=np.float32) * (dx / w) - min(dx, 0)
    y = np.arange(h, dtype=np.float32) * (dy / h) - min(dy, 0)
    return ((x + y[:, None]) / (abs(dx) + abs(dy)))[..., None]


def _gradient(rng, w: int, h: int, start, end) -> np.ndarray:
    return _ramp(rng, w, h) * np.float32(end - start) + np.float32(start)


def _pattern(rng, w: int, h: int, strength: float) -> np.ndarray:
    """Returns (h, w, 1), stripes or checks within +-strength."""
    waves = np.sin(_ramp(rng, w, h) * rng.uniform(10, 60))
    if rng.random() < 0.5:
        waves = waves * np.sin(_ramp(rng, w, h) * rng.uniform(10, 60))
    return waves * rng.uniform(0, strength)


def _background(rng, h: int, w: int) -> np.ndarray:
    """Draws a gradient with clouds and a faint pattern, and lines, scribbles and words on it."""
    small, unit, font = (w // 4, h // 4), max(h, w) / 320, cv2.FONT_HERSHEY_SIMPLEX
    clouds = rng.normal(0, rng.uniform(0, 25), (*rng.integers(3, 9, 2), 3)).astype(np.float32)
    image = _gradient(rng, *small, *rng.uniform(*GROUND, (2, 3))) + _pattern(rng, *small, 10)
    image = np.clip(image + cv2.resize(clouds, small, interpolation=cv2.INTER_CUBIC), *GROUND)
    image = cv2.resize(image, (w, h)).astype(np.uint8)
    for _ in range(rng.integers(CLUTTER[0], CLUTTER[1] + 1)):
        colour, thickness = rng.uniform(0, PAINT[0], 3).tolist(), max(1, round(rng.uniform(0.5, 2.5) * unit))
        ends = (rng.uniform(0, 1, (2, 2)) * (w, h)).astype(int)
        match rng.integers(3):
            case 0:
                cv2.line(image, *ends.tolist(), colour, thickness, cv2.LINE_AA)
            case 1:
                heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.3, 40))
                walk = ends[0] + 6 * unit * np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), axis=0)
                cv2.polylines(image, [walk.astype(np.int32)], False, colour, thickness, cv2.LINE_AA)
            case _:  # of letters that look like none of the classes
                word = "".join(rng.choice(list("abcdefghkmnrsuvwyz"), rng.integers(2, 7)))
                scale = rng.uniform(0.4, 1.2) * unit
                cv2.putText(image, word, ends[0].tolist(), font, scale, colour, thickness, cv2.LINE_AA)
    return image


def _photograph(rng, image: np.ndarray) -> np.ndarray:
    """Applies exposure to all scenes; shadow, vignette, blur and noise to some."""
    h, w = image.shape[:2]
    small = w // 4, h // 4
    light = np.full((h // 4, w // 4, 3), rng.uniform(0.8, 1.2), np.float32)
    if rng.random() < 0.4:  # a shadow with a soft straight edge
        light *= 1 - rng.uniform(0, SHADE) / (1 + np.exp((_ramp(rng, *small) - rng.uniform(0.2, 0.8)) * 40))
    if rng.random() < 0.4:  # darker towards the corners
        y, x = np.linspace(-1, 1, h // 4)[:, None, None], np.linspace(-1, 1, w // 4)[:, None]
        light *= np.float32(1 - rng.uniform(0, SHADE) * (x * x + y * y) / 2)
    image = image * cv2.resize(light, (w, h)) + np.float32(rng.uniform(-15, 15))
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.1, 1) * BLUR * max(h, w))
    if rng.random() < 0.5:  # even numbers of -128 to 127 have a standard deviation of 74
        image += rng.integers(-128, 128, image.shape, np.int8) * np.float32(rng.uniform(0, NOISE) / 74)
    return np.clip(image, 0, 255).astype(np.uint8)
