"""Lets programs import this checkout as a package: `from yolov5.utils.general import non_max_suppression`.

Where its folder is called `yolov5` and the folder above is on sys.path, `yolov5.utils`, `yolov5.models`,
`yolov5.detect` and so on are the modules `utils`, `models`, `detect` themselves, not second copies. The checkout is
therefore added at the end of sys.path; a module `utils` of the program's own, found before it, is an ImportError that
says so.

`load` and `YOLOv5` are the calls of the package of that name on PyPI.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent
_ROOMS = ("engine", "models", "utils", "hubconf", "train", "val", "detect", "export")


class _OneCopy(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `<this package>.models.yolo` as `models.yolo`."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        room = name.removeprefix(f"{__name__}.").split(".")[0]
        if not name.startswith(f"{__name__}.") or room not in _ROOMS:
            return None
        _check_own(room)
        own = importlib.util.find_spec(name.removeprefix(f"{__name__}."))
        return own and importlib.machinery.ModuleSpec(name, self, origin=own.origin)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        module = importlib.import_module(spec.name.removeprefix(f"{__name__}."))
        spec.loader_state = module.__spec__  # importing replaces it
        return module

    def exec_module(self, module: Any) -> None:
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, name: str) -> Any:
        """Returns the code of a module, for `python -m`."""
        own = importlib.util.find_spec(name.removeprefix(f"{__name__}."))
        return own.loader.get_code(own.name)


def _check_own(room: str) -> None:
    spec = importlib.util.find_spec(room)
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    if not any(place and Path(place).resolve().is_relative_to(_ROOT) for place in places):
        other = f"it is {places[0] or places[1]}" if places else "there is none"
        raise ImportError(
            f"{__name__}.{room} imports `{room}` of {_ROOT}, but in this program {other}; rename the program's own "
            f"`{room}`, or put {_ROOT} first on sys.path"
        )


def load(model_path: Any, device: Any = None, autoshape: bool = True, verbose: bool = False) -> Any:
    """Returns a trained detector, as `hubconf.custom` does."""
    from hubconf import custom

    return custom(model_path, autoshape=autoshape, verbose=verbose, device=device)


class YOLOv5:
    """A trained detector that is called by `predict`; load_on_init: load it now, else with `load_model`."""

    def __init__(self, model_path: Any, device: Any = None, load_on_init: bool = True):
        self.model_path, self.device, self.model = model_path, device, None
        if load_on_init:
            self.load_model()

    def load_model(self) -> None:
        """Loads the weights."""
        self.model = load(self.model_path, self.device)

    def predict(self, image_list: Any, size: int = 640, augment: bool = False) -> Any:
        """Returns the detections in an image or a list of images, as `models.autoshape` does."""
        return self.model(image_list, size=size, augment=augment)


if str(_ROOT) not in sys.path:
    sys.path.append(str(_ROOT))
sys.meta_path.insert(0, _OneCopy())
