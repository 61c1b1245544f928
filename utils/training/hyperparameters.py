"""Hyper-parameter files: they are read, checked, and scaled to the model and the batch size."""

import difflib
import math
import re
from pathlib import Path

from utils.cli import Range
from utils.files import ROOT, parse_yaml, read_text, with_numbers
from utils.log import LOGGER

NOMINAL_BATCH = 64  # an optimizer step uses the gradients of about this many images; weight decay is stated for them
WARMUP_FLOOR = 1000  # v6.1 warms up for at least this many iterations
SHORT_RUN = 3 * WARMUP_FLOOR  # iterations; of a shorter run the warm-up would take more than a third


_POSITIVE = Range(0, open_low=True)
_NOT_NEGATIVE = Range(0)
_FRACTION = Range(0, 1)  # of fractions and probabilities

# Wide on purpose: they stop mistakes, not experiments. In the order of the files and of the columns of evolve.csv
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
    "anchor_t": Range(1, open_low=True),  # with 1 no object would match any anchor
    "anchors": _NOT_NEGATIVE,
    "fl_gamma": _NOT_NEGATIVE,
    "hsv_h": _FRACTION,
    "hsv_s": _FRACTION,
    "hsv_v": _FRACTION,
    "degrees": Range(0, 360),
    "translate": _FRACTION,
    "scale": _FRACTION,
    "shear": Range(0, 90, open_high=True),
    "perspective": Range(0, 0.01),  # 1 / pixel; above this the horizon lies inside the image
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
# Optional entries that are not numbers
CHOICES = {
    "optimizer": ("SGD", "Adam", "AdamW"),
    "cos_lr": (True, False),  # the learning rate falls as a cosine, not as a line
    "scale_cls": (True, False),  # cls is stated for 80 classes, and scaled to the number of classes of the data set
}
# Label smoothing, optimizer and cosine usually come from the command line. The defaults of the others are v6.1's: 1000
# iterations of warm-up, a nominal batch of 64, no ema_share, cls scaled, mosaics of four images, no Albumentations
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

# Keys that came with later releases, and their values for a file that is older; iou_t, which nothing reads, as in v6.1
LATER = {"perspective": 0.0, "mixup": 0.0, "copy_paste": 0.0, "iou_t": 0.2}


def choose_hyp(images: int, epochs: int, batch_size: int, optimizer: str | None = None) -> tuple[Path, str]:
    """Returns the hyper-parameter file for a run without --hyp, and the reason in a few words.

    v6.1's schedule warms up for 1000 iterations and averages the weights over thousands of steps of 64 images. For a
    run of fewer than 3000 iterations the warm-up is too long, so it gets hyp.short.yaml. Every other run gets v6.1's
    hyp.scratch-low.yaml.

    Args:
        images: in the training split.
        batch_size: images per iteration over all processes.
        optimizer: the one that the user gave, or None. The learning rates of hyp.short.yaml suit AdamW only.
    """
    iterations = math.ceil(images / batch_size) * epochs
    if iterations >= SHORT_RUN:
        name = "scratch-low"
        reason = f"v6.1's schedule, since the run has {iterations:,} iterations, at least {SHORT_RUN:,}"
    elif optimizer not in (None, "AdamW"):
        name = "scratch-low"
        reason = f"v6.1's schedule, since --optimizer is {optimizer}; its warm-up is long for {iterations:,} iterations"
    else:
        name = "short"
        reason = f"since the run has {iterations:,} iterations, and v6.1's warm-up alone takes {WARMUP_FLOOR:,}"
    return ROOT / "data" / "hyps" / f"hyp.{name}.yaml", reason


def load_hyp(path: str | Path) -> dict[str, float | str]:
    """Reads the hyper-parameters of a YAML file, in the order of the file: numbers, and the entries of CHOICES.

    Unknown keys are left out, with a warning, unless they look like a slip in a known one's name. Missing keys of LATER
    get its values.

    Raises FileNotFoundError, or one ValueError that lists all faults of the file, each with its line: text that is not
    YAML, missing or misspelt keys, values of the wrong type or out of their range.
    """
    text = read_text(path)  # read once: it may be a pipe
    hyp = with_numbers(parse_yaml(text, path))
    lines = {}
    for number, line in enumerate(text.splitlines(), 1):
        if key := re.match(r"""["']?(\w+)["']?\s*:""", line):
            lines[key[1]] = number
    _leave_out_unknown(hyp, str(path), lines)
    hyp.update({key: value for key, value in LATER.items() if key not in hyp})
    check_hyp(hyp, str(path), lines)
    return hyp


def _leave_out_unknown(hyp: dict[str, float | str], source: str, lines: dict[str, int]) -> None:
    """Removes keys of other programs from `hyp`, with a warning for each; what is a slip in a key's name stays."""
    known = [*RANGES, *CHOICES]
    absent = [key for key in known if key not in hyp]
    for key in [key for key in hyp if key not in known]:
        if not _meant(key, _missing(hyp)) and not _meant(key, absent, 0.8):
            place = f"{source}:{lines[key]}" if key in lines else source
            LOGGER.warning(f"{place}: unknown key '{key}' is ignored")
            del hyp[key]


def check_hyp(hyp: dict[str, float | str], source: str = "hyp", lines: dict[str, int] | None = None) -> None:
    """Raises one ValueError that lists all faults of `hyp`, each with its place: `source` and `lines`, key -> line."""
    lines = lines or {}
    missing = _missing(hyp)
    problems = [f"{source}: missing key '{key}'" for key in missing]
    for key, value in hyp.items():
        place = f"{source}:{lines[key]}" if key in lines else source
        if problem := _problem(key, value, missing):
            problems.append(f"{place}: {problem}")
    if problems:
        raise ValueError("\n".join(problems))


def _missing(hyp: dict[str, float | str]) -> list[str]:
    return [key for key in RANGES if key not in hyp and key not in OPTIONAL]


def _meant(key: object, known: list[str], cutoff: float = 0.6) -> str | None:
    near = difflib.get_close_matches(str(key).lower(), known, 1, cutoff)
    return near[0] if near else None


def _problem(key: str, value: object, missing: list[str]) -> str | None:
    """Returns the fault of one entry, or None. An unknown key is compared first with those that are missing."""
    if key in CHOICES:
        known = any(value == choice and type(value) is type(choice) for choice in CHOICES[key])
        return None if known else f"{key} must be {_listed(CHOICES[key])}, got {_shown(value)}"
    if key not in RANGES:
        near = _meant(key, missing) or _meant(key, [*RANGES, *CHOICES])
        return f"unknown key '{key}'" + (f"; did you mean '{near}'?" if near else "")
    if isinstance(value, str):
        hint = "; write it without quotes" if _is_number(value) else ""
        return f"{key} must be a number, got the text '{value}'{hint}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{key} must be a number, got {value!r}"
    if value not in RANGES[key]:
        return f"{key} must be {RANGES[key]}, got {value}"
    return None


def _listed(choices: tuple) -> str:
    """Returns `a, b or c`."""
    *others, last = map(_shown, choices)
    return f"{', '.join(others)} or {last}"


def _shown(value: object) -> str:
    """Returns a value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def scale_hyp(
    hyp: dict[str, float | str], nl: int, nc: int, image_size: int, label_smoothing: float = 0.0
) -> dict[str, float | str]:
    """Returns a copy of `hyp` with its loss weights scaled to nl detection levels, nc classes and the image size.

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
    """Returns the batches per optimizer step, at least 1: nominal_batch / batch_size, rounded."""
    return max(round(nominal_batch / batch_size), 1)


def scale_weight_decay(weight_decay: float, batch_size: int, nominal_batch: int = NOMINAL_BATCH) -> float:
    """Returns the weight decay scaled from nominal_batch to the images of one optimizer step."""
    return weight_decay * batch_size * accumulation(batch_size, nominal_batch) / nominal_batch
