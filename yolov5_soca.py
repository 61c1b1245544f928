"""The project as one package, and its command: `import yolov5_soca as y` and `yolov5-soca train ...`.

    model = y.load("best.pt")
    detections = model("photo.jpg")
    y.train(data="my.yaml", epochs=100)

What pip installs is the package `yolov5_soca` with all of the project in it: this file is its `__init__`, the four
commands are in `yolov5_soca.commands`, and `yolov5_soca.models`, `yolov5_soca.utils` and the others have the names that
they have in a checkout (see hatch_build.py). A program's own modules `models` and `utils` are not touched.

Importing it loads neither torch nor any other file of the project.
"""

import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    import torch

    from models.autoshape import AutoShape
    from models.common import DetectMultiBackend
    from utils.evaluation.evaluator import Measurement

__version__ = "0.1.0"
__all__ = ["__version__", "detect", "export", "load", "main", "train", "val"]

# command -> its module, and what it does
COMMANDS = {
    "train": ("train", "train a detector"),
    "val": ("val", "measure a trained detector"),
    "detect": ("detect", "detect objects in images, videos and streams"),
    "export": ("export", "write a detector in the formats of other programs"),
    "doctor": ("tools.doctor", "check a data set"),
    "split": ("tools.split", "split a data set into train, val and test"),
    "preview": ("tools.preview", "show a data set on a page, with its labels drawn"),
    "convert": ("tools.convert", "convert labels from one format into another"),
    "explain": ("tools.explain", "show a model YAML as a table with its costs"),
    "ablate": ("tools.ablate", "compare kinds of attention on a data set"),
    "attend": ("tools.attend", "show what attention does to images"),
    "compare": ("tools.compare", "compare finished runs"),
    "benchmark": ("tools.benchmark_formats", "measure a detector in every format"),
    "demo": ("tools.demo", "train, validate and detect on drawn images, in some minutes"),
}
SHELLS = ("bash", "zsh", "tcsh")
USAGE = f"""usage: yolov5-soca COMMAND [options]

{chr(10).join(f"  {name:11}{text}" for name, (_, text) in COMMANDS.items())}
  completion print the script that lets a shell complete all this: yolov5-soca completion {"|".join(SHELLS)}

yolov5-soca COMMAND --help lists the options of a command; --version prints the version.
"""


# --- Python -----------------------------------------------------------------------------------------------------------


def load(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    device: "str | torch.device | None" = None,
    autoshape: bool = True,
    trust: bool = False,
    verbose: bool = False,
) -> "AutoShape | DetectMultiBackend":
    """Returns a trained detector.

    `load("best.pt")("photo.jpg")` gives Detections: `.xyxy[0]` (n, 6) x1, y1, x2, y2 in pixels, confidence, class;
    `.pandas()`, `.save()`, `.show()`.

    Args:
        path: a checkpoint, a list of checkpoints (ensemble), or a file or folder that `export` wrote.
        device: "cpu", a GPU as "0" or "cuda:0", "mps"; None takes the first GPU, or the CPU if there is none.
        autoshape: return what takes images of any kind; False: what takes a tensor of images (B, 3, H, W), 0-1.
        trust: open a file that is a program (such as TorchScript) also where `export` did not write it.
        verbose: log the loading.

    Raises FileNotFoundError where there is no such file, ValueError where it is not a detector's.
    """
    return _module("hubconf").custom(path, autoshape=autoshape, verbose=verbose, device=device, trust=trust)


def train(**options: Any) -> "Measurement | dict[str, float]":
    """Trains with the options of `yolov5-soca train`, dashes as underscores: `train(data="my.yaml", epochs=100)`.

    Returns what the best checkpoint reaches on the val split, a named tuple: precision, recall, mAP50, mAP50-95 and
    the losses; with `evolve` the best hyper-parameters.

    Raises TypeError for an unknown option, ValueError or FileNotFoundError for a wrong value, data set or weights.
    """
    return _module("train").run(**options)


def val(**options: Any) -> tuple:
    """Measures a detector with the options of `yolov5-soca val`: `val(weights="best.pt", data="my.yaml")`.

    Returns (the numbers of a Measurement, mAP50-95 of each class, milliseconds per image of three steps), as v6.1.

    Raises TypeError for an unknown option, ValueError or FileNotFoundError for a wrong value, data set or weights.
    """
    return _module("val").run(**options)


def detect(**options: Any) -> Path:
    """Detects with the options of `yolov5-soca detect`: `detect(weights="best.pt", source="photos/")`.

    Returns the folder of the results, below runs/detect of the current folder.

    Raises TypeError for an unknown option, ValueError or FileNotFoundError for a wrong value, source or weights.
    """
    return _module("detect").run(**options)


def export(**options: Any) -> list[str]:
    """Writes other formats with the options of `yolov5-soca export`: `export(weights="best.pt", include=["onnx"])`.

    Returns the paths of what was written.

    Raises TypeError for an unknown option, ValueError or FileNotFoundError for a wrong value or weights.
    """
    return _module("export").run(**options)


def _name(module: str) -> str:
    """Returns the name of a module of the checkout where the project runs now: there, or as an installed package."""
    if not hasattr(sys.modules[__name__], "__path__"):
        return module
    return f"{__name__}.commands.{module}" if module in ("train", "val", "detect", "export") else f"{__name__}.{module}"


def _module(module: str) -> Any:
    return importlib.import_module(_name(module))


# --- the command ------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `yolov5-soca` with the words of argv, or of the command line: a command with its own options.

    A command runs as its own file does when Python is given it, in the current folder, where its runs go.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
    elif words[0] in ("-V", "--version"):
        print(f"yolov5-soca {__version__}")
    elif words[0] == "completion":
        _print_completion(words[1:])
    elif words[0] in COMMANDS:
        sys.argv = [f"yolov5-soca {words[0]}", *words[1:]]
        runpy.run_module(_name(COMMANDS[words[0]][0]), run_name="__main__")
    else:
        import difflib

        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        sys.exit(f"yolov5-soca: error: there is no command {words[0]!r}; {hint}")


def make_parser() -> "argparse.ArgumentParser":
    """Returns one parser with every command and all their options, for the completion in shells."""
    import argparse

    parser = argparse.ArgumentParser("yolov5-soca")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for name, (module, text) in COMMANDS.items():
        own = _module(module).make_parser()
        commands.add_parser(name, help=text, description=text, parents=[own], conflict_handler="resolve")
    return parser


def _print_completion(words: list[str]) -> None:
    if len(words) != 1 or words[0] not in SHELLS:
        sys.exit(f"yolov5-soca: error: completion needs the shell, one of {', '.join(SHELLS)}")
    if not importlib.util.find_spec("shtab"):
        sys.exit("yolov5-soca: error: completion needs the package shtab, which is not installed: pip install shtab")
    import shtab

    print(shtab.complete(make_parser(), shell=words[0]))


if __name__ == "__main__":
    main()
