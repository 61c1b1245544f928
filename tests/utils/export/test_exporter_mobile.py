"""ncnn and ExecuTorch: their files give what PyTorch gives, and say what they are."""

import os
from pathlib import Path

import pytest
import torch
from small_world import NAMES, H, W, random_images

import export
from models.backend import Backend
from utils.export.formats import BY_ARGUMENT, ExportError
from utils.export.graph import Decoded
from utils.runtimes.base import Metadata
from utils.runtimes.table import runtime_for


@pytest.mark.parametrize(
    ("argument", "name", "options"),
    [
        ("ncnn", "best_ncnn_model", {}),
        ("ncnn", "best_ncnn_model", {"half": True}),
        ("executorch", "best.pte", {}),
        ("executorch", "best.pte", {"batch_size": 2}),
    ],
    ids=["ncnn", "ncnn float16", "ExecuTorch", "ExecuTorch of two"],
)
def test_it_gives_what_pytorch_gives(weights, here, argument, name, options):
    for package in BY_ARGUMENT[argument].packages:
        pytest.importorskip(package)
    [path] = export.run(weights=weights, imgsz=(H, W), include=argument, **options)
    assert path == str(here / name) and sorted(os.listdir(here)) == sorted(["best.pt", name])
    runtime = runtime_for(path)(path)
    B, half = options.get("batch_size", 1), "half" in options
    assert (
        runtime.metadata == Metadata(names=tuple(NAMES), stride=32, imgsz=(H, W), batch=B, half=half)
        and runtime.declared
    )
    images = random_images(B)
    first = runtime.run(1 - images)[0]
    kept = first.clone()
    found, expected = runtime.run(images)[0], Decoded(Backend(weights).model)(images)
    assert found.shape == expected.shape and torch.equal(first, kept)  # which the second run has not written over
    tolerance = {"rtol": 1e-2, "atol": 0.5} if half else {"rtol": 1e-4, "atol": 2e-3}
    assert torch.allclose(found, expected, **tolerance)
    assert torch.allclose(Backend(path)(random_images(3))[0], Backend(weights)(random_images(3))[0], **tolerance)


def test_ncnn_stores_half_the_bytes(weights, here):
    pytest.importorskip("pnnx")
    sizes = []
    for half in (False, True):
        [path] = export.run(weights=weights, imgsz=(H, W), include="ncnn", half=half)
        sizes.append(Path(path, "model.ncnn.bin").stat().st_size)
    assert 1.8 < sizes[0] / sizes[1] < 2.1


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda folder: (folder / "model.ncnn.param").write_text("7767518\n"),
            "is not a network of ncnn",
        ),
        (lambda folder: (folder / "model.ncnn.bin").unlink(), "is not a network of ncnn"),
        (lambda folder: (folder / "model.ncnn.bin").write_bytes(b""), "is damaged"),
        (
            lambda folder: (folder / "model.ncnn.param").unlink(),
            "expected one .ncnn.param file",
        ),
    ],
)
def test_ncnn_files_that_are_damaged(weights, spoil, says):
    pytest.importorskip("pnnx")
    [path] = export.run(weights=weights, imgsz=(H, W), include="ncnn")
    spoil(Path(path))
    with pytest.raises(ValueError, match=says):
        Backend(path)


def test_an_executorch_file_that_is_damaged(here):
    pytest.importorskip("executorch.runtime")
    (here / "broken.pte").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"broken\.pte: ExecuTorch cannot read it"):
        Backend("broken.pte")


def test_what_pnnx_says_is_passed_on(weights, here, monkeypatch):
    pnnx = pytest.importorskip("pnnx")
    program = here / "pnnx"
    program.write_text("#!/bin/sh\necho 'first'\necho 'layer Foo not supported' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(pnnx, "EXEC_PATH", str(program))
    with pytest.raises(ExportError, match=r"pnnx \d+ ended with status 3: layer Foo not supported"):
        export.run(weights=weights, imgsz=(H, W), include="ncnn")
    assert sorted(os.listdir(here)) == ["best.pt", "pnnx"]
