"""val.py: the numbers, label files, JSON, figures and reports of a validation."""

import json
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from small_world import (
    BROKEN,
    CURVES,
    NAMES,
    SIZE,
    SMALLEST,
    BrightBoxes,
    H,
    W,
    boxes_image,
    label_text,
    labels_in,
    lively,
    write_set,
    write_yaml,
)

import val
from engine import validation
from models.backend import load_checkpoint
from utils import checkpoint
from utils.data import dataset_yaml
from utils.data.dataset_yaml import load_dataset_yaml
from utils.data.loader import create_dataloader
from utils.data.options import LoaderOptions

pytestmark = pytest.mark.usefixtures("here")


def test_validating_without_labels(command, usual, variant, here, bright):
    folder = write_set(here / "bare", {"a.png": (boxes_image(), None), "b.png": (boxes_image(), None)})
    code, err = command("val", *usual["val"], "--data", variant(val=str(folder)))
    assert code == 0
    assert "no label files found; expected for example" in err and "this split has no labels" in err


BAD_LABELS = {
    "columns.png": ("0 0.5 0.5 0.2\n", ":1: a line has 5 numbers"),
    "beyond.png": ("0 0.5 0.5 0.2 0.2\n1 0.5 1.5 0.2 0.2\n", ":2: y must lie in 0-1, got 1.5"),
    "negative.png": ("0 0.5 0.5 -0.2 0.2\n", ":1: width must lie in 0-1, got -0.2"),
    "nan.png": ("0 0.5 0.5 nan 0.2\n", ":1: width must lie in 0-1, got nan"),
    "half class.png": ("0.5 0.5 0.5 0.2 0.2\n", ":1: class must be a whole number"),
    "words.png": ("red 0.5 0.5 0.2 0.2\n", ":1: 'red' is not a number"),
    "bytes.png": (None, ": not a text file in UTF-8"),
}


def test_label_files_with_a_fault_leave_their_image_out_by_line(command, usual, variant, here, bright):
    good = label_text((0, 8, 10, 30, 40), (1, 50, 20, 90, 52))
    images = {name: (boxes_image(), text) for name, (text, _) in BAD_LABELS.items()}
    folder = write_set(
        here / "set", {**images, "good.png": (boxes_image(), good), "twice.png": (boxes_image(), good * 2)}
    )
    (here / "set/labels/train/bytes.txt").write_bytes(b"\xff\xfe\x80")
    list_file = here / "list.txt"
    list_file.write_text("".join(f"./set/images/train/{p.name}\n" for p in folder.iterdir()) + "./lost.png\n")
    code, err = command("val", *usual["val"], "--data", variant(val=str(list_file)))
    assert code == 0
    for name, (_, says) in BAD_LABELS.items():
        line = next(line for line in err.splitlines() if f"labels/train/{Path(name).stem}.txt{says}" in line)
        assert line.endswith("the image is left out")
    assert "labels/train/twice.txt: 2 duplicate rows removed" in err
    assert f"{here}/lost.png: not a readable image: " in err
    assert "10 images" in err and "8 corrupt" in err
    assert [line.split()[1:3] for line in err.splitlines() if line.split()[:1] == ["all"]] == [["2", "4"]]


def test_every_kind_of_image_is_validated_in_upright(kinds, command, usual, bright, variant):
    root, sound = kinds
    code, err = command("val", *usual["val"], "--data", variant(val=str(root / "images")))
    assert code == 0
    for name in [*BROKEN, "moving gif.jpg", "pixel.png"]:
        assert any(f"{root / 'images' / name}: " in line and "left out" in line for line in err.splitlines()), name
    row = next(line.split() for line in err.splitlines() if line.split()[:1] == ["all"])
    assert row[1:3] == [str(len(sound)), str(2 * len(sound))]
    assert float(row[5]) > 0.99  # mAP50


def test_weights_of_another_data_set(refused, variant):
    data = variant(nc=3, names=["a", "b", "c"])
    refused("val", "--data", data, says=["best.pt has 2 classes, but", "data variant.yaml has 3"])


def test_the_default_data_set_is_said_to_be_one(command, here):
    """v6.1's own command, `val.py --weights yolov5n.pt`, has weights of 80 classes and a data set of four."""
    model = lively(nc=80)
    model.names = [str(i) for i in range(80)]
    checkpoint.save(here / "coco.pt", checkpoint.pack(model))
    code, err = command("val", "--weights", here / "coco.pt", "--imgsz", SIZE, "--device", "cpu", "--workers", 0)
    assert code == 1 and "but data/shapes.yaml has 4, the data set where none is given; name the data set" in err
    assert "--data FILE (official weights: --data data/coco.yaml)" in err and not (here / "runs").exists()


def test_the_default_data_set_is_not_drawn_for_weights_of_another(command, here, monkeypatch):
    """Its images are drawn at their first use; weights that cannot be measured on them are refused before."""
    drawn = []
    monkeypatch.setattr(dataset_yaml, "_missing", lambda root, paths: list(paths))  # as in a fresh checkout
    monkeypatch.setattr(dataset_yaml, "_draw", lambda *arguments: drawn.append(arguments))
    for nc in (3, 4):
        checkpoint.save(here / f"{nc}.pt", checkpoint.pack(lively(nc=nc)))
    words = ["--imgsz", SIZE, "--device", "cpu", "--workers", 0]
    code, err = command("val", "--weights", here / "3.pt", *words)
    assert code == 1 and "3.pt has 3 classes, but data/shapes.yaml has 4" in err and not drawn
    code, err = command("val", "--weights", here / "4.pt", *words)
    assert code == 1 and len(drawn) == 1 and "which does not exist" in err  # since drawing was only noted


def test_channels_of_weights_and_data_set_are_compared(command, usual, variant, here):
    """Grey and colour are read as each other; four channels are neither."""
    found = {}
    for channels in (1, 3):
        model = lively({**SMALLEST, "ch": channels}, nc=2)
        checkpoint.save(here / f"{channels}.pt", checkpoint.pack(model))
        for said in (None, 1, 3, 4):
            arguments = ["--weights", here / f"{channels}.pt", "--data", variant(channels=said)]
            code, err = command("val", *usual["val"], *arguments)
            assert "Traceback" not in err
            found[channels, said] = code
            if code:
                assert f"{channels}.pt takes images of {channels} channel" in err and "says channels: 4" in err
    assert [key for key, code in found.items() if code] == [(1, 4), (3, 4)]


def test_names_of_weights_and_data_set_are_compared(command, usual, variant, world, bright):
    ours = world.content["names"]
    code, err = command("val", *usual["val"], "--data", variant(names=ours[::-1]))
    expected = f"in another order: class 0 is {ours[0]!r} in {world.best}, but {ours[1]!r} in data variant.yaml, and 1"
    assert code == 0 and expected in err
    code, err = command("val", *usual["val"])
    assert code == 0 and "order" not in err


def test_val_keeps_images_of_one_name_apart(command, usual, bright, variant, here):
    text = label_text((0, 8, 10, 30, 40))
    for name in ("a", "b"):
        write_set(here, {"shot.png": (boxes_image(), text)}, name)
    assert command("val", *usual["val"], "--data", variant(val=str(here / "images")), "--save-txt")[0] == 0
    assert sorted(os.listdir("out/exp/labels")) == ["a_shot.txt", "b_shot.txt"]
    assert all(len(labels_in(here / "out/exp/labels" / f"{n}_shot.txt")) == 2 for n in "ab")


def test_the_frames_of_val_are_those_of_detect_where_asked(command, usual, bright, variant, here, monkeypatch):
    """v6.1 pads the frames of val, so one detector has two opinions of an image; --task benchmark has square frames."""
    write_set(here, {f"{i}.png": (boxes_image()[:, :64], label_text((0, 8, 10, 30, 40))) for i in range(2)})
    frames, forward = [], BrightBoxes.forward
    monkeypatch.setattr(BrightBoxes, "forward", lambda m, x, **o: frames.append(x.shape[2:]) or forward(m, x))
    own = ["--data", variant(val=str(here / "images"))]
    for more in ([], ["--pad", 0], ["--pad", 1.5], ["--task", "benchmark"]):
        code, err = command("val", *usual["val"], *own, *more)
        assert code == 0 and ("val.py --pad 0 measures without" in err) == (frames[-1] != (96, 96))
    assert command("detect", *usual["detect"], "--source", here / "images/train")[0] == 0
    assert frames == [(128, 128), (96, 96), (160, 160), (96, 96), (96, 96), (96, 96)]


GAIN = 96 / 180  # of images of 120 x 180 at SIZE


def test_label_files_of_validation(command, usual, bright, variant, odd_size, here):
    data = variant(val=str(odd_size[0]))
    assert command("val", *usual["val"], "--data", data, "--save-txt", "--save-conf")[0] == 0
    lines = [line.split(" ") for line in (here / "out/exp/labels/0007.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == ["1", "0"]  # the most confident first
    assert [line[5] for line in lines] == ["0.75", "0.5"]
    for line, true in zip(lines, reversed(odd_size[1]["0007"])):
        assert all(text == f"{float(text):g}" for text in line)
        x, y, w, h = np.array(line[1:5], float) * (180, 120, 180, 120)
        corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        assert np.abs(corners - true).max() <= 2
        # not rounded: whole pixels of the smaller image are fractions of pixels here
        assert np.abs(corners * GAIN - np.round(corners * GAIN)).max() < 1e-3
        assert np.abs(corners - np.round(corners)).max() > 0.1
    assert (here / "out/exp/labels/night shot.txt").read_text().count("\n") == 1


def test_json_of_validation(command, usual, bright, variant, odd_size, here, monkeypatch):
    monkeypatch.setattr(BrightBoxes, "confidence", (1 / 3, 0.75))
    assert command("val", *usual["val"], "--data", variant(val=str(odd_size[0])), "--save-json")[0] == 0
    found = json.loads((here / "out/exp/best_predictions.json").read_text())
    boxes = odd_size[1]
    expected = [(7, 1, 0.75, boxes["0007"][1]), (7, 0, 0.33333, boxes["0007"][0])]
    expected += [("night shot", 0, 0.33333, boxes["night shot"][0])]
    assert len(found) == len(expected)
    for row, (image, category, score, (x1, y1, x2, y2)) in zip(found, expected):
        assert list(row) == ["image_id", "category_id", "bbox", "score"]
        assert (row["image_id"], row["category_id"], row["score"]) == (image, category, score)
        assert np.abs(np.array(row["bbox"]) - (x1, y1, x2 - x1, y2 - y1)).max() <= 2
        assert all(v == round(v, 3) for v in row["bbox"])
        pixels = np.array(row["bbox"]) * GAIN  # whole ones of the smaller image
        assert np.abs(pixels - np.round(pixels)).max() < 1e-3


def test_labels_and_predictions_together(command, usual, bright, variant, odd_size, here):
    arguments = ["--data", variant(val=str(odd_size[0])), "--save-hybrid", "--save-conf"]
    assert command("val", *usual["val"], *arguments)[0] == 0
    found = labels_in(here / "out/exp/labels/0007.txt")
    assert found[:2, 5].tolist() == [1, 1] and sorted(found[:2, 0]) == [0, 1]  # the labels, as certain boxes
    true = {c: np.array(odd_size[1]["0007"][c], float) for c in (0, 1)}
    for c, x, y, w, h, _ in found[:2]:
        corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * (180, 120, 180, 120)
        assert np.abs(corners - true[int(c)]).max() < 0.01


def test_files_of_validation(command, usual, world, bright, here):
    assert command("val", *usual["val"])[0] == 0
    assert set(os.listdir("out/exp")) == {
        "confusion_matrix.png", "confusion_matrix_counts.png", "metrics.json", "per_class.csv",
        "val_batch0_labels.jpg", "val_batch0_pred.jpg", *CURVES,
    }  # fmt: skip


def test_confusion_matrix_of_every_image_or_as_v61(command, usual, bright, variant, here, monkeypatch):
    """An image without any box found, and one that is all false alarm, are counted unless v6.1's rule is asked for."""
    images = {
        "nothing found.png": (boxes_image(red=None, white=None), label_text((0, 8, 10, 30, 40))),
        "nothing there.png": (boxes_image(), ""),
    }
    data = variant(val=str(write_set(here / "odd", images, "val")))
    counted = {}
    keep = lambda result, _: counted.update({len(counted): result.confusion.matrix.copy()})  # noqa: E731
    monkeypatch.setattr(validation.writers, "write_figures", keep)
    for flags in ([], ["--matrix", "v6.1"]):
        assert command("val", *usual["val"], "--data", data, *flags)[0] == 0
    assert counted[0].tolist() == [[0, 0, 1], [0, 0, 1], [1, 0, 0]] and not counted[1].any()


def test_reports_of_validation(command, usual, world, bright, variant, here, caplog):
    """Boxes of v6.1's and of COCO's metric, sizes, kinds of errors: all of it for a perfect detector, but one label."""
    pytest.importorskip("pycocotools")
    caplog.set_level("INFO", "yolov5")
    images = {f"{i}.png": (boxes_image(), label_text((0, 8, 10, 30, 40), (1, 50, 20, 90, 52))) for i in range(3)}
    images["3.png"] = boxes_image(), label_text((0, 8, 10, 30, 40), (1, 50, 20, 90, 52), (0, 40, 0, 46, 10))
    data = variant(val=str(write_set(here / "odd", images, "val")))
    flags = ["--data", data, "--metrics", "coco", "--report", "sizes", "errors", "--report-images", 2, "--save-json"]
    assert command("val", *usual["val"], *flags)[0] == 0
    assert {p.name for p in (here / "out/exp/errors").iterdir()} == {"01_3.jpg"}  # the others have no error
    rows = {row.split()[0]: row.split()[1:] for row in caplog.text.splitlines() if row.startswith("      ")}
    assert rows["missed"][0] == "1" and rows["background"][0] == rows["duplicate"][0] == "0"
    assert rows["all"][0] == "9" and "COCO     Labels         AP" in caplog.text
    truth = json.loads((here / "out/exp/ground_truth.json").read_text())
    assert len(truth["annotations"]) == 9 and [c["name"] for c in truth["categories"]] == NAMES
    assert [image["id"] for image in truth["images"]] == [0, 1, 2, 3]
    assert "crowds" in caplog.text


def test_coco_results_are_returned(world, bright, here):
    pytest.importorskip("pycocotools")
    options = {"imgsz": SIZE, "workers": 0, "device": "cpu", "plots": False}
    plain = val.run(world.data, world.best, **options)
    (*_, map50, ap, _, _, _), maps, _ = val.run(world.data, world.best, **options, metrics="coco")
    assert map50 == pytest.approx(1) and 0.8 < ap <= 1 and maps.shape == (2,) and maps.mean() == pytest.approx(ap)
    assert plain[0][2] == pytest.approx(0.995) != map50


def test_ids_of_a_coco_json_come_back(command, usual, bright, here):
    """Image and category ids, of text and with gaps, stand in the predictions as they do in the data set's file."""
    folder = write_set(here / "set", {"a.png": (boxes_image(), None)}, "val")
    content = {
        "images": [{"id": "Zoë/1", "file_name": "a.png", "width": W, "height": H}],
        "annotations": [{"id": 1, "image_id": "Zoë/1", "category_id": 9, "bbox": [8, 10, 22, 30]}],
        "categories": [{"id": 9, "name": "red"}, {"id": 4, "name": "weiß"}],
    }
    (here / "set/val.json").write_text(json.dumps(content))
    data = write_yaml(here / "as json.yaml", {"val": str(here / "set/val.json"), "images": str(folder), "names": NAMES})
    assert command("val", *usual["val"], "--data", data, "--save-json")[0] == 0
    found = json.loads((here / "out/exp/best_predictions.json").read_text())
    assert [(row["image_id"], row["category_id"]) for row in found] == [("Zoë/1", 4), ("Zoë/1", 9)]


def test_coco_itself(command, world, usual, bright, here, caplog):
    """A list coco/val2017.txt: COCO's category numbers, and with its annotations COCO's metric, as in v6.1."""
    pytest.importorskip("pycocotools")
    caplog.set_level("INFO", "yolov5")
    images = {"000000000139.png": (boxes_image(), label_text((0, 8, 10, 30, 40), (1, 50, 20, 90, 52)))}
    folder = write_set(here / "coco", images, "val2017")
    (here / "coco/val2017.txt").write_text(str(folder / "000000000139.png"))
    data = write_yaml(here / "coco.yaml", {"path": str(here / "coco"), "val": str(here / "coco/val2017.txt"),
                                           "train": "none", "names": NAMES})  # fmt: skip
    assert command("val", *usual["val"], "--data", data)[0] == 0
    found = json.loads((here / "out/exp/best_predictions.json").read_text())  # unasked: the file is called coco.yaml
    assert [(row["image_id"], row["category_id"]) for row in found] == [(139, 2), (139, 1)]
    assert "AP50" not in caplog.text

    content = {
        "images": [{"id": 139, "file_name": "000000000139.jpg"}, {"id": 285, "file_name": "000000000285.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 139, "category_id": 1, "bbox": [8, 10, 22, 30], "area": 660, "iscrowd": 0},
            {"id": 2, "image_id": 139, "category_id": 2, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0},
            {"id": 3, "image_id": 285, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": NAMES[0]}, {"id": 2, "name": NAMES[1]}],
    }
    (here / "coco/annotations").mkdir()
    (here / "coco/annotations/instances_val2017.json").write_text(json.dumps(content))
    results, *_ = val.run(data, world.best, imgsz=SIZE, workers=0, device="cpu", plots=False)
    assert "AP50" in caplog.text and results[2] == pytest.approx(0.5)  # one class found, one not where COCO has it


def test_several_weights_and_augmentation(world, here):
    """An ensemble of a model with itself finds what the model finds; so do its numbers say."""
    options = {"imgsz": SIZE, "workers": 0, "device": "cpu", "plots": False}
    alone, together = (val.run(world.data, weights, **options)[0] for weights in (world.best, [world.best] * 2))
    assert together == pytest.approx(alone, abs=1e-6)
    augmented = val.run(world.data, [world.best] * 2, **options, augment=True, save_txt=True, save_conf=True)[0]
    assert np.isfinite(augmented).all() and (here / "runs/val/exp3/labels").is_dir()


def test_speed_and_study(command, usual, world, bright, here, monkeypatch):
    asked = []
    measure = validation.evaluate

    def spy(model, loader, *arguments):
        settings = arguments[3]
        asked.append(((settings.conf_thres, settings.iou_thres), loader.dataset.image_size))
        return measure(model, loader, *arguments)

    monkeypatch.setattr(validation, "evaluate", spy)
    assert (
        command("val", *usual["val"], "--weights", world.best, world.run / "weights/last.pt", "--task", "speed")[0] == 0
    )
    assert asked == [((0.25, 0.45), SIZE)] * 2
    assert not list((here / "out/exp").iterdir())
    monkeypatch.setattr(validation, "STUDY_SIZES", (64, 96))
    asked.clear()
    assert command("val", *usual["val"], "--task", "study")[0] == 0
    assert asked == [((0.001, 0.6), 64), ((0.001, 0.6), 96)]
    rows = [line.split() for line in (here / "study_my set_best.txt").read_text().splitlines()]
    assert [len(row) for row in rows] == [10, 10] and float(rows[1][2]) == 0.995
    with zipfile.ZipFile(here / "study.zip") as archive:
        assert archive.namelist() == ["study_my set_best.txt"]
    assert cv2.imdecode(np.fromfile(here / "study.png", np.uint8), 1).shape == (1200, 1800, 3)


def test_speed_writes_no_json(command, usual, bright, here):
    """Not even for coco.yaml, where the other tasks write it unasked."""
    images = {"a.png": (boxes_image(), label_text((0, 8, 10, 30, 40), (1, 50, 20, 90, 52)))}
    folder = write_set(here / "set", images, "val")
    data = write_yaml(here / "coco.yaml", {"train": "none", "val": str(folder), "names": NAMES})
    assert command("val", *usual["val"], "--data", data, "--task", "speed", "--save-json")[0] == 0
    assert not list((here / "out/exp").iterdir())
    assert command("val", *usual["val"], "--data", data)[0] == 0
    assert (here / "out/exp2/best_predictions.json").is_file()


def test_validation_inside_a_training(world, here):
    """v6.1's call with a model: a parsed data set, a loader, a folder, hooks and a loss."""
    data = load_dataset_yaml(world.data, ("val",))
    model = load_checkpoint(world.best)["model"].float()
    loader, _ = create_dataloader(data["val"], LoaderOptions(image_size=SIZE, batch_size=4, stride=32, nc=2, workers=0))
    heard = []
    hooks = SimpleNamespace(run=lambda name, *arguments: heard.append((name, len(arguments))))
    loss = lambda raw, targets: (raw[0].sum(), torch.tensor([1.0, 2.0, 3.0]))  # noqa: E731
    results, maps, times = val.run(
        data, model=model, dataloader=loader, save_dir=here, plots=False, compute_loss=loss, callbacks=hooks
    )
    assert results[4:] == (1, 2, 3) and maps.shape == (2,) and len(times) == 3
    assert heard[0] == ("on_val_start", 0) and heard[-1] == ("on_val_batch_end", 0)
    assert set(heard[1:-1]) <= {("on_val_image_end", 5)} and os.listdir(here) == []


def test_what_validation_returns_has_names_and_unpacks_as_v61s(world, bright, here):
    result = val.run(world.data, world.best, imgsz=SIZE, workers=0, device="cpu", plots=False)
    (p, r, map50, ap, *losses), maps, (pre, inference, nms) = result
    assert result.numbers == (p, r, map50, ap, *losses) and losses == [0, 0, 0]
    assert result.maps is maps and result.milliseconds == (pre, inference, nms)
    assert ap == pytest.approx(maps.mean())
