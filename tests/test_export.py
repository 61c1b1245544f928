"""export.py as a command: what it refuses before it writes, what it writes, and who reads that."""

import inspect
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_world import H, W, boxes_image, lively

import detect
import export
import hubconf
import val
from models.backend import Backend
from utils import checkpoint, cli
from utils.boxes import xyxy_to_xywhn
from utils.data.images import read_image
from utils.data.letterbox import scale_boxes, to_input
from utils.export.formats import BY_ARGUMENT, FORMATS, choose_formats
from utils.nms import non_max_suppression
from utils.runtimes.base import Metadata

SIZE = 64


@pytest.fixture
def refused(command, here):
    """`refused(*arguments, says=...)`: they end in one message, and nothing is written."""

    def check(*arguments, says: str, code: int = 1):
        before = sorted(os.listdir(here))
        found, err = command("export", "--weights", "best.pt", *arguments)
        assert found == code and "Traceback" not in err and says in err.splitlines()[-1], err
        assert sorted(os.listdir(here)) == before

    return check


# --- refused before work starts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--include", "onx"], "--include: unknown format onx; known are all, torchscript, onnx, openvino"),
        (["--imgsz", 64, 64, 64], "--imgsz takes one number, or height and width"),
        (["--imgsz", 0], "--imgsz must be at least 1, got 0"),
        (["--batch-size", 0], "--batch-size must be at least 1, got 0"),
        (["--opset", 10], "--opset must be between 11 and 20, got 10"),
        (["--opset", 21], "--opset must be between 11 and 20, got 21"),
        (["--workspace", 0], "--workspace must be at least 1"),
        (["--topk-all", 0], "--topk-all must be at least 1"),
        (["--topk-per-class", -1], "--topk-per-class must be at least 1"),
        (["--iou-thres", 1.5], "--iou-thres must be between 0 and 1, got 1.5"),
        (["--conf-thres", "nan"], "--conf-thres must be between 0 and 1, got nan"),
        (["--include", "openvino", "--int8"], "--int8 is calibrated on your images: give their data set with --data"),
        (["--include", "onnx", "--int8", "--data", "x.yaml"], "--int8 has no effect on onnx; leave it out"),
        (["--include", "openvino", "--int8", "--half", "--data", "x.yaml"], "--half and --int8 are two precisions"),
        (["--include", "ncnn", "--batch-size", 2], "ncnn takes one image at a time: use --batch-size 1"),
        (["--include", "tflite", "--train"], "TensorFlow Lite has decoded boxes only: leave out --train"),
        (["--train", "--nms"], "--train exports raw maps: leave out --nms"),
        (["--train", "--agnostic-nms"], "--train exports raw maps"),
        (["--device", 99], "--device 99"),
        (["--data", "missing.yaml"], "missing.yaml"),
        (["--weights", "missing.pt"], "no such weights: missing.pt"),
    ],
)
def test_refused(refused, weights, arguments, says):
    refused(*arguments, says=says)


def test_a_package_that_is_not_there(refused, weights, monkeypatch):
    monkeypatch.setitem(BY_ARGUMENT, "x", None)
    monkeypatch.setattr("utils.export.formats.installed", lambda package: package != "openvino")
    refused("--include", "openvino", says="OpenVINO needs openvino: pip install '.[openvino]'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here an engine can be built")
def test_an_engine_needs_a_gpu(refused, weights, monkeypatch):
    monkeypatch.setattr("utils.export.formats.installed", lambda package: True)
    refused("--include", "engine", says="is built on the CUDA GPU that will run it, and torch sees none here")


def test_names_and_classes_must_agree(here):
    """Those of a file do: a class without a name is called by its number."""
    model = lively(nc=2)
    model.names = ["red"]
    with pytest.raises(ValueError, match=r"best\.pt: the detector has 2 classes, but its list of names has 1"):
        export.export_onnx(model, torch.zeros(1, 3, SIZE, SIZE), "best.pt")
    checkpoint.save(here / "best.pt", checkpoint.pack(model))
    [path] = export.run(weights="best.pt", imgsz=SIZE, include="torchscript")
    assert Backend(path).names == ["red", "1"]


def test_help_shows_every_option_with_its_default():
    shown = inspect.signature(export.run).parameters
    flags = {action.dest: action.default for action in export.make_parser()._actions if action.dest != "help"}
    assert {name: parameter.default for name, parameter in shown.items()} == flags
    assert list(shown)[:2] == ["data", "weights"] and shown["opset"].default == 12
    assert all(f"    {name}: " in export.run.__doc__ for name in flags)


def test_options_by_position_and_by_name_are_those_of_the_command_line(here, weights, monkeypatch):
    seen = []
    monkeypatch.setattr(export, "_run", seen.append)
    export.run("x.yaml", weights, imgsz=96, include="onnx", opset=13)
    words = ["--data", "x.yaml", "--weights", str(weights), "--img", "96", "--include", "onnx", "--opset", "13"]
    export.main(cli.parse(export.make_parser(), argv=words))
    assert vars(seen[0]) == vars(seen[1]) and seen[0].given == seen[1].given


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"opset": 9}, ValueError, "--opset must be between 11 and 20, got 9"),
        ({"batch": 2}, TypeError, "there is no option 'batch'; did you mean 'batch_size'?"),
        ({"imgsz": "large"}, ValueError, "--imgsz must be a whole number, got 'large'"),
        ({"int8": True}, ValueError, "--int8 is calibrated on your images"),
    ],
)
def test_keywords_are_refused_as_options_are(here, weights, options, kind, says):
    with pytest.raises(kind) as error:
        export.run(weights=weights, **options)
    assert says in str(error.value) and sorted(os.listdir(here)) == ["best.pt"]


# --- written ----------------------------------------------------------------------------------------------------------


def test_the_defaults_are_v61s(weights, here):
    made = export.run(weights=weights, imgsz=SIZE)
    assert made == [str(here / "best.torchscript"), str(here / "best.onnx")]
    extra = {"config.txt": ""}
    torch.jit.load(made[0], _extra_files=extra)
    config = json.loads(extra["config.txt"])
    assert config["shape"] == [1, 3, SIZE, SIZE] and config["stride"] == 32 and config["names"] == ["red", "weiß"]


def test_several_weights(weights, here, command):
    (here / "other.pt").write_bytes(weights.read_bytes())
    code, err = command("export", "--weights", "best.pt", "other.pt", "--include", "ONNX", "--imgsz", 60, SIZE)
    assert code == 0 and "image size [60, 64] is not a multiple" in err
    assert sorted(os.listdir(here)) == ["best.onnx", "best.pt", "other.onnx", "other.pt"]


def test_all_that_can_be_written_here(weights, here, command, monkeypatch):
    monkeypatch.setattr("utils.export.formats.installed", lambda package: package != "openvino")
    formats = choose_formats(["all"])
    arguments = [kind.argument for kind in formats]
    assert arguments[0] == "torchscript" and "onnx" in arguments and "openvino" not in arguments
    code, err = command("export", "--weights", "best.pt", "--include", "all", "--imgsz", 0)  # tells before it works
    assert code == 1 and "--imgsz must be at least 1" in err
    with monkeypatch.context() as patch:
        patch.setattr("utils.export.formats.FORMATS", [BY_ARGUMENT["onnx"], BY_ARGUMENT["openvino"]])
        code, err = command("export", "--weights", "best.pt", "--include", "all", "--imgsz", SIZE)
    assert code == 0 and "--include all leaves out openvino, which needs openvino: pip install '.[openvino]'" in err
    assert sorted(os.listdir(here)) == ["best.onnx", "best.pt"]


def test_one_that_fails_does_not_keep_the_others_from_it(weights, here, command, monkeypatch):
    def breaks(*_, **__):
        raise RuntimeError("first line\nsecond line\nlast line")

    monkeypatch.setattr(torch.jit, "trace", breaks)
    code, err = command("export", "--weights", "best.pt", "--imgsz", SIZE)
    assert code == 1 and "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("export: error: TorchScript: torch 2.") and last.endswith("first line ... last line")
    assert sorted(os.listdir(here)) == ["best.onnx", "best.pt"]


def test_the_metadata_of_an_onnx_file(weights, here):
    import onnx

    export.run(weights=weights, imgsz=(SIZE, 96), include="onnx", batch_size=2, nms=True, iou_thres=0.5, topk_all=7)
    model = onnx.load(here / "best.onnx")
    texts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    expected = Metadata(
        names=("red", "weiß"), stride=32, imgsz=(SIZE, 96), batch=2, nms=True, conf_thres=0.25, iou_thres=0.5
    )
    assert Metadata.checked(texts, "best.onnx") == expected
    shapes = [[d.dim_value for d in o.type.tensor_type.shape.dim] for o in (*model.graph.input, *model.graph.output)]
    assert shapes == [[2, 3, SIZE, 96], [2, 7, 4], [2, 7], [2, 7]]
    assert [o.name for o in model.graph.output] == ["boxes", "scores", "classes"]


def test_the_table():
    table = export.export_formats()
    assert list(table.columns) == ["Format", "Argument", "Suffix"]
    assert table.Argument[:4].tolist() == ["-", "torchscript", "onnx", "openvino"]
    assert len(set(table.Suffix)) == len(table) == len(FORMATS) + 1


# --- read -------------------------------------------------------------------------------------------------------------


def read_txt(folder: Path) -> dict[str, np.ndarray]:
    return {p.stem: np.loadtxt(p, ndmin=2) for p in sorted((folder / "labels").glob("*.txt"))}


def found_by(weights, source, **options) -> dict[str, np.ndarray]:
    options = {"imgsz": SIZE, "device": "cpu", "project": "out", "nosave": True, **options}
    return read_txt(detect.run(weights, source, save_txt=True, save_conf=True, **options))


@pytest.mark.parametrize("argument", ["torchscript", "onnx", "openvino"])
def test_detect_finds_the_same_in_a_file_of_any_frame(weights, data, here, argument):
    [path] = export.run(weights=weights, imgsz=SIZE, include=argument, dynamic=True)
    expected, found = (found_by(w, here / "boxes/images/val", batch_size=3) for w in (weights, path))
    assert expected.keys() == found.keys() and len(expected) == 4
    assert all(np.allclose(expected[name], found[name], atol=1e-4) for name in expected)


def test_detect_gives_a_file_of_one_frame_what_it_wants(weights, data, here, capsys):
    """Frames of 96 x 64 into one of 128 x 128, three images into batches of two."""
    [path] = export.run(weights=weights, imgsz=128, include="onnx", batch_size=2)
    found = found_by(path, here / "boxes/images/val", batch_size=3, imgsz=W)
    assert (
        f"--imgsz [{W}, {W}]: the file was exported for 128 x 128 pixels, so that size is used"
        in capsys.readouterr().err
    )
    model = Backend(weights)
    assert len(found) == 4
    for name, rows in found.items():
        image = read_image(here / f"boxes/images/val/{name}.png")
        frame = to_input(image, (128, 128), 32, auto=False)[0].float() / 255
        boxes = non_max_suppression(model(frame)[0].detach(), max_det=1000)[0]
        corners = scale_boxes(boxes[:, :4], (128, 128), (H, W)).round()
        expected = torch.cat((boxes[:, 5:], xyxy_to_xywhn(corners, W, H), boxes[:, 4:5]), 1).numpy()
        assert np.allclose(np.sort(rows, 0), np.sort(expected, 0), atol=1e-3)


def test_detect_with_suppression_in_the_file(weights, data, here, capsys):
    [path] = export.run(weights=weights, imgsz=SIZE, include="onnx", dynamic=True, nms=True, topk_all=300)
    expected, found = (found_by(w, here / "boxes/images/val") for w in (weights, path))
    assert all(np.allclose(expected[name], found[name], atol=1e-4) for name in expected) and len(expected) == 4
    capsys.readouterr()
    found_by(path, here / "boxes/images/val", conf_thres=0.1)
    assert "includes NMS with confidence 0.25 and IoU 0.45" in capsys.readouterr().err


def test_val_measures_the_same(weights, data, here):
    common = {"data": str(data), "imgsz": 96, "device": "cpu", "workers": 0, "project": "out", "plots": False}
    expected = val.run(weights=weights, **common)[0]
    for argument, options in (("onnx", {"dynamic": True}), ("openvino", {"dynamic": True}), ("torchscript", {})):
        [path] = export.run(weights=weights, imgsz=96, include=argument, **options)
        assert np.allclose(val.run(weights=path, **common)[0], expected, atol=1e-4)
    [path] = export.run(weights=weights, imgsz=96, include="onnx", batch_size=3)  # its frames are squares
    assert len(val.run(weights=path, **common)[0]) == 7


def test_the_hub_takes_exported_files(weights, here):
    [path] = export.run(weights=weights, imgsz=96, include="onnx")
    expected, ours = (
        hubconf.custom(w, device="cpu")(boxes_image()[..., ::-1].copy(), size=96) for w in (weights, path)
    )
    assert len(ours.xyxy[0]) and ours.names == ["red", "weiß"]
    assert expected.names == ours.names


def test_opencv_runs_an_onnx_file(weights, here):
    [path] = export.run(weights=weights, imgsz=96, include="onnx")
    images = torch.rand(2, 3, 96, 96)
    assert torch.allclose(Backend(path, dnn=True)(images)[0], Backend(path)(images)[0], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--weights", "best.onnx", "best.onnx"], "an ensemble takes .pt files only"),
        (["--weights", "best.onnx", "--augment"], "--augment runs the image at several sizes and needs a .pt file"),
        (["--weights", "best.onnx", "--update"], "--update changes .pt files only, got best.onnx"),
        (["--weights", "best.pt", "--dnn"], "--dnn runs ONNX files, got"),
        (["--weights", "best.onnx", "--visualize"], "--visualize records the layers of one model; give one .pt file"),
        (["--weights", "best.zip"], "best.zip: files of this kind cannot be run"),
        (["--weights", "broken.onnx"], "broken.onnx: ONNX Runtime"),
        (["--weights", "broken.torchscript"], "did not write this one; if you trust its origin"),
        (["--weights", "broken.torchscript", "--trust-weights"], "broken.torchscript: torch"),
        (["--weights", "empty_openvino_model"], "expected one .xml file in this folder, found 0"),
    ],
)
def test_what_detect_refuses(weights, here, command, arguments, says):
    if "best.onnx" in arguments:
        export.run(weights=weights, imgsz=96, include="onnx")
    for name in ("best.zip", "broken.onnx", "broken.torchscript"):
        (here / name).write_bytes(b"no such thing")
    (here / "empty_openvino_model").mkdir()
    cv2.imwrite("image.png", boxes_image())
    code, err = command("detect", "--source", "image.png", "--imgsz", 96, "--project", "out", *arguments)
    assert code == 1 and "Traceback" not in err and says in err.splitlines()[-1], err
