"""Hyper-parameter files: reading, checking, and scaling to the model and batch at hand."""

import difflib
import math
import re
from pathlib import Path

from utils.cli import Range
from utils.files import ROOT, parse_yaml, read_text

NOMINAL_BATCH = 64  # gradients are gathered over about this many images; weight decay is stated for this batch
WARMUP_FLOOR = 1000  # v6.1 warms up for as many iterations at least
SHORT_RUN = 3 * WARMUP_FLOOR  # iterations; in a shorter run a third and more would be warm-up


# Wide on purpose: the ranges stop mistakes, not experiments
_POSITIVE = Range(0, open_low=True)
_NOT_NEGATIVE = Range(0)
_FRACTION = Range(0, 1)  # and probabilities

# In the order of the files, which is the column order of evolve.csv
RANGES = {
    "lr0": _POSITIVE,
    "lrf": _NOT_NEGATIVE,
    "momentum": Range(0, 1, open_high=True),
    "weight_decay": _NOT_NEGATIVE,
    "warmup_epochs": _NOT_NEGATIVE,
    "warmup_momentum": Range(0, 1, open_high=True),
    "warmup_bias_lr": _NOT_NEGATIVE,
    "box": _NOT_NEGATIVE,
    "cls": _NOT_NEGATIVE,
    "cls_pw": _POSITIVE,
    "obj": _NOT_NEGATIVE,
    "obj_pw": _POSITIVE,
    "iou_t": _FRACTION,
    "anchor_t": Range(1, open_low=True),  # at 1 no object would match any anchor
    "anchors": _NOT_NEGATIVE,
    "fl_gamma": _NOT_NEGATIVE,
    "hsv_h": _FRACTION,
    "hsv_s": _FRACTION,
    "hsv_v": _FRACTION,
    "degrees": Range(0, 180),
    "translate": _FRACTION,
    "scale": _FRACTION,
    "shear": Range(0, 90, open_high=True),
    "perspective": Range(0, 0.01),  # 1 / pixel: beyond this the horizon lies inside the picture
    "flipud": _FRACTION,
    "fliplr": _FRACTION,
    "mosaic": _FRACTION,
    "mixup": _FRACTION,
    "copy_paste": _FRACTION,
    "mosaic9": _FRACTION,
    "albumentations": _FRACTION,
    "label_smoothing": _FRACTION,
    "warmup_floor": _NOT_NEGATIVE,
    "nominal_batch": Range(1),
    "ema_share": Range(0, 1, open_low=True),
}
# Optional entries that are no numbers
CHOICES = {
    "optimizer": ("SGD", "Adam", "AdamW"),
    "cos_lr": (True, False),  # the learning rate falls as a cosine, not in a line
    "scale_cls": (True, False),  # cls is stated for 80 classes, and scaled to those of the data set
}
# Label smoothing, optimizer and cosine normally come from the command line; the others are v6.1's unless a file says
# otherwise: 1000 iterations, a batch of 64, no share, cls scaled, mosaics of four, no Albumentations
OPTIONAL = (
    "anchors",
    "mosaic9",
    "albumentations",
    "label_smoothing",
    "warmup_floor",
    "nominal_batch",
    "ema_share",
    *CHOICES,
)


def choose_hyp(images: int, epochs: int, batch_size: int, optimizer: str | None = None) -> tuple[Path, str]:
    """The hyper-parameter file for a run that names none, and why in a few words.

    v6.1's schedule warms up for 1000 iterations and averages the weights over thousands of steps of 64 images. A run of
    fewer than 3000 iterations would be warm-up in good part, and is over before it has learned anything: it gets
    hyp.short.yaml. Every other run gets v6.1's hyp.scratch-low.yaml.

    Args:
        images: in the training split.
        batch_size: images per iteration over all processes.
        optimizer: one that the user asked for. The rates of the short recipe suit AdamW only.
    """
    iterations = math.ceil(images / batch_size) * epochs
    steps = f"{iterations:,} iterations"
    if iterations >= SHORT_RUN:
        name, reason = "scratch-low", f"{steps}, at least {SHORT_RUN:,}: v6.1's schedule"
    elif optimizer not in (None, "AdamW"):
        name, reason = (
            "scratch-low",
            f"--optimizer {optimizer}: v6.1's schedule, though its warm-up is long for {steps}",
        )
    else:
        name, reason = "short", f"{steps}, fewer than {SHORT_RUN:,}: v6.1's warm-up would take {WARMUP_FLOOR:,} of them"
    return ROOT / "data" / "hyps" / f"hyp.{name}.yaml", reason


def load_hyp(path: str | Path) -> dict[str, float | str]:
    """The hyper-parameters of a YAML file, in the file's own order. Numbers, and the words and switches of CHOICES.

    Raises FileNotFoundError, or one ValueError that lists everything wrong with the file: text that is not YAML,
    missing and unknown keys, values of the wrong kind or out of range, each with its line.
    """
    text = read_text(path)  # once: it may be a pipe
    hyp = parse_yaml(text, path)
    lines = {}
    for number, line in enumerate(text.splitlines(), 1):
        if key := re.match(r"""["']?(\w+)["']?\s*:""", line):
            lines[key[1]] = number
    check_hyp(hyp, str(path), lines)
    return hyp


def check_hyp(hyp: dict[str, float | str], source: str = "hyp", lines: dict[str, int] | None = None) -> None:
    """Raises a ValueError that lists every problem of `hyp`; `source` and `lines` (key -> line) say where they are."""
    lines = lines or {}
    missing = [key for key in RANGES if key not in hyp and key not in OPTIONAL]
    problems = [f"{source}: missing key '{key}'" for key in missing]
    for key, value in hyp.items():
        place = f"{source}:{lines[key]}" if key in lines else source
        if problem := _problem(key, value, missing):
            problems.append(f"{place}: {problem}")
    if problems:
        raise ValueError("\n".join(problems))


def _problem(key: str, value: object, missing: list[str]) -> str | None:
    """What is wrong with one entry, or None. An unknown key is compared with the missing ones first: a likely typo."""
    if key in CHOICES:
        known = any(value == choice and type(value) is type(choice) for choice in CHOICES[key])
        return None if known else f"{key} must be {_listed(CHOICES[key])}, got {_shown(value)}"
    if key not in RANGES:
        close = difflib.get_close_matches(str(key), missing, 1)
        close = close or difflib.get_close_matches(str(key), [*RANGES, *CHOICES], 1)
        return f"unknown key '{key}'" + (f"; did you mean '{close[0]}'?" if close else "")
    if isinstance(value, str):
        hint = "; leave out quotes, and write 1.0e-3 for 1e-3, which YAML takes for text" if _is_number(value) else ""
        return f"{key} must be a number, got the text '{value}'{hint}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{key} must be a number, got {value!r}"
    if value not in RANGES[key]:
        return f"{key} must be {RANGES[key]}, got {value}"
    return None


def _listed(choices: tuple) -> str:
    *others, last = map(_shown, choices)
    return f"{', '.join(others)} or {last}"


def _shown(value: object) -> str:
    """As YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def scale_hyp(
    hyp: dict[str, float | str], nl: int, nc: int, image_size: int, label_smoothing: float = 0.0
) -> dict[str, float | str]:
    """A copy of `hyp` whose loss weights suit nl detection levels, nc classes and an image side in pixels.

    The files state them for 3 levels, 80 classes and 640 pixels; with `scale_cls: false` for any number of classes.
    """
    classes = nc / 80 if hyp.get("scale_cls", True) else 1
    return {
        **hyp,
        "box": hyp["box"] * 3 / nl,
        "cls": hyp["cls"] * classes * 3 / nl,
        "obj": hyp["obj"] * (image_size / 640) ** 2 * 3 / nl,
        "label_smoothing": label_smoothing,
    }


def accumulation(batch_size: int, nominal_batch: int = NOMINAL_BATCH) -> int:
    """Batches per optimizer step, at least 1, that bring the images per step nearest to the nominal batch."""
    return max(round(nominal_batch / batch_size), 1)


def scale_weight_decay(weight_decay: float, batch_size: int, nominal_batch: int = NOMINAL_BATCH) -> float:
    """Weight decay for the images that one optimizer step really sees."""
    return weight_decay * batch_size * accumulation(batch_size, nominal_batch) / nominal_batch
