"""Detectors for torch.hub, from this folder and without a network:

model = torch.hub.load("path/to/this/folder", "custom", path="best.pt", source="local")
model(["street.jpg", image]).print()
"""

# modules, not names: torch.hub offers whatever can be called in this file as a model
import contextlib as _contextlib
import importlib.machinery as _machinery
import importlib.util as _importlib
import logging as _logging
import os as _os
import sys as _sys
from collections.abc import Callable as _Callable
from pathlib import Path as _Path

_ROOT = _Path(__file__).resolve().parent

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
    _share_names()
    from models.autoshape import AutoShape
    from models.backend import find_weights
    from models.common import DetectMultiBackend

    with _quiet(not (verbose if _verbose is None else _verbose)):
        paths = [find_weights(p) for p in (path if isinstance(path, list | tuple) else [path])]
        model = DetectMultiBackend(paths, _select(device), trust=trust)
    return AutoShape(model) if autoshape else model


def _entry(name: str, cfg: str, weights: str, about: str) -> _Callable:
    def build(
        pretrained=True, channels=3, classes=80, autoshape=True, verbose=True, device=None, download=False,
        _verbose=None,
    ):  # fmt: skip
        _share_names()
        from models import backend, transfer
        from models.autoshape import AutoShape
        from models.common import DetectMultiBackend
        from models.yolo import Model

        with _quiet(not (verbose if _verbose is None else _verbose)):
            file = backend.find_weights(weights, download) if pretrained else None
            if file and (channels, classes) == (3, 80) and cfg == weights.replace(".pt", ".yaml"):
                model = DetectMultiBackend(file, _select(device))
            else:
                model = Model(cfg, channels, classes)
                if file:
                    source = backend.load_model(file, fuse=False)
                    transfer.transfer(source, model)
                    if len(source.names) == len(model.names):
                        model.names = source.names
                model.to(_select(device))
        return AutoShape(model) if autoshape else model

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
    from utils.device import select_device

    return select_device("" if device is None else device)


@_contextlib.contextmanager
def _quiet(on: bool):
    from utils.log import LOGGER

    level = LOGGER.level
    if on:
        LOGGER.setLevel(_logging.WARNING)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


def _share_names() -> None:
    """Lets a program with a module `utils` or `models` of its own have both: the detector's files are found in it too.

    One that lies in the program's folder and is not imported yet is imported here, since the name would be taken.
    Raises ImportError where one that is imported already has a name of the detector's: then only one of them can be.
    The package that pip installed has names of its own, so there is nothing to share.
    """
    if __name__.endswith(".hubconf"):
        return
    for room in ("utils", "models", "engine"):
        own, early = _sys.modules.get(room), False
        if own is None:
            own, early = _own_module(room), True
        if own is None or _is_ours(getattr(own, "__file__", None) or ""):
            continue
        folders = list(getattr(own, "__path__", []))
        shared = {*vars(own), *(_Path(entry).stem for folder in folders for entry in _os.listdir(folder))}
        shared &= {p.stem for p in (_ROOT / room).iterdir() if not p.name.startswith("_")}
        if not shared:
            own.__path__ = [*folders, str(_ROOT / room)]
        elif early:
            del _sys.modules[room]
        else:
            raise ImportError(
                f"the detector and this program both have a module `{room}` ({own.__file__}) with the names "
                f"{', '.join(sorted(shared))}; rename the program's, or load the detector in a process of its own"
            )


def _is_ours(file: str) -> bool:
    return _Path(file).resolve().is_relative_to(_ROOT)


def _own_module(name: str):
    """Imports the module of this name that the program has beside itself, not installed; None where it has none."""
    folders = [folder for folder in _sys.path if not _is_ours(folder) and "-packages" not in folder]
    spec = _machinery.PathFinder.find_spec(name, folders)
    if spec is None or not spec.origin or _is_ours(spec.origin):
        return None
    module = _sys.modules[name] = _importlib.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception:  # what the program does not import need not be importable
        del _sys.modules[name]
        return None
    return module


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
