"""Images of every kind give the boxes that are in them, as tensors, tables, files; torch.hub loads offline."""

import io
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from small_world import BrightBoxes

import hubconf
from models.autoshape import AutoShape, Detections
from models.backend import Backend
from models.yolo import Model
from utils import checkpoint

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["rot", "weiß"]
BOXES = np.array([[50, 20, 90, 52], [8, 10, 30, 40]])  # white, red: the more confident first
H, W = 64, 96

TINY = {
    "nc": 80,
    "depth_multiple": 0.33,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]],
    "backbone": [[-1, 1, "Conv", [32, 6, 2, 2]], [-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]],
                 [-1, 1, "Conv", [128, 3, 2]]],
    "head": [[[2, 3], 1, "Detect", ["nc", "anchors"]]],
}  # fmt: skip


def boxes_image() -> np.ndarray:
    """RGB, with a red and a white box."""
    image = np.full((H, W, 3), 60, np.uint8)
    for (x1, y1, x2, y2), colour in zip(BOXES, ((245, 245, 245), (220, 30, 30))):
        image[y1:y2, x1:x2] = colour
    return image


class BrightBoxesInTorch(BrightBoxes):
    """The stand-in detector as a torch module that AutoShape wraps: with a weight, strides as a tensor and raw maps."""

    names, stride = NAMES, torch.tensor([8.0, 16.0, 32.0])

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images, augment=False):
        return super().forward(images)[0], "raw"


@pytest.fixture
def model() -> AutoShape:
    return AutoShape(BrightBoxesInTorch())


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "ein Ordner"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# --- what comes in ----------------------------------------------------------------------------------------------------


def kinds(folder: Path) -> dict:
    """The same image in every kind that a call takes."""
    image = boxes_image()
    Image.fromarray(image).save(folder / "ä.png")
    Image.fromarray(image).save(folder / "opened.png")
    turned, exif = Image.fromarray(image).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned.save(folder / "turned.png", exif=exif)
    alpha = np.dstack([image, np.full((H, W), 9, np.uint8)])
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    return {
        "path": "ä.png",
        "Path": folder / "ä.png",
        "turned file": "turned.png",
        "Pillow": Image.open(folder / "opened.png"),
        "turned Pillow": Image.open(folder / "turned.png"),
        "RGBA": Image.fromarray(alpha),
        "palette": Image.fromarray(image).convert("P", palette=Image.Palette.ADAPTIVE),
        "array": image,
        "read-only array": np.asarray(Image.fromarray(image)),
        "CHW array": image.transpose(2, 0, 1),
        "four channels": alpha,
        "float array": image.astype(np.float32),
        "uint8 tensor": tensor,
        "float tensor": tensor / 255,
        "half tensor": (tensor / 255).half(),
    }


def test_every_kind_alone_and_all_together(model, here):
    given = kinds(here)
    for name, one in given.items():
        found = model(one, size=W)
        assert len(found) == found.n == 1
        assert np.abs(found.xyxy[0][:, :4].numpy() - BOXES).max() <= 1, name
        np.testing.assert_array_equal(found.imgs[0], boxes_image(), name) if name != "palette" else None
    together = list(given.values())
    copies = list(together)
    found = model(together, size=W)
    assert found.n == len(given) and found.s == (len(given), 3, H, W)
    assert all(np.abs(boxes[:, :4].numpy() - BOXES).max() <= 1 for boxes in found.pred)
    assert all(a is b for a, b in zip(together, copies))  # the caller's list is left alone
    names = ["ä.jpg", "ä_2.jpg", "turned.jpg", "opened.jpg", "turned_2.jpg", *(f"image{i}.jpg" for i in range(5, 15))]
    assert sorted(found.files) == sorted(names)


def test_images_of_several_sizes(model):
    """Boxes are those of each image, whatever frame the batch shares."""
    tall = boxes_image().transpose(1, 0, 2)
    large = cv2.resize(boxes_image(), (3 * W, 3 * H), interpolation=cv2.INTER_NEAREST)
    found = model([boxes_image(), tall, large], size=192)
    assert found.s == (3, 3, 192, 192)
    expected = BOXES, BOXES[:, [1, 0, 3, 2]], 3 * BOXES
    for boxes, true in zip(found.xyxy, expected):
        assert np.abs(boxes[:, :4].numpy() - true).max() <= 1.5


def test_grey_images(model):
    grey = cv2.cvtColor(boxes_image(), cv2.COLOR_RGB2GRAY)
    for image in (grey, grey[..., None], Image.fromarray(grey), grey[:3]):
        found = model(image, size=W)
        assert found.imgs[0].shape == (*np.shape(image)[:2], 3)
    assert len(model(grey).xyxy[0]) == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "the list of images is empty"),
        (np.zeros((4, 5, 6, 7)), r"image 0: expected an array \(H, W, 3\)"),
        (np.zeros((64, 64, 2), np.uint8), "expected an array"),
        (np.zeros((0, 64, 3), np.uint8), "expected an array"),
        (np.full((64, 64, 3), 0.5), "expected values 0-255, got float64 up to 0.5"),
        (np.full((64, 64, 3), 4000, np.int32), "expected values 0-255, got int32 up to 4000"),
        (Image.fromarray(np.full((64, 64), 0.5, np.float32)), r"image 0: pixels of 32 bits \(mode F\)"),
        (Image.fromarray(np.full((64, 64), 4000, np.int32)), r"image 0: pixels of 32 bits \(mode I\)"),
        ([boxes_image(), "text"], "no such file|No such file"),
        (None, "image 0: expected an array"),
    ],
)
def test_what_is_no_image(model, given, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        model(given)


def test_sixteen_bits_are_seen_as_eight(model, here):
    """By path, by Pillow and as an array alike: the high byte of each value."""
    grey = np.tile(np.linspace(0, 255, W).astype(np.uint8), (H, 1))
    deep = grey.astype(np.uint16) * 257
    Image.fromarray(deep).save("deep.png")
    for image in ("deep.png", Image.open("deep.png"), Image.fromarray(deep), deep, np.dstack([deep] * 3)):
        assert np.array_equal(model(image).imgs[0], np.dstack([grey] * 3))


@pytest.mark.parametrize(
    ("size", "shape"),
    [(64, (64, 64)), ((64, 96), (64, 96)), ([32, 96], (32, 64)), ((96, 96), (64, 96)), (np.int64(96), (64, 96))],
)
def test_size_is_one_side_or_two(model, size, shape):
    """The image, 64 x 96, fits into height and width; the stride is 32."""
    assert model(boxes_image(), size=size).s == (1, 3, *shape)


@pytest.mark.parametrize("size", [0, (64, 0), (1, 2, 3), ()])
def test_sizes_that_are_none(model, size):
    with pytest.raises(ValueError, match="size must be at least 1 pixel"):
        model(boxes_image(), size=size)


def test_classes_by_name(model):
    model.classes = ["rot"]
    assert model(boxes_image()).xyxy[0][:, 5].tolist() == [0]
    model.classes = ["blau"]
    with pytest.raises(ValueError, match="the model has no class called 'blau'; it has rot, weiß"):
        model(boxes_image())


def test_what_programs_ask_a_model(here):
    checkpoint.save("tiny.pt", checkpoint.pack(Model(TINY)))
    model = hubconf.custom("tiny.pt", device="cpu", _verbose=False)
    assert model.pt and model.dmb and not model.fp16 and model.half().fp16 and model.names[0] == model.names.get(0)
    model.warmup(imgsz=(1, 3, 64, 64))
    alone = AutoShape(BrightBoxesInTorch())
    assert alone.pt and not alone.dmb and dict(alone.names.items()) == dict(enumerate(NAMES))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_a_network_of_other_channels_sees_a_file_and_its_pixels_alike(here, channels, mode):
    checkpoint.save("tiny.pt", checkpoint.pack(Model(TINY, ch=channels)))
    model = hubconf.custom("tiny.pt", device="cpu", verbose=False)
    model.conf = 0
    image = Image.fromarray(np.dstack([boxes_image(), np.full((H, W), 9, np.uint8)])).convert(mode)
    image.save("a.png")
    for given in (["a.png", image], ["a.png", cv2.imread("a.png", cv2.IMREAD_UNCHANGED)]):
        first, second = model(given, size=64).pred
        assert torch.equal(first, second) and model(given, size=64).imgs[0].shape == (H, W, 3)
    if channels == 4:
        with pytest.raises(ValueError, match=r"expected an array \(H, W, 4\) or \(4, H, W\)"):
            model(boxes_image())


@pytest.mark.parametrize("move", ["half", "bfloat16", "double", "cpu"])
def test_images_follow_a_backend_that_moves(here, move):
    checkpoint.save("tiny.pt", checkpoint.pack(Model(TINY)))
    model = getattr(hubconf.custom("tiny.pt", device="cpu", verbose=False), move)()
    assert model(boxes_image(), size=64).xyxy[0].shape[1] == 6


def test_a_batch_of_tensors_passes_as_it_is(model, here):
    batch = torch.zeros(2, 3, 64, 96)
    assert model(batch)[1] == "raw" and len(model(batch)[0]) == 2
    checkpoint.save("tiny.pt", checkpoint.pack(Model(TINY)))
    found = AutoShape(Backend("tiny.pt"))(batch.half())
    assert isinstance(found, torch.Tensor) and found.shape == (2, 3 * (8 * 12 + 4 * 6), 85)


def test_addresses_only_when_allowed(model, monkeypatch):
    asked = []

    class Body(io.BytesIO):
        headers = {}  # noqa: RUF012

    monkeypatch.setattr(
        "urllib.request.OpenerDirector.open",
        lambda self, url, timeout: (
            asked.append(url) or Body(cv2.imencode(".png", boxes_image()[..., ::-1])[1].tobytes())
        ),
    )
    with pytest.raises(ValueError, match=r"not fetched unless allowed; set `model.download = True`"):
        model("https://example.com/a%20b.png?x=1")
    assert not asked
    model.download = True
    found = model(["https://example.com/a%20b.png?x=1", boxes_image()], size=W)
    assert found.files == ["a b.jpg", "image1.jpg"] and np.abs(found.xyxy[0][:, :4].numpy() - BOXES).max() <= 1


def test_settings_reach_the_suppression(model):
    model.conf = 0.6
    assert model(boxes_image()).xyxy[0][:, 5].tolist() == [1]
    model.conf, model.classes = 0.25, [0]
    assert model(boxes_image()).xyxy[0][:, 5].tolist() == [0]
    model.classes, model.max_det = None, 1
    assert model(boxes_image()).xyxy[0][:, 5].tolist() == [1]


def test_boxes_are_those_of_the_model_itself(here):
    """Against the same steps by hand, for an image that fills its frame."""
    torch.manual_seed(0)
    inner = Model(TINY).eval()
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    shaped = AutoShape(inner)
    shaped.conf, shaped.max_det = 1e-6, 10
    found = shaped(image, size=96)
    with torch.no_grad():
        rows = inner(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0][0]
    best = (rows[:, 5:].max(1)[0] * rows[:, 4]).max()
    assert found.xyxy[0][0, 4].item() == pytest.approx(best.item(), rel=1e-4) and len(found.xyxy[0]) == 10
    augmented = shaped(image, size=96, augment=True)
    assert not torch.equal(augmented.xyxy[0][:, 4], found.xyxy[0][:, 4])


def test_threads_share_a_model(model):
    """Each gets the boxes of its own image."""
    images = []
    for i in range(16):
        image = np.full((H, W, 3), 60, np.uint8)
        image[10:40, 2 + 3 * i : 32 + 3 * i] = 245
        images.append(image)
    start = threading.Barrier(4)

    def work(k: int) -> list[float]:
        start.wait()
        return [model(images[i], size=W).xyxy[0][0, 0].item() for i in range(k, 16, 4)]

    with ThreadPoolExecutor(4) as pool:
        edges = list(pool.map(work, range(4)))
    assert edges == [[2.0 + 3 * i for i in range(k, 16, 4)] for k in range(4)]


def test_half_and_double_follow_the_model(here):
    shaped = AutoShape(Model(TINY))
    for kind in (torch.float64, torch.bfloat16, torch.float32):
        assert shaped.to(kind)(boxes_image(), size=W).xyxy[0].dtype == torch.float32


def test_layers_are_timed(capsys, here):
    assert AutoShape(Model(TINY))(boxes_image(), size=W, profile=True).n == 1
    assert capsys.readouterr().err.count(" ms ") == 5


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.fixture
def found(model) -> Detections:
    """Of an image with two boxes, and one with none."""
    return model([boxes_image(), np.zeros((50, 40, 3), np.uint8)], size=W)


def test_boxes_in_four_forms(found):
    white, red = found.xyxy[0].tolist()
    assert white == pytest.approx([50, 20, 90, 52, 0.75, 1]) and red == pytest.approx([8, 10, 30, 40, 0.5, 0])
    assert found.xywh[0][0].tolist() == pytest.approx([70, 36, 40, 32, 0.75, 1])
    assert found.xyxyn[0][0].tolist() == pytest.approx([50 / 96, 20 / 64, 90 / 96, 52 / 64, 0.75, 1])
    assert found.xywhn[0][0].tolist() == pytest.approx([70 / 96, 36 / 64, 40 / 96, 32 / 64, 0.75, 1])
    assert [boxes.shape for boxes in found.xyxyn] == [(2, 6), (0, 6)] and found.pred is found.xyxy
    assert len(found.t) == len(found.times) == 3 and all(t >= 0 for t in found.t)


def test_words(found, capsys):
    found.print()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "image 1/2: 64x96 1 rot, 1 weiß" and lines[1] == "image 2/2: 50x40 (no detections)"
    assert lines[2].endswith("at shape (2, 3, 96, 96)") and str(found) == "\n".join(lines)


def test_one_by_one(found):
    singles = found.tolist()
    assert len(found) == 2 and [len(one) for one in found] == [1, 1]
    assert torch.equal(singles[0].xyxy[0], found.xyxy[0]) and torch.equal(found[1].xyxy[0], found.xyxy[1])
    assert singles[1].files == ["image1.jpg"]


def test_tables(found):
    tables = found.pandas()
    assert list(tables.xyxy[0].columns) == ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]
    assert list(tables.xywhn[0].columns) == ["xcenter", "ycenter", "width", "height", "confidence", "class", "name"]
    assert tables.xyxy[0].iloc[0].tolist() == [50, 20, 90, 52, 0.75, 1, "weiß"]
    assert tables.xyxy[0]["class"].dtype.kind == "i" and len(tables.xyxy[1]) == 0
    assert isinstance(found.xyxy[0], torch.Tensor)  # a copy was made


def test_render_draws_into_images_of_any_kind(model, here):
    Image.fromarray(boxes_image()).save("a.png")
    given = boxes_image()
    found = model(["a.png", Image.open("a.png"), given], size=W)
    rendered = found.render()
    assert rendered is found.imgs and all((image != boxes_image()).any() for image in rendered)
    np.testing.assert_array_equal(given, boxes_image())


def test_images_have_both_names_and_labels_may_be_left_out(model):
    plain, labelled = model(boxes_image()), model(boxes_image())
    assert plain.ims is plain.imgs
    assert not np.array_equal(plain.render(labels=False)[0], labelled.render()[0]) and plain.ims is plain.imgs


@pytest.mark.parametrize(
    ("arguments", "folders"),
    [
        ({"exist_ok": True}, ["exp", "exp"]),
        ({"exist_ok": False, "save_dir": "mine"}, ["mine", "mine2"]),
        ({"save_dir": "mine"}, ["mine", "mine"]),
    ],
)
def test_folders_count_up_or_not(found, arguments, folders):
    assert [found.save(**arguments).name for _ in range(2)] == folders
    assert found.save(False, "other") == Path("other")
    assert len(found.crop(**arguments)) == 2


def test_show(found, monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda self: shown.append(self.size))
    found.show()
    assert shown == [(96, 64), (40, 50)]


def test_save(found, here):
    assert [found.save().name for _ in range(2)] == ["exp", "exp2"]
    for _ in range(2):
        assert found.save("mine") == Path("mine")
    assert sorted(os.listdir("mine")) == ["image0.jpg", "image1.jpg"] and os.listdir("runs/detect/exp")
    red = np.asarray(Image.open("mine/image0.jpg"))[25, 19].astype(int)
    assert red[0] > 180 and red[2] < 90  # the channels are in their order


def test_crops(found, here):
    crops = found.crop(save_dir="mine")
    assert [c["label"] for c in crops] == ["rot 0.50", "weiß 0.75"]
    assert [float(v) for v in crops[0]["box"]] == [8, 10, 30, 40] and float(crops[0]["conf"]) == 0.5
    x, y, w, h = 19, 25, 22 * 1.02 + 10, 30 * 1.02 + 10
    left, top, right, bottom = int(x - w / 2), int(y - h / 2), int(x + w / 2), int(y + h / 2)
    np.testing.assert_array_equal(crops[0]["im"], boxes_image()[top:bottom, left:right, ::-1])
    assert (here / "mine/crops/rot/image0.jpg").is_file() and (here / "mine/crops/weiß/image0.jpg").is_file()
    assert (here / "mine/image0.jpg").is_file()
    assert len(found.crop(save=False)) == 2 and sorted(os.listdir(here)) == ["mine"]


def test_several_at_once(found, here, capsys):
    crops = found.display(pprint=True, save=True, crop=True, render=True, save_dir="mine")
    assert len(crops) == 2 and "image 1/2" in capsys.readouterr().out
    assert sorted(os.listdir("mine")) == ["crops", "image0.jpg", "image1.jpg"]


def test_classes_without_a_name():
    boxes = torch.tensor([[1.0, 2, 30, 40, 0.9, 7]])
    found = Detections([boxes_image()], [boxes], ["a.jpg"])
    assert "1 7" in str(found) and found.pandas().xyxy[0]["name"].tolist() == ["7"] and len(found.render()) == 1


def test_supervision(found, monkeypatch):
    supervision = pytest.importorskip("supervision", reason="needs the package supervision")
    one, none = found.to_supervision()
    assert isinstance(one, supervision.Detections) and len(one) == 2 and len(none) == 0
    np.testing.assert_allclose(one.xyxy, BOXES)
    assert one.class_id.tolist() == [1, 0] and one.data["class_name"].tolist() == ["weiß", "rot"]
    supervision.Detections.merge([one, none])


def test_supervision_is_not_installed(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ValueError, match="pip install supervision"):
        found.to_supervision()


# --- torch.hub --------------------------------------------------------------------------------------------------------


def test_entries():
    found = {name for name in dir(hubconf) if callable(getattr(hubconf, name)) and not name.startswith("_")}
    sizes = {f"yolov5{size}{p6}" for size in "nsmlx" for p6 in ("", "6")}
    assert found == {"custom", "soca", *sizes}
    assert all(getattr(hubconf, name).__doc__ for name in found)


def test_architectures_without_weights():
    for name, stride in (("yolov5n", 32), ("yolov5n6", 64)):
        built = getattr(hubconf, name)(pretrained=False, classes=3, channels=4, autoshape=False, verbose=False)
        assert isinstance(built, Model) and built.model[-1].nc == 3 and int(built.stride.max()) == stride
        assert built.model[0].conv.in_channels == 4


def test_weights_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr("models.backend.ROOT", tmp_path)
    monkeypatch.setattr("urllib.request.OpenerDirector.open", None)  # no network is touched
    with pytest.raises(FileNotFoundError, match=r"no such weights: yolov5n\.pt"):
        hubconf.yolov5n()
    with pytest.raises(FileNotFoundError, match=r"no such weights: mine\.pt"):
        hubconf.custom("mine.pt")


def test_soca_takes_what_weights_have(here):
    torch.manual_seed(0)
    plain = Model("yolov5s.yaml", nc=80)
    plain.names = [f"class {i}" for i in range(80)]
    checkpoint.save("yolov5s.pt", checkpoint.pack(plain))
    built = hubconf.soca(autoshape=False, verbose=False, device="cpu")
    assert any(type(m).__name__ == "SOCA" for m in built.modules()) and built.names[79] == "class 79"
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        # the gate begins near 1, and the checkpoint holds half precision
        assert (built.eval()(x)[0] - plain.eval()(x)[0]).abs().max() < 2
    fewer = hubconf.yolov5s(classes=5, autoshape=False, verbose=False, device="cpu")
    assert torch.equal(fewer.model[0].conv.weight, plain.model[0].conv.weight.half().float())


def test_torch_hub_loads_from_a_folder(here):
    """In a process of its own, without a network, and from elsewhere."""
    torch.manual_seed(0)
    checkpoint.save("tiny.pt", checkpoint.pack(Model(TINY)))
    Image.fromarray(boxes_image()).save("a.png")
    code = f"""
import socket, sys, torch
def no_network(*args, **kwargs): raise AssertionError("the network was touched")
socket.socket.connect = no_network
model = torch.hub.load({str(ROOT)!r}, "custom", path="tiny.pt", source="local", device="cpu", verbose=False)
assert {str(ROOT)!r} not in sys.path  # what is imported later must not lean on it
model.conf = 1e-6
found = model(["a.png", "a.png"], size=96)
found.print(), found.save("out"), found.crop(save_dir="out"), found.render(), found.pandas()
assert len(found.tolist()) == 2 and len(found.xyxy[0])
"""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "image 2/2: 64x96" in done.stdout
    assert sorted(os.listdir("out")) == ["a.jpg", "a_2.jpg", "crops"]
