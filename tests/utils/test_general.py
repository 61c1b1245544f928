"""v6.1's helpers keep their names, arguments and ways; each number here is worked out by hand."""

import inspect
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import lively

from utils import checkpoint, general, metrics
from utils.general import (
    LOGGER,
    Profile,
    WorkingDirectory,
    apply_classifier,
    check_dataset,
    check_file,
    check_img_size,
    check_imshow,
    check_requirements,
    check_suffix,
    check_version,
    check_yaml,
    clean_str,
    clip_coords,
    colorstr,
    get_latest_run,
    increment_path,
    intersect_dicts,
    is_ascii,
    labels_to_class_weights,
    labels_to_image_weights,
    make_divisible,
    non_max_suppression,
    one_cycle,
    print_args,
    scale_coords,
    segment2box,
    set_logging,
    strip_optimizer,
    url2file,
    xyn2xy,
    xywh2xyxy,
    xywhn2xyxy,
    xyxy2xywh,
    xyxy2xywhn,
)

ROWS = torch.tensor([[
    [50.0, 40, 20, 10, 0.9, 0.1, 1.0],
    [51.0, 40, 20, 10, 0.8, 0.1, 1.0],  # the same object, less confident
    [20.0, 20, 8, 8, 0.5, 0.8, 0.2],
    [80.0, 80, 8, 8, 0.1, 1.0, 1.0],  # objectness below 0.25
]])  # fmt: skip
DETECTIONS = [[40, 35, 60, 45, 0.9, 1], [16, 16, 24, 24, 0.4, 0]]


@pytest.fixture
def messages(monkeypatch):
    said = []
    for level in ("info", "warning"):
        monkeypatch.setattr(LOGGER, level, said.append)
    return said


ARGUMENTS = {
    "non_max_suppression": "prediction conf_thres iou_thres classes agnostic multi_label labels max_det",
    "scale_coords": "img1_shape coords img0_shape ratio_pad",
    "scale_boxes": "img1_shape coords img0_shape ratio_pad",
    "check_img_size": "imgsz s floor",
    "check_file": "file suffix",
    "check_requirements": "requirements exclude install",
    "increment_path": "path exist_ok sep mkdir",
    "strip_optimizer": "f s",
    "make_divisible": "x divisor",
    "xywhn2xyxy": "x w h padw padh",
    "xyxy2xywhn": "x w h clip eps",
    "apply_classifier": "x model img im0",
    "set_logging": "name verbose",
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_have_the_names_and_order_of_v61(name):
    wanted = ARGUMENTS[name].split()
    assert list(inspect.signature(getattr(general, name)).parameters)[: len(wanted)] == wanted


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, [x]), lambda x: [x, None]])
def test_nms_takes_a_tensor_or_all_that_a_model_returns(wrap):
    (found,) = non_max_suppression(prediction=wrap(ROWS), conf_thres=0.25, iou_thres=0.45)
    np.testing.assert_allclose(found, DETECTIONS, rtol=1e-6)
    (found,) = non_max_suppression(wrap(ROWS), 0.25, 0.45, [0], agnostic=True, multi_label=False, max_det=5)
    np.testing.assert_allclose(found, DETECTIONS[1:], rtol=1e-6)


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_scale_coords_changes_boxes_in_place_and_returns_them(kind):
    # 320 x 240 in a frame of 640 x 320: gain 4 / 3, and (640 - 427) / 2 pixels on the left
    boxes = kind([[320 / 3 + 40, 80.0, 320 / 3 + 400, 400, 0.5, 3]])
    result = scale_coords((320, 640), boxes, (240, 320, 3))
    assert result is boxes
    np.testing.assert_allclose(boxes, [[30, 60, 300, 240, 0.5, 3]], rtol=1e-5)  # clipped below
    part = kind([[10.0, 20, 30, 40, 0.5, 3]])
    scale_coords((64, 64), part[:, :4], (128, 128), ratio_pad=((0.5, 0.5), (2, 4)))
    np.testing.assert_allclose(part, [[16, 32, 56, 72, 0.5, 3]])


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_conversions_leave_their_argument_and_further_columns_alone(kind):
    corners = kind([[10.0, 20, 30, 60, 0.5, 3]])
    centred = xyxy2xywh(corners)
    np.testing.assert_allclose(centred, [[20, 40, 20, 40, 0.5, 3]])
    np.testing.assert_allclose(xywh2xyxy(centred), corners)
    np.testing.assert_allclose(corners, [[10, 20, 30, 60, 0.5, 3]])
    shares = xyxy2xywhn(corners, w=100, h=200)
    np.testing.assert_allclose(shares, [[0.2, 0.2, 0.2, 0.2, 0.5, 3]])
    np.testing.assert_allclose(xywhn2xyxy(shares, 100, 200, padw=1, padh=2), [[11, 22, 31, 62, 0.5, 3]])
    outside = kind([[-5.0, 20, 130, 60]])
    np.testing.assert_allclose(xyxy2xywhn(outside, 100, 200, clip=True), [[0.5, 0.2, 1, 0.2]])
    np.testing.assert_allclose(outside, [[0, 20, 100, 60]])  # v6.1 clips its argument
    assert clip_coords(outside, (30, 50, 3)) is outside
    np.testing.assert_allclose(outside, [[0, 20, 50, 30]])


def test_polygons():
    np.testing.assert_allclose(xyn2xy(np.array([[0.5, 0.25]]), 100, 200, 1, 2), [[51, 52]])
    np.testing.assert_allclose(segment2box(np.array([[10, 20], [30, 60], [700, 5]]), 640, 640), [10, 20, 30, 60])


def test_sizes_take_the_strides_of_a_model(messages):
    assert make_divisible(65, 32) == make_divisible(65, torch.tensor([8.0, 16, 32])) == 96
    assert check_img_size(640, s=torch.tensor(32.0)) == 640 and not messages
    assert check_img_size((600, 640), s=32) == [608, 640] and check_img_size(33, s=32, floor=128) == 128
    assert len(messages) == 2


def test_weights_of_classes_and_images():
    labels = [np.array([[0, 0, 0, 0, 0.0], [1, 0, 0, 0, 0]]), np.array([[0, 0, 0, 0, 0.0]])]
    np.testing.assert_allclose(labels_to_class_weights(labels, 2), [1 / 3, 2 / 3])
    np.testing.assert_allclose(labels_to_image_weights(labels, 2, np.array([1, 10])), [11, 1])
    assert [round(one_cycle(1, 0.1, 10)(x), 6) for x in (0, 5, 10)] == [1, 0.55, 0.1]
    state = intersect_dicts({"a": ROWS, "b": ROWS, "c": ROWS}, {"a": ROWS, "b": ROWS[0], "c": ROWS}, exclude=["c"])
    assert list(state) == ["a"]


def test_strip_optimizer_keeps_the_averaged_weights_alone(tmp_path):
    file = tmp_path / "last.pt"
    checkpoint.save(file, checkpoint.pack(lively(), ema=lively(seed=1), optimizer={"state": {}}, updates=7))
    strip_optimizer(f=file, s=tmp_path / "small.pt")
    stripped = torch.load(tmp_path / "small.pt", weights_only=False)
    assert stripped["optimizer"] is stripped["ema"] is stripped["updates"] is None
    expected = lively(seed=1).half().state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in stripped["model"].state_dict().items())
    strip_optimizer(str(file))
    assert torch.load(file, weights_only=False)["optimizer"] is None


# --- files and checks -------------------------------------------------------------------------------------------------


def test_increment_path_separates_the_number_as_asked(tmp_path):
    path = tmp_path / "exp"
    assert increment_path(path, sep="_", mkdir=True) == path and path.is_dir()
    assert increment_path(str(path), sep="_") == tmp_path / "exp_2"
    (tmp_path / "exp_9").mkdir()
    assert increment_path(path, False, "_", True) == tmp_path / "exp_10" and (tmp_path / "exp_10").is_dir()
    assert increment_path(path) == tmp_path / "exp2" and increment_path(path, exist_ok=True) == path
    file = increment_path(tmp_path / "new" / "a.csv", mkdir=True)
    assert file == tmp_path / "new" / "a.csv" and file.parent.is_dir() and not file.exists()


def test_files_are_found_and_never_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    assert Path(check_file("SOCA.yaml")).read_text() and Path(check_yaml("shapes.yaml")).name == "shapes.yaml"
    assert check_file("") == ""
    with pytest.raises(ValueError, match=r"https://x/y\.yaml: this is a URL"):
        check_file("https://x/y.yaml")
    with pytest.raises(ValueError, match="this is a URL") as error:
        check_file("https://me:secret@x/y.yaml")
    assert "secret" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        check_file("nothing.yaml")
    with pytest.raises(ValueError, match=r"\.yaml"):
        check_yaml("a.txt")
    check_suffix(["a.pt", "b"], (".pt",))
    with pytest.raises(ValueError, match=r"b\.onnx"):
        check_suffix(["a.pt", "b.onnx"], ".pt")
    assert url2file("https://host/a%20b.pt?auth=1") == "a b.pt"
    assert check_dataset({"nc": 1}) == {"nc": 1}
    (tmp_path / "exp/weights").mkdir(parents=True)
    assert get_latest_run(tmp_path) == ""
    (tmp_path / "exp/weights/last.pt").touch()
    assert get_latest_run(tmp_path) == str(tmp_path / "exp/weights/last.pt")


def test_requirements_are_checked_and_never_installed(tmp_path, messages, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert check_requirements("numpy>=1.0") and check_requirements(["torch", "numpy"]) and not messages
    file = tmp_path / "requirements.txt"
    file.write_text(
        "# a comment\n-r other.txt\nnumpy>=1.0  # arrays\nno-such-package>=2\nskipped ; python_version < '3'\n"
    )
    assert not check_requirements(file)
    assert check_requirements(file, exclude=["no-such-package"])
    assert not check_requirements(("numpy>=999",), install=True)
    assert messages == [
        "not installed: no-such-package>=2; pip install 'no-such-package>=2'",
        "not installed: numpy>=999; pip install 'numpy>=999'",
    ]


def test_what_v61_asks_the_network_or_a_display_for(messages, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    assert general.check_git_status() is None
    monkeypatch.setattr("utils.inference.results.has_display", lambda: False)
    assert not check_imshow() and not messages
    assert not check_imshow(warn=True) and "no window can be opened" in messages[0]
    assert general.box_iou is metrics.box_iou and general.fitness is metrics.fitness  # v6.1 has them here too


def test_versions():
    assert check_version("1.10.0", "1.9.1") and not check_version("1.9.0", "1.9.1")
    assert check_version("1.9.1", "1.9.1", pinned=True) and not check_version("1.10", "1.9.1", pinned=True)
    with pytest.raises(ValueError, match=r"torch must be at least 1\.9, got 1\.7"):
        check_version("1.7", "1.9", name="torch", hard=True)


# --- text, contexts ---------------------------------------------------------------------------------------------------


def test_text_for_the_terminal(messages):
    assert colorstr("train: ") == "\033[34m\033[1mtrain: \033[0m" and colorstr("red", "x") == "\033[31mx\033[0m"
    assert clean_str("rtsp://a:b@c/d?e=1") == "rtsp_//a_b_c/d_e_1" and is_ascii(["a"]) and not is_ascii(["ß"])
    assert set_logging("yolov5") is LOGGER
    options = {"weights": "a.pt", "imgsz": 640}
    print_args("detect", type("Options", (), {})())
    print_args("detect", inspect.types.SimpleNamespace(**options))
    print_args(options)
    assert [text.partition(": ")[2] for text in messages] == ["", *["weights=a.pt, imgsz=640"] * 2]


def test_profile_takes_the_time_of_blocks_and_functions(monkeypatch):
    clock = iter([10.0, 12.0, 20.0, 23.0])
    watch = Profile(device="cpu")
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    with watch:
        pass
    assert (watch.dt, watch.t) == (2, 2)
    watch(lambda: None)()
    assert (watch.dt, watch.t) == (3, 5)


def test_working_directory(tmp_path):
    before = Path.cwd()
    with WorkingDirectory(tmp_path):
        assert Path.cwd() == tmp_path
    assert Path.cwd() == before


def test_a_second_classifier_keeps_what_it_agrees_with():
    class White(torch.nn.Module):
        def forward(self, crops):
            assert crops.shape[1:] == (3, 224, 224)
            white = crops.mean((1, 2, 3)) > 0.5
            return torch.stack([~white, white], 1).float()

    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 64:] = 255
    boxes = torch.tensor([[4.0, 8, 12, 16, 0.9, 0], [4, 8, 12, 16, 0.8, 1], [50, 8, 60, 24, 0.7, 1]])
    pixels = torch.zeros(1, 3, 32, 64)
    (kept,) = apply_classifier([boxes.clone()], White(), pixels, image)
    np.testing.assert_allclose(kept, [[8, 16, 24, 32, 0.9, 0], [100, 16, 120, 48, 0.7, 1]], rtol=1e-6)
    none = torch.zeros(0, 6)
    assert apply_classifier([none], White(), pixels, [image])[0] is none
