"""The pickle inside a `.pt` file, checked opcode by opcode before anything is made of it.

`check` follows the pickle on a stack of its own, makes no object of the file, and refuses whatever is not in its
tables. What torch then builds are tensors, plain containers and stand-ins: objects that keep a class's name and state.
"""

import io
import math
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from pickletools import opcodes
from typing import Any

import numpy as np
import torch

ITEM_BYTES = {
    **{f"torch.{kind}Storage": size for kind, size in (("Double", 8), ("Float", 4), ("Half", 2), ("BFloat16", 2))},
    **{f"torch.{kind}Storage": size for kind, size in (("Long", 8), ("Int", 4), ("Short", 2), ("Char", 1))},
    **{f"torch.{kind}Storage": 1 for kind in ("Byte", "Bool")},
}
BINGET, LONG_BINPUT, BININT1, EMPTY_TUPLE, STOP = b"hrK)."  # opcodes
DEPTH, VALUES = 64, 4_000_000  # of plain values in each other, and in one file
_SCALARS = frozenset((str, int, float, bool, type(None)))
_DTYPES = {
    *(f"torch.{name}" for name in ("float16", "bfloat16", "float32", "float64", "bool", "uint8")),
    *(f"torch.int{bits}" for bits in (8, 16, 32, 64)),
}
PATHS = {
    f"{module}.{system}": system
    for module in ("pathlib", "pathlib._local")
    for system in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
}
SCALAR, ARRAY = (
    {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")} for name in ("scalar", "_reconstruct")
)
NAMESPACE = "argparse.Namespace"
_FUSED = ("forward_fuse", "fuseforward")  # v6.1 and later bind one of these where they fuse a convolution
# stand-ins that are no modules
_VALUES = {
    *PATHS,
    *SCALAR,
    *ARRAY,
    "numpy.dtype",
    "numpy.ndarray",
    NAMESPACE,
    "builtins.getattr",
}


class Refused(ValueError):
    """A pickle asks for what no checkpoint needs. `asked`: the full name of the class or function, where it is one."""

    def __init__(self, message: str, asked: str = ""):
        super().__init__(message)
        self.asked = asked


class StandIn:
    """What a pickle says of an object, and no more: its class's name, the arguments and the state it is built from."""

    __slots__ = ("arguments", "state")
    of = ""  # full name of the class, as the pickle has it

    def __new__(cls, *arguments: Any) -> "StandIn":
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<{self.of}>"


def stand_in(name: str) -> type[StandIn]:
    """Returns a new class of stand-ins for the class or function of that full name."""
    return type("StandIn", (StandIn,), {"__slots__": (), "of": name})


class _Global:
    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class _Object:
    """A value of the pickle that can change, or that is made by a call: its kind, and what matters of its content."""

    __slots__ = ("detail", "kind")

    def __init__(self, kind: str, detail: Any = None):
        self.kind, self.detail = kind, detail


# values of which only the kind matters
_ORDERED, _TENSOR, _VALUE, _MODULE = map(_Object, ("OrderedDict", "tensor", "value", "module"))


def check(pickle: bytes, records: dict[str, int], known: Callable[[str], bool]) -> set[str]:
    """Follows a pickle to its end and returns the names that it needs stand-ins for.

    Args:
        pickle: written by torch.save.
        records: storage key -> bytes that the archive has for it.
        known: whether a full name is that of a module class that may occur.

    Raises Refused, or another ValueError where the pickle does not decode.
    """
    walk = _Walk(records, known)
    try:
        walk.follow(pickle)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:  # what a broken one leads to
        raise ValueError(f"its pickle does not decode ({type(error).__name__})") from None
    return walk.needed


class _Walk:
    """The stack, the marks and the memo of a pickle that is followed but not built."""

    def __init__(self, records: dict[str, int], known: Callable[[str], bool]):
        self.records, self.known = records, known
        self.needed: set[str] = set()
        self.storages: dict[str, tuple[str, int]] = {}
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[str, _Global] = {}
        constants = (("NONE", None), ("NEWTRUE", True), ("NEWFALSE", False), ("EMPTY_TUPLE", ()))
        self.steps: dict[str, Callable[[Any], None]] = {
            **{name: lambda _, value=value: self.stack.append(value) for name, value in constants},
            **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), self._push),
            "BINUNICODE": self._text,
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self._put),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), self._get),
            **{f"TUPLE{n}": lambda _, n=n: self._tuple_of(n) for n in (1, 2, 3)},
            "PROTO": self._protocol,
            "MARK": self._mark,
            "TUPLE": lambda _: self._push(tuple(self._pop_mark())),
            "EMPTY_LIST": lambda _: self.stack.append(_Object("list", True)),
            "EMPTY_DICT": lambda _: self.stack.append(_Object("dict", set())),
            "APPEND": lambda _: self._append([self.stack.pop()]),
            "APPENDS": lambda _: self._append(self._pop_mark()),
            "SETITEM": lambda _: self._set([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda _: self._set(self._pop_mark()),
            "GLOBAL": self._global,
            "REDUCE": self._reduce,
            "NEWOBJ": self._new,
            "BUILD": self._build,
            "BINPERSID": self._storage,
            "STOP": lambda _: self.stack.pop(),
        }

    def follow(self, pickle: bytes) -> None:
        """Takes every step of a pickle; the four most frequent opcodes without a call, for time."""
        steps = {
            ord(op.code): (self.steps[op.name], op.arg and op.arg.reader) for op in opcodes if op.name in self.steps
        }
        file, memo, i = io.BytesIO(pickle), self.memo, 0
        while True:
            code = pickle[i]
            i += 1
            if code == BINGET:
                self.stack.append(memo[pickle[i]])
                i += 1
            elif code == LONG_BINPUT:
                memo[int.from_bytes(pickle[i : i + 4], "little")] = self.stack[-1]
                i += 4
            elif code == BININT1:
                self.stack.append(pickle[i])
                i += 1
            elif code == EMPTY_TUPLE:
                self.stack.append(())
            elif code not in steps:
                raise Refused(f"its pickle has the opcode {bytes([code])!r}, which torch.save does not write")
            else:
                step, reader = steps[code]
                if reader is None:
                    step(None)
                else:
                    file.seek(i)
                    step(reader(file))
                    i = file.tell()
                if code == STOP:
                    return

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _text(self, text: str) -> None:
        if not text.isascii():
            # half of a surrogate pair is a UnicodeEncodeError here rather than where it is printed; but for those that
            # stand for the bytes of a file name that is not UTF-8
            text.encode(errors="surrogateescape")
        self.stack.append(text)

    def _put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def _get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def _protocol(self, number: int) -> None:
        if number != 2:
            raise Refused(f"its pickle is of protocol {number}; torch.save writes 2")

    def _mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _tuple_of(self, n: int) -> None:
        items = tuple(self.stack[-n:])
        if len(items) < n:
            raise IndexError
        self.stack[-n:] = [items]

    # --- containers ---

    def _append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if target.kind != "list":
            raise Refused(f"its pickle appends to a {target.kind}")
        target.detail = target.detail and all(type(item) in _SCALARS for item in items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        keys = items[::2]
        if target.kind not in ("dict", "OrderedDict") or len(items) % 2:
            raise Refused(f"its pickle sets items of a {target.kind}")
        for key in keys:
            if type(key) not in _SCALARS:
                raise Refused(f"a key of a dict is a {_words(key)}; keys must be text or numbers")
        if target.kind == "dict":
            target.detail.update(keys)

    # --- names, and what may be done with them ---

    def _global(self, argument: str) -> None:
        name = argument.replace(" ", ".", 1)
        if name.startswith("__builtin__."):  # Python 2's name, which torch.save writes
            name = f"builtins.{name[12:]}"
        if name not in self.globals:
            if name in _VALUES or self.known(name):
                self.needed.add(name)
            elif name not in _CALLS and name not in ITEM_BYTES and name not in _DTYPES:
                asked = name.removeprefix("builtins.")
                raise Refused(f"the file uses {asked}, which is not among the allowed classes", name)
            self.globals[name] = _Global(name)
        self.stack.append(self.globals[name])

    def _reduce(self, _: Any) -> None:
        arguments = self.stack.pop()
        name = self.stack[-1].name
        if type(arguments) is not tuple:
            raise Refused(f"the file calls {name} with a {_words(arguments)} for its arguments")
        if name in _VALUES:
            if name in PATHS and not all(type(part) is str for part in arguments):
                raise Refused(f"a {PATHS[name]} of the file is not made of text")
            if name.endswith(".getattr") and (
                len(arguments) != 2 or _kind(arguments[0]) != "module" or arguments[1] not in _FUSED
            ):
                raise Refused("the file uses an attribute (getattr), which is not among the allowed ones", name)
            self.stack[-1] = _VALUE
        elif name in _CALLS:
            self.stack[-1] = _CALLS[name](self, arguments)
        else:
            raise Refused(f"the file calls {name}, and only tensors and plain values may be made by a call")

    def _new(self, _: Any) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        name = kind.name
        if arguments != () or name not in self.needed or (name in _VALUES and name != NAMESPACE):
            raise Refused(f"the file makes a {name} with arguments, which no layer of a checkpoint has")
        self.stack.append(_VALUE if name in _VALUES else _MODULE)

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        target = _kind(self.stack[-1])
        given = _kind(state)
        # a state_dict carries its `_metadata` so; any other attribute could hide a method
        metadata = target == "OrderedDict" and given == "dict" and state.detail <= {"_metadata"}
        if not metadata and (target != "module" or given != "dict") and target != "value":
            raise Refused(f"its pickle gives a {target} the state of a {given}")

    def _storage(self, _: Any) -> None:
        identifier = self.stack.pop()
        if type(identifier) is not tuple or len(identifier) != 5:
            raise Refused("its pickle names a storage in a way that torch.save does not")
        word, kind, key, location, count = identifier
        name = kind.name
        if (word, type(key), type(location), type(count)) != ("storage", str, str, int) or name not in ITEM_BYTES:
            raise Refused(f"its pickle names a storage in a way that torch.save does not: {name}")
        if self.records.get(key) != count * ITEM_BYTES[name]:
            held = self.records.get(key)
            held = "nothing" if held is None else f"{held} bytes"
            raise Refused(f"storage {key!r} is said to be {count} numbers ({name}), but the archive has {held} for it")
        if self.storages.setdefault(key, (name, count)) != (name, count):
            raise Refused(f"storage {key!r} is said to be of two types")
        self.stack.append(_Object("storage", count))

    # --- calls that torch makes ---

    def _ordered_dict(self, arguments: tuple) -> _Object:
        if arguments:
            raise Refused("its pickle makes an OrderedDict with arguments")
        return _ORDERED

    def _set_of(self, arguments: tuple) -> _Object:
        if len(arguments) != 1 or _kind(arguments[0]) != "list" or not arguments[0].detail:
            raise Refused("a set of the file holds more than text and numbers")
        return _Object("set")

    def _encode(self, arguments: tuple) -> _Object:
        if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] not in ("latin1", "latin-1"):
            raise Refused("bytes of the file are not in latin1")
        return _Object("bytes")

    def _size(self, arguments: tuple) -> _Object:
        if len(arguments) != 1 or not _whole(arguments[0]):
            raise Refused("a size of the file is not made of whole numbers")
        return _Object("size")

    def _device(self, arguments: tuple) -> _Object:
        if [type(a) for a in arguments] not in ([str], [str, int]):
            raise Refused("a device of the file is not a name and a number")
        return _Object("device")

    def _tensor(self, arguments: tuple) -> _Object:
        if not 4 <= len(arguments) <= 7 or any(a is not None for a in arguments[6:]):
            raise Refused("a tensor of the file has attributes of its own")
        storage, offset, size, stride = arguments[:4]
        if _kind(storage) != "storage" or not _whole((offset,)) or not (_whole(size) and _whole(stride)):
            raise Refused("a tensor of the file is not made of a storage, an offset, a size and strides")
        if len(size) != len(stride) or len(size) > 8:
            raise Refused(f"a tensor of the file has {len(size)} sides and {len(stride)} strides; at most 8 are read")
        self._hooks(arguments[4:6])
        numbers = math.prod(size)
        last = offset + sum((side - 1) * step for side, step in zip(size, stride)) + 1 if numbers else offset
        if max(numbers, last) > storage.detail:
            sides = " x ".join(map(str, size))
            raise Refused(f"a tensor of the file is said to be {sides}, but its storage has {storage.detail} numbers")
        return _TENSOR

    def _parameter(self, arguments: tuple) -> _Object:
        if len(arguments) != 3 or _kind(arguments[0]) != "tensor":
            raise Refused("a parameter of the file is not made of a tensor")
        self._hooks(arguments[1:])
        return _TENSOR

    def _hooks(self, rest: tuple) -> None:
        kinds = [bool, "OrderedDict"]
        if any(kind not in (type(value), _kind(value)) for kind, value in zip(kinds, rest)):
            raise Refused("a tensor of the file has attributes of its own")


_CALLS: dict[str, Callable[[_Walk, tuple], _Object]] = {
    "collections.OrderedDict": _Walk._ordered_dict,
    "builtins.set": _Walk._set_of,
    "_codecs.encode": _Walk._encode,
    "torch.Size": _Walk._size,
    "torch.device": _Walk._device,
    "torch._utils._rebuild_tensor": _Walk._tensor,
    "torch._utils._rebuild_tensor_v2": _Walk._tensor,
    "torch._utils._rebuild_parameter": _Walk._parameter,
}


def _kind(value: Any) -> str:
    return value.kind if type(value) is _Object else type(value).__name__


def _words(value: Any) -> str:
    return value.name if type(value) is _Global else _kind(value)


def _whole(numbers: Any) -> bool:
    """Tells whether a value is a tuple of whole numbers from 0 to 2^62."""
    return type(numbers) is tuple and all(type(n) is int and 0 <= n < 2**62 for n in numbers)


# --- plain values -----------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Returns a value of a file as text, numbers, lists, dicts and tensors without attributes; None for other objects.

    Raises ValueError where values are nested too deeply (one that contains itself) or there are too many.
    """
    return _Plain().convert(value, 0)


class _Plain:
    """Converts one value, and counts, since lists that share lists can grow without limit when they are copied."""

    def __init__(self):
        self.count = 0

    def convert(self, value: Any, depth: int) -> Any:
        self.count += 1
        if depth > DEPTH or self.count > VALUES:
            raise ValueError(f"holds values that are nested more than {DEPTH} deep, or more than {VALUES:,} of them")
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        if isinstance(value, torch.Tensor):
            return value.detach()
        if isinstance(value, dict):
            return {key: self.convert(value[key], depth + 1) for key in value}
        if isinstance(value, list | tuple):
            items = [self.convert(item, depth + 1) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
        if isinstance(value, set):
            return set(value)
        if isinstance(value, torch.device | torch.dtype):
            return str(value)
        return self._object(value, depth) if isinstance(value, StandIn) else None

    def _object(self, value: StandIn, depth: int) -> Any:
        if system := PATHS.get(value.of):
            return str((PureWindowsPath if "Windows" in system else PurePosixPath)(*value.arguments))
        if value.of == NAMESPACE:
            return self.convert(value.state, depth + 1)
        return _numpy(value) if value.of in (*SCALAR, *ARRAY) else None


def _numpy(value: StandIn) -> np.ndarray | np.generic | None:
    """Returns the scalar or the array of numbers that NumPy has pickled, None where it holds anything else."""
    try:
        if value.of in SCALAR:
            dtype, data = value.arguments
            shape, fortran = (), False
        else:
            _, shape, dtype, fortran, data = value.state
        kind, order = dtype.arguments[0], dtype.state[1]
        dtype = np.dtype(str(kind)).newbyteorder({">": ">"}.get(order, "="))
        if dtype.kind not in "biuf":
            return None
        array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran is True else "C")
    except (AttributeError, TypeError, ValueError, IndexError, OverflowError):  # not what NumPy writes
        return None
    return array[()] if value.of in SCALAR else array.astype(dtype.newbyteorder("="))
