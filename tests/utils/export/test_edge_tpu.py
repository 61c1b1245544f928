"""Edge TPU, as far as it can be tested without the compiler and the device."""

import sys
from pathlib import Path

import pytest

from utils.export import edge_tpu
from utils.export.formats import BY_ARGUMENT, ExportError, ExportOptions
from utils.runtimes import litert_model
from utils.runtimes.base import Metadata
from utils.runtimes.litert_model import EdgeTPURuntime, appended_metadata
from utils.runtimes.table import runtime_for

H, W = 64, 96

META = Metadata(names=("red", "weiß"), stride=32, imgsz=(H, W), int8=True)


def compiler(folder: Path, script: str) -> None:
    program = folder / "edgetpu_compiler"
    program.write_text(f"#!{sys.executable}\nimport pathlib, sys\n{script}\n")
    program.chmod(0o755)


COMPILES = """
*options, source = sys.argv[1:]
assert options[:3] == ["-s", "-d", "-a"] and options[3] == "-o", options
source = pathlib.Path(source)
pathlib.Path(options[4], source.stem + "_edgetpu.tflite").write_bytes(b"compiled " + source.read_bytes())
"""


def test_the_compiler_is_asked_and_its_file_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler(tmp_path, COMPILES)
    (tmp_path / "best-int8.tflite").write_bytes(b"model edgetpu-custom-op")
    target = edge_tpu.write(
        tmp_path / "best-int8.tflite", None, tmp_path / "a_edgetpu.tflite", ExportOptions(metadata=META)
    )
    assert target.read_bytes().startswith(b"compiled model") and appended_metadata(target) == META
    edge_tpu.inspect(target, ExportOptions(metadata=META))
    assert BY_ARGUMENT["edgetpu"].target(Path("best.pt"), True).name == "best-int8_edgetpu.tflite"
    assert runtime_for(target) is EdgeTPURuntime


def test_a_compiler_that_fails_or_takes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    source = tmp_path / "best-int8.tflite"
    source.write_bytes(b"model")
    compiler(tmp_path, "sys.exit('Model not quantized')")
    with pytest.raises(ExportError, match="edgetpu_compiler ended with status 1: Model not quantized"):
        edge_tpu.write(source, None, tmp_path / "a_edgetpu.tflite", ExportOptions(metadata=META))
    compiler(tmp_path, COMPILES)
    target = edge_tpu.write(source, None, tmp_path / "a_edgetpu.tflite", ExportOptions(metadata=META))
    with pytest.raises(ExportError, match="left all operations on the CPU"):
        edge_tpu.inspect(target, ExportOptions(metadata=META))


def test_no_edge_tpu_here(monkeypatch):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setattr(litert_model, "_edge_tpu", lambda: None)
    assert EdgeTPURuntime.obstacle() == "runs on a Coral Edge TPU, and none is found here"
