"""detect.py on image files of every kind: the sources it takes, the boxes, labels and crops it writes."""

import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from small_world import (
    BOXES,
    BROKEN,
    NAMES,
    SMALLEST,
    TINY,
    BrightBoxes,
    H,
    PageReader,
    W,
    boxes_image,
    labels_in,
    lively,
    tree,
    write_set,
)

import train
from utils import checkpoint
from utils.nms import non_max_suppression

ROOT = Path(train.__file__).parent

pytestmark = pytest.mark.usefixtures("here")


def test_every_kind_of_image_is_detected_in_upright(kinds, command, usual, bright, here):
    root, sound = kinds
    arguments = ["--source", root / "images", "--save-txt", "--save-crop"]
    code, err = command("detect", *usual["detect"], *arguments)
    assert code == 0
    for name in [*BROKEN, "moving gif.jpg"]:  # no kind of image that is promised
        assert f"left out: {root / 'images' / name}: " in err
    out = here / "out" / "exp"
    for name in sound:
        found = labels_in(out / "labels" / f"{Path(name).stem}.txt")
        xywh = found[:, 1:] * (W, H, W, H)
        corners = np.concatenate([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2], 1)
        assert found[:, 0].tolist() == [0, 1], name
        assert np.abs(corners - BOXES).max() <= 2, name  # JPEG blurs edges, more so those of colours
        drawn = out / (name if not name.endswith(".mpo") else "phone.jpg")  # which OpenCV cannot write
        assert Image.open(drawn).size == (W, H), name
        white = cv2.imdecode(np.fromfile(out / "crops" / "weiß" / f"{Path(name).stem}.jpg", np.uint8), 1)
        assert np.median(white[15:-15, 15:-15]) >= 240, name
    assert Image.open(out / "pixel.png").size == (1, 1)
    assert sorted(p.stem for p in (out / "labels").iterdir()) == sorted(Path(name).stem for name in sound)


def test_grey_images_are_detected_in(command, usual, bright, here):
    grey = cv2.cvtColor(boxes_image(), cv2.COLOR_BGR2GRAY)
    for name, image in (("grey.png", grey), ("grey.jpg", grey), ("16 bits.png", grey.astype(np.uint16) * 257)):
        write_set(here, {name: (image, None)})
    code, _ = command("detect", *usual["detect"], "--source", "images/train", "--save-txt")
    assert code == 0
    for stem in ("grey", "grey_2", "16 bits"):
        found = labels_in(here / f"out/exp/labels/{stem}.txt")
        assert found[:, 0].tolist() == [1]  # red is as dark as the ground
        assert np.abs(found[0, 1:] * (W, H, W, H) - (70, 36, 40, 32)).max() <= 2


def save_detector(path: Path, cfg: dict = SMALLEST, channels: int = 3, seed: int = 0) -> torch.nn.Module:
    model = lively({**cfg, "ch": channels}, nc=2, seed=seed)
    checkpoint.save(path, checkpoint.pack(model))
    return model.half().float().fuse()  # the file holds 16 bits


def rows_of(models: list, image: np.ndarray) -> np.ndarray:
    """Label rows that these models together find in an image (h, w, channels), computed by hand: sorted."""
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None] / 255
    with torch.no_grad():
        decoded = torch.cat([model(batch)[0] for model in models], 1)
    found = non_max_suppression(decoded, 0.25, 0.45, max_det=1000)[0]
    x1, y1, x2, y2 = found[:, :4].clamp(min=0).minimum(torch.tensor([W, H, W, H])).round().T
    rows = torch.stack((found[:, 5], (x1 + x2) / 2 / W, (y1 + y2) / 2 / H, (x2 - x1) / W, (y2 - y1) / H), 1)
    return np.array(sorted(rows.tolist()))


@pytest.mark.parametrize("channels", [1, 4])
def test_a_detector_of_one_or_four_channels_detects(command, usual, here, channels):
    model = save_detector(here / "other.pt", channels=channels)
    image = np.random.default_rng(0).integers(0, 256, (H, W, channels), np.uint8)
    cv2.imwrite(str(here / "a.png"), image)
    arguments = ["--weights", here / "other.pt", "--source", here / "a.png", "--save-txt", "--save-crop"]
    code, err = command("detect", *usual["detect"], *arguments)
    assert code == 0, err
    found, expected = labels_in(here / "out/exp/labels/a.txt"), rows_of([model], image)
    assert len(expected) > 3 and np.abs(np.array(sorted(found.tolist())) - expected).max() < 1e-5
    assert cv2.imread(str(here / "out/exp/a.png")).shape == (H, W, 3)


def test_images_of_other_channels_than_the_detector_s(command, usual, here):
    save_detector(here / "other.pt", channels=4)
    cv2.imwrite(str(here / "a.png"), boxes_image())
    code, err = command("detect", *usual["detect"], "--weights", here / "other.pt", "--source", here / "a.png")
    assert code == 1 and "Traceback" not in err
    assert "a.png: image has 3 channels, but the data set YAML or the weights say channels: 4" in err


def test_an_ensemble_of_different_networks(command, usual, here):
    """One has two levels and ten layers, the other three layers and SOCA; boxes are suppressed among both."""
    models = [save_detector(here / "a.pt"), save_detector(here / "b.pt", TINY, seed=1)]
    cv2.imwrite(str(here / "a.png"), boxes_image())
    arguments = ["--source", here / "a.png", "--save-txt", "--nosave"]
    code, err = command("detect", *usual["detect"], "--weights", here / "a.pt", here / "b.pt", *arguments)
    assert code == 0, err
    rgb = boxes_image()[..., ::-1]
    expected = rows_of(models, rgb)
    assert len(expected) > len(rows_of(models[:1], rgb)) > 0
    found = labels_in(here / "out/exp/labels/a.txt")
    assert np.abs(np.array(sorted(found.tolist())) - expected).max() < 1e-5


def test_an_ensemble_of_different_channels_or_classes_is_refused(command, usual, here):
    save_detector(here / "a.pt")
    save_detector(here / "b.pt", channels=1)
    for verb in ("detect", "val"):
        code, err = command(verb, *usual[verb], "--weights", here / "a.pt", here / "b.pt")
        assert code == 1 and "must take the same number of channels, got [3, 1]" in err and "Traceback" not in err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_file_names_that_are_no_text(command, usual, bright, here):
    name = os.fsdecode(b"caf\xe9")
    write_set(here, {f"{name}.png": (boxes_image(), None), f"{name}2.mpo": (None, None)})
    Image.fromarray(boxes_image()).save(here / f"images/train/{name}2.mpo", format="JPEG")
    code, err = command("detect", *usual["detect"], "--source", "images/train", "--save-txt", "--save-crop")
    assert code == 0, err
    assert sorted(p.name for p in (here / "out/exp").iterdir() if p.is_file()) == [f"{name}.png", f"{name}2.jpg"]
    assert (here / f"out/exp/labels/{name}.txt").is_file()


@pytest.mark.parametrize("name", [*BROKEN, "no image at all"])
def test_a_single_image_that_cannot_be_read(kinds, refused, name):
    file = kinds[0] / "images" / name
    refused("detect", "--source", file, says=str(file))


def test_only_unreadable_images(refused, here):
    folder = here / "broken"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_text("none")
    refused("detect", "--source", folder, says=["b.jpg: image cannot be decoded", "none of the 2 files can be read"])


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (3, 5)])
def test_an_image_of_any_shape_is_detected_in(command, usual, bright, here, shape):
    cv2.imencode(".png", np.zeros((*shape, 3), np.uint8))[1].tofile(here / "thin.png")
    code, err = command("detect", *usual["detect"], "--source", "thin.png")
    assert code == 0, err
    assert Image.open(here / "out/exp/thin.png").size == shape[::-1]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "--source is empty"),
        ("there is none", "--source there is none: no such file or folder"),
        ("empty folder", "no image or video files in this folder; images end in bmp"),
        ("*.jpg", "--source *.jpg: no image or video files match"),
        ("empty.txt", "empty.txt: the list is empty"),
        ("lost.txt", "No such file or directory: 'gone.jpg'"),
        ("mixed.txt", "a list holds files or streams, not both: 0 is a stream, gone.jpg a file"),
        ("mixed.streams", "a list of streams holds URLs, camera numbers and videos, and gone.jpg is an image"),
        ("gone.streams", "--source gone.mp4: cannot be opened; is it a video?"),
        ("film.mp4", "film.mp4: video cannot be decoded"),
        ("moving.gif", "moving.gif: video cannot be decoded"),
        ("99", "--source 99: cannot be opened; is the camera with this number connected, and not in use?"),
        ("rtsp://me:secret@127.0.0.1:9/1", "--source rtsp://127.0.0.1:9/1: cannot be opened; is the address right"),
        (
            "https://me:secret@example.com/a.jpg",
            "--source https://example.com/a.jpg: this file was not downloaded yet; --download fetches it",
        ),
        ("ftp://example.com/a.jpg", "a URL starts with http, https"),
        ("https://www.youtube.com/watch?v=x", "this is a web page, not a stream"),
        ("screen 1 2", "expected `screen`, or `screen x y width height` in pixels"),
        ("screen 1 2 0 5", "expected `screen`, or `screen x y width height` in pixels"),
    ],
)
def test_a_source_that_is_none(refused, here, source, says):
    (here / "empty folder").mkdir()
    lists = {"empty.txt": "\n", "lost.txt": "gone.jpg", "mixed.txt": "gone.jpg\n0", "mixed.streams": "0\ngone.jpg"}
    for name, text in {**lists, "gone.streams": "gone.mp4", "film.mp4": "x", "moving.gif": "x"}.items():
        (here / name).write_text(text)
    assert "secret" not in refused("detect", "--source", source, says=says)


def test_videos_that_cannot_be_read_are_named(command, usual, bright, here):
    write_set(here, {"a.png": (boxes_image(), None), "b.png": (boxes_image(), None)})
    (here / "images/train/film.mp4").write_text("x")
    code, err = command("detect", *usual["detect"], "--source", "images/train")
    assert code == 0 and "left out: images/train/film.mp4: video cannot be decoded" in err and "2 images" in err


def test_the_default_source_is_the_repositorys(monkeypatch, tmp_path, command, usual, bright):
    monkeypatch.setattr(sys.modules["utils.inference.sources"], "ROOT", tmp_path / "repo")
    (tmp_path / "repo/data/images").mkdir(parents=True)
    cv2.imencode(".jpg", boxes_image())[1].tofile(tmp_path / "repo/data/images/a.jpg")
    arguments = usual["detect"][: usual["detect"].index("--source")]
    code, err = command("detect", *arguments)
    assert code == 0 and "repo/data/images/a.jpg" in err


def test_images_of_one_name_from_several_folders(command, usual, bright, here):
    for i, red in enumerate(((8, 10, 30, 40), (2, 2, 20, 60))):
        write_set(here, {"shot.png": (boxes_image(red), None)}, f"cam{i}")
    arguments = ["--source", "images/**/*.png", "--save-txt", "--save-crop"]
    assert command("detect", *usual["detect"], *arguments)[0] == 0
    out = here / "out/exp"
    assert sorted(p.name for p in out.glob("*.png")) == ["cam0_shot.png", "cam1_shot.png"]
    boxes = [labels_in(out / f"labels/cam{i}_shot.txt")[0, 1:] * (W, H, W, H) for i in range(2)]
    assert np.round(boxes, 3).tolist() == [[19, 25, 22, 30], [11, 31, 18, 58]]
    assert sorted(p.name for p in (out / "crops/red").iterdir()) == ["cam0_shot.jpg", "cam1_shot.jpg"]


@pytest.fixture
def shot(here) -> np.ndarray:
    """The file `a shot.png`, of which the boxes are known to the pixel."""
    image = boxes_image(*BOXES)
    cv2.imencode(".png", image)[1].tofile(here / "a shot.png")
    return image


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--save-txt"], "0 0.197917 0.390625 0.229167 0.46875\n1 0.729167 0.5625 0.416667 0.5\n"),
        (
            ["--save-txt", "--save-conf"],
            "0 0.197917 0.390625 0.229167 0.46875 0.5\n1 0.729167 0.5625 0.416667 0.5 0.75\n",
        ),
        (["--save-txt", "--classes", "1"], "1 0.729167 0.5625 0.416667 0.5\n"),
        (["--save-txt", "--conf", "0.6"], "1 0.729167 0.5625 0.416667 0.5\n"),
        (["--save-txt", "--max-det", "1"], "1 0.729167 0.5625 0.416667 0.5\n"),
    ],
)
def test_label_file_of_detection(command, usual, bright, shot, here, flags, text):
    """The most confident box last, six digits, whole pixels of an image of 96 x 64."""
    code, err = command("detect", *usual["detect"], "--source", "a shot.png", *flags)
    assert code == 0 and f"1/1 a shot.png: 64x96 {'1 red, 1 weiß' if text[0] == '0' else '1 weiß'}, " in err
    assert (here / "out/exp/labels/a shot.txt").read_bytes() == text.encode()


def test_detection_rounds_to_whole_pixels(command, usual, bright, odd_size, here):
    assert command("detect", *usual["detect"], "--source", odd_size[0], "--save-txt")[0] == 0
    for row, true in zip(labels_in(here / "out/exp/labels/0007.txt"), odd_size[1]["0007"]):
        x, y, w, h = row[1:] * (180, 120, 180, 120)
        corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        assert np.abs(corners - true).max() <= 2 and np.abs(corners - np.round(corners)).max() < 1e-3


def test_no_label_file_without_a_box(command, usual, bright, here):
    write_set(here, {"a.png": (boxes_image(None, None), None)})
    assert command("detect", *usual["detect"], "--source", "images/train", "--save-txt", "--save-crop")[0] == 0
    assert tree(here / "out/exp").keys() == {str(here / "out/exp" / n) for n in ("a.png", "labels")}


def test_crops(command, usual, bright, shot, here):
    for _ in range(2):  # the second time beside the first
        code, _ = command("detect", *usual["detect"], "--source", "a shot.png", "--save-crop", "--exist-ok")
        assert code == 0
    for name, (x1, y1, x2, y2) in zip(NAMES, BOXES):
        assert sorted(os.listdir(f"out/exp/crops/{name}")) == ["a shot.jpg", "a shot2.jpg"]
        crop = cv2.imdecode(np.fromfile(here / f"out/exp/crops/{name}/a shot.jpg", np.uint8), cv2.IMREAD_COLOR)
        # centre and size; size x 1.02 + 10 pixels; towards zero; inside the image
        x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) * 1.02 + 10, (y2 - y1) * 1.02 + 10
        left, top, right, bottom = int(x - w / 2), int(y - h / 2), int(x + w / 2), int(y + h / 2)
        expected = shot[max(top, 0) : min(bottom, H), max(left, 0) : min(right, W)]
        assert crop.shape == expected.shape
        assert np.abs(crop.astype(int) - expected).mean() < 5  # without the drawn box


@pytest.mark.parametrize("name", ["../up", "a/b", "..", "", "con:*?"])
def test_a_class_name_does_not_lead_out_of_the_folder(command, usual, bright, shot, here, monkeypatch, name):
    monkeypatch.setattr(BrightBoxes, "names", [name, "white"])
    before = set(os.listdir(here))
    code, _ = command("detect", *usual["detect"], "--source", "a shot.png", "--save-crop", "--nosave")
    assert code == 0 and set(os.listdir(here)) == {*before, "out"}
    folders = os.listdir("out/exp/crops")
    assert len(folders) == 2 and all(os.listdir(f"out/exp/crops/{f}") == ["a shot.jpg"] for f in folders)


@pytest.mark.parametrize("thickness", [1, 3, 5])
def test_line_thickness_without_labels(command, usual, bright, shot, here, monkeypatch, thickness):
    monkeypatch.setattr(BrightBoxes, "names", ["red", "white"])  # other letters make Pillow draw, inside the box
    arguments = ["--source", "a shot.png", "--hide-labels", "--line-thickness", thickness, "--classes", 1]
    assert command("detect", *usual["detect"], *arguments)[0] == 0
    changed = (cv2.imdecode(np.fromfile(here / "out/exp/a shot.png", np.uint8), cv2.IMREAD_COLOR) != shot).any(2)
    x1, y1, x2, y2 = BOXES[1]
    row = changed[(y1 + y2) // 2]  # crosses the two upright lines, and nothing else
    half = thickness // 2  # OpenCV rounds thick lines up by a pixel
    for x, columns in (
        (x1, np.flatnonzero(row[: W // 2 + 20])),
        (x2, np.flatnonzero(row[W // 2 + 20 :]) + W // 2 + 20),
    ):
        assert {*range(x - half, x + half + 1)} <= {*columns} <= {*range(x - half - 1, x + half + 2)}
    near = np.zeros((H, W), bool)
    near[max(y1 - 4, 0) : y2 + 5, max(x1 - 4, 0) : x2 + 5] = True
    assert not changed[~near].any()


def test_labels_and_confidences_are_drawn_unless_hidden(command, usual, bright, shot, here):
    drawn = []
    for flags in ([], ["--hide-conf"], ["--hide-labels"], ["--nosave"]):
        assert command("detect", *usual["detect"], "--source", "a shot.png", "--line", 1, *flags)[0] == 0
        folder = here / "out" / f"exp{len(drawn) + 1 if drawn else ''}"
        file = folder / "a shot.png"
        drawn.append((cv2.imdecode(np.fromfile(file, np.uint8), 1) != shot).any(2).sum() if file.exists() else 0)
    assert drawn[0] > drawn[1] > drawn[2] > drawn[3] == 0  # changed pixels


def test_the_page_of_a_run(detected, world, refused):
    out = detected(world.images, report=True)
    page = PageReader((out / "report.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("img") == 4 and "4images or frames8detections0without any" in page.text
    assert "weiß440.7500.750" in page.text and "0000.png: 2" in page.text
    refused("detect", "--report", "--resume", "new folder", says="--report shows what one process did")
