"""What the command lines share: options that are stated once, errors as one message, and signals.

An option is stated in the parser of its verb: name, type, range, default, help. `parse` reads a command line with it,
`options` the keyword arguments of the verb's `run`; both give the same `Options`.

It imports nothing slow, so that `--help` answers before torch is loaded.
"""

import argparse
import atexit
import difflib
import functools
import gc
import importlib.util
import inspect
import math
import numbers
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from utils.text import printable, redact

DATA = "data/shapes.yaml"  # the data set that the project draws itself
DATA_HELP = "data set YAML, or its labels: a folder, a COCO JSON, a list of images (default: %(default)s)"
WEIGHTS = "yolov5s.pt"  # official weights, where no others are given


def add_run_folder(parser: argparse.ArgumentParser, project: str) -> None:
    """Adds --project, --name and --exist-ok: results go to project/name, name2, name3 ..."""
    group = parser.add_argument_group("where results go")
    group.add_argument("--project", default=project, help="folder of runs (default: %(default)s)")
    group.add_argument("--name", default="exp", help="folder of this run in it; exp2, exp3 ... where it exists")
    group.add_argument("--exist-ok", action="store_true", help="write into an existing folder")


def add_download(group: argparse._ActionsContainer) -> None:
    """Adds --download, of weights, of the data set or of both, and --download-to."""
    group.add_argument(
        "--download", nargs="?", const=True, default=False, choices=("weights", "data", "all"),
        help="fetch official weights that are missing; `--download data` fetches the data set that --data names, "
        "`--download all` both",
    )  # fmt: skip
    group.add_argument(
        "--download-to", default="", metavar="FOLDER",
        help="folder below which a data set may be fetched (default: datasets, beside this project)",
    )  # fmt: skip


def fetches(download: bool | str, what: str) -> bool:
    """Returns whether --download asks for `what`: "weights", which it does by itself, or "data"."""
    return download in (what, "all") or (what == "weights" and download is True)


class _Removed(argparse.Action):
    """Ends the program with an error that says what replaces the option."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string} is not an option any more: {self.const}")


def add_removed(parser: argparse.ArgumentParser, options: dict[str, str]) -> None:
    """Adds options of v6.1 that end in an error which says what replaces them: {"--bucket": "..."}."""
    for name, instead in options.items():
        parser.add_argument(
            name, nargs="?", action=_Removed, const=instead, dest=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


class Options(argparse.Namespace):
    """Options, and in `given` the names of those that the user set; the others have their defaults."""

    __slots__ = ("given",)  # not among vars()


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`; `open_low` and `open_high` exclude the limit itself."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and abs(value) <= sys.float_info.max  # no NaN, and no whole number beyond all floats

    def __str__(self) -> str:
        """Returns what follows "must be": "at least 0", "between 0 and 1", "above 0 and at most 1"."""
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        if self.high == math.inf:
            return low
        if not (self.open_low or self.open_high):
            return f"between {self.low:g} and {self.high:g}"
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high:g}"


@dataclass(frozen=True)
class Number:
    """The `type` of an option that is a number. argparse converts with it; `parse` and `options` check the range."""

    kind: type  # int or float
    range: Range

    def __call__(self, text: str) -> int | float:
        return self.kind(text)

    @property
    def __name__(self) -> str:  # argparse puts it into its message: "invalid int value: 'x'"
        return self.kind.__name__


def whole(low: int, high: float = math.inf) -> Number:
    """Returns the `type` of an option that is a whole number from `low` to `high`."""
    return Number(int, Range(low, high))


def real(low: float, high: float = math.inf, open_low: bool = False, open_high: bool = False) -> Number:
    """Returns the `type` of an option that is a number from `low` to `high`, without a limit that is open."""
    return Number(float, Range(low, high, open_low, open_high))


def parse(parser: argparse.ArgumentParser, known: bool = False, argv: Sequence[str] | None = None) -> Options:
    """Parses the command line, or the words in argv; with `known` it returns the defaults.

    Raises ValueError for a number out of its range; argparse itself ends the program for other mistakes.
    """
    untouched = object()
    # what was typed may hold a password
    parser.error = lambda message: type(parser).error(parser, printable(redact(message)))
    names = [action.dest for action in _actions(parser)]
    opt = parser.parse_args([] if known else argv, Options(**dict.fromkeys(names, untouched)))
    opt.given = {name for name in names if getattr(opt, name) is not untouched}
    for name in set(names) - opt.given:
        setattr(opt, name, parser.get_default(name))
    check(parser, opt)
    return opt


def options(parser: argparse.ArgumentParser, values: Mapping[str, Any]) -> Options:
    """Reads keyword arguments, those of a verb's `run`, as `parse` reads words: `options(parser, {"epochs": 3})`.

    None stands for the default. Paths and numbers become text where the option is text, and an option that takes
    several values becomes a list. Raises TypeError for an unknown name, and ValueError for a value of the wrong type,
    out of its range, or not among the choices.
    """
    actions = {action.dest: action for action in _actions(parser)}
    for name in values:
        if name not in actions:
            near = difflib.get_close_matches(name, actions, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(actions)}"
            raise TypeError(f"there is no option {name!r}; {hint}")
    opt = Options(**{name: parser.get_default(name) for name in actions})
    opt.given = {name for name, value in values.items() if value is not None}
    for name in opt.given:
        setattr(opt, name, _converted(actions[name], values[name]))
    check(parser, opt)
    return opt


TEXT_LENGTH = 4096  # characters of an option that a file holds, as long as a path may be
LIST_LENGTH = 10_000  # values of an option that a file holds


def adopt(
    parser: argparse.ArgumentParser, opt: Options, saved: Any, names: Collection[str], file: str | os.PathLike
) -> dict[str, Any]:
    """Gives `opt` the options of `names` that a file holds and the user did not give; returns all of these of the file.

    Each is read as `options` reads a keyword argument. What else the file holds is left alone.

    Raises ValueError, which names the file, for an option of another type, out of its range or not among its choices.
    """
    if not isinstance(saved, Mapping):
        raise ValueError(f"{file}: its options must be a mapping, got {_kind(saved)}")
    actions = {action.dest: action for action in _actions(parser)}
    defaults, adopted = {name: parser.get_default(name) for name in actions}, {}
    for name in names:
        if name not in saved or name not in actions:
            continue
        value = saved[name]
        try:
            if value is not None:
                value = _converted(actions[name], _of_file(actions[name], value))
                check(parser, argparse.Namespace(**{**defaults, name: value}))
        except ValueError as error:
            raise ValueError(f"{file}: one of its options is wrong: {error}") from None
        adopted[name] = value
        if name not in opt.given:
            setattr(opt, name, value)
    return adopted


def _of_file(action: argparse.Action, value: Any) -> Any:
    """Returns the value of an option that a file holds, if a command line could have given one of its type."""
    several = action.nargs in ("+", "*")
    if isinstance(value, list | tuple) and not (several and len(value) <= LIST_LENGTH):
        raise ValueError(f"{flag(action)} must be one value, or fewer than {LIST_LENGTH}, got {len(value)}")
    for item in value if isinstance(value, list | tuple) else [value]:
        kinds = (bool, int, float, str) if action.type is not None or action.nargs == 0 else (str, bool)
        if not isinstance(item, kinds):
            raise ValueError(f"{flag(action)} must be {' or '.join(k.__name__ for k in kinds)}, got {_kind(item)}")
        if isinstance(item, str) and (len(item) > TEXT_LENGTH or "\0" in item):
            raise ValueError(f"{flag(action)} must be text of at most {TEXT_LENGTH} characters, without a zero byte")
    return value


def _kind(value: Any) -> str:
    return f"a value of the type {type(value).__name__}"


def accept(parser: argparse.ArgumentParser, opt: argparse.Namespace) -> Options:
    """Returns, checked, the options of a program that sets attributes and then calls a verb's `main` itself.

    An option counts as given if it was on the command line, or differs from its default.
    """
    given = getattr(opt, "given", set())
    values = vars(opt).items()
    return options(parser, {name: v for name, v in values if name in given or v != parser.get_default(name)})


def check(parser: argparse.ArgumentParser, opt: argparse.Namespace) -> None:
    """Raises ValueError for the first option whose value is out of its range or not among its choices."""
    for action in _actions(parser):
        value = getattr(opt, action.dest)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(action.type, Number) and item is not None and item not in action.type.range:
                raise ValueError(f"{flag(action)} must be {action.type.range}, got {item}")
            if action.choices and item not in (None, action.default, action.const, *action.choices):
                raise ValueError(f"{flag(action)} must be one of {', '.join(action.choices)}, got {item!r}")


def takes(make_parser: Callable[[], argparse.ArgumentParser], *positional: str) -> Callable[[Callable], Callable]:
    """Decorates a verb's `run(**options)`.

    The first arguments may come by position, in the order of `positional`, and `help(run)` shows every option with its
    default.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*values, **keywords):
            if len(values) > len(positional):
                raise TypeError(f"at most {len(positional)} arguments may be given by position, got {len(values)}")
            named = dict(zip(positional, values))
            if twice := named.keys() & keywords.keys():
                raise TypeError(f"{', '.join(sorted(twice))}: given by position and by name")
            return function(**named, **keywords)

        actions = {action.dest: action for action in _actions(make_parser())}
        run.__signature__ = _signature(function, actions, positional)
        helps = {name: (action.help or "") % {**vars(action), "prog": ""} for name, action in actions.items()}
        lines = [f"    {name}: {text}" for name, text in helps.items() if text != argparse.SUPPRESS]
        run.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Options:", *lines])
        return run

    return decorate


def _signature(
    function: Callable, actions: Mapping[str, argparse.Action], positional: Sequence[str]
) -> inspect.Signature:
    """Returns the signature of `function` with every option in the place of its **options."""
    own, keyword = inspect.signature(function), inspect.Parameter.KEYWORD_ONLY
    kinds = dict.fromkeys(actions, keyword) | dict.fromkeys(positional, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [
        inspect.Parameter(name, kinds[name], default=actions[name].default)
        for name in [*positional, *(name for name in actions if name not in positional)]
    ]
    parameters += [p.replace(kind=keyword) for p in own.parameters.values() if p.kind != p.VAR_KEYWORD]
    return own.replace(parameters=parameters)


def flag(action: argparse.Action) -> str:
    """Returns the name of an option as a user types it, such as --conf-thres; the first one of several."""
    return (action.option_strings or [action.dest])[0]


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.dest not in ("help", argparse.SUPPRESS)]


def _converted(action: argparse.Action, value: Any) -> Any:
    """Returns a keyword argument as the command line would have given it."""
    if isinstance(action, argparse._StoreTrueAction | argparse.BooleanOptionalAction):
        if value not in (True, False):
            raise ValueError(f"{flag(action)} must be True or False, got {value!r}")
        return bool(value)
    if action.nargs in ("+", "*"):
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        return [_one(action, item) for item in values]
    return _one(action, value)


def _one(action: argparse.Action, value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if action.nargs == "?" and value == action.const:
        return action.const
    if action.type is None:  # text, also for a number such as device=0; other things are the verb's to judge
        return value if isinstance(value, str | bool | Collection) else str(value)
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
    """Calls `main` with the options, or with those that `opt` returns where it is the function that parses them.

    What a user can cause ends in one message and exit status 1, Ctrl-C in 130. YOLOv5_TRACEBACK=1 in the environment
    shows where an error came from.
    """
    atexit.register(gc.freeze)  # otherwise Python looks for cycles in all of torch once more: 0.4 s at the end
    try:
        main(opt() if callable(opt) else opt)
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        # of torch's RuntimeErrors a user can mend only full memory; torch is not imported here
        full = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
        if isinstance(error, RuntimeError) and not full:
            raise
        shows = os.environ.get("YOLOv5_TRACEBACK")
        text = traceback.format_exc().rstrip() if shows else f"{verb}: error: {_message(error)}"
        print(printable(redact(text)), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stop:  # Ctrl-C, or another signal that `stopped_by_signals` turned into one
        number = stop.args[0] if stop.args else signal.SIGINT
        print(f"{verb}: stopped by {signal.Signals(number).name}", file=sys.stderr)
        sys.exit(128 + number)


def _message(error: Exception) -> str:
    """Returns the message of an error; of one in a process that reads images, the last line of its traceback."""
    text = str(error).strip()
    if isinstance(error, MemoryError | RuntimeError):
        return f"out of memory; try a smaller --batch-size or --imgsz ({text})"
    if "Original Traceback (most recent call last)" in text:
        return text.splitlines()[-1].partition(": ")[2]
    return text or type(error).__name__


def number_or_text(text: str) -> int | str:
    """Returns a whole number where the text is one, else the text."""
    return int(text) if text.lstrip("-").isdecimal() else text


def frame_sides(imgsz: int | Sequence[int]) -> list[int]:
    """Returns [height, width] of what --imgsz takes: one number for both, or the two. Raises ValueError for more."""
    sides = [imgsz] if isinstance(imgsz, int) else list(imgsz)
    if len(sides) not in (1, 2):
        raise ValueError(f"--imgsz takes one number, or height and width, got {sides}")
    return (sides * 2)[:2]


def check_range(flag: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises ValueError unless low <= value <= high. NaN is never in a range."""
    if value not in (allowed := Range(low, high)):
        raise ValueError(f"{flag} must be {allowed}, got {value}")


def require(package: str, flag: str) -> None:
    """Raises ValueError unless a package that only `flag` needs is installed. Does not import it."""
    if not installed(package):
        name = package.split(".")[0]
        raise ValueError(f"{flag} needs the package {name}, which is not installed: pip install {name}")


def installed(package: str) -> bool:
    """Returns whether a package, or a part of one such as `executorch.runtime`, can be imported.

    Does not import the part.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # the package of which it is a part
        return False
    return spec is not None and spec.origin is not None  # else it is only a folder of that name, such as wandb's runs


def describe(verb: str, opt: argparse.Namespace) -> str:
    """Returns the options in one line, for the log; addresses without their secrets."""
    return f"{verb}: " + ", ".join(f"{name}={value}" for name, value in without_secrets(vars(opt)).items())


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as they may be shown and stored: paths as text, addresses without user, password and tokens."""
    return {name: _without_secrets(value) for name, value in values.items()}


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str | os.PathLike):
        return redact(os.fspath(value))
    return [_without_secrets(item) for item in value] if isinstance(value, list | tuple) else value


def say(text: object) -> None:
    """Prints text on standard output, foreign names made printable."""
    print(printable(redact(str(text))), flush=True)


# --- signals ----------------------------------------------------------------------------------------------------------


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Lets SIGTERM end the block as Ctrl-C does: by a KeyboardInterrupt, so that everything is cleaned up."""

    def stop(number: int, _) -> None:
        raise KeyboardInterrupt(number)

    with _handlers((signal.SIGTERM,), stop):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM wait until the end of the block, for work that must not be left half done."""
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
