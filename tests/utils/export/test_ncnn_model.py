"""ncnn's files compute what PyTorch computes, and damaged ones are refused."""

import os
from pathlib import Path

import pytest
from export_job import FRAME, assert_command_writes

import export
from models.backend import Backend
from utils.export.formats import ExportError


@pytest.mark.parametrize("half", [False, True])
def test_it_computes_what_pytorch_computes(weights, half):
    assert_command_writes(weights, "ncnn", "best_ncnn_model", half=half)


def test_half_precision_halves_the_file(weights, here):
    pytest.importorskip("pnnx")
    sizes = []
    for half in (False, True):
        [path] = export.run(weights=weights, imgsz=FRAME, include="ncnn", half=half)
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
    [path] = export.run(weights=weights, imgsz=FRAME, include="ncnn")
    spoil(Path(path))
    with pytest.raises(ValueError, match=says):
        Backend(path)


def test_what_pnnx_says_is_passed_on(weights, here, monkeypatch):
    pnnx = pytest.importorskip("pnnx")
    program = here / "pnnx"
    program.write_text("#!/bin/sh\necho 'first'\necho 'layer Foo not supported' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(pnnx, "EXEC_PATH", str(program))
    with pytest.raises(ExportError, match=r"pnnx \d+ ended with status 3: layer Foo not supported"):
        export.run(weights=weights, imgsz=FRAME, include="ncnn")
    assert sorted(os.listdir(here)) == ["best.pt", "pnnx"]
