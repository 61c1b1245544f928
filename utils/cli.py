"""What the command lines share: options that are stated once, and errors that a user can act on.

An option is stated in the parser of its verb: name, type, range, default, help. `parse` reads a command line with it,
`options` the keyword arguments of the verb's `run`; both give the same `Options`.

Imports nothing heavy: `--help` must answer before torch is loaded.
"""

import argparse
import atexit
import difflib
import functools
import gc
import importlib.util
import inspect
import numbers
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Number:
    """The `type` of an option that is a number: `kind` is int or float, `low` and `high` are its least and greatest
    value. argparse converts with it; `parse` and `options` then check the range.
    """

    kind: type
    low: float
    high: float | None = None

    def __call__(self, text: str) -> int | float:
        return self.kind(text)

    @property
    def __name__(self) -> str:  # by which argparse names it: "invalid int value: 'x'"
        return self.kind.__name__


def whole(low: int, high: int | None = None) -> Number:
    """The `type` of an option that is a whole number from `low` to `high`."""
    return Number(int, low, high)


def real(low: float, high: float | None = None) -> Number:
    """The `type` of an option that is a number from `low` to `high`."""
    return Number(float, low, high)


def parse(parser: argparse.ArgumentParser, known: bool = False, argv: Sequence[str] | None = None) -> Options:
    """Parses the command line, or the words in argv; with `known` it gives the defaults alone.

    Raises ValueError for a number out of its range; argparse itself ends the program for other mistakes.
    """
    untouched = object()
    names = [action.dest for action in _actions(parser)]
    opt = parser.parse_args([] if known else argv, Options(**dict.fromkeys(names, untouched)))
    opt.given = {name for name in names if getattr(opt, name) is not untouched}
    for name in set(names) - opt.given:
        setattr(opt, name, parser.get_default(name))
    check(parser, opt)
    return opt


def options(parser: argparse.ArgumentParser, values: Mapping[str, Any]) -> Options:
    """The same from keyword arguments, those of a verb's `run`: `options(parser, {"epochs": 3})`.

    Paths become text, and an option that takes several values becomes a list. Raises TypeError for an unknown name, and
    ValueError for a value of the wrong type, out of its range, or not among the choices.
    """
    actions = {action.dest: action for action in _actions(parser)}
    for name in values:
        if name not in actions:
            near = difflib.get_close_matches(name, actions, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(actions)}"
            raise TypeError(f"there is no option {name!r}; {hint}")
    opt = Options(**{name: parser.get_default(name) for name in actions})
    opt.given = set(values)
    for name, value in values.items():
        setattr(opt, name, _converted(actions[name], value))
    check(parser, opt)
    return opt


def check(parser: argparse.ArgumentParser, opt: Options) -> None:
    """ValueError for the first option whose value is out of its range or not among its choices."""
    for action in _actions(parser):
        value = getattr(opt, action.dest)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(action.type, Number) and item is not None:
                check_range(flag(action), item, action.type.low, action.type.high)
            if action.choices and item not in (None, action.default, action.const, *action.choices):
                raise ValueError(f"{flag(action)} must be one of {', '.join(action.choices)}, got {item!r}")


def takes(make_parser: Callable[[], argparse.ArgumentParser], *positional: str) -> Callable[[Callable], Callable]:
    """Decorator of a verb's `run(**options)`: the first arguments may come by position, in the order of these names,
    and `help(run)` shows every option with its default.
    """

    def add(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*values, **keywords):
            if len(values) > len(positional):
                raise TypeError(f"{len(positional)} arguments may come by position, got {len(values)}")
            named = dict(zip(positional, values))
            if twice := named.keys() & keywords.keys():
                raise TypeError(f"{', '.join(sorted(twice))}: given by position and by name")
            return function(**named, **keywords)

        parser = make_parser()
        actions = {action.dest: action for action in _actions(parser)}
        own = inspect.signature(function)
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=actions[name].default)
            for name in positional
        ]
        parameters += [inspect.Parameter(n, kind, default=a.default) for n, a in actions.items() if n not in positional]
        parameters += [p.replace(kind=kind) for p in own.parameters.values() if p.kind != p.VAR_KEYWORD]
        run.__signature__ = own.replace(parameters=parameters)
        helps = {name: (action.help or "") % {**vars(action), "prog": ""} for name, action in actions.items()}
        lines = [f"    {name}: {text}" for name, text in helps.items() if text != argparse.SUPPRESS]
        run.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Options:", *lines])
        return run

    return add


def flag(action: argparse.Action) -> str:
    """The name of an option as a user types it, such as --conf-thres; of several the first."""
    return (action.option_strings or [action.dest])[0]


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.dest not in ("help", argparse.SUPPRESS)]


def _converted(action: argparse.Action, value: Any) -> Any:
    """A keyword argument as the command line would have given it."""
    if value is None:
        return None
    if isinstance(action, argparse._StoreTrueAction):
        return bool(value)
    if action.nargs in ("+", "*"):
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        return [_one(action, item) for item in values]
    return _one(action, value)


def _one(action: argparse.Action, value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if action.type is None or (action.nargs == "?" and value == action.const):
        return value
    kind = getattr(action.type, "kind", action.type)
    if kind not in (int, float):  # a function that reads text
        return kind(value) if isinstance(value, str) else value
    is_number = isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
    try:
        if is_number or isinstance(value, str):
            return kind(value)
    except ValueError:
        pass
    raise ValueError(f"{flag(action)} must be {'a whole number' if kind is int else 'a number'}, got {value!r}")


def run(main: Callable[[Options], object], opt: Options | Callable[[], Options], verb: str) -> None:
    """Calls main with the options, or with those that `opt` returns where it is the function that parses them.

    What a user can cause ends in one message and exit status 1, Ctrl-C in 130.

    YOLOv5_TRACEBACK=1 in the environment shows where the error came from.
    """
    atexit.register(gc.freeze)  # otherwise Python looks for cycles in all of torch once more: 0.4 s at the end
    try:
        main(opt() if callable(opt) else opt)
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
