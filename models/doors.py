"""Names that programs written for v6.1 import from `models.common` and `models.experimental`, which look them up here.

Nothing in the project imports this file, and importing blocks loads none of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.autoshape import AutoShape, Detections
from models.backend import Backend, find_weights, load_model
from models.common import same_padding
from models.second_order import ITERATIONS, covariance, newton_schulz_sqrt
from utils.class_names import ClassNames
from utils.inference.features import FeatureRecorder
from utils.text import PACKAGE

__all__ = ["AutoShape", "ClassNames", "DetectMultiBackend", "Detections", "attempt_load", "autopad"]
__all__ += ["Covpool", "CovpoolLayer", "Sqrtm", "SqrtmLayer"]

# the attribute of v6.1 that says which kind of file runs, and the ends of the names of such files
_KINDS = {
    "jit": (".torchscript",),
    "onnx": (".onnx",),
    "xml": ("_openvino_model", ".xml"),
    "engine": (".engine",),
    "coreml": (".mlmodel", ".mlpackage"),
    "saved_model": ("_saved_model",),
    "pb": (".pb",),
    "tflite": (".tflite",),
    "edgetpu": ("_edgetpu.tflite",),
    "tfjs": ("_web_model",),
}


def autopad(k: int | Sequence[int], p: Any = None) -> Any:
    """Returns the padding p; without one that by which an odd kernel k keeps the size at stride 1."""
    return same_padding(k) if p is None else p


def attempt_load(
    weights: str | Path | Sequence[str | Path],
    map_location: Any = None,
    inplace: bool = True,
    fuse: bool = True,
    device: Any = None,
) -> nn.Module:
    """Returns a detector in float32 and eval mode from its checkpoint; of several an Ensemble.

    map_location, device: where to put it, by the name that v6.1 or v6.2 has for this; the CPU by default.
    inplace: accepted for v6.1's sake; has no effect.

    Raises FileNotFoundError where there is no such file: official weights are not downloaded.
    """
    paths = [find_weights(w) for w in ([weights] if isinstance(weights, str | Path) else weights)]
    place = device if device is not None else map_location
    model = load_model(paths, "cpu" if place is None else place, fuse=fuse).requires_grad_(False)
    model.names = ClassNames(model.names)
    return model


class DetectMultiBackend(Backend):
    """A trained detector of any file format, with v6.1's attributes, whose call returns the decoded rows alone.

    Attributes besides those of Backend: pt, jit, onnx, xml, engine, coreml, saved_model, pb, tflite, edgetpu, tfjs
    (which kind of file it is), dnn, fp16, and model, the network itself (None for files that are not torch's).

    Args:
        weights: a `.pt` file or a list of them (ensemble), or one file or folder that export.py wrote.
        device: where to run; None is the CPU.
        dnn: run an ONNX file with OpenCV.
        data: data set YAML that names the classes, for exported files without metadata.
        fp16: float16 weights, on CUDA only. fuse: accepted for v6.2's sake; the batch norms are always folded.
    """

    __module__ = f"{PACKAGE}models.common"

    def __init__(
        self,
        weights: str | Path | Sequence[str | Path] = "yolov5s.pt",
        device: Any = None,
        dnn: bool = False,
        data: str | Path | None = None,
        fp16: bool = False,
        fuse: bool = True,
        **options: Any,
    ):
        paths = [find_weights(w) for w in ([weights] if isinstance(weights, str | Path) else weights)]
        super().__init__(paths, torch.device(device or "cpu"), fp16, dnn, data, **options)
        self.requires_grad_(False).eval()
        self.names = ClassNames(self.names)
        name = str(paths[0]).lower()
        self.pt, self.dnn, self.triton = self.runtime is None, dnn, False
        for kind, ends in _KINDS.items():
            setattr(self, kind, not self.pt and not dnn and name.endswith(ends))
        self.tflite = self.tflite and not self.edgetpu
        if self.jit:
            self.model = getattr(self.runtime, "graph", None)

    @property
    def fp16(self) -> bool:
        """Whether the weights are in float16."""
        return self.dtype == torch.float16

    def forward(self, im: torch.Tensor, augment: bool = False, visualize: Any = False, val: bool = False) -> Any:
        """Returns decoded rows (B, N, 5 + nc) of images (B, 3, H, W), 0-1; with `val` a tuple, raw maps second.

        visualize: a folder, to which the feature maps of the layers are written; of `.pt` files only.
        """
        if visualize and self.pt:
            with FeatureRecorder(self.model, Path(visualize)):
                decoded, raw = super().forward(im, augment)
        else:
            decoded, raw = super().forward(im, augment)
        return (decoded, [] if raw is None else raw) if val else decoded

    def warmup(self, imgsz: Sequence[int] = (1, 3, 640, 640), half: bool = False) -> None:
        """Runs once over zeros of this shape (B, C, H, W), on a GPU only: the first pass takes longer than others."""
        if self.device.type != "cpu":
            dtype = torch.float16 if half or self.fp16 else torch.float32
            self(torch.zeros(*imgsz, device=self.device, dtype=dtype))


# --- around a pasted SOCA ---------------------------------------------------------------------------------------------

# Such code calls covariance pooling and its root by these names. They are correct for any use.


def CovpoolLayer(x: torch.Tensor) -> torch.Tensor:
    """Returns the covariance (N, C, C) of a map (N, C, H, W)."""
    return covariance(x)


def SqrtmLayer(x: torch.Tensor, iterN: int = ITERATIONS) -> torch.Tensor:
    """Returns the square root of a symmetric (N, C, C) by iterN coupled Newton-Schulz steps."""
    return newton_schulz_sqrt(x, iterN)


class Covpool:
    """Offers `Covpool.apply(x)`, for code that expects an autograd function."""

    apply = staticmethod(CovpoolLayer)


class Sqrtm:
    """Offers `Sqrtm.apply(x, iterN)`, for code that expects an autograd function."""

    apply = staticmethod(SqrtmLayer)
