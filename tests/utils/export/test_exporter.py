"""Files that export.py writes compute what PyTorch computes, state what they are, and are refused otherwise."""

from dataclasses import replace

import pytest
import torch
from export_job import HOW, assert_same, job_for
from small_world import lively

from models.backend import Backend
from models.yolo import Model
from utils.export import exporter, onnx_file, torchscript
from utils.export.exporter import check, export
from utils.export.formats import BY_ARGUMENT, ExportError
from utils.export.graph import Decoded
from utils.runtimes.table import runtime_for
from utils.runtimes.torchscript import TorchScriptRuntime


@pytest.fixture(scope="module")
def model() -> Model:
    return lively().fuse()


@pytest.mark.parametrize("argument", ["torchscript", "onnx", "openvino"])
@pytest.mark.parametrize("nms", [None, HOW], ids=["decoded", "nms"])
def test_any_frame_and_number_of_images(model, tmp_path, argument, nms):
    kind = BY_ARGUMENT[argument]
    job = job_for(model, tmp_path, dynamic=True, nms=nms)
    path = export(job, kind, tmp_path)
    assert path == kind.target(tmp_path / "best.pt") and not list(tmp_path.glob(".*"))
    runtime = runtime_for(path)(path)
    assert runtime.metadata == job.options.metadata and runtime.declared
    for images in job.images:
        assert_same(job, runtime, images)


def test_a_program_of_torch_export(model, tmp_path):
    job = job_for(model, tmp_path)
    path = export(job, BY_ARGUMENT["pt2"], tmp_path)
    runtime = runtime_for(path)(path)
    assert runtime.metadata == job.options.metadata
    assert_same(job, runtime, job.images[0])


def test_a_training_graph_gives_the_raw_maps(model, tmp_path):
    job = job_for(lively(), tmp_path, train=True)
    for argument in ("torchscript", "onnx"):
        path = export(job, BY_ARGUMENT[argument], tmp_path)
        runtime = runtime_for(path)(path)
        assert [tuple(m.shape[2:]) for m in runtime.run(job.images[0])] == [(8, 8, 8), (4, 4, 8)]
        with pytest.raises(ValueError, match="was exported with --train"):
            Backend(path)


def test_frozen_weights(model, tmp_path):
    job = job_for(model, tmp_path, optimize=True)
    path = torchscript.write(job.graph(job.options), job.images[0], tmp_path / "a.torchscript", job.options)
    runtime = TorchScriptRuntime(path, trust=True)
    assert not list(runtime.graph.parameters())
    assert_same(job, runtime, job.images[0])


@pytest.mark.parametrize("argument", ["torchscript", "onnx", "openvino"])
def test_half(model, tmp_path, argument):
    job = job_for(model, tmp_path, half=True)
    path = export(job, BY_ARGUMENT[argument], tmp_path)
    runtime = runtime_for(path)(path)
    assert runtime.metadata.half and runtime.dtype == (torch.float32 if argument == "openvino" else torch.float16)
    assert_same(job, runtime, job.images[0], rtol=0.05, atol=0.5)
    size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.glob("*.bin"))
    weights = sum(p.numel() for p in model.parameters())
    assert size > 2 * weights and (argument != "openvino" or size < 3 * weights)


def test_a_wrong_file_is_kept_aside_and_an_old_one_stays(model, tmp_path, monkeypatch):
    (tmp_path / "best.torchscript").write_text("old")
    other = lively(seed=7).fuse()
    job = job_for(model, tmp_path)
    monkeypatch.setattr(job, "graph", lambda options, half: Decoded(other))
    with pytest.raises(
        ExportError, match=r"differs from PyTorch by more than .* kept as .*best\.torchscript\.rejected"
    ):
        export(job, BY_ARGUMENT["torchscript"], tmp_path)
    assert (tmp_path / "best.torchscript").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.torchscript", "best.torchscript.rejected"]
    assert TorchScriptRuntime(tmp_path / "best.torchscript.rejected", trust=True).declared


def test_a_file_with_other_metadata_is_rejected(model, tmp_path):
    job = job_for(model, tmp_path)
    kind = BY_ARGUMENT["onnx"]
    path = onnx_file.write(job.graph(job.options), job.images[0], tmp_path / "a.onnx", job.options)
    assert check(job, kind, path, job.options) == ""
    other = replace(job.options, metadata=replace(job.options.metadata, stride=64))
    assert "it states" in check(job, kind, path, other)


def test_a_folder_takes_the_place_of_an_older_one(model, tmp_path):
    old = tmp_path / "best_openvino_model"
    old.mkdir()
    (old / "stale.xml").touch()
    path = export(job_for(model, tmp_path), BY_ARGUMENT["openvino"], tmp_path)
    assert path == old and sorted(p.name for p in old.iterdir()) == ["best.bin", "best.xml", "metadata.json"]


def test_a_toolchain_that_breaks_is_named_and_leaves_nothing(model, tmp_path, monkeypatch):
    def breaks(*_, **__):
        (tmp_path / "half written").touch()
        raise KeyError("no such operator")

    monkeypatch.setattr(torch.jit, "save", breaks)
    with pytest.raises(ExportError, match=rf"torch {torch.__version__.split('+')[0]}.* failed: KeyError: .*operator"):
        export(job_for(model, tmp_path), BY_ARGUMENT["torchscript"], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["half written"]  # which is the test's


def test_what_cannot_be_run_here_is_called_unrun(model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(TorchScriptRuntime, "packages", ("no_such_package",))
    monkeypatch.setattr(exporter.LOGGER, "propagate", True)
    export(job_for(model, tmp_path), BY_ARGUMENT["torchscript"], tmp_path)
    assert "TorchScript: not run here, since it runs with no_such_package, which is not installed here" in caplog.text


@pytest.mark.parametrize("optimize", [False, True])
def test_torchscript_returns_what_v61_returns(model, tmp_path, optimize):
    """Programs written for v6.1 take `model(images)[0]`."""
    job = job_for(model, tmp_path, optimize=optimize)
    path = torchscript.write(job.graph(job.options), job.images[0], tmp_path / "a.torchscript", job.options)
    decoded, maps = torch.jit.load(str(path))(job.images[0])
    expected, raw = model(job.images[0])
    assert torch.allclose(decoded, expected, atol=1e-3) and [m.shape for m in maps] == [m.shape for m in raw]
