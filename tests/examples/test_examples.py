"""The examples that run an exported file without this project find the boxes that detect.py finds."""

import http.client
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_world import lively

from models.backend import Backend, load_model
from utils.data.letterbox import letterbox
from utils.export.formats import ExportOptions
from utils.export.graph import Decoded
from utils.files import ROOT
from utils.inference.detector import Detector
from utils.nms import non_max_suppression
from utils.runtimes.base import Metadata

WEB = ROOT / "examples/web"
SIZE = 320


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("onnxruntime", reason="the example runs on onnxruntime")
    spec = importlib.util.spec_from_file_location("example_detect", ROOT / "examples/onnxruntime/detect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def export(model: torch.nn.Module, photograph: Path, folder: Path) -> tuple[Path, np.ndarray]:
    """Returns the model's ONNX file and the boxes (n, 6) that detect.py finds with it in the photograph."""
    pytest.importorskip("onnx", reason="writing ONNX needs onnx")
    from utils.export import onnx_file

    path = folder / "model.onnx"
    metadata = Metadata(names=tuple(model.names), stride=32, imgsz=(SIZE, SIZE))
    onnx_file.write(Decoded(model), torch.zeros(1, 3, SIZE, SIZE), path, ExportOptions(metadata=metadata))
    suppression = {"conf_thres": 0.25, "iou_thres": 0.45, "max_det": 1000}
    detector = Detector(Backend(path), (SIZE, SIZE), torch.device("cpu"), **suppression)
    boxes = detector([cv2.imread(str(photograph))])[0][0].numpy()
    assert len(boxes) > 3
    return path, boxes


@pytest.mark.parametrize("shape", [(480, 640), (333, 500), (64, 64), (37, 200)])
def test_the_frame_is_that_of_detect(example, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    expected, (gain, _), padding = letterbox(image, (96, 128), auto=False)
    frame, *place = example.letterbox(image, (96, 128))
    assert (frame == expected).all() and place[0] == gain and np.abs(np.subtract(place[1], padding)).max() <= 0.5


def test_the_suppression_is_that_of_detect(example):
    rng = np.random.default_rng(1)
    rows = rng.random((400, 8), np.float32)
    rows[:, :2] = rows[:, :2] * 200 + 100
    rows[:, 2:4] *= 120
    rows[:20, 2] = 1  # pixel wide
    expected = non_max_suppression(torch.from_numpy(rows)[None], max_det=1000)[0].numpy()
    found = example.decode(rows, 1.0, (0, 0), (400, 400))
    expected[:, :4] = expected[:, :4].clip(0, 400)
    assert len(expected) > 50 and found.shape == expected.shape
    assert np.allclose(found, expected, atol=1e-3)


def test_nothing_found(example):
    assert example.decode(np.zeros((10, 8), np.float32), 1.0, (0, 0), (40, 40)).shape == (0, 6)


def test_the_boxes_are_those_of_detect(example, bccd, tmp_path):
    model = lively()
    for conv in model.model[-1].m:
        conv.bias.data.view(3, -1)[:, 4] = -1.05  # of its thousands of rows those of a few dozen boxes count
    photograph = sorted((bccd / "images/test").iterdir())[2]
    path, boxes = export(model, photograph, tmp_path)
    session = example.onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found, theirs = example.detect(session, cv2.imread(str(photograph)))
    assert theirs == list(model.names) and np.allclose(found, boxes, atol=0.01)


def test_the_drawing_can_be_read(example):
    """A small image is enlarged first; of two captions in one place that of the more confident box stays."""
    image = np.zeros((120, 160, 3), np.uint8)
    boxes = np.array([[10, 40, 60, 80, 0.9, 0], [90, 60, 120, 100, 0.8, 1], [11, 41, 61, 81, 0.7, 2]])
    drawn = example.draw(image, boxes, ["cat", "dog", "cow"])
    assert not image.any() and drawn.shape == (480, 640, 3)
    filled = [(drawn == colour).all(2).sum(1).max() for colour in example.COLOURS[:3]]
    strips = [
        ((drawn == colour).all(2).sum(1) > 20)[: y - 2].sum() for colour, y in zip(example.COLOURS, (160, 240, 164))
    ]
    assert strips[0] > 10 and strips[1] > 10 and strips[2] == 0 and min(filled) > 1
    assert (drawn[159, 100] == example.COLOURS[0]).all() and (drawn[320, 100] == example.COLOURS[0]).all()
    assert (example.draw(np.zeros((900, 700, 3), np.uint8), boxes[:0], []) == 0).all()


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_server_gives_its_own_files_alone(tmp_path):
    shutil.copytree(WEB, tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "web/link.txt").symlink_to(tmp_path / "secret.txt")
    server = subprocess.Popen(["node", tmp_path / "web/serve.mjs", "0"], stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline().rpartition(":")[2])

        def status(path, host=f"127.0.0.1:{port}"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.putrequest("GET", path, skip_host=True)
            connection.putheader("Host", host)
            connection.endheaders()
            answer = connection.getresponse()
            assert b"secret" not in answer.read()[:6]
            connection.close()
            return answer.status

        assert [status(path) for path in ("/", "/page.js", f"/page.js?a={port}")] == [200] * 3
        outside = ["/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "/..%5csecret.txt", "/link.txt"]
        odd = ["/%ZZ", "/%00", "//", "/a%00.html", "/constructor", "/__proto__", "/.hidden"]
        assert {path: status(path) for path in outside} == dict.fromkeys(outside, 404)
        assert {status(path) for path in odd} <= {200, 404}
        assert status("/page.js", "evil.example") == status("/", f"evil.example:{port}") == 403
        assert status("/page.js") == 200 and server.poll() is None
    finally:
        server.kill()
        server.communicate()


def test_the_page_finds_the_boxes_of_detect(official_weights, coco_val128, tmp_path):
    """In a real browser, whose resizing differs a little from OpenCV's."""
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not shutil.which("node") or not browser or not (WEB / "node_modules/onnxruntime-web").is_dir():
        pytest.skip("needs node, Chromium, and `npm install` in examples/web")
    model = load_model(official_weights)
    photograph = sorted((coco_val128 / "images").rglob("*.jpg"))[2]
    path, boxes = export(model, photograph, tmp_path)
    run = subprocess.run(
        ["node", WEB / "test.mjs", path, photograph], env={**os.environ, "CHROMIUM": browser},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert [name for name, *_ in found] == [model.names[int(label)] for label in boxes[:, 5]]
    numbers = np.array([row[1:] for row in found])
    assert np.abs(numbers[:, 0] - boxes[:, 4]).max() < 0.05 and np.abs(numbers[:, 1:] - boxes[:, :4]).max() < 3
