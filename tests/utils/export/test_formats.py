"""The table of formats: names of files, and what is missing to write them."""

import os
from pathlib import Path

import pytest

from utils.export.formats import BY_ARGUMENT
from utils.runtimes.environments import PythonEnvironment


@pytest.mark.parametrize(
    ("argument", "int8", "name"),
    [
        ("onnx", False, "a.pt.onnx"),
        ("openvino", True, "a.pt_openvino_model"),
        ("torchscript", False, "a.pt.torchscript"),
    ],
)
def test_names_of_files(argument, int8, name):
    assert BY_ARGUMENT[argument].target(Path("x.pt/a.pt.pt"), int8) == Path("x.pt") / name  # v6.1 replaced every .pt


def test_names_of_tflite_files():
    tflite, weights = BY_ARGUMENT["tflite"], Path("best.pt")
    assert tflite.target(weights).name == "best-fp32.tflite"
    assert tflite.target(weights, half=True).name == "best-fp16.tflite"
    assert tflite.target(weights, int8=True).name == "best-int8.tflite"
    assert BY_ARGUMENT["edgetpu"].target(weights, int8=True).name == "best-int8_edgetpu.tflite"


# --- what is missing here ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("include", "packages", "says"),
    [
        ("tflite", (), "TensorFlow Lite needs ai_edge_litert, ai_edge_quantizer: pip install '.[tflite]'"),
        ("tflite", "all", "needs litert-torch==0.10.0 in the separate environment"),
        ("saved_model", "all", "needs onnx2tf==1.29.24 in the separate environment"),
        ("edgetpu", "all", "is in 8-bit integers, which are calibrated on your images: give --data"),
    ],
)
def test_what_is_missing_is_named(weights, here, command, monkeypatch, include, packages, says):
    monkeypatch.setenv("YOLOV5_ENVIRONMENTS", str(here / "none"))
    monkeypatch.setattr("utils.export.formats.installed", lambda package: packages == "all")
    before = sorted(os.listdir(here))
    code, err = command("export", "--weights", "best.pt", "--include", include, "--imgsz", 64, 96)
    assert code == 1 and says in err.splitlines()[-1] and sorted(os.listdir(here)) == before


def test_without_its_compiler(weights, data, command, monkeypatch):
    monkeypatch.setattr("utils.export.formats.installed", lambda package: True)
    monkeypatch.setenv("PATH", "")
    code, err = command("export", "--weights", "best.pt", "--include", "edgetpu", "--data", data)
    assert code == 1 and "needs the program edgetpu_compiler, which is not installed here" in err.splitlines()[-1]


def test_an_environment_that_cannot_be_made(weights, here, command, monkeypatch):
    def fails(self):
        raise RuntimeError("pip ended with status 1: no space left")

    monkeypatch.setenv("YOLOV5_ENVIRONMENTS", str(here / "none"))
    monkeypatch.setattr(PythonEnvironment, "make", fails)
    code, err = command("export", "--weights", "best.pt", "--include", "tflite", "--make-env")
    assert code == 1
    place = here / "none/litert"
    assert f"--make-env: litert in {place}: pip ended with status 1: no space left" in err.splitlines()[-1]
