"""Reading and writing `.pt` files: nothing is executed, nothing is half written, and what is wrong is said plainly."""

import builtins
import collections
import errno
import functools
import io
import os
import pickle
import resource
import signal
import zipfile

import numpy as np
import pytest
import torch
from small_world import TINY, full_disk
from torch import nn

from models.backend import load_checkpoint, load_model
from models.rebuild import Names
from models.yolo import Model
from utils import checkpoint
from utils.checkpoint import KEYS, load, pack, save, strip
from utils.pickles import StandIn


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model("SOCA-n.yaml", nc=2)


@pytest.fixture
def path(model, tmp_path):
    path = tmp_path / "last.pt"
    save(path, pack(model))
    return path


read = load_checkpoint


# --- there and back ---------------------------------------------------------------------------------------------------


def test_a_path_that_is_not_utf8(model, tmp_path):
    """Neither in the name of the file nor in the options that it holds; torch opens no such path."""
    name = os.fsdecode(b"\xd6\xd0.pt")  # as unpacked from an archive of a Chinese Windows
    save(tmp_path / name, pack(model, training={"opt": {"data": name}}))
    back = read(tmp_path / name)
    assert back["training"]["opt"]["data"] == name
    assert all(torch.equal(v, back["model"].state_dict()[k]) for k, v in model.half().state_dict().items())
    model.float()


def test_there_and_back(model, tmp_path):
    path = tmp_path / "a.pt"
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.rand(1, 3, 64, 64))[0].sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    random = np.random.default_rng(3)
    training = {
        "generator": torch.Generator().manual_seed(3).get_state(),
        "numpy": random.bit_generator.state,
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "order": [3, 1, 2],
        "done": True,
        "name": "a",
    }
    entries = {
        "ema": model,
        "epoch": 7,
        "best_fitness": np.array([0.25]),
        "updates": 99,
        "optimizer": optimizer.state_dict(),
        "date": "2022-02-08",
    }
    save(path, pack(model, **entries, training=training))
    back = read(path)
    assert list(back) == [*KEYS, "training"]
    assert (back["epoch"], back["updates"], back["date"]) == (7, 99, "2022-02-08")
    assert back["best_fitness"].tolist() == [0.25]
    for kept in (back["model"], back["ema"]):
        for key, value in model.state_dict().items():
            assert torch.equal(kept.state_dict()[key], value.half() if value.is_floating_point() else value)
    momenta = {k: state["momentum_buffer"] for k, state in back["optimizer"]["state"].items()}
    assert momenta
    assert all(m.dtype == torch.float32 for m in momenta.values())
    # what a resumed run goes on from, bit for bit
    assert torch.equal(back["training"]["generator"], training["generator"])
    assert all(torch.equal(back["training"]["weights"][k], v) for k, v in training["weights"].items())
    assert {k: back["training"][k] for k in ("order", "done", "name", "numpy")} == {
        k: training[k] for k in ("order", "done", "name", "numpy")
    }


def test_packing_leaves_the_model_alone(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    packed = pack(model, ema=model)
    assert all(p.dtype == torch.float16 for p in packed["model"].parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training


def test_a_loaded_model_computes_the_same(model, path):
    image = torch.rand(1, 3, 64, 64)
    expected = read(path)["model"].float().eval()
    loaded = load_model(path, fuse=False)
    with torch.no_grad():
        assert torch.equal(loaded(image)[0], expected(image)[0])
    assert not loaded.training
    assert all(p.dtype == torch.float32 for p in loaded.parameters())


@pytest.mark.parametrize(
    "value",
    [np.array([0.5]), np.float64(0.5), np.float32(0.5), np.arange(3), np.array(0.5), np.array([True, False])],
    ids=lambda v: f"{type(v).__name__} {v.dtype}",
)
def test_numpy_values(value, model, tmp_path):
    """`best_fitness` is a numpy array in files of v6.1."""
    save(tmp_path / "a.pt", pack(model, best_fitness=value))
    back = read(tmp_path / "a.pt")["best_fitness"]
    assert type(back) is type(value)
    assert back.dtype == value.dtype
    assert np.array_equal(back, value)


def test_strip_takes_the_average(model, tmp_path):
    path, output = tmp_path / "last.pt", tmp_path / "out.pt"
    average = Model("SOCA-n.yaml", nc=2)
    save(path, pack(model, ema=average, epoch=3, updates=5, optimizer={"state": {}}))
    original = path.read_bytes()
    strip(path, output, read=read)
    assert path.read_bytes() == original
    stripped = read(output)
    assert {k: stripped[k] for k in ("epoch", "ema", "updates", "optimizer", "best_fitness", "wandb_id")} == {
        "epoch": -1,
        **dict.fromkeys(("ema", "updates", "optimizer", "best_fitness", "wandb_id")),
    }
    assert torch.equal(stripped["model"].model[0].conv.weight, average.model[0].conv.weight.half())
    assert not any(p.requires_grad for p in stripped["model"].parameters())
    strip(path, read=read)
    assert path.stat().st_size < len(original)
    assert torch.equal(read(path)["model"].model[0].conv.weight, stripped["model"].model[0].conv.weight)


def test_what_was_stripped_before_is_stripped_again(model, path):
    for _ in range(2):
        strip(path, read=read)
    assert read(path)["epoch"] == -1


# --- nothing is executed ----------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(kind: str, marker) -> object:
    """An object whose unpickling by the usual means creates the file `marker`."""
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "eval": Call(builtins.eval, f"open({str(marker)!r}, 'w')"),
        "exec": Call(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "open": Call(builtins.open, str(marker), "w"),
        "getattr": Call(builtins.getattr, Call(functools.partial, builtins.open, str(marker), "w"), "__call__"),
        "torch.load": Call(torch.load, str(marker)),
        "numpy": Call(np.fromfile, str(marker)),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("os.system", "posix.system"),
        ("eval", "eval"),
        ("exec", "exec"),
        ("open", f"{open.__module__}.open"),
        ("getattr", "functools.partial"),  # `getattr` itself is known: v6.1 fuses by it
        ("torch.load", "torch.serialization.load"),
        ("numpy", "numpy.fromfile"),
    ],
)
def test_hostile_files_are_refused_by_name(kind, asked, model, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "hostile.pt"
    content = {"extra": hostile(kind, marker), "model": model}
    torch.save(content, path)
    with pytest.raises(ValueError) as error:
        read(path)
    assert not marker.exists()
    assert f"{path}: refused, no code was executed: the file uses {asked}, which is not" in str(error.value)
    assert "weights_only" not in str(error.value)  # torch's own hint is to switch the protection off


def test_the_test_would_notice(tmp_path):
    """The same files do harm where they are unpickled by the usual means."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(hostile("os.system", marker), 2))
    assert marker.exists()


def test_modules_that_are_not_known(path):
    with pytest.raises(ValueError, match=r"uses models\.(yolo\.Model|common\.\w+|yolo\.Detect)"):
        load(path, lambda name: False)
    with pytest.raises(ValueError, match=r"uses models\.common\.SOCA.*define it here in models/common\.py"):
        load(path, lambda name: name != "models.common.SOCA" and Names().known(name))


def test_the_classes_that_a_program_allows_stay_as_they_are(path, model):
    """A program may have allowed the real classes, as advice for torch 2.6 says; they are not used here."""
    with torch.serialization.safe_globals([Model, nn.Conv2d]):
        before = set(torch.serialization.get_safe_globals())
        loaded = load(path, Names().known)["model"]
        # torch's distributed part may be loaded meanwhile
        changed = before ^ set(torch.serialization.get_safe_globals())
    assert isinstance(loaded, StandIn)
    assert not [item for item in changed if not getattr(item, "__module__", "").startswith("torch.distributed")]


# --- files that are no checkpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated(share, path):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="cannot be read as a checkpoint" if share else "an empty file") as error:
        read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("seed", range(20))
def test_damaged(seed, path):
    """Overwritten in the middle: either said so, or the damage is inside the numbers."""
    whole = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    start = (
        int(random.integers(len(whole) - 64)) if seed % 2 else int(random.integers(80_000))
    )  # every other: the pickle
    whole[start : start + 64] = random.bytes(64)
    path.write_bytes(bytes(whole))
    try:
        read(path)
    except ValueError as error:
        assert str(path) in str(error)


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 14808437\n"
OTHERS = {
    "empty": (b"", "an empty file"),
    "zip head": (b"PK\x03\x04", "did a copy or a download break off"),
    "html": (b"\n<!DOCTYPE html><html>404: not found</html>", "a web page"),
    "xml of a bucket": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "a web page"),
    "git lfs": (LFS, "git lfs pull"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x051.12.1:", "an ONNX file"),
    "safetensors": (b'\x40\0\0\0\0\0\0\0{"w":{"dtype":"F16","shape":[1]', "a safetensors file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "yaml": (b"nc: 80\n", "does not begin as a zip archive"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "does not begin as a zip archive"),
    "zeros": (bytes(10_000), "does not begin as a zip archive"),
    "pickle": (pickle.dumps(collections.deque([1])), "a pickle that is not in a zip archive"),
    "another zip": (archive(a=b"b"), "a zip archive that torch.save did not write"),
    "a zip of torch with junk": (archive(archive__data__pkl=b"junk"), "a zip archive that torch.save did not write"),
    "junk": (archive(**{"archive__data.pkl": b"junk", "archive__version": b"3"}), "cannot be read as a checkpoint"),
}


@pytest.mark.parametrize(("content", "said"), OTHERS.values(), ids=OTHERS)
def test_other_kinds_of_files(content, said, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    "kind", ["state dict", "state dict below `model`", "ema without weights", "tensor", "list", "module"]
)
def test_checkpoints_of_other_kinds(kind, model, tmp_path):
    path = tmp_path / "a.pt"
    content = {
        "state dict": model.state_dict(),
        "state dict below `model`": {"model": model.state_dict(), "epoch": 3},
        "ema without weights": {"ema": {"updates": 3}},
        "tensor": torch.zeros(3),
        "list": [model],
        "module": model,
    }[kind]
    torch.save(content, path)
    with pytest.raises(
        ValueError, match="not a detector's checkpoint: expected a dict with a `model` module, found"
    ) as error:
        read(path)
    assert kind != "module" or str(error.value).endswith("found a models.yolo.Model alone")


@pytest.mark.parametrize("others", [{}, {"model": None, "updates": 7}], ids=["alone", "with a model of None"])
def test_the_averaged_model_is_enough(others, model, tmp_path):
    """v6.1 reads `ckpt["ema"] or ckpt["model"]`."""
    torch.save({"ema": model, **others}, tmp_path / "a.pt")
    found = load_model(tmp_path / "a.pt", fuse=False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name].float(), tensor.float()), name


@pytest.mark.parametrize("module", [nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(3, 8, 1))], ids=["conv", "sequence"])
def test_modules_that_are_no_detector(module, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"model": module}, path)
    with pytest.raises(ValueError, match=f"holds a {type(module).__name__}, not a detector"):
        load_checkpoint(path)


def test_the_format_before_torch_1_6(model, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"model": model}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"format of torch before 1\.6.*save it again"):
        read(path)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*TorchScript archive:UserWarning")
def test_torchscript(tmp_path):
    path = tmp_path / "a.pt"
    torch.jit.trace(nn.Conv2d(3, 8, 1), torch.zeros(1, 3, 4, 4)).save(path)
    with pytest.raises(ValueError, match="a TorchScript archive, not a checkpoint") as error:
        read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["missing.pt", "."])
def test_missing(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        read(tmp_path / name)


def read_error(*_, **__):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (lambda *_, **__: torch.empty(1 << 50), MemoryError),  # a RuntimeError of torch
        (lambda *_, **__: np.empty(1 << 55), MemoryError),
        (read_error, OSError),
    ],
    ids=["torch's memory", "NumPy's memory", "disk"],
)
def test_what_is_not_the_files_fault_is_not_called_damage(fault, kind, path, monkeypatch):
    monkeypatch.setattr(torch, "load", fault)
    with pytest.raises(kind) as error:
        read(path)
    assert str(path) in str(error.value) and "damaged" not in str(error.value)
    assert not isinstance(error.value, ValueError)


def test_an_error_without_a_number_of_the_system_is_damage(path, monkeypatch):
    def fails(*_, **__):
        raise OSError("Not a gzipped file")

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read(path)


# --- whole or not at all ----------------------------------------------------------------------------------------------


def failing_save(error):
    def half_way(content, file):
        file.write(b"half")
        raise error

    return half_way


def failing_with(error):
    def fail(*_, **__):
        raise error

    return fail


FAILURES = {
    "torch fails half-way": (torch, "save", failing_save(RuntimeError("[enforce fail at inline_container.cc]"))),
    "interrupted": (torch, "save", failing_save(KeyboardInterrupt())),
    "not to the disk": (os, "fsync", failing_with(OSError(errno.ENOSPC, "No space left on device"))),
    "not renamed": (os, "replace", failing_with(PermissionError(errno.EACCES, "Permission denied"))),
}


@pytest.mark.parametrize("existed", [True, False], ids=["over an old file", "new"])
@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_leaves_the_old_file(kind, existed, model, tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    if existed:
        save(path, pack(model, epoch=1))
    old = path.read_bytes() if existed else None
    with monkeypatch.context() as patch:
        patch.setattr(*FAILURES[kind])
        with pytest.raises((OSError, KeyboardInterrupt)) as error:
            save(path, pack(model, epoch=2))
    assert [p.name for p in tmp_path.iterdir()] == (["last.pt"] if existed else [])
    if existed:
        assert path.read_bytes() == old
        assert read(path)["epoch"] == 1
    if error.type is not KeyboardInterrupt:
        assert "last.pt" in str(error.value)


@pytest.mark.parametrize("limit", [0, 4096, 1_000_000])
def test_a_full_disk(limit, model, path, tmp_path):
    """The system refuses to let files grow beyond a limit, as it does when there is no space."""
    old = path.read_bytes()
    assert len(old) > limit
    packed = pack(model, epoch=2)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(OSError) as error:
            save(path, packed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "last.pt" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    assert path.read_bytes() == old


def test_what_cannot_be_pickled(model, path, tmp_path):
    old = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save(path, {**pack(model), "epoch": lambda: 3})
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_missing_folder(model, tmp_path):
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "missing" / "last.pt", pack(model))


def test_readable_for_others(path):
    """Not only by its owner, as temporary files are."""
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_unknown_entries(model):
    with pytest.raises(AssertionError):
        pack(model, optimiser={})
    assert checkpoint.KEYS == ("epoch", "best_fitness", "model", "ema", "updates", "optimizer", "wandb_id", "date")


def test_a_full_disk_while_saving_keeps_the_old_checkpoint(world, here, monkeypatch):
    file = here / "last.pt"
    model = Model(TINY)
    checkpoint.save(file, checkpoint.pack(model, epoch=1))
    old = file.read_bytes()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*last.pt'"):
        checkpoint.save(file, checkpoint.pack(model, epoch=2))
    assert file.read_bytes() == old and os.listdir(here) == ["last.pt"]


class FullFile(io.BytesIO):
    """Takes the first bytes, then the disk is full."""

    def write(self, data):
        if self.tell() > 1000:
            full_disk()
        return super().write(data)


def test_torchs_own_error_over_a_full_disk_becomes_one(here, monkeypatch):
    """torch closes its archive after the failed write, and raises a RuntimeError over that."""
    real = torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: real(content, FullFile()))
    with pytest.raises(OSError):
        checkpoint.save(here / "last.pt", checkpoint.pack(Model(TINY)))
    assert not os.listdir(here)
