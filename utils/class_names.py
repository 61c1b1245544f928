"""The names of classes: as programs ask for them, as users choose among them, and whether two lists agree."""

import difflib
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from utils.files import MAX_CLASSES, MAX_NAME
from utils.text import brief, is_utf8, printable


class ClassNames(list):
    """The names of classes: a list, as in v6.1, that also answers as a dict from number to name, as v6.2 has them.

    Where the two differ: iterating gives the names, `in` takes a name or a number. It is pickled as a plain list.
    """

    def keys(self) -> range:
        """Returns the numbers."""
        return range(len(self))

    def values(self) -> list[str]:
        """Returns the names."""
        return list(self)

    def items(self) -> list[tuple[int, str]]:
        """Returns pairs of number and name."""
        return list(enumerate(self))

    def get(self, number: int, default: Any = None) -> Any:
        """Returns the name of a number, or the default where there is none."""
        return self[number] if number in self.keys() else default

    def __contains__(self, key: Any) -> bool:
        return super().__contains__(key) if isinstance(key, str) else key in self.keys()

    def __reduce__(self) -> tuple:
        return list, (list(self),)


def class_numbers(wanted: Iterable[int | str] | int | str | None, names: Sequence[str], of: str) -> list[int] | None:
    """Returns the numbers of classes that are given by number or by name; None for all classes.

    of: whose classes these are, for the ValueError about one that is not among them.
    """
    if wanted is None:
        return None
    numbers = []
    for one in [wanted] if isinstance(wanted, int | str) else wanted:
        if isinstance(one, str):
            same = [i for i, name in enumerate(names) if name == one]
            if not same and not one.strip().lstrip("-").isdecimal():
                near = difflib.get_close_matches(one, list(names), n=1)
                hint = f"did you mean {printable(near[0])!r}?" if near else f"it has {_some(names)}"
                raise ValueError(f"{of} has no class called {one!r}; {hint}")
            numbers += same or [int(one)]
        else:
            numbers.append(_index(one, of))
    if wrong := [c for c in numbers if not 0 <= c < len(names)]:
        raise ValueError(f"{of} has classes 0 to {len(names) - 1}, got {wrong}")
    return numbers


def _index(number: Any, of: str) -> int:
    try:
        return operator.index(number)
    except TypeError:
        raise ValueError(f"{of}: a class is given by its number or name, got {number!r}") from None


def _some(names: Sequence[str], most: int = 8) -> str:
    return printable(", ".join(names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def difference(ours: Sequence[str], theirs: Sequence[str], our_file: object, their_file: object) -> str | None:
    """Returns in words how the names in two files, as many in each, differ; None where they agree.

    Letter case and spaces do not count, and neither does a class that has only a number for a name.
    """
    pairs = [
        (i, a, b)
        for i, (a, b) in enumerate(zip(ours, theirs))
        if _plain(a) != _plain(b) and not {a, b} & {str(i), f"class{i}"}
    ]
    if not pairs:
        return None
    i, a, b = pairs[0]
    kind = "in another order" if sorted(map(_plain, ours)) == sorted(map(_plain, theirs)) else "differently"
    more = f", and {len(pairs) - 1} more" if len(pairs) > 1 else ""
    return f"{kind}: class {i} is {printable(a)!r} in {our_file}, but {printable(b)!r} in {their_file}{more}"


def _plain(name: str) -> str:
    return "".join(name.lower().replace("_", " ").replace("-", " ").split())


def checked_names(names: Any, file: str | Path) -> list[str]:
    """Returns the class names that a file gives as a list, or as a mapping from 0, 1, 2 ...; ValueError for others."""
    if isinstance(names, list | dict) and len(names) > MAX_CLASSES:
        raise ValueError(f"{file}: names has {len(names)} entries, more than {MAX_CLASSES}, the maximum")
    if isinstance(names, dict):
        numbers = [int(k) if isinstance(k, str) and k.isdecimal() and len(k) < 9 else k for k in names]
        if not names or set(numbers) != set(range(len(names))):
            raise ValueError(
                f"{file}: the keys of names must be 0 to {max(len(names) - 1, 0)}, got {brief(list(names))}"
            )
        numbered = dict(zip(numbers, names.values()))
        names = [numbered[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{file}: names must be a list, or a mapping from class number to name, got {brief(names)}")
    for i, name in enumerate(names):
        if not isinstance(name, str | int | float) or isinstance(name, bool):
            # YAML 1.1 reads the words yes, no, on and off as booleans
            raise ValueError(f"{file}: names[{i}] must be text, got {brief(name)}; put it in quotes")
    names = [str(name) for name in names]
    if broken := [i for i, name in enumerate(names) if not is_utf8(name)]:
        raise ValueError(f"{file}: names[{broken[0]}] must be text, got {brief(names[broken[0]])}, half a character")
    if long := [i for i, name in enumerate(names) if len(name) > MAX_NAME]:
        raise ValueError(f"{file}: names[{long[0]}] has {len(names[long[0]])} characters; at most {MAX_NAME}")
    return names
