"""What the command lines share: common options, and errors that a user can act on.

Imports nothing heavy: `--help` must answer before torch is loaded.
"""

import argparse
import atexit
import gc
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

DATA = "data/shapes.yaml"  # the data set that the project draws itself
WEIGHTS = "yolov5s.pt"


class Default(str):
    """A string option that the user did not give. argparse keeps the object where no `type` is set."""


def add_run_folder(parser: argparse.ArgumentParser, project: str) -> None:
    """Adds --project, --name, --exist-ok: results go to project/name, name2, name3 ..."""
    group = parser.add_argument_group("where results go")
    group.add_argument("--project", default=project, help="folder of runs (default: %(default)s)")
    group.add_argument("--name", default="exp", help="this run's folder in it; exp2, exp3 ... when taken")
    group.add_argument("--exist-ok", action="store_true", help="write into an existing folder")


class _Gone(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string} is not an option any more: {self.const}")


def add_gone(parser: argparse.ArgumentParser, options: dict[str, str]) -> None:
    """Options of v6.1 that end in an error which says what serves instead."""
    for name, instead in options.items():
        parser.add_argument(
            name, nargs="?", action=_Gone, const=instead, dest=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


class Options(argparse.Namespace):
    """Options, and in `given` the names of those that the user set; the others are defaults."""

    __slots__ = ("given",)  # not among vars()


def parse(parser: argparse.ArgumentParser, known: bool = False, argv: Sequence[str] | None = None) -> Options:
    """Parses the command line; with `known`, as a library call, nothing but the defaults."""
    untouched = object()
    names = [action.dest for action in parser._actions if action.dest not in ("help", argparse.SUPPRESS)]
    opt = parser.parse_args([] if known else argv, Options(**dict.fromkeys(names, untouched)))
    opt.given = {name for name in names if getattr(opt, name) is not untouched}
    for name in set(names) - opt.given:
        setattr(opt, name, parser.get_default(name))
    return opt


def run(main: Callable[[argparse.Namespace], object], opt: argparse.Namespace, verb: str) -> None:
    """Calls main(opt). What a user can cause ends in one message and exit status 1, Ctrl-C in 130.

    YOLOv5_TRACEBACK=1 in the environment shows where the error came from.
    """
    atexit.register(gc.freeze)  # otherwise Python looks for cycles in all of torch once more: 0.4 s at the end
    try:
        main(opt)
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        # of torch's RuntimeErrors only the full GPU is the user's to mend; torch is not imported here
        bug = isinstance(error, RuntimeError) and type(error).__name__ != "OutOfMemoryError"
        if bug or os.environ.get("YOLOv5_TRACEBACK"):
            raise
        print(f"{verb}: error: {_message(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stop:  # Ctrl-C, or another signal that `stopped_by_signals` turned into one
        number = stop.args[0] if stop.args else signal.SIGINT
        print(f"{verb}: stopped by {signal.Signals(number).name}", file=sys.stderr)
        sys.exit(128 + number)


def _message(error: Exception) -> str:
    """What an error says. One that comes from a process that reads images holds a traceback; its last line counts."""
    text = str(error).strip()
    if isinstance(error, MemoryError | RuntimeError):
        return f"out of memory; try a smaller --batch-size or --imgsz ({text})"
    if "Original Traceback (most recent call last)" in text:
        return text.splitlines()[-1].partition(": ")[2]
    return text or type(error).__name__


def number_or_text(text: str) -> int | str:
    """An option's value that may be either."""
    return int(text) if text.lstrip("-").isdecimal() else text


def frame_sides(imgsz: int | Sequence[int]) -> list[int]:
    """[height, width] from what --imgsz takes: one number for both, or the two. ValueError for more of them."""
    sides = [imgsz] if isinstance(imgsz, int) else list(imgsz)
    if len(sides) not in (1, 2):
        raise ValueError(f"--imgsz takes one number, or height and width, got {sides}")
    return (sides * 2)[:2]


def check_range(flag: str, value: float, low: float, high: float | None = None) -> None:
    """ValueError unless low <= value <= high; NaN is never in range."""
    if not (low <= value and (high is None or value <= high)):
        rule = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{flag} must be {rule}, got {value}")


def require(package: str, flag: str) -> None:
    """ValueError unless a package that only `flag` needs is installed. Does not import it."""
    if not installed(package):
        name = package.split(".")[0]
        raise ValueError(f"{flag} needs the package {name}, which is not installed: pip install {name}")


def installed(package: str) -> bool:
    """Whether a package, or a part of one such as `executorch.runtime`, can be imported. Does not import the part."""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # the package of which it is a part
        return False
    return spec is not None and spec.origin is not None  # else it is only a folder of that name, such as wandb's runs


def override(opt: Options, values: dict) -> Options:
    """Options as keyword arguments, as `run(**kwargs)` of a verb takes them; an unknown name is a TypeError."""
    unknown = set(values) - set(vars(opt))
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}; known: {', '.join(sorted(vars(opt)))}")
    vars(opt).update(values)
    opt.given |= set(values)
    return opt


def describe(verb: str, opt: argparse.Namespace) -> str:
    """The options in one line, for the log."""
    return f"{verb}: " + ", ".join(f"{k}={v}" for k, v in vars(opt).items())


# --- signals ----------------------------------------------------------------------------------------------------------


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Inside, SIGTERM ends the program the way Ctrl-C does: as a KeyboardInterrupt, which cleans up on its way."""

    def stop(number: int, _) -> None:
        raise KeyboardInterrupt(number)

    with _handlers((signal.SIGTERM,), stop):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM wait: what must be done whole is done whole, then the signal has its effect."""
    waiting = []
    with _handlers((signal.SIGINT, signal.SIGTERM), lambda number, _: waiting.append(number)):
        yield
    if waiting:
        signal.raise_signal(waiting[0])


@contextmanager
def _handlers(signals: tuple[int, ...], handler: Callable) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    old = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
