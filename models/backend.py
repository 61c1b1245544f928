"""Runs a trained detector behind one call, whatever its file format."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.experimental import Ensemble
from models.rebuild import Names, fill_from_state, rebuild
from models.yolo import Model
from utils import checkpoint
from utils.boxes import check_image_size
from utils.data.dataset_yaml import load_dataset_yaml
from utils.files import ROOT
from utils.log import LOGGER
from utils.pickles import StandIn
from utils.runtimes.base import Runtime
from utils.runtimes.table import RUNTIMES, runtime_for


def newest_best() -> Path | None:
    """Returns the `best.pt` that was written last, below runs/ of the current folder or of the repository."""
    files = {p.resolve() for root in {Path.cwd(), ROOT} for p in (root / "runs").glob("**/best.pt")}
    return max(files, key=lambda p: p.stat().st_mtime, default=None)


def find_weights(name: str | Path, download: bool = False) -> Path:
    """Returns the path of the checkpoint, or exported file or folder, that `--weights` names.

    It is downloaded only with `download`. Raises FileNotFoundError that proposes the newest `best.pt` of a training
    run, if there is one.
    """
    path = Path(name)
    for candidate in (path, ROOT / path):
        if candidate.is_file() or (candidate.is_dir() and runtime_for(candidate)):
            return candidate
    if download:
        from utils.downloads import download_weights

        return download_weights(path)
    best = newest_best()
    otherwise = "train a model, or get official weights with detect.py --download"
    hint = f"your newest trained weights are {best}" if best else otherwise
    raise FileNotFoundError(f"no such weights: {path}; {hint}")


def load_checkpoint(path: str | Path) -> dict:
    """Reads a checkpoint; `model` and `ema` are detectors built anew (see rebuild.py), in the stored precision.

    The other entries are plain: text, numbers, lists, dicts and tensors. Raises ValueError that names the file.
    """
    with _no_collection():
        names = Names()
        content = checkpoint.load(path, names.known)
        try:
            content["model"] = rebuild(content["model"], names, numbers := Path(path).stat().st_size)
            if content.get("ema") is not None:
                content["ema"] = _averaged(content["ema"], content["model"], names, numbers)
        except ValueError as error:
            raise ValueError(f"{path}: {checkpoint.on_one_line(error)}") from None
    return content


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps Python from looking for garbage: a file makes many objects in a row, and each look takes longer."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _averaged(ema: Any, model: Model, names: Names, numbers: int) -> Model:
    """Returns the averaged model, which a file has as a model, as (model, updates) or as a state dict."""
    if isinstance(ema, tuple | list) and ema:
        ema = ema[0]
    if isinstance(ema, StandIn):
        return rebuild(ema, names, numbers)
    if not isinstance(ema, dict):
        raise ValueError(f"`ema` must be a model or a state dict, got {type(ema).__name__}")
    return fill_from_state(deepcopy(model), ema)


def load_model(weights: str | Path | list, device: str | torch.device = "cpu", fuse: bool = True) -> nn.Module:
    """Returns a detector in float32 and eval mode from its checkpoint, or an Ensemble from several checkpoints.

    It has the averaged weights where the checkpoint holds them.
    """
    paths = weights if isinstance(weights, list | tuple) else [weights]
    members = []
    for path in paths:
        content = load_checkpoint(path)
        model = (content.get("ema") or content["model"]).float()
        members.append((model.fuse() if fuse else model).eval().to(device))
    if len(members) == 1:
        return members[0]
    if len({m.model[-1].nc for m in members}) > 1:
        raise ValueError(
            f"the models of an ensemble must have the same number of classes, got {[m.model[-1].nc for m in members]}"
        )
    if len({channels_of(m) for m in members}) > 1:
        raise ValueError(
            f"the models of an ensemble must take the same number of channels, got {list(map(channels_of, members))}"
        )
    ensemble = Ensemble(members).eval()
    ensemble.names = members[-1].names
    ensemble.stride = max((m.stride for m in members), key=lambda s: float(s.max()))
    return ensemble


class Backend(nn.Module):
    """A trained detector behind one call.

    Attributes: names (list of str), stride (int, the multiple in pixels that image sides must be of), device, dtype and
    channels of the images that it takes; fixed: (height, width) of the only image size that an exported file takes, or
    None.

    Args:
        weights: a `.pt` file or a list of them (ensemble), or one file or folder that export.py wrote.
        device: where to run.
        half: float16 weights and images, on CUDA only. Exported files have a precision of their own.
        dnn: run an ONNX file with OpenCV.
        data: data set YAML that names the classes, for exported files without metadata.
        trust: open an exported file that is a program also where this installation did not write it.
    """

    def __init__(
        self,
        weights: str | Path | list,
        device: torch.device | str = "cpu",
        half: bool = False,
        dnn: bool = False,
        data: str | None = None,
        trust: bool = False,
    ):
        super().__init__()
        self.device = torch.device(device)
        self.runtime = open_exported(weights, self.device, dnn, trust)
        self._classes, self._data = None, data  # number of classes that come out, once it is known
        if self.runtime is not None:
            metadata = self.runtime.metadata
            self.model = None
            self.dtype = self.runtime.dtype
            self.names = list(metadata.names)
            if data and not self.runtime.declared:
                self.names = load_dataset_yaml(data, ())["names"]
            self.stride, self.channels = metadata.stride, metadata.channels
            self.fixed = None if metadata.dynamic else metadata.imgsz
            return
        if half and self.device.type != "cuda":
            LOGGER.warning(f"--half needs a CUDA GPU; running in float32 on {self.device}")
            half = False
        self.model = load_model(weights, self.device).to(memory_format=torch.channels_last)
        self.dtype = torch.float16 if half else torch.float32
        self.model.to(self.dtype)
        self.names = self.model.names
        self.stride, self.channels = self.model.image_multiple, channels_of(self.model)
        self.fixed = None

    def _apply(self, *arguments, **options):
        """Moves the weights, for .to(), .half(), .cuda() and the like; an exported file stays where it was opened."""
        super()._apply(*arguments, **options)
        if self.model is not None:
            weight = next(self.model.parameters())
            self.device, self.dtype = weight.device, weight.dtype
        return self

    def forward(self, images: torch.Tensor, augment: bool = False):
        """Returns (decoded (B, N, 5 + nc), raw maps or None) for images (B, C, H, W) in self.dtype, 0-1.

        Raises ValueError where an exported file has more classes than there are names.
        """
        if self.runtime is None:
            return self.model(images.contiguous(memory_format=torch.channels_last), augment=augment)
        self.check_use(augment=augment)
        rows = self.runtime(images)
        self._check_names(rows.shape[-1] - 5)
        return rows, None

    def _check_names(self, nc: int) -> None:
        """Compares the number of classes that come out of an exported file with that of their names, once."""
        if nc == self._classes:
            return
        file, count = self.runtime.path, len(self.names)
        where = "its metadata" if self.runtime.declared else self._data
        if nc > count:
            fix = "export it again" if self.runtime.declared else "give the data set YAML that it was trained with"
            raise ValueError(f"{file} detects {nc} classes, but {where or 'this program'} names {count}; {fix}")
        if nc < count and where:
            LOGGER.warning(
                f"{file} detects {nc} classes, but {where} names {count}; the other classes are never detected"
            )
        self._classes = nc

    def check_use(self, conf_thres: float = 1.0, iou_thres: float = 0.0, augment: bool = False) -> None:
        """Raises ValueError for what an exported file cannot do; warns where its own NMS removes too much."""
        if self.runtime is None:
            return
        metadata = self.runtime.metadata
        if augment:
            raise ValueError(f"--augment runs the image at several sizes and needs a .pt file, got {self.runtime.path}")
        if metadata.nms and (conf_thres < metadata.conf_thres or iou_thres > metadata.iou_thres):
            LOGGER.warning(
                f"{self.runtime.path} includes NMS with confidence {metadata.conf_thres} and IoU {metadata.iou_thres}: "
                f"detections that it removes are missing at confidence {conf_thres} and IoU {iou_thres}"
            )


def channels_of(model: nn.Module) -> int:
    """Returns the number of channels of the images that a Model, an Ensemble or a Backend takes."""
    if isinstance(model, nn.ModuleList):
        model = model[0]
    return model.channels if isinstance(model, Backend) else getattr(model, "yaml", {}).get("ch", 3)


def frame_size(model: nn.Module, size: int | list[int]) -> int | list[int]:
    """Returns the size as `check_image_size` rounds it, or the fixed [height, width] of an exported file."""
    if model.fixed is None:
        return check_image_size(size, model.stride)
    fixed = list(model.fixed)
    if fixed != ([size, size] if isinstance(size, int) else list(size)):
        LOGGER.warning(
            f"--imgsz {size}: the file was exported for {fixed[0]} x {fixed[1]} pixels, so that size is used"
        )
    return fixed


def open_exported(
    weights: str | Path | list, device: torch.device, dnn: bool = False, trust: bool = False
) -> Runtime | None:
    """Returns the runtime of an exported file or folder; None for a `.pt` file or a name without a suffix.

    trust: opens files that are programs also where this installation did not write them; else they are a ValueError.
    """
    paths = weights if isinstance(weights, list | tuple) else [weights]
    exported = [path for path in paths if runtime_for(path)]
    if not exported:
        unknown = [p for p in paths if Path(p).suffix not in (".pt", ".pth", "")]
        if unknown and not dnn:
            known = ".pt, " + ", ".join(RUNTIMES)
            raise ValueError(f"{unknown[0]}: files of this kind cannot be run; known kinds are {known}")
        if dnn:
            raise ValueError(f"--dnn runs ONNX files, got {paths[0]}")
        return None
    if len(paths) > 1:
        raise ValueError(f"an ensemble takes .pt files only, got {exported[0]}")
    if dnn and not str(exported[0]).endswith(".onnx"):
        raise ValueError(f"--dnn runs ONNX files, got {exported[0]}")
    if dnn:
        from utils.runtimes.onnx_file import OpenCVRuntime

        runtime = OpenCVRuntime(exported[0], device)
    else:
        runtime = runtime_for(exported[0])(exported[0], device, trust)
    if runtime.metadata.train:
        raise ValueError(
            f"{exported[0]} was exported with --train and gives raw maps, not boxes; export it again without --train"
        )
    return runtime
