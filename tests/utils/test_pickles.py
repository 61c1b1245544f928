"""Pickles written by hand, opcode by opcode: each does what the check is there for, and is refused by what it does."""

import argparse
import io
import pathlib
import struct
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import models.common
from models.backend import load_checkpoint
from models.rebuild import Names
from models.yolo import Model
from utils import pickles
from utils.pickles import Refused, check, plain

# --- an assembler for protocol 2 --------------------------------------------------------------------------------------

NONE, MARK, TUPLE, REDUCE, BUILD, NEWOBJ, STOP = b"N", b"(", b"t", b"R", b"b", b"\x81", b"."
NO_ARGUMENTS, LIST, DICT, TRUE, APPEND, SETITEM = b")", b"]", b"}", b"\x88", b"a", b"s"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def group(*items: bytes) -> bytes:
    return MARK + b"".join(items) + TUPLE


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + group(*arguments) + REDUCE


ORDERED = name("collections", "OrderedDict") + NO_ARGUMENTS + REDUCE
IDENTITY = name("torch.nn.modules.linear", "Identity") + NO_ARGUMENTS + NEWOBJ


def storage(key: str = "0", kind: str = "FloatStorage", count: int = 4, location: str = "cpu") -> bytes:
    return group(text("storage"), name("torch", kind), text(key), text(location), number(count)) + b"Q"


def tensor(size=(2, 2), stride=(2, 1), offset=0, source=None, *rest: bytes) -> bytes:
    sides, steps = (group(*map(number, values)) for values in (size, stride))
    parts = (source or storage(), number(offset), sides, steps, b"\x89", ORDERED, *rest)
    return call("torch._utils", "_rebuild_tensor_v2", *parts)


def checkpoint_with(value: bytes) -> bytes:
    """A dict {"model": value}."""
    return b"\x80\x02" + DICT + text("model") + value + SETITEM + STOP


def written(path, content: bytes, storages=None, **options) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
        for key, data in (storages or {"0": bytes(16)}).items():
            file.writestr(f"archive/data/{key}", data)
    return path


# --- what is refused --------------------------------------------------------------------------------------------------

CARRIER = IDENTITY + DICT + text("as_subclass") + IDENTITY + SETITEM + BUILD
HASHED_FOREVER = NONE + b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(60))
HOSTILE = {
    "a method of a class is replaced": (
        call(
            *("torch._tensor", "_rebuild_from_type_v2", IDENTITY, name("models.common", "Conv"), group(CARRIER)),
            DICT + text("forward") + IDENTITY + SETITEM,
        ),
        "uses torch._tensor._rebuild_from_type_v2",
    ),
    "the model is called with a path": (call("models.yolo", "Model", text("/etc/hostname")), "calls models.yolo.Model"),
    "the model is made with a path": (
        name("models.yolo", "Model") + group(text("/etc/hostname")) + NEWOBJ,
        "makes a models.yolo.Model with arguments",
    ),
    "a system call": (call("posix", "system", text("true")), "uses posix.system"),
    "a builtin": (call("__builtin__", "eval", text("1")), "uses eval"),
    "another attribute": (call("__builtin__", "getattr", IDENTITY, text("__class__")), "uses an attribute"),
    "an attribute of no module": (
        call("__builtin__", "getattr", text("a"), text("forward_fuse")),
        "uses an attrib",
    ),
    "a tuple that is hashed for ever, as a key": (DICT + HASHED_FOREVER + NONE + SETITEM, "a key of a dict is a tuple"),
    "and in a set": (
        call("__builtin__", "set", LIST + HASHED_FOREVER + APPEND),
        "a set of the file holds more than text and numbers",
    ),
    "a module as a key": (DICT + IDENTITY + NONE + SETITEM, "a key of a dict is a module"),
    "a function as a key": (
        DICT + name("torch._utils", "_rebuild_tensor") + NONE + SETITEM,
        "a key of a dict is a torch",
    ),
    "a method is hidden": (
        ORDERED + DICT + text("items") + IDENTITY + SETITEM + BUILD,
        "gives a OrderedDict",
    ),
    "the state of a tensor": (tensor() + DICT + text("a") + NONE + SETITEM + BUILD, "gives a tensor the state"),
    "a state that is no dict": (IDENTITY + LIST + BUILD, "gives a module the state of a list"),
    "items of a module": (IDENTITY + text("a") + NONE + SETITEM, "sets items of a module"),
    "a module is appended to": (IDENTITY + NONE + APPEND, "appends to a module"),
    "a set without a list": (call("__builtin__", "set", group(NONE)), "a set of the file holds more"),
    "an OrderedDict of pairs": (call("collections", "OrderedDict", LIST), "makes an OrderedDict with arguments"),
    "a path of numbers": (call("pathlib", "PosixPath", number(1)), "a PosixPath of the file is not made of text"),
    "bytes in another encoding": (call("_codecs", "encode", text("a"), text("rot13")), "not in latin1"),
    "a size of text": (call("torch", "Size", group(text("a"))), "a size of the file"),
    "a device of lists": (call("torch", "device", LIST), "a device of the file"),
    "a storage that the archive lacks": (tensor(source=storage("7")), "the archive has nothing for it"),
    "a storage larger than its record": (
        tensor(source=storage(count=5)),
        "said to be 5 numbers",
    ),
    "a smaller one": (tensor(source=storage(count=3)), "the archive has 16 bytes"),
    "a storage of two types": (
        group(tensor(), tensor(source=storage(kind="IntStorage"))),
        "is said to be of two types",
    ),
    "a storage of complex numbers": (tensor(source=storage(kind="ComplexFloatStorage")), "torch.ComplexFloatStorage"),
    "a persistent id of text": (text("storage") + b"Q", "names a storage in a way"),
    "a storage counted in text": (
        group(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), text("4")) + b"Q",
        "names a storage in a way",
    ),
    "a tensor larger than its storage": (tensor((2, 3), (3, 1)), "said to be 2 x 3, but its storage has 4 numbers"),
    "one number a trillion times": (tensor((2**20, 2**20), (0, 0)), "1048576 x 1048576, but its storage has 4"),
    "a tensor that begins behind": (tensor(offset=1), "but its storage has 4 numbers"),
    "steps beyond the end": (tensor((2, 2), (2, 2)), "but its storage has 4 numbers"),
    "a negative step": (tensor((2, 2), (2, -1)), "is not made of a storage, an offset"),
    "a side fewer": (tensor((2,), (1, 1)), "1 sides and 2 strides"),
    "a tensor with attributes": (tensor((2, 2), (2, 1), 0, None, DICT), "attributes of its own"),
    "a parameter of no tensor": (call("torch._utils", "_rebuild_parameter", NONE, TRUE, ORDERED), "a parameter of the"),
    "hooks of a parameter": (call("torch._utils", "_rebuild_parameter", tensor(), TRUE, LIST), "attributes of its own"),
    "a parameter with a state": (
        call("torch._utils", "_rebuild_parameter_with_state", tensor(), TRUE, ORDERED, DICT),
        "uses torch._utils._rebuild_parameter_with_state",
    ),
    "a quantised tensor": (call("torch._utils", "_rebuild_qtensor"), "_rebuild_qtensor.*It is quantised"),
    "a sparse tensor": (call("torch._utils", "_rebuild_sparse_tensor"), "special kind"),
    "a tensor on no device": (call("torch._utils", "_rebuild_meta_tensor_no_storage"), "special kind"),
    "an opcode that imports": (text("os") + text("system") + b"\x93", "has the opcode b'.x93'"),
    "an opcode that calls": (MARK + b"ios\nsystem\n", "has the opcode b'i'"),
    "an opcode of an extension": (b"\x82\x01", "has the opcode"),
    "arguments by name": (IDENTITY + NO_ARGUMENTS + DICT + b"\x92", "has the opcode"),
    "half of a pair of surrogates": (b"X\x03\x00\x00\x00\xed\xa0\x80", "can't encode"),
    "an empty stack": (b"0", "has the opcode b'0'"),
    "more taken than there is": (b"\x87\x87\x87", "its pickle does not decode"),
    "a memo that is not there": (b"h\x07", "its pickle does not decode"),
    "a call of text": (text("a") + NO_ARGUMENTS + REDUCE, "its pickle does not decode"),
}


def classes_and_modules() -> dict:
    """What a file could have changed: the classes' attributes, torch's settings, and what is imported."""
    rooms = (models.common, nn, nn.modules.conv, torch._utils, torch._tensor)
    classes = {c for room in rooms for c in vars(room).values() if isinstance(c, type)} | {torch.Tensor, nn.Parameter}
    return {
        **{c: dict(vars(c)) for c in classes},
        "settings": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()),
        "random": torch.get_rng_state().tolist(),
        "modules": set(sys.modules),
        "path": list(sys.path),
    }


@pytest.mark.parametrize(("value", "said"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles(value, said, tmp_path):
    with pytest.raises(ValueError, match="not a detector"):  # what reading any file imports
        load_checkpoint(written(tmp_path / "a.pt", checkpoint_with(NONE)))
    path = written(tmp_path / "a.pt", checkpoint_with(value))
    before = classes_and_modules()
    with pytest.raises(ValueError, match=said) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ") and len(str(error.value)) < 1000
    assert classes_and_modules() == before


def test_the_assembler_writes_what_torch_reads(tmp_path):
    """The pickles above are refused for what they do, not because they are badly written."""
    value = group(tensor(), ORDERED, call("__builtin__", "set", LIST + text("a") + APPEND), IDENTITY)
    path = written(tmp_path / "a.pt", checkpoint_with(value), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    with torch.serialization.safe_globals([nn.Identity]):
        made = torch.load(path, weights_only=True)["model"]
    assert made[0].tolist() == [[1, 2], [3, 4]] and made[2] == {"a"} and isinstance(made[3], nn.Identity)
    assert check(checkpoint_with(value), {"0": 16}, Names().known) == {"torch.nn.modules.linear.Identity"}


# --- archives ---------------------------------------------------------------------------------------------------------


def test_a_compressed_archive(tmp_path):
    path = written(tmp_path / "a.pt", checkpoint_with(NONE), {"0": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="its archive is compressed"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_two_pickles_in_one_archive(tmp_path):
    path = written(tmp_path / "a.pt", checkpoint_with(NONE))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data.pkl", checkpoint_with(TRUE))
    with pytest.raises(ValueError, match="several members of one name"):
        load_checkpoint(path)
    with zipfile.ZipFile(written(path, checkpoint_with(NONE)), "a") as file:
        file.writestr("other/data.pkl", checkpoint_with(TRUE))
    with pytest.raises(ValueError, match="several members of one name, or several folders"):
        load_checkpoint(path)


def test_one_record_under_many_names(tmp_path):
    """Members that overlap make the archive's content larger than the file."""
    path = written(tmp_path / "a.pt", checkpoint_with(NONE), {str(k): bytes(10_000) for k in range(9)})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        first, last = file.getinfo("archive/data/0"), file.getinfo("archive/data/8")
    # in the directory at the end the last one points to where the first one is, and the file is cut short by as much
    place = content.rindex(b"archive/data/8") - 46
    content[place + 42 : place + 46] = struct.pack("<I", first.header_offset)
    cut = content[: last.header_offset] + content[content.index(b"PK\x01\x02") :]
    end = cut.rindex(b"PK\x05\x06")
    cut[end + 16 : end + 20] = struct.pack("<I", last.header_offset)
    path.write_bytes(bytes(cut))
    with pytest.raises(ValueError, match=r"said to be larger than the file|would see different content"):
        load_checkpoint(path)


def test_another_byte_order(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", checkpoint_with(NONE))
        file.writestr("archive/byteorder", "big")
    with pytest.raises(ValueError, match="little-endian"):
        load_checkpoint(path)


def test_a_pickle_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.checkpoint.PICKLE_BYTES", 1000)
    path = written(tmp_path / "a.pt", checkpoint_with(text("a" * 1000)))
    with pytest.raises(ValueError, match="its pickle has 0 MB; at most"):
        load_checkpoint(path)


# --- plain values -----------------------------------------------------------------------------------------------------


class Pickled:
    """Pickles as a call of a class that this system cannot make."""

    def __init__(self, kind: type, *arguments):
        self.call = kind, arguments

    def __reduce__(self):
        return self.call


def read_back(value, tmp_path):
    """What a checkpoint gives for an entry of its own."""
    path = tmp_path / "a.pt"
    torch.save({"model": Model("yolov5n.yaml", nc=1), "extra": value}, path)
    return load_checkpoint(path)["extra"]


VALUES = {
    "PosixPath": (pathlib.PosixPath("/data/my.yaml"), "/data/my.yaml"),
    "WindowsPath": (Pickled(pathlib.WindowsPath, "C:\\", "u", "my.yaml"), "C:\\u\\my.yaml"),
    "Namespace": (argparse.Namespace(lr=0.1, data=pathlib.PosixPath("a")), {"lr": 0.1, "data": "a"}),
    "a device and a type": ([torch.device("cpu"), torch.float32], ["cpu", "torch.float32"]),
    "a size": (torch.Size([3, 4]), (3, 4)),
    "a set": ({"a", 1}, {"a", 1}),
    "bytes": (b"\x00\xff", b"\x00\xff"),
    "a module": ({"a": nn.Conv2d(1, 1, 1), "b": 1}, {"a": None, "b": 1}),
    "a class": ([nn.Conv2d, 1], [None, 1]),
    "numpy texts": (np.array(["a"]), None),
    "an OrderedDict": (nn.Identity().state_dict(), {}),
    "large numbers": ([2**100, -1, 1e300], [2**100, -1, 1e300]),
}


@pytest.mark.parametrize(("value", "expected"), VALUES.values(), ids=VALUES)
def test_values_become_plain(value, expected, tmp_path):
    assert read_back(value, tmp_path) == expected


def test_tensors_come_without_attributes(tmp_path):
    weight = nn.Parameter(torch.arange(4.0))
    got = read_back({"a": weight, "b": weight}, tmp_path)
    assert type(got["a"]) is torch.Tensor and not got["a"].requires_grad and torch.equal(got["a"], weight)


def test_numpy_orders_and_shapes(tmp_path):
    arrays = [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(3, dtype=">i4")]
    for array, got in zip(arrays, read_back(arrays, tmp_path), strict=True):
        assert np.array_equal(got, array) and got.dtype == array.dtype.newbyteorder("=")


def test_lists_in_themselves_and_lists_without_end(tmp_path, monkeypatch):
    loop = []
    loop.append(loop)
    with pytest.raises(ValueError, match=r"a\.pt: holds values that are nested more than 64 deep"):
        read_back(loop, tmp_path)
    shared = [1]
    for _ in range(40):
        shared = [shared, shared]
    monkeypatch.setattr(pickles, "VALUES", 1000)
    with pytest.raises(ValueError, match="or more than 1,000 of them"):
        plain(shared)


def test_a_stand_in_is_only_its_name_and_state():
    kind = pickles.stand_in("models.yolo.Model")
    made = kind("/etc/hostname")
    made.__setstate__({"forward": 1})
    assert (kind.of, made.arguments, made.state) == ("models.yolo.Model", ("/etc/hostname",), {"forward": 1})
    with pytest.raises(AttributeError):
        made.forward = 1
    with pytest.raises(Refused):
        check(b"\x80\x04.", {}, Names().known)


def test_pickles_that_are_cut_anywhere():
    """Every beginning of a pickle is refused, never a crash."""
    buffer = io.BytesIO()
    torch.save({"model": nn.Sequential(nn.Conv2d(1, 2, 1)), "n": np.float64(0.5)}, buffer)
    with zipfile.ZipFile(buffer) as file:
        content = file.read("archive/data.pkl")
        records = {n[13:]: file.getinfo(n).file_size for n in file.namelist() if n.startswith("archive/data/")}
    assert check(content, records, Names().known)
    for end in range(0, len(content) - 1, 3):
        with pytest.raises(ValueError):
            check(content[:end], records, Names().known)
