"""One call for every format: the weights may be moved, and as many classes come out as there are names."""

from types import SimpleNamespace

import pytest
import torch
from small_world import lively

from models import backend
from models.backend import Backend
from utils import checkpoint
from utils.runtimes.base import Metadata


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("backend") / "a.pt"
    checkpoint.save(path, checkpoint.pack(lively()))
    return path


@pytest.mark.parametrize(
    ("move", "device", "dtype"),
    [
        (lambda model: model.half(), "cpu", torch.float16),
        (lambda model: model.bfloat16(), "cpu", torch.bfloat16),
        (lambda model: model.double(), "cpu", torch.float64),
        (lambda model: model.to(torch.float64), "cpu", torch.float64),
        (lambda model: model.half().float().cpu(), "cpu", torch.float32),
        (lambda model: model.to("meta"), "meta", torch.float32),
    ],
)
def test_device_and_type_are_those_of_the_weights(file, move, device, dtype):
    model = move(Backend(file))
    weight = next(model.parameters())
    assert (model.device.type, model.dtype) == (weight.device.type, weight.dtype) == (device, dtype)
    if device == "cpu":
        assert model(torch.zeros(1, 3, 64, 64, dtype=dtype))[0].isfinite().all()


def exported(monkeypatch, names: int, classes: int, declared: bool, data=None) -> Backend:
    class Runtime(SimpleNamespace):
        def __call__(self, images):
            return torch.zeros(len(images), 2, 5 + classes)

    metadata = Metadata(names=tuple("abcdefgh"[:names]), dynamic=True)
    runtime = Runtime(metadata=metadata, dtype=torch.float32, declared=declared, path="x.onnx")
    monkeypatch.setattr(backend, "open_exported", lambda *_: runtime)
    return Backend("x.onnx", data=data)


@pytest.mark.parametrize(
    ("declared", "fix"), [(True, "its metadata names 2; export it again"), (False, "two.yaml names 2; give the data")]
)
def test_more_classes_than_names(monkeypatch, tmp_path, declared, fix):
    data = tmp_path / "two.yaml"
    data.write_text("path: .\ntrain: .\nval: .\nnames: [a, b]\n")
    model = exported(monkeypatch, 2, 3, declared, data)
    with pytest.raises(ValueError, match=f"x.onnx detects 3 classes, but .*{fix}"):
        model(torch.zeros(1, 3, 32, 32))


def test_fewer_classes_than_names_are_warned_about_once(monkeypatch, capsys):
    model = exported(monkeypatch, 3, 2, declared=True)
    for _ in range(2):
        model(torch.zeros(1, 3, 32, 32))
    assert capsys.readouterr().err.count("x.onnx detects 2 classes, but its metadata names 3") == 1


def test_names_that_are_assumed_are_not_counted(monkeypatch, capsys):
    exported(monkeypatch, 8, 2, declared=False)(torch.zeros(1, 3, 32, 32))
    assert not capsys.readouterr().err
