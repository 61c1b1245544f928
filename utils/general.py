"""General helpers by v6.1's names, for programs written for it: `from utils.general import non_max_suppression`.

Each is the project's own function with v6.1's arguments, in v6.1's order. Nothing in the project imports this file.
None of these functions installs a package or uses the network, except `download`. What says so changes its argument.
"""

import argparse
import contextlib
import glob
import importlib.metadata
import math
import os
import platform
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
import torch

from utils import boxes as _boxes
from utils import checkpoint
from utils import cli as _cli
from utils import device as _device
from utils import files as _files
from utils import nms as _nms
from utils.boxes import Array
from utils.boxes import box_iou as box_iou
from utils.data import dataset_yaml as _dataset_yaml
from utils.data import letterbox as _letterbox
from utils.evaluation.metrics import fitness as fitness
from utils.files import ROOT, home
from utils.log import LOGGER
from utils.text import redact
from utils.training import sampling as _sampling

DATASETS_DIR = home().parent / "datasets"
NUM_THREADS = min(8, max(1, (os.cpu_count() or 1) - 1))
NCOLS = 120  # columns of a progress bar

_CODES = {
    **{name: 30 + i for i, name in enumerate("black red green yellow blue magenta cyan white".split())},
    **{f"bright_{name}": 90 + i for i, name in enumerate("black red green yellow blue magenta cyan white".split())},
    **{"end": 0, "bold": 1, "underline": 4},
}


# --- detections -------------------------------------------------------------------------------------------------------


def non_max_suppression(
    prediction: torch.Tensor | Sequence[torch.Tensor],
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    labels: Sequence[torch.Tensor] = (),
    max_det: int = 300,
) -> list[torch.Tensor]:
    """Returns the detections (n, 6) of each image, see `utils.nms`.

    prediction: decoded rows (B, N, 5 + nc), or all that a model returns.

    A detection is x1, y1, x2, y2 in pixels of the network's input, confidence, class.
    """
    decoded = prediction if isinstance(prediction, torch.Tensor) else prediction[0]
    return _nms.non_max_suppression(decoded, conf_thres, iou_thres, classes, agnostic, multi_label, labels, max_det)


def scale_coords(img1_shape: Sequence[int], coords: Array, img0_shape: Sequence[int], ratio_pad=None) -> Array:
    """Maps xyxy boxes (n, 4 or more) of the network's input to the original image; changes `coords` and returns it.

    img1_shape, img0_shape: (height, width) of the input and of the original image; more numbers are passed over.
    ratio_pad: ((gain_h, gain_w), (pad_w, pad_h)) of the loader.
    """
    coords[..., :4] = _letterbox.scale_boxes(coords[..., :4], img1_shape[:2], img0_shape[:2], ratio_pad)
    return coords


def clip_coords(boxes: Array, shape: Sequence[int]) -> Array:
    """Clips xyxy boxes (n, 4 or more) to an image of shape (height, width); changes `boxes` and returns it."""
    boxes[..., :4] = _boxes.clip_boxes(boxes[..., :4], shape[:2])
    return boxes


scale_boxes, clip_boxes = scale_coords, clip_coords  # their names since v6.2


def apply_classifier(x: Sequence[torch.Tensor], model: torch.nn.Module, img: torch.Tensor, im0: Any) -> list:
    """Keeps those detections whose class the classifier finds too, in a square crop of 224 pixels around each.

    x:   detections (n, 6) of each image, in pixels of the network's input; the result is in pixels of the original.
    img: the network's input (B, 3, h, w). im0: the original image, BGR uint8, or a list of them.
    """
    originals, kept = [im0] if isinstance(im0, np.ndarray) else im0, list(x)
    for i, (found, original) in enumerate(zip(x, originals)):
        if found is None or not len(found):
            continue
        centred = _boxes.xyxy_to_xywh(found[:, :4])
        side = centred[:, 2:].amax(1, keepdim=True).expand(-1, 2) * 1.3 + 30
        square = scale_coords(img.shape[2:], _boxes.xywh_to_xyxy(torch.cat((centred[:, :2], side), 1)), original.shape)
        scale_coords(img.shape[2:], found, original.shape)
        crops = [original[y1:y2, x1:x2] for x1, y1, x2, y2 in square.long().tolist()]
        planes = [cv2.resize(crop, (224, 224))[..., ::-1].transpose(2, 0, 1) for crop in crops]
        pixels = torch.from_numpy(np.ascontiguousarray(planes, np.float32) / 255).to(found.device)
        kept[i] = found[model(pixels).argmax(1) == found[:, 5].long()]
    return kept


# --- boxes and polygons -----------------------------------------------------------------------------------------------


def _converted(x: Array, convert, *args) -> Array:
    """A copy of x (..., 4 or more) whose first four columns are converted."""
    y = x.clone() if isinstance(x, torch.Tensor) else np.copy(x)
    y[..., :4] = convert(y[..., :4], *args)
    return y


def xyxy2xywh(x: Array) -> Array:
    """Converts corners to centre form in the first four columns of a copy."""
    return _converted(x, _boxes.xyxy_to_xywh)


def xywh2xyxy(x: Array) -> Array:
    """Converts centre form to corners in the first four columns of a copy."""
    return _converted(x, _boxes.xywh_to_xyxy)


def xywhn2xyxy(x: Array, w: float = 640, h: float = 640, padw: float = 0, padh: float = 0) -> Array:
    """Converts centre form, 0-1 of an image (w, h) that lies at (padw, padh), to pixel corners."""
    return _converted(x, _boxes.xywhn_to_xyxy, w, h, padw, padh)


def xyxy2xywhn(x: Array, w: float = 640, h: float = 640, clip: bool = False, eps: float = 0.0) -> Array:
    """Converts pixel corners to centre form, 0-1 of an image (w, h); with clip, x itself is clipped first."""
    if clip:
        clip_coords(x, (h - eps, w - eps))
    return _converted(x, _boxes.xyxy_to_xywhn, w, h)


def xyn2xy(x: Array, w: float = 640, h: float = 640, padw: float = 0, padh: float = 0) -> Array:
    """Converts points (n, 2), 0-1 of an image (w, h) that lies at (padw, padh), to pixels."""
    return _boxes.points_to_pixels(x, w, h, padw, padh)


def segment2box(segment: np.ndarray, width: int = 640, height: int = 640) -> np.ndarray:
    """Returns the xyxy box (4,) around those points of a pixel polygon (k, 2) that lie in the image."""
    return _boxes.polygon_to_box(segment, width, height)


def segments2boxes(segments: list[np.ndarray]) -> np.ndarray:
    """Returns the xywh boxes (n, 4) around polygons."""
    return _boxes.polygons_to_boxes(segments)


def resample_segments(segments: list[np.ndarray], n: int = 1000) -> list[np.ndarray]:
    """Returns each polygon with n points."""
    return _boxes.resample_polygons(segments, n)


# --- sizes and training -----------------------------------------------------------------------------------------------


def make_divisible(x: float, divisor: Any) -> int:
    """Returns the smallest multiple of divisor, a number or a tensor of strides, that is not below x."""
    return _boxes.round_up(x, int(torch.as_tensor(divisor).max()))


def check_img_size(imgsz: int | list[int], s: Any = 32, floor: int = 0) -> int | list[int]:
    """Returns the image size, one number or [height, width], rounded up to multiples of the stride s."""
    return _boxes.check_image_size(imgsz, int(torch.as_tensor(s).max()), floor)


def one_cycle(y1: float = 0.0, y2: float = 1.0, steps: int = 100):
    """Returns a function that goes from y1 to y2 along half a cosine, in that many steps."""
    return lambda x: (1 - math.cos(x * math.pi / steps)) / 2 * (y2 - y1) + y1


def init_seeds(seed: int = 0) -> None:
    """Seeds the random numbers of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def labels_to_class_weights(labels: Sequence[np.ndarray], nc: int = 80) -> torch.Tensor:
    """Returns the inverse frequency (nc,) of each class, of labels (n, 5) per image with the class first; sum 1."""
    return torch.from_numpy(_sampling.class_weights(labels, nc)).float()


def labels_to_image_weights(labels: Sequence[np.ndarray], nc: int = 80, class_weights: Any = None) -> np.ndarray:
    """Returns for each image the sum of the class weights (nc,) of its objects."""
    return _sampling.image_weights(labels, np.ones(nc) if class_weights is None else np.asarray(class_weights))


def intersect_dicts(da: dict, db: dict, exclude: Sequence[str] = ()) -> dict:
    """Returns the tensors of da that db has by the same name and shape, without names that hold a text of `exclude`."""
    return {k: v for k, v in da.items() if k in db and not any(x in k for x in exclude) and v.shape == db[k].shape}


def strip_optimizer(f: str | Path = "best.pt", s: str | Path = "") -> None:
    """Takes the training state out of a checkpoint f; writes it to s, or in its place."""
    from models.backend import load_checkpoint

    checkpoint.strip(f, s, read=load_checkpoint)


# --- files and checks -------------------------------------------------------------------------------------------------


def increment_path(path: str | Path, exist_ok: bool = False, sep: str = "", mkdir: bool = False) -> Path:
    """Returns the first free name of `runs/exp`, `runs/exp{sep}2`, `runs/exp{sep}3` ...; mkdir creates the folder.

    Of a path with a suffix, a file, mkdir creates the folder that it is to lie in.
    """
    path = Path(path)
    is_file = bool(path.suffix)
    if sep and path.exists() and not exist_ok:
        stem, suffix = (path.with_suffix(""), path.suffix) if is_file else (path, "")
        found = (re.match(re.escape(stem.name + sep) + r"(\d+)", p.name) for p in path.parent.iterdir())
        path = Path(f"{stem}{sep}{max((int(m[1]) for m in found if m), default=1) + 1}{suffix}")
    if mkdir and is_file:
        path.parent.mkdir(parents=True, exist_ok=True)
    return _files.increment_path(path, exist_ok, mkdir=mkdir and not is_file)


def check_file(file: str | Path, suffix: str | Sequence[str] = "") -> str:
    """Returns the path of a file that lies at `file` or below data/, models/ or utils/; "" for "".

    Raises FileNotFoundError where there is none, ValueError where there are several, for another suffix, and for a URL.
    """
    if not str(file):
        return ""
    if re.match(r"(?i)https?:/", str(file)):
        raise ValueError(f"{redact(str(file))}: this is a URL; download it, and give the file")
    suffixes = (suffix,) if isinstance(suffix, str) and suffix else tuple(suffix)
    return str(_files.find_file(file, suffixes))


def check_yaml(file: str | Path, suffix: Sequence[str] = (".yaml", ".yml")) -> str:
    """Returns the path of a YAML file, found as by `check_file`."""
    return check_file(file, suffix)


def check_suffix(file: Any = "yolov5s.pt", suffix: Sequence[str] = (".pt",), msg: str = "") -> None:
    """Raises ValueError for a file, or a list of them, that has a suffix and not one of these."""
    suffixes = (suffix,) if isinstance(suffix, str) else tuple(suffix)
    for name in [file] if isinstance(file, str | Path) else file:
        if Path(name).suffix and Path(name).suffix.lower() not in suffixes:
            raise ValueError(f"{msg}{name}: the suffix must be one of {', '.join(suffixes)}")


def check_dataset(data: str | Path | dict, autodownload: bool = True) -> dict[str, Any]:
    """Returns the data set that a YAML file describes; a dict is returned as it is. Nothing is downloaded."""
    return data if isinstance(data, dict) else _dataset_yaml.load_dataset_yaml(data)


def check_imshow(warn: bool = False) -> bool:
    """Returns whether a window can be opened; with `warn` a warning says so where not."""
    from utils.inference.results import has_display

    found = has_display()
    if warn and not found:
        LOGGER.warning("no window can be opened: there is no display, or OpenCV was built without windows")
    return found


def check_git_status(*_: Any) -> None:
    """Does nothing: v6.1 asks the network for a newer release here."""


def check_version(
    current: str = "0.0.0", minimum: str = "0.0.0", name: str = "version", pinned: bool = False,
    hard: bool = False, verbose: bool = False,
) -> bool:  # fmt: skip
    """Returns whether a version is at least the minimum, with `pinned` that one; with `hard`, ValueError if not."""
    from packaging.version import parse

    met = parse(current) == parse(minimum) if pinned else parse(current) >= parse(minimum)
    fault = f"{name} {'must be' if pinned else 'must be at least'} {minimum}, got {current}"
    if hard and not met:
        raise ValueError(fault)
    if verbose and not met:
        LOGGER.warning(fault)
    return met


def check_python(minimum: str = "3.10.0") -> None:
    """Raises ValueError where Python is older than `minimum`."""
    check_version(platform.python_version(), minimum, name="Python", hard=True)


def check_requirements(
    requirements: str | Path | Iterable[str] = ROOT / "requirements.txt",
    exclude: Iterable[str] = (),
    install: bool = True,
    cmds: str = "",
) -> bool:
    """Returns whether packages are installed, and warns of those that are not. Nothing is ever installed.

    requirements: a requirements file, one line of it such as "onnx>=1.16", or a list of such lines.
    exclude: names of packages to pass over. install, cmds: accepted for v6.1's sake.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    if isinstance(requirements, Path) or str(requirements).endswith(".txt"):
        lines = [re.split(r"(?:^|\s)#", line)[0].strip() for line in Path(requirements).read_text().splitlines()]
    else:
        lines = [requirements] if isinstance(requirements, str) else list(requirements)
    missing = []
    for line in lines:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:  # an option of pip, or an empty line
            continue
        if wanted.name in exclude or (wanted.marker and not wanted.marker.evaluate()):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None or not wanted.specifier.contains(version, prereleases=True):
            missing.append(line)
    if missing:
        LOGGER.warning(f"not installed: {', '.join(missing)}; pip install " + " ".join(f"'{line}'" for line in missing))
    return not missing


def url2file(url: str) -> str:
    """Returns the file name at the end of a URL."""
    return Path(unquote(urlsplit(str(url).replace(":/", "://").replace(":///", "://")).path)).name


def download(url: str | Sequence[str], dir: str | Path = ".", **ignored: Any) -> None:  # noqa: A002  v6.1's name
    """Downloads one URL or several into a folder; a file that is there already is kept. Nothing is unpacked."""
    from utils.downloads import download as fetch

    for address in [url] if isinstance(url, str | Path) else url:
        target = Path(dir) / url2file(str(address))
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            fetch(str(address), target)


def file_size(path: str | Path) -> float:
    """Returns the size of a file, or of all files in a folder, in units of 1e6 bytes."""
    return _files.megabytes(path)


def get_latest_run(search_dir: str | Path = ".") -> str:
    """Returns the `last*.pt` below a folder that was changed last; "" where there is none."""
    return max(glob.glob(f"{search_dir}/**/last*.pt", recursive=True), key=os.path.getctime, default="")


# --- text and the log -------------------------------------------------------------------------------------------------


def set_logging(name: Any = None, verbose: bool = True):
    """Returns the project's logger; the other arguments are accepted for v6.1's sake."""
    return LOGGER


def colorstr(*words: str) -> str:
    """Returns the last text in the colours and styles named before it, by default blue and bold, for a terminal."""
    *styles, text = words if len(words) > 1 else ("blue", "bold", *words)
    return "".join(f"\033[{_CODES[style]}m" for style in styles) + f"{text}\033[0m"


def print_args(name: Any = "", opt: Any = None, **ignored: Any) -> None:
    """Logs options in one line: print_args(name, opt) as in v6.1, or print_args(vars(opt)) as in later releases."""
    name, opt = ("", name) if opt is None else (name, opt)
    options = opt if isinstance(opt, dict) else vars(opt)
    LOGGER.info(_cli.describe(str(name) or "options", argparse.Namespace(**options)))


def clean_str(s: str) -> str:
    """Returns the text with `_` for each character that a file name or a shell would not take as it is."""
    return re.sub(r"[|@#!¡·$€%&()=?¿^*;:,¨´><+]", "_", s)


def is_ascii(s: Any = "") -> bool:
    """Returns whether the text of anything, such as a list of names, is ASCII only."""
    return str(s).isascii()


# --- contexts ---------------------------------------------------------------------------------------------------------


class Profile(_device.Timer, contextlib.ContextDecorator):
    """A stopwatch for `with` and functions: `dt` is the seconds of the last use, `t` those of all."""

    def __init__(self, t: float = 0.0, device: Any = None):
        super().__init__(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.total = t

    @property
    def t(self) -> float:
        """Returns the seconds of all uses."""
        return self.total

    @property
    def dt(self) -> float:
        """Returns the seconds of the last use."""
        return self.last


class WorkingDirectory(contextlib.ContextDecorator):
    """Changes the current folder inside `with`, and back after it."""

    def __init__(self, new_dir: str | Path):
        self.dir, self.cwd = new_dir, Path.cwd().resolve()

    def __enter__(self) -> None:
        os.chdir(self.dir)

    def __exit__(self, *_) -> None:
        os.chdir(self.cwd)
