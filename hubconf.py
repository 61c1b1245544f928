"""Detectors for torch.hub, from this folder and without a network:

model = torch.hub.load("path/to/this/folder", "custom", path="best.pt", source="local")
model(["street.jpg", image]).print()
"""

import contextlib as _contextlib
import logging as _logging
from collections.abc import Callable as _Callable

# modules, not names: torch.hub offers whatever can be called in this file as a model
from models import autoshape as _autoshape
from models import backend as _backend
from models import common as _common
from models import transfer as _transfer
from models import yolo as _yolo
from utils import device as _device
from utils import log as _log

dependencies = ["torch", "torchvision", "numpy", "cv2", "yaml", "PIL"]  # checked by torch.hub


def custom(path="path/to/model.pt", autoshape=True, verbose=True, device=None, trust=False, _verbose=None):
    """Loads a trained detector.

    Args:
        path: its checkpoint, a list of checkpoints (ensemble), or a file or folder that export.py wrote.
        autoshape: return an AutoShape, which takes images of any kind and returns Detections; otherwise a
            DetectMultiBackend, which takes tensors and returns decoded rows.
        verbose: log the loading.
        device: "cpu", a GPU as "0" or "cuda:0", "mps"; None takes the first GPU, or the CPU if there is none.
        trust: open a file that is a program (TorchScript, .pt2, .pte, SavedModel, GraphDef, TensorRT engine) also where
            export.py of this installation did not write it. Data (.pt, ONNX, OpenVINO ...) needs no trust.
        _verbose: v6.2's name of `verbose`.

    Raises FileNotFoundError where there is no such file.
    """
    with _quiet(not (verbose if _verbose is None else _verbose)):
        paths = [_backend.find_weights(p) for p in (path if isinstance(path, list | tuple) else [path])]
        model = _common.DetectMultiBackend(paths, _select(device), trust=trust)
    return _autoshape.AutoShape(model) if autoshape else model


def _entry(name: str, cfg: str, weights: str, about: str) -> _Callable:
    def build(
        pretrained=True, channels=3, classes=80, autoshape=True, verbose=True, device=None, download=False,
        _verbose=None,
    ):  # fmt: skip
        with _quiet(not (verbose if _verbose is None else _verbose)):
            file = _backend.find_weights(weights, download) if pretrained else None
            if file and (channels, classes) == (3, 80) and cfg == weights.replace(".pt", ".yaml"):
                model = _common.DetectMultiBackend(file, _select(device))
            else:
                model = _yolo.Model(cfg, channels, classes)
                if file:
                    source = _backend.load_model(file, fuse=False)
                    _transfer.transfer(source, model)
                    if len(source.names) == len(model.names):
                        model.names = source.names
                model.to(_select(device))
        return _autoshape.AutoShape(model) if autoshape else model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{about}

    Args:
        pretrained: load the weights {weights} from the current folder or the repository's. A model of another number
            of channels or classes takes what fits; see models/transfer.py.
        channels: of the images.
        classes: number of classes.
        autoshape: return an AutoShape, which takes images of any kind and returns Detections; False to train the model.
        verbose: log the building.
        device: "cpu", a GPU as "0" or "cuda:0", "mps"; None takes the first GPU, or the CPU if there is none.
        download: fetch the official weights if they are missing.

    Raises FileNotFoundError where the weights are missing.
    """
    return build


def _select(device):
    return _device.select_device("" if device is None else device)


@_contextlib.contextmanager
def _quiet(on: bool):
    level = _log.LOGGER.level
    if on:
        _log.LOGGER.setLevel(_logging.WARNING)
    try:
        yield
    finally:
        _log.LOGGER.setLevel(level)


def _official(name: str) -> _Callable:
    return _entry(name, f"{name}.yaml", f"{name}.pt", f"{name} of v6.1.")


yolov5n, yolov5s, yolov5m, yolov5l, yolov5x = (_official(f"yolov5{size}") for size in "nsmlx")
yolov5n6, yolov5s6, yolov5m6, yolov5l6, yolov5x6 = (_official(f"yolov5{size}6") for size in "nsmlx")
_OFFICIAL = (yolov5n, yolov5s, yolov5m, yolov5l, yolov5x, yolov5n6, yolov5s6, yolov5m6, yolov5l6, yolov5x6)
soca = _entry(
    "soca",
    "SOCA.yaml",
    "yolov5s.pt",
    "yolov5s with second-order channel attention, to be trained: it starts as accurate as yolov5s.pt, since SOCA "
    "starts as the identity.\n\n    A trained one is loaded with `custom`.",
)


def _create(name, pretrained=True, channels=3, classes=80, autoshape=True, verbose=True, device=None):
    """Returns the detector of one of the names above, or of the path of trained weights; v6.1's name for it."""
    if entry := {m.__name__: m for m in _OFFICIAL}.get(str(name).removesuffix(".pt")):
        return entry(pretrained, channels, classes, autoshape, verbose, device)
    return custom(name, autoshape, verbose, device)


if __name__ == "__main__":
    from utils.cli import say

    say(f"{__doc__}\nIts entries, each described by torch.hub.help(folder, entry, source='local'):\n")
    for _entry_point in (custom, *_OFFICIAL, soca):
        say(f"  {_entry_point.__name__:10} {_entry_point.__doc__.splitlines()[0]}")
