"""v6.1's loaders give the detectors of this project, under its arguments and with its attributes."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import boxes_image, lively

import export
import hubconf
from models.backend import Backend, load_model
from models.common import AutoShape, Conv, Detections, DetectMultiBackend, autopad
from models.experimental import Ensemble, attempt_load
from models.yolo import Detect, Model
from utils import checkpoint

ROOT = Path(__file__).resolve().parents[2]
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("doors")
    for name, seed in (("a.pt", 0), ("b.pt", 1)):
        checkpoint.save(folder / name, checkpoint.pack(lively(seed=seed)))
    return folder / "a.pt"


def test_blocks_load_nothing_of_it():
    code = (
        "import sys, models.common, models.experimental\n"
        "assert not {'models.doors', 'models.backend', 'cv2', 'utils.drawing'} & set(sys.modules), sys.modules.keys()\n"
        "try: models.common.Unknown\n"
        "except AttributeError as error: assert 'Unknown' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("place", [{}, {"map_location": "cpu"}, {"device": torch.device("cpu")}])
def test_attempt_load_takes_the_names_of_both_releases(weights, place):
    model = attempt_load(str(weights), **place)
    assert isinstance(model, Model) and not model.training and not hasattr(model.model[0], "bn")
    assert not any(p.requires_grad for p in model.parameters())
    expected, raw = load_model(weights)(IMAGES)
    found = model(IMAGES, augment=False, profile=False, visualize=False)
    assert torch.equal(found[0], expected) and len(found[1]) == len(raw)
    assert list(model.names) == ["red", "weiß", "blue"] and int(model.stride.max()) == 16
    assert hasattr(attempt_load([weights], torch.device("cpu"), True, False).model[0], "bn")


def test_attempt_load_joins_several(weights):
    both = attempt_load([weights, weights.with_name("b.pt")])
    assert isinstance(both, Ensemble) and len(both) == 2
    joined, none = both(IMAGES, augment=False, visualize=False)
    single = [attempt_load(file)(IMAGES)[0] for file in (weights, weights.with_name("b.pt"))]
    assert torch.equal(joined, torch.cat(single, 1)) and none is None
    own = Ensemble()  # as programs build it
    own.append(attempt_load(weights))
    assert torch.equal(own.eval()(IMAGES)[0], single[0])


def test_attempt_load_downloads_nothing(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    with pytest.raises(FileNotFoundError, match=r"no such weights: yolov5s6\.pt"):
        attempt_load("yolov5s6.pt")


KINDS = "pt jit onnx xml engine coreml saved_model pb tflite edgetpu tfjs dnn".split()


def test_multi_backend_returns_the_rows_alone(weights):
    model = DetectMultiBackend(str(weights), device=torch.device("cpu"), dnn=False, data=None)
    expected, raw = Backend(weights)(IMAGES)
    rows = model(IMAGES, augment=False, visualize=False)
    assert torch.equal(rows, expected) and not rows.requires_grad
    whole = model(IMAGES, val=True)
    assert torch.equal(whole[0], expected) and len(whole[1]) == len(raw)
    assert model(IMAGES, augment=True).shape[1] > rows.shape[1]
    assert [kind for kind in KINDS if getattr(model, kind)] == ["pt"]
    assert (model.stride, list(model.names), model.fp16) == (32, ["red", "weiß", "blue"], False)
    model.model.float()
    model.warmup(imgsz=(1, 3, 64, 64), half=False)
    assert isinstance(model.model, Model) and isinstance(model, Backend)


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_multi_backend_runs_exported_files(weights, kind, tmp_path):
    file = tmp_path / "a.pt"
    file.write_bytes(weights.read_bytes())
    model, im = attempt_load(file), torch.zeros(1, 3, 64, 96)
    writers = {
        "torchscript": lambda: export.export_torchscript(model, im, file, optimize=False),
        "onnx": lambda: export.export_onnx(model, im, file, 12, False, True, False),
    }
    written = writers[kind]()
    assert written == str(file.with_suffix(f".{kind}"))
    runs = DetectMultiBackend(written, device=torch.device("cpu"))
    assert [name for name in KINDS if getattr(runs, name)] == [{"torchscript": "jit"}.get(kind, kind)]
    torch.testing.assert_close(runs(IMAGES[:1]), model(IMAGES[:1])[0], rtol=1e-4, atol=1e-3)
    whole = runs(IMAGES[:1], val=True)
    assert torch.equal(whole[0], runs(IMAGES[:1])) and list(whole[1]) == []
    if runs.jit:
        runs.model.float()
    with pytest.raises(ValueError, match="augment"):
        runs(IMAGES[:1], augment=True)


def test_visualize_writes_the_maps_of_the_layers(weights, tmp_path):
    for name, model in (("a", DetectMultiBackend(weights)), ("b", attempt_load(weights))):
        folder = tmp_path / name
        folder.mkdir()
        model(IMAGES, visualize=folder)
        maps = np.load(folder / "stage0_Conv_features.npy")
        assert maps.shape == (8, 16, 24) and len(list(folder.glob("*.png"))) == 4
    assert all((tmp_path / "b" / f.name).read_bytes() == f.read_bytes() for f in (tmp_path / "a").iterdir())


def test_profile_logs_each_layer(weights, monkeypatch):
    said = []
    monkeypatch.setattr("models.yolo.LOGGER.info", said.append)
    attempt_load(weights)(IMAGES, profile=True)
    assert len(said) == 5 and "models.yolo.Detect" in said[-1]


def test_autoshape_takes_either_backend(weights):
    by_hand = AutoShape(DetectMultiBackend(weights))
    results = by_hand(boxes_image()[..., ::-1], size=96)
    assert isinstance(results, Detections) and len(results.xyxy[0])
    for other in (AutoShape(Backend(weights)), hubconf.custom(weights, device="cpu"), hubconf._create(str(weights))):
        assert torch.equal(results.xyxy[0], other(boxes_image()[..., ::-1], size=96).xyxy[0])
    assert torch.equal(by_hand(IMAGES), DetectMultiBackend(weights)(IMAGES))


def test_the_hub_without_autoshape_is_the_multi_backend(weights):
    model = hubconf.custom(weights, autoshape=False, device="cpu")
    assert isinstance(model, DetectMultiBackend) and isinstance(model(IMAGES), torch.Tensor)
    untrained = hubconf._create("yolov5n", pretrained=False, classes=7, autoshape=False, device="cpu")
    assert isinstance(untrained, Model) and untrained.model[-1].nc == 7


def test_names_answer_as_a_list_and_as_a_dict(weights):
    expected = {0: "red", 1: "weiß", 2: "blue"}
    models = DetectMultiBackend(weights), attempt_load(weights), hubconf.custom(weights, device="cpu")
    for names in (model.names for model in models):
        assert names == list(expected.values()) == list(names) == list(names.values()) and names[1] == "weiß"
        assert dict(names) == dict(names.items()) == expected and list(names.keys()) == [0, 1, 2]
        assert 2 in names and 3 not in names and "red" in names and "green" not in names and len(names) == 3
        assert names.get(1) == "weiß" and names.get(7, "?") == "?"
        assert type(pickle.loads(pickle.dumps(names))) is list  # which any other program can read


def test_autopad():
    assert (autopad(3), autopad((1, 5)), autopad(3, 0)) == (1, (0, 2), 0)
    assert Conv(3, 8, 5).conv.padding == (2, 2)


# --- idioms of programs that convert weights --------------------------------------------------------------------------


def test_a_weight_writer_reads_every_tensor_with_torch_alone(weights):
    """As tensorrtx's gen_wts does: the pickled model itself, its anchors in pixels as a buffer, the state in order."""
    model = torch.load(weights, map_location="cpu", weights_only=False)["model"].float()
    head = model.model[-1]
    anchors = head.anchors * head.stride[..., None, None]
    delattr(head, "anchor_grid")
    head.register_buffer("anchor_grid", anchors)
    model.to("cpu").eval()
    lines = {k: v.reshape(-1).numpy() for k, v in model.state_dict().items()}
    expected = lively().half().float().state_dict()
    assert set(lines) - set(expected) == {"model.4.anchor_grid"}
    assert all((lines[k] == v.reshape(-1).numpy()).all() for k, v in expected.items())
    np.testing.assert_allclose(lines["model.4.anchor_grid"][:6], [10, 13, 16, 30, 33, 23], rtol=1e-3)


@pytest.mark.filterwarnings("ignore")  # of torch's exporter, about itself and traces
def test_an_exporter_wraps_the_model_and_traces_it(weights, tmp_path):
    """As DeepStream's exporter does: attributes set on the head, rows split into boxes, scores and classes."""

    class Output(torch.nn.Module):
        def forward(self, x):
            rows = x[0]
            scores, classes = torch.max(rows[:, :, 5:] * rows[:, :, 4:5], 2, keepdim=True)
            return torch.cat([rows[:, :, :4], scores, classes.float()], -1)

    model = attempt_load(weights, device=torch.device("cpu"), inplace=True, fuse=True)
    for _, module in model.named_modules():
        if isinstance(module, Detect):
            module.inplace, module.dynamic, module.export = False, False, True
    wrapped = torch.nn.Sequential(model, Output())
    file = tmp_path / "deepstream.onnx"
    torch.onnx.export(
        wrapped, IMAGES[:1], str(file), opset_version=17, do_constant_folding=True, input_names=["input"],
        output_names=["output"], dynamo=False,
    )  # fmt: skip
    onnxruntime = pytest.importorskip("onnxruntime")
    (found,) = onnxruntime.InferenceSession(str(file)).run(None, {"input": IMAGES[:1].numpy()})
    np.testing.assert_allclose(found, Output()(load_model(weights)(IMAGES[:1])).detach(), rtol=1e-4, atol=1e-3)
