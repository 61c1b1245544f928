"""Blocks of the user's own, in a Python file that --blocks names: its classes join those that model YAMLs may name.

The file is code, and it is run. So it is named on the command line only: nothing that a checkpoint, a YAML or a folder
of a run holds makes the program run one.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from utils.log import LOGGER
from utils.text import printable

_loaded: dict[str, ModuleType] = {}  # the file's name without .py -> the module that it became


def add(group: argparse._ActionsContainer) -> None:
    """Adds --blocks."""
    group.add_argument(
        "--blocks", nargs="+", default=[], metavar="FILE",
        help="Python files that define and register blocks of your own; needed wherever a model has one. They are run, "
        "so name only files whose code you trust",
    )  # fmt: skip


def use(files: list[str]) -> None:
    """Runs the files that --blocks names, each once in a process; their blocks are registered then.

    Raises FileNotFoundError, or ValueError that names the file and the line where its code fails.
    """
    for file in files:
        path = Path(file).resolve()
        if path.suffix != ".py" or not path.stem.isidentifier():
            raise ValueError(f"--blocks: {file} must be a Python file with a name such as my_blocks.py")
        if not path.is_file():
            raise FileNotFoundError(f"--blocks: no such file: {file}")
        known = _loaded.get(path.stem)
        if known and known.__file__ == str(path):
            continue
        if known or path.stem in sys.modules or importlib.util.find_spec(path.stem):
            raise ValueError(
                f"--blocks: {file} has the name of another module, {path.stem}; checkpoints name blocks by it, so call "
                "the file otherwise, such as my_blocks.py"
            )
        _loaded[path.stem] = _run(path)


def modules() -> list[ModuleType]:
    """Returns the modules of the files that were run."""
    return list(_loaded.values())


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    LOGGER.info(f"--blocks: running the code of {path}")
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code can raise anything
        del sys.modules[path.stem]
        if os.environ.get("YOLOv5_TRACEBACK"):
            raise
        line = _line(error, path)
        raise ValueError(
            f"--blocks: {path}{line}: {type(error).__name__}: {printable(str(error), lines=False)}"
        ) from None
    return module


def _line(error: Exception, path: Path) -> str:
    """Returns ", line 3", the last one of the file that led to the error; "" where none is known."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    number, frame = 0, error.__traceback__
    while frame:
        if frame.tb_frame.f_code.co_filename == str(path):
            number = frame.tb_lineno
        frame = frame.tb_next
    return f", line {number}" if number else ""
