"""The command lines: what goes wrong ends in one message, what goes right leaves the files that v6.1's users know.

Everything runs in folders whose names have blanks and letters beyond ASCII.
"""

import argparse
import copy
import errno
import http.client
import inspect
import io
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_world import (
    GROUND,
    NAMES,
    RED,
    SIZE,
    TINY,
    WHITE,
    H,
    W,
    label_text,
    picture,
    write_boxes,
    write_set,
    write_yaml,
)

import detect
import train
import val
from engine import detection, validation
from models.backend import load_checkpoint
from models.transfer import transfer
from models.yolo import Model
from utils import checkpoint, cli
from utils.data.dataset_yaml import load_dataset_yaml
from utils.data.loader import create_dataloader
from utils.data.options import LoaderOptions
from utils.inference.outputs import result_stems

ROOT = Path(train.__file__).parent
VERBS = {"train": train, "val": val, "detect": detect}

pytestmark = pytest.mark.usefixtures("here")


# --- a small world ----------------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, int]:
    """Files and folders below a folder with their sizes; label caches, which lie beside the data as in v6.1, aside."""
    return {str(p): p.stat().st_size * p.is_file() for p in sorted(folder.rglob("*")) if p.suffix != ".cache"}


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> SimpleNamespace:
    """A data set of 6 + 4 pictures, a tiny model, and a run of two epochs made by a Python call."""
    root = tmp_path_factory.mktemp("ein Größenversuch 検出")
    content = write_boxes(root / "my set")
    world = SimpleNamespace(
        root=root,
        images=root / "my set" / "images" / "val",
        content=content,
        data=write_yaml(root / "my set.yaml", content),
        cfg=write_yaml(root / "tiny model.yaml", TINY),
    )
    before = Path.cwd()
    os.chdir(root)
    try:
        world.options = train.run(
            cfg="tiny model.yaml", weights="", data=world.data, imgsz=SIZE, epochs=2, batch_size=4, workers=0,
            device="cpu", project=root / "runs/train", optimizer="AdamW", hyp="data/hyps/hyp.scratch-low.yaml",
        )  # fmt: skip
    finally:
        os.chdir(before)
    world.run = root / "runs" / "train" / "exp"
    world.best = world.run / "weights" / "best.pt"
    return world


@pytest.fixture
def usual(world) -> dict[str, list]:
    """Arguments with which each command works."""
    common = ["--imgsz", SIZE, "--device", "cpu", "--project", "out"]
    return {
        "train": [*common, "--weights", "", "--cfg", world.cfg, "--data", world.data, "--epochs", 1, "--batch", 4,
                  "--workers", 0],
        "val": [*common, "--weights", world.best, "--data", world.data, "--workers", 0],
        "detect": [*common, "--weights", world.best, "--source", world.images],
    }  # fmt: skip


@pytest.fixture
def refused(command, usual, here, world):
    """`refused(verb, *arguments, says=...)`: the usual arguments and then these end in one message, and no file."""

    def check(verb: str, *arguments, says: str | list[str], code: int = 1) -> str:
        before = tree(here), tree(world.root)
        found, err = command(verb, *usual[verb], *arguments)
        assert found == code, err
        assert "Traceback" not in err
        mark = f"{verb}: error: " if code == 1 else f"{verb}.py: error: "
        assert err.count(mark) == 1
        message = err.partition(mark)[2]
        for text in [says] if isinstance(says, str) else says:
            assert str(text) in message
        assert (tree(here), tree(world.root)) == before
        return message

    return check


@pytest.fixture
def variant(world):
    """`variant(**changes)`: a data YAML like the usual one; a key set to None is left out."""

    def write(**changes) -> Path:
        content = {k: v for k, v in {**world.content, **changes}.items() if v is not None}
        return write_yaml(Path("data variant.yaml"), content)

    return write


class BrightBoxes(torch.nn.Module):
    """Stands in for a trained detector: finds the red and the white box of a picture by their colour."""

    names, stride, dtype, fixed = NAMES, 32, torch.float32, None
    confidence = (0.5, 0.75)

    def __init__(self, *_):
        super().__init__()

    def check_use(self, *_):
        pass

    def forward(self, images, augment=False):
        rows = torch.zeros(len(images), 2, 7)
        for image, row in zip(images, rows):
            red, green, blue = image
            for c, mask in enumerate(((red > 0.6) & (green < 0.45) & (blue < 0.45), (green > 0.7) & (blue > 0.7))):
                if mask.any():
                    y, x = mask.nonzero().T
                    x1, y1, x2, y2 = x.min(), y.min(), x.max() + 1, y.max() + 1
                    row[c, :4] = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
                    row[c, 4], row[c, 5 + c] = self.confidence[c], 1.0
        return rows, None


@pytest.fixture
def bright(monkeypatch):
    """val and detect see with `BrightBoxes`."""
    for module in (validation, detection):
        monkeypatch.setattr(module, "Backend", BrightBoxes)


def labels_in(file: Path) -> np.ndarray:
    return np.array([line.split() for line in file.read_text(encoding="utf-8").splitlines()], float)


# --- numbers and words on the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "arguments", "says"),
    [
        ("train", ["--imgsz", 0], "--imgsz must be at least 1, got 0"),
        ("train", ["--imgsz", -5], "--imgsz must be at least 1, got -5"),
        ("val", ["--imgsz", 0], "image size must be positive, got 0; give --imgsz a multiple of 32"),
        ("detect", ["--imgsz", 64, -1], "image size must be positive, got [64, -1]"),
        ("detect", ["--imgsz", 64, 64, 64], "--imgsz takes one number, or height and width"),
        ("train", ["--batch-size", 0], "--batch-size must be at least 1, got 0"),
        ("val", ["--batch-size", 0], "--batch-size must be at least 1, got 0"),
        ("val", ["--conf-thres", 2], "--conf-thres must be between 0 and 1, got 2.0"),
        ("detect", ["--conf-thres", 2], "--conf-thres must be between 0 and 1, got 2.0"),
        ("detect", ["--conf-thres", "nan"], "--conf-thres must be between 0 and 1, got nan"),
        ("detect", ["--iou-thres", -0.1], "--iou-thres must be between 0 and 1, got -0.1"),
        ("detect", ["--max-det", 0], "--max-det must be at least 1, got 0"),
        ("detect", ["--line-thickness", -1], "--line-thickness must be at least 0"),
        ("detect", ["--classes", 0, 2], ["--classes", "has classes 0 to 1, got [2]"]),
        ("detect", ["--classes", -1], "got [-1]"),
        ("train", ["--device", 99], "--device 99"),
        ("val", ["--device", 99], "--device 99"),
        ("detect", ["--device", "nonsense"], "--device must be cpu, mps or GPU numbers such as 0 or 0,1"),
        ("train", ["--epochs", -1], "--epochs must be at least 0, got -1"),
        ("train", ["--workers", -1], "--workers must be at least 0, got -1"),
        ("val", ["--workers", -1], "--workers must be at least 0, got -1"),
        ("val", ["--report-images", -1], "--report-images must be at least 0, got -1"),
        ("train", ["--label-smoothing", 1], "--label-smoothing must be at least 0 and below 1"),
        ("train", ["--freeze", 99], "--freeze: the model has layers 0 to 7, got [99]"),
        ("train", ["--freeze", 8], "got [8]"),  # would freeze all of them
        ("train", ["--freeze", 3, 8], "got [8]"),
        ("train", ["--freeze", *range(8)], "--freeze: nothing is left to train"),
        ("train", ["--freeze", "model."], "--freeze: nothing is left to train"),
        ("train", ["--freeze", -1], "got [-1]"),
        ("train", ["--freeze", "model.1.", 99], "got [99]"),
        ("train", ["--freeze", 2, "backbone", "model.7"], "no parameter's name starts with ['backbone']; names look"),
        ("train", ["--freeze", "odel.1"], "no parameter's name starts with ['odel.1']; names look like model.0.conv."),
        ("train", ["--amp", "fp16"], "--amp fp16 needs a CUDA GPU, but training runs on cpu; use bf16 or off"),
        ("train", ["--device", "0,1,2"], "torchrun --nproc-per-node 3 train.py --device 0,1,2 ..."),
        ("train", ["--time", -1], "--time must be at least 0, got -1.0"),
        ("train", ["--fraction", 0], "--fraction must be above 0 and at most 1, got 0.0"),
        ("train", ["--image-weights", "--rect"], "--image-weights draws images freely, --rect orders them by shape"),
        ("val", ["--task", "test"], ["my set.yaml", "key 'test' is missing"]),
        ("train", ["--cfg", ""], "there is nothing to train: give --cfg models/SOCA.yaml, or --weights"),
    ],
)
def test_a_value_that_makes_no_sense(refused, verb, arguments, says):
    refused(verb, *arguments, says=says)


@pytest.mark.parametrize(
    ("verb", "arguments", "says"),
    [
        ("train", ["--optimizer", "Lion"], "invalid choice: 'Lion'"),
        ("train", ["--epochs", "many"], "invalid int value: 'many'"),
        ("val", ["--task", "nonsense"], "invalid choice: 'nonsense'"),
        ("detect", ["--conf-thres", "high"], "invalid float value: 'high'"),
        ("detect", ["--confidence", "1"], "unrecognized arguments: --confidence 1"),
        ("detect", ["--save"], "ambiguous option: --save could match"),
        ("train", ["--amp", "half"], "invalid choice: 'half'"),
        ("train", ["--bucket", "gs://mine"], "--bucket is not an option any more: machines share a search through"),
        ("train", ["--entity", "me"], "--entity is not an option any more: set WANDB_ENTITY in the environment"),
        ("train", ["--upload_dataset"], "--upload_dataset is not an option any more: data sets are not uploaded"),
        ("train", ["--upload_dataset", "val"], "--upload_dataset is not an option any more"),
        (
            "train",
            ["--bbox_interval", "5"],
            "--bbox_interval is not an option any more: pictures are logged at",
        ),
        (
            "train",
            ["--artifact_alias", "v1"],
            "--artifact_alias is not an option any more: data sets are not read",
        ),
    ],
)
def test_a_word_that_argparse_refuses(refused, verb, arguments, says):
    refused(verb, *arguments, says=says, code=2)


@pytest.mark.parametrize(
    ("verb", "arguments", "name", "value"),
    [
        ("train", ["--batch", "8"], "batch_size", 8),
        ("train", ["--img", "64"], "imgsz", 64),
        ("train", ["--img-size", "64"], "imgsz", 64),
        ("train", ["--label", "0.1"], "label_smoothing", 0.1),
        ("train", ["--freeze", "1", "2"], "freeze", [1, 2]),
        ("train", ["--cache"], "cache", "ram"),
        ("val", ["--conf", "0.1"], "conf_thres", 0.1),
        ("val", ["--iou", "0.5"], "iou_thres", 0.5),
        ("val", ["--img-size", "64"], "imgsz", 64),
        ("val", ["--weights", "a.pt", "b.pt"], "weights", ["a.pt", "b.pt"]),
        ("detect", ["--conf", "0.1"], "conf_thres", 0.1),
        ("detect", ["--img", "64", "96"], "imgsz", [64, 96]),
        ("detect", ["--line", "1"], "line_thickness", 1),
    ],
)
def test_shortened_and_alternative_flags(monkeypatch, verb, arguments, name, value):
    monkeypatch.setattr(sys, "argv", [f"{verb}.py", *arguments])
    assert getattr(VERBS[verb].parse_opt(), name) == value


def options(*arguments) -> cli.Options:
    """What a small parser of one option of each kind makes of a command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--weights", default=cli.Default("a.pt"))
    parser.add_argument("--freeze", nargs="+", type=cli.number_or_text, default=[0])
    parser.add_argument("--evolve", nargs="?", type=int, const=300)
    parser.add_argument("--image-weights", action="store_true")
    parser.add_argument("--cos-lr", action=argparse.BooleanOptionalAction)
    cli.add_gone(parser, {"--bucket": "nothing"})
    return cli.parse(parser, argv=list(map(str, arguments)))


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ([], {}),
        (["--epochs", 300], {"epochs": 300}),  # the default, but asked for
        (["--ep=3", "--image"], {"epochs": 3, "image_weights": True}),
        (["--weights", ""], {"weights": ""}),
        (["--freeze", 0], {"freeze": [0]}),
        (["--freeze", 2, "model.4", -1, "--evolve"], {"freeze": [2, "model.4", -1], "evolve": 300}),
        (["--no-cos-lr"], {"cos_lr": False}),
    ],
)
def test_which_options_were_given(arguments, given):
    defaults = {"epochs": 300, "weights": "a.pt", "freeze": [0], "evolve": None, "image_weights": False, "cos_lr": None}
    opt = options(*arguments)
    assert vars(opt) == {**defaults, **given} and opt.given == set(given)
    assert isinstance(opt.weights, cli.Default) == ("weights" not in given)
    assert "given" not in vars(opt) and "given" not in cli.describe("train", opt)
    assert copy.deepcopy(opt).given == opt.given


def test_options_of_a_python_call_count_as_given(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "3"])
    assert train.parse_opt().given == {"epochs"} and train.parse_opt(known=True).given == set()
    opt = cli.override(train.parse_opt(known=True), {"patience": 100})
    assert opt.given == {"patience"} and opt.epochs == 300


@pytest.mark.parametrize(
    ("what", "layers", "names"),
    [
        ([0], [], []),
        ([3], [0, 1, 2], []),
        ([3, 5], [3, 5], []),
        ([0, "model.7.m.1"], [0], ["model.7.m.1.weight", "model.7.m.1.bias"]),
        (["model.1."], [1], []),
        (["model.2.cv1", 6, "model.0.conv"], [6], ["model.0.conv.weight", *(f"model.2.cv1.{n}" for n in (
            "conv.weight", "bn.weight", "bn.bias"))]),
    ],
)  # fmt: skip
def test_what_is_frozen(what, layers, names, capsys):
    model = Model(TINY)
    next(model.parameters()).requires_grad = False  # as in a checkpoint that was stripped
    train.freeze(model, what)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != (int(name.split(".")[1]) in layers or name in names), name
    err = capsys.readouterr().err
    assert (", by " + ", ".join(map(str, what)) in err) == bool(layers or names)


@pytest.mark.parametrize("flag", ["--image-weights", "--batch-size -1"])
def test_what_several_processes_cannot_do(refused, monkeypatch, flag):
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    refused("train", *flag.split(), says=f"{flag} works in one process only, not under torchrun")


@pytest.mark.parametrize("verb", VERBS)
def test_an_image_size_is_rounded_up_to_the_stride(verb, usual, command, bright, here):
    (here / "a file").write_text("stops the command once everything is checked")
    code, err = command(verb, *usual[verb], "--imgsz", 50, "--project", "a file")
    assert code == 1 and "a file is in the way" in err
    assert "is not a multiple of the model's stride 32; using" in err


def test_unknown_keyword_of_a_python_call():
    with pytest.raises(TypeError, match=r"unknown options: batchsize; known: .*batch_size"):
        train.run(batchsize=4)


# --- YAML files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--data", "--cfg", "--hyp"])
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("there is none.yaml", None, "no such file: 'there is none.yaml'"),
        ("empty.yaml", b"", "empty.yaml: the file is empty"),
        ("broken.yaml", b"a: 1\nb: [1, 2\nc: 3\n", "broken.yaml:3: not valid YAML"),
        ("binary.yaml", b"\xff\xfe\x00\x01", "binary.yaml: not a YAML text file"),
        ("list.yaml", b"- 1\n- 2\n", "list.yaml: expected lines of 'key: value' at the top, found a list"),
        ("text.txt", b"nc: 1", "file must end in .yaml or .yml, got 'text.txt'"),
        (".", None, "no such file: '.'"),
    ],
)
def test_a_yaml_that_is_none(refused, flag, name, content, says):
    if flag == "--hyp" and name == "text.txt":  # which may have any name
        says = "missing key 'lr0'"
    if content is not None:
        Path(name).write_bytes(content)
    refused("train", flag, name, says=says)


@pytest.mark.parametrize(
    ("section", "row", "content", "says"),
    [
        ("head", 0, [-1, 1, "SOKA", []], "head row 0 (layer 6): SOKA[]: unknown module 'SOKA'; did you mean 'SOCA'?"),
        ("head", 0, [-1, 1, "SOCA", [1024]], ["head row 0 (layer 6)", "takes the 64 channels that come in", "[256]"]),
        ("head", 0, [-1, 1, "Conv", []], "Conv[]: the first argument must be a number of channels, got []"),
        ("head", 0, [-1, 1, "Conv", ["wide"]], "the first argument must be a number of channels, got ['wide']"),
        ("head", 0, [9, 1, "Conv", [64]], "`from` names layer 9, but only layers 0 to 5 come before it"),
        ("head", 0, [[-1, 2], 1, "Concat", [1]], ["head row 0 (layer 6): Concat", "strides [16.0, 4.0]"]),
        ("head", 1, [[4], 1, "Detect", ["nc", "anchors"]], "1 maps come in, but there are anchors for 2 levels"),
        ("head", 1, [-1, 1, "Conv", [64]], "the last row must be Detect, got Conv"),
        ("backbone", 2, [-1, 3, "C3"], "backbone row 2 (layer 2): a row is [from, number, module, args]"),
        (None, "anchors", None, "a model YAML needs nc"),
        (None, "anchors", [[10, 13, 16]], "anchors must be one list of w,h pairs per level"),
        (None, "nc", "two", "nc must be a positive number, got 'two'"),
        (None, "ch", 1, "ch is 1, but images have 3 channels"),
    ],
)
def test_a_model_yaml_with_a_fault(refused, section, row, content, says):
    model = yaml.safe_load(yaml.safe_dump(TINY))
    if section:
        model[section][row] = content
    else:
        model = {k: v for k, v in {**model, row: content}.items() if v is not None}
    message = refused("train", "--cfg", write_yaml(Path("models of mine.yaml"), model), says=says)
    assert "models of mine.yaml" in message


def test_the_number_of_classes_comes_from_the_data(command, usual):
    code, err = command("train", *usual["train"], "--freeze", 99)
    assert "tiny model.yaml: nc 80 becomes the data set's 2" in err and code == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mosiac": 1.0}, ":29: unknown key 'mosiac'; did you mean 'mosaic'?"),
        ({"lr0": None}, "missing key 'lr0'"),
        ({"lr0": "fast"}, ":1: lr0 must be a number, got the text 'fast'"),
        ({"lr0": -1.0}, ":1: lr0 must be above 0, got -1.0"),
    ],
)
def test_a_hyper_parameter_file_with_a_fault(refused, changes, says):
    hyp = yaml.safe_load((ROOT / "data/hyps/hyp.scratch-low.yaml").read_text(encoding="utf-8"))
    hyp = {k: v for k, v in {**hyp, **changes}.items() if v is not None}
    assert "my hyp.yaml" in refused("train", "--hyp", write_yaml(Path("my hyp.yaml"), hyp), says=says)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("broken", [True, False])
def test_hyper_parameters_from_a_pipe(command, usual, refused, no_pictures, here, broken):
    """It can be read once, and has no end until it is."""
    hyp = yaml.safe_load((ROOT / "data/hyps/hyp.scratch-low.yaml").read_text(encoding="utf-8"))
    content = {**hyp, "lr0": -1.0 if broken else 0.00123}
    os.mkfifo(here / "pipe")
    writer = threading.Thread(target=write_yaml, args=(here / "pipe", content), daemon=True)
    writer.start()
    if broken:
        refused("train", "--hyp", "pipe", says="pipe:1: lr0 must be above 0, got -1.0")
    else:
        code, err = command("train", *usual["train"], "--hyp", "pipe")
        assert code == 0, err
        assert yaml.safe_load((here / "out/exp/hyp.yaml").read_text(encoding="utf-8")) == content
    writer.join(10)
    assert not writer.is_alive()


# --- data sets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["train", "val"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nc": 3}, "nc is 3 but names has 2 entries; they must agree"),
        ({"nc": None, "names": None}, "keys 'nc' and 'names' are missing"),
        ({"names": {1: "a", 2: "b"}}, "the keys of names must be 0 to 1, got [1, 2]"),
        ({"names": ["a", True]}, "names[1] must be text, got True; put it in quotes"),
        ({"val": None}, "key 'val' is missing; give a folder of images or a list file"),
        ({"val": 7}, "val must be a path or a list of paths, got 7"),
        ({"val": "images/none"}, ["val names ", "images/none, which does not exist"]),
        ({"val": "images/none", "download": "touch pwned"}, ["run this yourself", "touch pwned"]),  # nothing is run
    ],
)
def test_a_data_yaml_with_a_fault(refused, variant, verb, changes, says):
    assert "data variant.yaml" in refused(verb, "--data", variant(**changes), says=says)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty folder", None, "no images in "),
        ("nothing.txt", "", "no images in "),
        ("words.txt", "hello\nworld\n", "an image file ends in bmp, dng, jpeg"),
        ("lost.txt", "/nowhere/a.jpg\n/nowhere/b.jpg\n", ["none of 2 images can be used", "/nowhere/a.jpg"]),
    ],
)
@pytest.mark.parametrize("verb", ["train", "val"])
def test_a_data_set_without_pictures(refused, variant, here, verb, name, content, says):
    (here / name).mkdir() if content is None else (here / name).write_text(content)
    assert name in refused(verb, "--data", variant(train=str(here / name), val=str(here / name)), says=says)


def test_training_without_labels(refused, variant, here):
    folder = write_set(here / "bare", {"a.png": (picture(), None), "b.png": (picture(), None)})
    refused("train", "--data", variant(train=str(folder)), says=["no label files", "labels/train/a.txt"])
    assert not list(here.rglob("*.cache"))


def test_validating_without_labels(command, usual, variant, here, bright):
    folder = write_set(here / "bare", {"a.png": (picture(), None), "b.png": (picture(), None)})
    code, err = command("val", *usual["val"], "--data", variant(val=str(folder)))
    assert code == 0
    assert "no label files found; expected for example" in err and "no labels in this split" in err


@pytest.mark.parametrize("verb", ["train", "val"])
def test_a_class_beyond_the_data_sets(refused, variant, here, verb):
    text = label_text((0, 8, 10, 30, 40), (2, 50, 20, 90, 52))
    folder = write_set(here / "set", {"a.png": (picture(), text)})
    data = variant(train=str(folder), val=str(folder))
    refused(verb, "--data", data, says=["labels/train/a.txt:2: class must be a whole number, 0 to 1, got 2"])


BAD_LABELS = {
    "columns.png": ("0 0.5 0.5 0.2\n", ":1: a line has 5 numbers"),
    "beyond.png": ("0 0.5 0.5 0.2 0.2\n1 0.5 1.5 0.2 0.2\n", ":2: y must lie in 0-1, got 1.5"),
    "negative.png": ("0 0.5 0.5 -0.2 0.2\n", ":1: width must lie in 0-1, got -0.2"),
    "nan.png": ("0 0.5 0.5 nan 0.2\n", ":1: width must lie in 0-1, got nan"),
    "half class.png": ("0.5 0.5 0.5 0.2 0.2\n", ":1: class must be a whole number"),
    "words.png": ("red 0.5 0.5 0.2 0.2\n", ":1: 'red' is not a number"),
    "bytes.png": (None, ": not a text file in UTF-8"),
}


def test_label_files_with_a_fault_leave_their_picture_out_by_line(command, usual, variant, here, bright):
    good = label_text((0, 8, 10, 30, 40), (1, 50, 20, 90, 52))
    pictures = {name: (picture(), text) for name, (text, _) in BAD_LABELS.items()}
    folder = write_set(here / "set", {**pictures, "good.png": (picture(), good), "twice.png": (picture(), good * 2)})
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


# --- picture files ----------------------------------------------------------------------------------------------------


def write_kinds(folder: Path) -> list[str]:
    """The same picture in many kinds of file, and files that are none. Returns the names of the sound ones."""
    folder.mkdir(parents=True)
    image = picture()
    pil = Image.fromarray(image[..., ::-1].copy())
    for suffix in ("jpg", "png", "bmp", "tif", "webp"):
        pil.save(folder / f"plain {suffix}.{suffix}", quality=95)
    pil.save(folder / "CAPITALS.JPG", quality=95)
    pil.save(folder / "phone.mpo", format="JPEG", quality=95)
    pil.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    pil.convert("RGBA").save(folder / "transparent.png")
    pil.convert("P").save(folder / "palette.png")
    cv2.imencode(".png", image.astype(np.uint16) * 257)[1].tofile(folder / "16 bits.png")
    # how a camera held at each angle stores the upright picture
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF orientation -> PIL transpose that it undoes
    for orientation, transpose in undo.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        pil.transpose(transpose).save(folder / f"turned {orientation}.jpg", exif=exif, quality=95)
    sound = [p.name for p in folder.iterdir()]

    (folder / "zero.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    for suffix in ("jpg", "png", "bmp", "tif", "webp"):
        content = (folder / f"plain {suffix}.{suffix}").read_bytes()
        (folder / f"half {suffix}.{suffix}").write_bytes(content[: len(content) // 2])
    return sound


BROKEN = ["half bmp.bmp", "half jpg.jpg", "half png.png", "half tif.tif", "half webp.webp", "text.jpg", "zero.jpg"]
BOXES = [[8, 10, 30, 40], [50, 20, 90, 52]]  # of `picture()`: red, white


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> tuple[Path, list[str]]:
    """A data set of `write_kinds` with labels for the upright pictures, and the names of its sound pictures."""
    root = tmp_path_factory.mktemp("alle Arten")
    sound = write_kinds(root / "images")
    pil = Image.fromarray(picture()[..., ::-1].copy())
    frames = [pil.convert("P"), pil.rotate(180).convert("P")]
    frames[0].save(root / "images" / "moving gif.jpg", format="GIF", save_all=True, append_images=frames[1:])
    pil.resize((1, 1)).save(root / "images" / "pixel.png")
    (root / "labels").mkdir()
    for file in (root / "images").iterdir():
        text = label_text(*((c, *box) for c, box in enumerate(BOXES)))
        (root / "labels" / f"{file.stem}.txt").write_text(text)
    return root, sound


def test_every_kind_of_picture_is_detected_in_upright(kinds, command, usual, bright, here):
    root, sound = kinds
    arguments = ["--source", root / "images", "--save-txt", "--save-crop"]
    code, err = command("detect", *usual["detect"], *arguments)
    assert code == 0
    for name in BROKEN:
        assert f"left out: {root / 'images' / name}: image cannot be decoded" in err
    out = here / "out" / "exp"
    for name in [*sound, "moving gif.jpg"]:  # of a moving picture the first frame
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
    assert sorted(p.stem for p in (out / "labels").iterdir()) == sorted(
        Path(name).stem for name in [*sound, "moving gif.jpg"]
    )


def test_every_kind_of_picture_is_validated_in_upright(kinds, command, usual, bright, variant):
    root, sound = kinds
    code, err = command("val", *usual["val"], "--data", variant(val=str(root / "images")))
    assert code == 0
    for name in [*BROKEN, "moving gif.jpg", "pixel.png"]:
        assert any(f"{root / 'images' / name}: " in line and "left out" in line for line in err.splitlines()), name
    row = next(line.split() for line in err.splitlines() if line.split()[:1] == ["all"])
    assert row[1:3] == [str(len(sound)), str(2 * len(sound))]
    assert float(row[5]) > 0.99  # mAP50


def test_every_kind_of_picture_is_trained_on(kinds, command, usual, variant):
    root, sound = kinds
    data = variant(train=str(root / "images"), val=str(root / "images"))
    code, err = command("train", *usual["train"], "--data", data, "--workers", 2)
    assert code == 0
    for name in [*BROKEN, "moving gif.jpg", "pixel.png"]:
        assert any(f"{root / 'images' / name}: " in line and "left out" in line for line in err.splitlines()), name
    assert f"{len(sound) + 9} images" in err and "9 corrupt" in err


def test_grey_pictures_are_detected_in(command, usual, bright, here):
    grey = cv2.cvtColor(picture(), cv2.COLOR_BGR2GRAY)
    for name, image in (("grey.png", grey), ("grey.jpg", grey), ("16 bits.png", grey.astype(np.uint16) * 257)):
        write_set(here, {name: (image, None)})
    code, _ = command("detect", *usual["detect"], "--source", "images/train", "--save-txt")
    assert code == 0
    for stem in ("grey", "grey_2", "16 bits"):
        found = labels_in(here / f"out/exp/labels/{stem}.txt")
        assert found[:, 0].tolist() == [1]  # red is as dark as the ground
        assert np.abs(found[0, 1:] * (W, H, W, H) - (70, 36, 40, 32)).max() <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_file_names_that_are_no_text(command, usual, bright, here):
    name = os.fsdecode(b"caf\xe9")
    write_set(here, {f"{name}.png": (picture(), None), f"{name}2.mpo": (None, None)})
    Image.fromarray(picture()).save(here / f"images/train/{name}2.mpo", format="JPEG")
    code, err = command("detect", *usual["detect"], "--source", "images/train", "--save-txt", "--save-crop")
    assert code == 0, err
    assert sorted(p.name for p in (here / "out/exp").iterdir() if p.is_file()) == [f"{name}.png", f"{name}2.jpg"]
    assert (here / f"out/exp/labels/{name}.txt").is_file()


@pytest.mark.parametrize("name", [*BROKEN, "no picture at all"])
def test_a_single_picture_that_cannot_be_read(kinds, refused, name):
    file = kinds[0] / "images" / name
    refused("detect", "--source", file, says=str(file))


def test_only_unreadable_pictures(refused, here):
    folder = here / "broken"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_text("none")
    refused("detect", "--source", folder, says=["b.jpg: image cannot be decoded", "nor can the other 1 files"])


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (3, 5)])
def test_a_picture_of_any_shape_is_detected_in(command, usual, bright, here, shape):
    cv2.imencode(".png", np.zeros((*shape, 3), np.uint8))[1].tofile(here / "thin.png")
    code, err = command("detect", *usual["detect"], "--source", "thin.png")
    assert code == 0, err
    assert Image.open(here / "out/exp/thin.png").size == shape[::-1]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "--source is empty"),
        ("there is none", "--source there is none: no such file or folder"),
        ("empty folder", "no image or video files in this folder; an image file ends in bmp"),
        ("*.jpg", "--source *.jpg: no image or video files match"),
        ("empty.txt", "empty.txt: the list is empty"),
        ("lost.txt", "No such file or directory: 'gone.jpg'"),
        ("mixed.txt", "lists files or streams, not both: 0 is unlike gone.jpg, its first line"),
        ("mixed.streams", "a list of streams holds URLs, camera numbers and videos, got gone.jpg"),
        ("gone.streams", "--source gone.mp4: cannot be opened; is it a video?"),
        ("film.mp4", "film.mp4: video cannot be decoded, or has no frames"),
        ("moving.gif", "moving.gif: video cannot be decoded, or has no frames"),
        ("99", "--source 99: cannot be opened; is a camera of this number connected, and free?"),
        ("rtsp://me:secret@127.0.0.1:9/1", "--source rtsp://127.0.0.1:9/1: cannot be opened; is the address right"),
        ("https://me:secret@example.com/a.jpg", "--source https://example.com/a.jpg: not fetched; --download saves"),
        ("ftp://example.com/a.jpg", "an address starts with http, https"),
        ("https://www.youtube.com/watch?v=x", "a page, not a stream"),
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
    write_set(here, {"a.png": (picture(), None), "b.png": (picture(), None)})
    (here / "images/train/film.mp4").write_text("x")
    code, err = command("detect", *usual["detect"], "--source", "images/train")
    assert code == 0 and "left out: images/train/film.mp4: video cannot be decoded" in err and "2 images" in err


def test_the_default_source_is_the_repositorys(monkeypatch, tmp_path, command, usual, bright):
    monkeypatch.setattr(sys.modules["utils.inference.sources"], "ROOT", tmp_path / "repo")
    (tmp_path / "repo/data/images").mkdir(parents=True)
    cv2.imencode(".jpg", picture())[1].tofile(tmp_path / "repo/data/images/a.jpg")
    arguments = usual["detect"][: usual["detect"].index("--source")]
    code, err = command("detect", *arguments)
    assert code == 0 and "repo/data/images/a.jpg" in err


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def broken_weights(kind: str, good: bytes) -> bytes:
    """The bytes of a file that is no checkpoint of a detector."""
    content = {"nothing": b"", "text": b"hello world", "half": good[: len(good) // 2]}
    if kind in content:
        return content[kind]
    objects = {
        "evil": {"model": Evil()},
        "state": {"model": {"0.weight": torch.zeros(1)}},
        "tensors": {"0.weight": torch.zeros(1)},
        "other": {"model": torch.nn.Linear(2, 2)},
        "list": [1, 2],
    }
    buffer = io.BytesIO()
    torch.save(objects[kind], buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nothing", "cannot be read as a checkpoint (damaged, incomplete or another kind of file)"),
        ("text", "cannot be read as a checkpoint (damaged, incomplete or another kind of file)"),
        ("half", "cannot be read as a checkpoint (damaged, incomplete or another kind of file)"),
        ("evil", ["refused, nothing was executed: the file asks for", "mkdir"]),
        ("state", "not a detector's checkpoint: expected a dict with a `model` module"),
        ("tensors", "not a detector's checkpoint"),
        ("other", "holds a Linear, not a detector of this family"),
        ("list", "not a detector's checkpoint: expected a dict with a `model` module, found list"),
    ],
)
def test_weights_that_are_none(refused, world, here, verb, kind, says):
    file = here / "my weights.pt"
    file.write_bytes(broken_weights(kind, world.best.read_bytes()))
    assert "my weights.pt: " in refused(verb, "--weights", file, says=says)
    assert not (here / "executed").exists()


def test_weights_of_another_data_set(refused, variant):
    data = variant(nc=3, names=["a", "b", "c"])
    refused("val", "--data", data, says=["best.pt has 2 classes, but", "data variant.yaml has 3"])


def build(weights, cfg, nc=2, hyp=None, download=False, attention="") -> Model:
    """The model that a training would begin with."""
    options = argparse.Namespace(weights=weights, cfg=str(cfg), attention=attention, download=download, imgsz=64)
    return train.build_model(options, hyp or {}, nc)


def carried(err: str) -> tuple[int, int]:
    """The two numbers of `carried 10 of 12 tensors over from the weights`."""
    words = err.partition("carried ")[2].split()
    return int(words[0]), int(words[2])


def test_weights_are_carried_where_they_fit_and_that_is_said(world, capsys):
    source = load_checkpoint(world.best)["model"].float().state_dict()
    same = build(world.best, "")
    assert carried(capsys.readouterr().err) == (len(source), len(source))
    assert all(torch.equal(tensor, source[name]) for name, tensor in same.state_dict().items())

    build(world.best, "", nc=5)  # the head has other classes: its 2 levels of weight and bias stay new
    assert carried(capsys.readouterr().err) == (len(source) - 4, len(source))

    model = yaml.safe_load(yaml.safe_dump(TINY))
    model["head"].insert(1, [-1, 1, "SOCA", []])
    model["head"][-1][0] = [4, 7]
    larger = build(world.best, write_yaml(Path("with SOCA.yaml"), model))
    err = capsys.readouterr().err
    assert carried(err) == (len(source) - 1, len(larger.state_dict()))  # all but the anchors, which --cfg brings
    assert "nothing of the weights fits" not in err


def test_attention_put_into_trained_weights(world, capsys):
    source = load_checkpoint(world.best)["model"].float().state_dict()
    larger = build(world.best, "", attention="SOCA@backbone")
    err = capsys.readouterr().err
    assert carried(err) == (len(source), len(larger.state_dict()))
    assert "starts as identity" in err
    assert larger.yaml["backbone"][-1] == [-1, 1, "SOCA", []]
    from_scratch = build("", world.cfg, attention="SOCA@backbone")
    assert from_scratch.yaml_file == "tiny model.yaml"
    assert list(from_scratch.state_dict()) == list(larger.state_dict())


@pytest.mark.parametrize(
    ("attention", "says"),
    [("SOCA", "must be MODULE@PLACE"), ("SOKA@P3", "did you mean 'SOCA'?"), ("SOCA@P9", "no map of stride 512")],
)
def test_attention_that_is_none(refused, attention, says):
    refused("train", "--attention", attention, says=says)


def test_weights_of_which_nothing_fits(world, capsys):
    build(world.best, write_yaml(Path("wide.yaml"), {**TINY, "width_multiple": 0.75}), nc=7)
    err = capsys.readouterr().err
    assert "nothing of the weights fits this architecture: training starts from scratch" in err
    fresh, other = Model({**TINY, "width_multiple": 0.5}), Model({**TINY, "width_multiple": 0.75}, nc=7)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    transfer(fresh, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items() if tensor.ndim)


# --- weights that are not there ---------------------------------------------------------------------------------------


def test_default_weights_are_not_there_for_training(world, capsys):
    model = build(cli.Default(cli.WEIGHTS), world.cfg)
    assert "yolov5s.pt is not here, so training starts from scratch" in capsys.readouterr().err
    assert model.yaml_file == "tiny model.yaml"
    model = build(cli.Default(cli.WEIGHTS), "")
    assert "yolov5s.pt is not here, so training starts from scratch" in capsys.readouterr().err
    assert model.yaml_file == "yolov5s.yaml"


def test_default_weights_that_are_there_are_used(world, here, capsys):
    (here / "yolov5s.pt").write_bytes(world.best.read_bytes())
    build(cli.Default(cli.WEIGHTS), "")
    assert "carried " in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["val", "detect"])
def test_default_weights_are_not_there_for_use(command, usual, here, world, verb):
    arguments = usual[verb].copy()
    at = arguments.index("--weights")
    del arguments[at : at + 2]
    code, err = command(verb, *arguments)
    assert code == 1 and f"{verb}: error: no such weights: yolov5s.pt; train some" in err
    for name, time in (("exp", 1_000_000), ("exp2", 3_000_000), ("exp3", 2_000_000)):
        best = here / "runs/train" / name / "weights/best.pt"
        best.parent.mkdir(parents=True)
        best.write_bytes(b"")
        os.utime(best, (time, time))
    code, err = command(verb, *arguments)
    newest = (here / "runs/train/exp2/weights/best.pt").resolve()
    assert code == 1 and f"no such weights: yolov5s.pt; your newest trained weights are {newest}" in err
    assert not (here / "out").exists()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["yolov5s.pt", "mine.pt", "."])
def test_weights_asked_for_by_name_are_not_there(refused, verb, name):
    refused(verb, "--weights", name, says=f"no such weights: {name}")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("Name or service not known"),
        TimeoutError("timed out"),
        http.client.RemoteDisconnected("Remote end closed connection"),
        "cut short",
    ],
    ids=str,
)
def test_download_without_a_network(refused, monkeypatch, verb, failure):
    class CutShort(io.BytesIO):
        headers = {"Content-Length": "1000"}  # noqa: RUF012

    def urlopen(url, timeout):
        if failure == "cut short":
            return CutShort(b"x" * 10)
        raise failure

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    says = ["could not download https://", "yolov5s.pt", "fetch it by hand and save it as yolov5s.pt"]
    says.append("10 of 1000 bytes" if failure == "cut short" else str(failure))
    refused(verb, "--weights", "yolov5s.pt", "--download", says=says)


def test_nothing_is_downloaded_unless_asked(refused, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", None)
    refused("detect", "--weights", "yolov5s.pt", says="no such weights")
    refused("detect", "--weights", "mine.pt", "--download", says=["no such file: mine.pt", "yolov5s.pt"])


# --- folders and disks that cannot be written -------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["--project", "--name", "--exist-ok"])
def test_a_file_where_the_folder_should_be(refused, here, verb, flag):
    (here / "a file").write_text("mine")
    arguments = {
        "--project": ["--project", "a file"],
        "--name": ["--project", "a file/deeper", "--name", "x"],
        "--exist-ok": ["--project", ".", "--name", "a file", "--exist-ok"],
    }
    refused(verb, *arguments[flag], says=["a file", "cannot be made a folder, a file is in the way"])
    assert (here / "a file").read_text() == "mine"


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_may_not_be_written(refused, monkeypatch, verb):
    def mkdir(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    refused(verb, says="Permission denied: 'out'")


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_while_saving_keeps_the_old_checkpoint(world, here, monkeypatch):
    file = here / "last.pt"
    model = Model(TINY)
    checkpoint.save(file, checkpoint.pack(model, epoch=1))
    old = file.read_bytes()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*last.pt'"):
        checkpoint.save(file, checkpoint.pack(model, epoch=2))
    assert file.read_bytes() == old and os.listdir(here) == ["last.pt"]


class FullFile(io.BytesIO):
    """Takes the first bytes, then the disk is full."""

    def write(self, data):
        if self.tell() > 1000:
            full_disk()
        return super().write(data)


def test_torchs_own_error_over_a_full_disk_becomes_one(here, monkeypatch):
    """torch closes its archive after the failed write, and raises a RuntimeError over that."""
    real = torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: real(content, FullFile()))
    with pytest.raises(OSError):
        checkpoint.save(here / "last.pt", checkpoint.pack(Model(TINY)))
    assert not os.listdir(here)


def test_a_full_disk_during_training(command, usual, here, monkeypatch):
    saved, real = [], checkpoint.torch.save

    def save(content, file):
        saved.append(content["epoch"])
        if content["epoch"] == 1:
            file.write(b"the first bytes")
            full_disk()
        real(content, file)

    monkeypatch.setattr(checkpoint.torch, "save", save)
    code, err = command("train", *usual["train"], "--epochs", 3)
    assert code == 1 and "Traceback" not in err
    message = err.partition("train: error: ")[2]
    assert "No space left on device" in message and "weights" in message
    assert saved == [-1, 0, 0, 1]
    weights = here / "out/exp/weights"
    assert sorted(os.listdir(weights)) == ["best.pt", "last.pt"]
    assert [load_checkpoint(weights / name)["epoch"] for name in ("best.pt", "last.pt")] == [0, 0]
    assert len((here / "out/exp/results.csv").read_text().splitlines()) == 3  # header and two epochs


@pytest.mark.parametrize("verb", ["val", "detect"])
def test_a_full_disk_while_writing_results(command, usual, here, monkeypatch, bright, verb):
    def write(self, data):
        full_disk()

    class File(io.FileIO):
        pass

    File.write = write
    monkeypatch.setattr(os, "fdopen", lambda handle, *a, **k: File(handle, "w"))
    code, err = command(verb, *usual[verb])
    assert code == 1 and "Traceback" not in err
    message = err.partition(f"{verb}: error: ")[2]
    assert "No space left on device: 'out/exp/" in message
    assert not [p for p in (here / "out").rglob("*") if p.is_file()]


# --- run folders ------------------------------------------------------------------------------------------------------


def test_run_folders_count_up(command, usual, bright, here):
    for _ in range(3):
        assert command("detect", *usual["detect"], "--nosave")[0] == 0
    assert sorted(os.listdir("out")) == ["exp", "exp2", "exp3"]
    assert command("detect", *usual["detect"], "--exist-ok", "--save-txt")[0] == 0
    assert command("detect", *usual["detect"], "--exist-ok", "--save-txt")[0] == 0
    assert sorted(os.listdir("out")) == ["exp", "exp2", "exp3"]
    assert {len(labels_in(p)) for p in (here / "out/exp/labels").iterdir()} == {2}  # written anew, not doubled
    assert command("val", *usual["val"], "--name", "größer v1.0")[0] == 0
    assert command("val", *usual["val"], "--name", "größer v1.0")[0] == 0
    assert sorted(os.listdir("out")) == ["exp", "exp2", "exp3", "größer v1.0", "größer v1.02"]


@pytest.mark.parametrize(
    ("files", "stems"),
    [
        (["a.jpg"], ["a"]),
        (["cam/1.jpg", "cam/2.jpg"], ["1", "2"]),
        # the folders that tell them apart
        (["shots/cam1/7.jpg", "shots/cam2/7.jpg", "shots/cam2/8.jpg"], ["cam1_7", "cam2_7", "8"]),
        (["x/a/c/7.jpg", "x/b/c/7.jpg"], ["a_c_7", "b_c_7"]),
        # one of them lies in the shared folder
        (["x/7.jpg", "x/deep/7.jpg"], ["7", "deep_7"]),
        # folders do not tell them apart
        (["a.jpg", "a.png", "b.jpg"], ["a", "a_2", "b"]),
        # a name made that way is taken
        (["s/a/b_7.jpg", "s/a_b/7.jpg", "s/a/b/7.jpg"], ["b_7", "a_b_7", "a_b_7_2"]),
        (["a.jpg", "a.png", "a_2.jpg"], ["a", "a_3", "a_2"]),
        # file systems that know no capitals
        (["A.jpg", "a.jpg"], ["A", "a_2"]),
        ([], []),
    ],
)
def test_results_never_share_a_name(files, stems):
    found = result_stems([Path(f) for f in files])
    assert found == stems
    assert len({s.lower() for s in found}) == len(files)


def test_pictures_of_one_name_from_several_folders(command, usual, bright, here):
    for i, red in enumerate(((8, 10, 30, 40), (2, 2, 20, 60))):
        write_set(here, {"shot.png": (picture(red), None)}, f"cam{i}")
    arguments = ["--source", "images/**/*.png", "--save-txt", "--save-crop"]
    assert command("detect", *usual["detect"], *arguments)[0] == 0
    out = here / "out/exp"
    assert sorted(p.name for p in out.glob("*.png")) == ["cam0_shot.png", "cam1_shot.png"]
    boxes = [labels_in(out / f"labels/cam{i}_shot.txt")[0, 1:] * (W, H, W, H) for i in range(2)]
    assert np.round(boxes, 3).tolist() == [[19, 25, 22, 30], [11, 31, 18, 58]]
    assert sorted(p.name for p in (out / "crops/red").iterdir()) == ["cam0_shot.jpg", "cam1_shot.jpg"]


def test_val_keeps_pictures_of_one_name_apart(command, usual, bright, variant, here):
    text = label_text((0, 8, 10, 30, 40))
    for name in ("a", "b"):
        write_set(here, {"shot.png": (picture(), text)}, name)
    assert command("val", *usual["val"], "--data", variant(val=str(here / "images")), "--save-txt")[0] == 0
    assert sorted(os.listdir("out/exp/labels")) == ["a_shot.txt", "b_shot.txt"]
    assert all(len(labels_in(here / "out/exp/labels" / f"{n}_shot.txt")) == 2 for n in "ab")


# --- what training writes ---------------------------------------------------------------------------------------------

RUN_FILES = [
    "F1_curve.png", "PR_curve.png", "P_curve.png", "R_curve.png", "anchors.yaml", "confusion_matrix.png", "hyp.yaml",
    "labels.jpg", "labels_correlogram.jpg", "opt.yaml", "results.csv", "results.png", "train_batch0.jpg",
    "train_batch1.jpg", "train_batch2.jpg", "val_batch0_labels.jpg", "val_batch0_pred.jpg", "weights",
]  # fmt: skip
CURVES = {"F1_curve.png", "PR_curve.png", "P_curve.png", "R_curve.png"}  # only where something was found
CSV_COLUMNS = [
    "epoch", "train/box_loss", "train/obj_loss", "train/cls_loss",
    "metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95",
    "val/box_loss", "val/obj_loss", "val/cls_loss", "x/lr0", "x/lr1", "x/lr2",
]  # fmt: skip


def test_files_of_a_training_run(world):
    assert {*os.listdir(world.run), *CURVES} == set(RUN_FILES)
    assert sorted(os.listdir(world.run / "weights")) == ["best.pt", "last.pt"]
    for file in (p for p in world.run.iterdir() if p.suffix in (".jpg", ".png")):
        assert min(Image.open(file).size) >= 64, file


def test_results_csv(world):
    lines = (world.run / "results.csv").read_text().split("\n")
    rows = [line.split(",") for line in lines]
    assert len(rows) == 4 and rows.pop() == [""]
    assert all(len(row) == 14 and all(len(field) == 20 for field in row) for row in rows)
    assert [field.strip() for field in rows[0]] == CSV_COLUMNS
    assert all(field == field.strip().rjust(20) for row in rows for field in row)
    assert [row[0].strip() for row in rows[1:]] == ["0", "1"]
    for field in (field for row in rows[1:] for field in row[1:]):
        assert field.strip() == f"{float(field):.5g}"
    for row in np.array(rows[1:], float):
        assert (row[1:4] > 0).all() and (row[8:11] > 0).all()  # losses
        assert (row[4:8] >= 0).all() and (row[4:8] <= 1).all() and row[6] >= row[7]  # metrics
    # learning rates at iterations 1 and 3 of a warm-up of 1000 to 0.01 and, in the second of 2 epochs, 0.01 x 0.505
    rates = [[field.strip() for field in row[11:]] for row in rows[1:]]
    assert rates == [["1e-05", "1e-05", "0.09991"], ["1.515e-05", "1.515e-05", "0.099715"]]


def test_opt_yaml_and_hyp_yaml(world):
    options = yaml.safe_load((world.run / "opt.yaml").read_text(encoding="utf-8"))
    assert list(options) == [*vars(train.parse_opt(known=True)), "save_dir"]
    assert options["data"] == str(world.data) and options["epochs"] == 2 and options["imgsz"] == SIZE
    assert options["save_dir"] == str(world.run)
    assert {k: v for k, v in vars(world.options).items() if not isinstance(v, Path)}.items() <= options.items()
    hyp = yaml.safe_load((ROOT / "data/hyps/hyp.scratch-low.yaml").read_text(encoding="utf-8"))
    written = yaml.safe_load((world.run / "hyp.yaml").read_text(encoding="utf-8"))
    assert list(written.items()) == list(hyp.items())  # as read, before any scaling


@pytest.mark.parametrize(
    "options, file, optimizer, cosine",
    [
        ({"epochs": 2}, "short", "AdamW", True),  # 2 x 2 iterations
        ({"epochs": 1500}, "scratch-low", "SGD", False),  # 3000
        ({"epochs": 1500, "optimizer": "AdamW", "cos_lr": True}, "scratch-low", "AdamW", True),
        ({"epochs": 2, "cos_lr": False}, "short", "AdamW", False),  # the command line over the file
        ({"epochs": 2, "optimizer": "SGD"}, "scratch-low", "SGD", False),
        ({"epochs": 2, "hyp": "hyp.scratch-low.yaml"}, "scratch-low", "SGD", False),
        ({"epochs": 1500, "hyp": "hyp.short.yaml", "optimizer": "Adam"}, "short", "Adam", True),
    ],
)
def test_the_recipe_of_a_run(world, options, file, optimizer, cosine):
    opt = cli.override(train.parse_opt(known=True), {"data": str(world.data), "batch_size": 4, **options})
    hyp = train.load_recipe(opt)
    assert hyp == yaml.safe_load((ROOT / f"data/hyps/hyp.{file}.yaml").read_text(encoding="utf-8"))
    assert (opt.optimizer, opt.cos_lr) == (optimizer, cosine)


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_final_checkpoints(world, name):
    content = load_checkpoint(world.run / "weights" / name)
    training = ["training"] if name == "last.pt" else []  # for --resume with more epochs
    assert list(content) == [
        "epoch",
        "best_fitness",
        "model",
        "ema",
        "updates",
        "optimizer",
        "wandb_id",
        "date",
        *training,
    ]
    assert content["epoch"] == -1
    assert [content[k] for k in ("best_fitness", "ema", "updates", "optimizer", "wandb_id")] == [None] * 5
    assert {t.dtype for t in content["model"].state_dict().values()} == {torch.float16, torch.int64}
    assert not any(p.requires_grad for p in content["model"].parameters())
    assert content["model"].names == NAMES and content["model"].nc == 2


def test_checkpoints_that_are_asked_for(command, usual, here):
    code, _ = command("train", *usual["train"], "--epochs", 4, "--save-period", 2, "--noval", "--freeze", 3)
    assert code == 0
    assert sorted(os.listdir("out/exp/weights")) == ["best.pt", "epoch2.pt", "last.pt"]
    training = load_checkpoint(here / "out/exp/weights/epoch2.pt")
    assert training["epoch"] == 2 and training["optimizer"] is not None and training["ema"] is not None
    rows = [line.split(",") for line in (here / "out/exp/results.csv").read_text().splitlines()]
    assert [float(row[6]) for row in rows[1:4]] == [0, 0, 0]  # --noval: only the last epoch is measured


def losses(run: Path) -> np.ndarray:
    """(epochs, 6): those of training and validation."""
    table = np.genfromtxt(run / "results.csv", delimiter=",", skip_header=1, ndmin=2)
    return table[:, [1, 2, 3, 8, 9, 10]]


def test_frozen_layers_stay_as_they_were(command, usual, no_pictures, world, here):
    assert command("train", *usual["train"], "--freeze", 1, "model.4.cv1", "--epochs", 3)[0] == 0
    torch.manual_seed(0)
    before = dict(Model(world.cfg, nc=2).named_parameters())
    after = load_checkpoint(here / "out/exp/weights/last.pt")["training"]["model"]
    same = {name for name, parameter in before.items() if torch.equal(after[name], parameter)}
    assert same == {name for name in before if name.startswith(("model.1.", "model.4.cv1."))}


def test_no_epochs_leave_checkpoints_that_are_read(command, usual, no_pictures, world, here):
    code, err = command("train", *usual["train"], "--epochs", 0)
    assert code == 0, err
    assert not (here / "out/exp/results.csv").exists()
    torch.manual_seed(0)
    fresh = Model(world.cfg, nc=2).half().state_dict()
    for name in ("best.pt", "last.pt"):
        file = here / "out/exp/weights" / name
        results, *_ = val.run(world.data, file, imgsz=SIZE, device="cpu", workers=0, plots=False)
        assert np.isfinite(results).all()
        saved = load_checkpoint(file)["model"].state_dict()
        assert all(torch.equal(saved[k], v) for k, v in fresh.items() if "anchors" not in k)


def test_mixed_precision_without_a_gpu(command, usual, no_pictures, here):
    found = []
    for name in ("bf16", "auto"):
        code, err = command("train", *usual["train"], "--amp", name, "--name", name)
        assert code == 0, err
        assert f"mixed precision {'bfloat16' if name == 'bf16' else 'off'}, " in err
        found.append(losses(here / "out" / name))
    half, full = found
    assert np.isfinite(half).all() and (half > 0).all()
    assert (half != full).any() and np.abs(half / full - 1).max() < 0.05


def test_a_run_ends_when_its_time_is_over(command, usual, no_pictures, here):
    code, err = command("train", *usual["train"], "--epochs", 50, "--time", 1e-9)
    assert code == 0, err
    assert len(losses(here / "out/exp")) == 1
    state = load_checkpoint(here / "out/exp/weights/last.pt")["training"]["state"]
    assert state["epoch"] == 0 and state["finished"] and state["seconds"] > 0
    assert load_checkpoint(here / "out/exp/weights/best.pt")["epoch"] == -1  # stripped
    assert state["results"][4:] == pytest.approx(losses(here / "out/exp")[0, 3:], rel=1e-4)
    code, err = command("train", *usual["train"], "--epochs", 2, "--time", 1)
    assert code == 0 and len(losses(here / "out/exp2")) == 2


def test_quads(command, usual, no_pictures, here, monkeypatch):
    """Batches of 4 and 2 pictures become one each: the first at twice the side, or four side by side."""
    shapes = []
    monkeypatch.setattr(train, "plot_batch", lambda images, *_: shapes.append(tuple(images.shape)))
    code, err = command("train", *usual["train"], "--quad", "--epochs", 2)
    assert code == 0, err
    assert shapes == [(1, 3, 2 * SIZE, 2 * SIZE)] * train.MOSAICS
    assert np.isfinite(losses(here / "out/exp")).all() and (losses(here / "out/exp") > 0).all()


def test_a_new_run_in_an_old_folder_begins_its_own_table(command, usual, no_pictures, here):
    for epochs in (2, 1):
        code, err = command("train", *usual["train"], "--exist-ok", "--epochs", epochs)
        assert code == 0, err
        assert len(losses(here / "out/exp")) == epochs
    assert os.listdir("out") == ["exp"]


# --- what validation writes -------------------------------------------------------------------------------------------


GAIN = 96 / 180  # of pictures of 120 x 180 at SIZE


@pytest.fixture
def odd_size(here) -> tuple[Path, dict[str, list]]:
    """Pictures of 120 x 180, which are made smaller, and the boxes in them: image stem -> red, white xyxy."""
    boxes = {"0007": [[17, 20, 56, 81], [96, 41, 169, 104]], "night shot": [[16, 20, 60, 80], None]}
    for stem, pair in boxes.items():
        image = np.full((120, 180, 3), GROUND, np.uint8)
        rows = []
        for c, (box, colour) in enumerate(zip(pair, (RED, WHITE))):
            if box:
                x1, y1, x2, y2 = box
                image[y1:y2, x1:x2] = colour
                rows.append(f"{c} {(x1 + x2) / 360} {(y1 + y2) / 240} {(x2 - x1) / 180} {(y2 - y1) / 120}\n")
        write_set(here / "odd", {f"{stem}.png": (image, "".join(rows))}, "val")
    return here / "odd/images/val", boxes


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
        # not rounded: whole pixels of the smaller picture are fractions of pixels here
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
        pixels = np.array(row["bbox"]) * GAIN  # whole ones of the smaller picture
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
        "confusion_matrix.png", "val_batch0_labels.jpg", "val_batch0_pred.jpg", *CURVES,
    }  # fmt: skip


def test_confusion_matrix_of_every_image_or_as_v61(command, usual, bright, variant, here, monkeypatch):
    """A picture without any box found, and one that is all false alarm, are counted unless v6.1's rule is asked for."""
    pictures = {
        "nothing found.png": (picture(red=None, white=None), label_text((0, 8, 10, 30, 40))),
        "nothing there.png": (picture(), ""),
    }
    data = variant(val=str(write_set(here / "odd", pictures, "val")))
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
    pictures = {f"{i}.png": (picture(), label_text((0, 8, 10, 30, 40), (1, 50, 20, 90, 52))) for i in range(3)}
    pictures["3.png"] = picture(), label_text((0, 8, 10, 30, 40), (1, 50, 20, 90, 52), (0, 40, 0, 46, 10))
    data = variant(val=str(write_set(here / "odd", pictures, "val")))
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
    folder = write_set(here / "set", {"a.png": (picture(), None)}, "val")
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
    pictures = {"000000000139.png": (picture(), label_text((0, 8, 10, 30, 40), (1, 50, 20, 90, 52)))}
    folder = write_set(here / "coco", pictures, "val2017")
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

    def spy(model, loader, *arguments, **options):
        asked.append((arguments[3:5], loader.dataset.image_size))
        return measure(model, loader, *arguments, **options)

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
    pictures = {"a.png": (picture(), label_text((0, 8, 10, 30, 40), (1, 50, 20, 90, 52)))}
    folder = write_set(here / "set", pictures, "val")
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


# --- what detection writes --------------------------------------------------------------------------------------------


@pytest.fixture
def shot(here) -> np.ndarray:
    """The file `a shot.png`, of which the boxes are known to the pixel."""
    image = picture(*BOXES)
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
    """The most confident box last, six digits, whole pixels of a picture of 96 x 64."""
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
    write_set(here, {"a.png": (picture(None, None), None)})
    assert command("detect", *usual["detect"], "--source", "images/train", "--save-txt", "--save-crop")[0] == 0
    assert tree(here / "out/exp").keys() == {str(here / "out/exp" / n) for n in ("a.png", "labels")}


def test_crops(command, usual, bright, shot, here):
    for _ in range(2):  # the second time beside the first
        code, _ = command("detect", *usual["detect"], "--source", "a shot.png", "--save-crop", "--exist-ok")
        assert code == 0
    for name, (x1, y1, x2, y2) in zip(NAMES, BOXES):
        assert sorted(os.listdir(f"out/exp/crops/{name}")) == ["a shot.jpg", "a shot2.jpg"]
        crop = cv2.imdecode(np.fromfile(here / f"out/exp/crops/{name}/a shot.jpg", np.uint8), cv2.IMREAD_COLOR)
        # centre and size; size x 1.02 + 10 pixels; towards zero; inside the picture
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


# --- calls from Python, and from elsewhere ----------------------------------------------------------------------------


def test_python_calls_from_another_folder(world, here, monkeypatch):
    """`world` was trained by such a call; paths are those of the current folder, not of the repository."""
    assert world.options.epochs == 2 and world.options.batch_size == 4
    results, maps, times = val.run(world.data, world.best, imgsz=SIZE, workers=0, device="cpu")
    assert len(results) == 7 and maps.shape == (2,) and len(times) == 3
    assert (here / "runs/val/exp/confusion_matrix.png").is_file()
    folder = detect.run(world.best, world.images, imgsz=SIZE, device="cpu", classes=1, conf_thres=0.001)
    assert folder.resolve() == (here / "runs/detect/exp").resolve() and len(os.listdir(folder)) == 4
    assert len(os.listdir(detect.run([world.best], str(world.images), imgsz=(64, 96), device="cpu"))) == 4
    with pytest.raises(ValueError, match="--conf-thres must be between 0 and 1"):
        detect.run(world.best, world.images, conf_thres=2)
    with pytest.raises(FileNotFoundError, match="no such weights"):
        detect.run(source=world.images)


def test_what_validation_returns_has_names_and_unpacks_as_v61s(world, bright, here):
    result = val.run(world.data, world.best, imgsz=SIZE, workers=0, device="cpu", plots=False)
    (p, r, map50, ap, *losses), maps, (pre, inference, nms) = result
    assert result.numbers == (p, r, map50, ap, *losses) and losses == [0, 0, 0]
    assert result.maps is maps and result.milliseconds == (pre, inference, nms)
    assert ap == pytest.approx(maps.mean())


def test_python_calls_are_refused_before_anything_is_written(world, here):
    for run, options, kind, says in (
        (detect.run, {"conf_three": 0.5}, TypeError, "there is no option 'conf_three'; did you mean 'conf_thres'?"),
        (detect.run, {"max_det": 0}, ValueError, "--max-det must be at least 1, got 0"),
        (detect.run, {"vid_stride": 1.5}, ValueError, "--vid-stride must be a whole number, got 1.5"),
        (detect.run, {"imgsz": (64, 64, 64)}, ValueError, "--imgsz takes one number, or height and width"),
        (val.run, {"task": "nonsense"}, ValueError, "--task must be one of train, val, test, speed, study, benchmark"),
        (val.run, {"report": "everything"}, ValueError, "--report must be one of sizes, errors, got 'everything'"),
    ):
        with pytest.raises(kind) as error:
            run(weights=world.best, **options)
        assert says in str(error.value)
    assert not os.listdir(here)


def test_options_of_a_python_call_may_be_paths(world, bright, here):
    """Those of several files, too, which the record of an unfinished run holds."""
    folder = detect.run(
        world.best, world.images, data=Path(world.data), project=Path("out"), name=Path("a"), imgsz=SIZE, device="cpu"
    )
    assert folder == Path("out/a") and len(os.listdir(folder)) == 4
    val.run(Path(world.data), [Path(world.best)], imgsz=SIZE, workers=0, device="cpu", project=Path("out"), plots=False)
    assert (here / "out/exp").is_dir()


def test_help_of_the_functions_shows_every_option():
    """Names and defaults are the command line's; in Python, as in v6.1, val takes half precision by default."""
    for verb, first, differs in (("detect", ["weights", "source"], {}), ("val", ["data", "weights"], {"half": True})):
        shown = inspect.signature(VERBS[verb].run).parameters
        expected = {**vars(VERBS[verb].parse_opt(known=True)), **differs}
        assert list(shown)[:2] == first and expected.items() <= {n: p.default for n, p in shown.items()}.items()
        assert all(f"    {name}: " in VERBS[verb].run.__doc__ for name in expected)
    own = {"model": None, "dataloader": None, "save_dir": Path(""), "plots": True, "callbacks": None}
    assert own.items() <= {n: p.default for n, p in shown.items()}.items()


def from_elsewhere(verb: str, *arguments) -> subprocess.CompletedProcess:
    """The command run by its absolute path, in a process of its own, in the current folder."""
    command = [sys.executable, str(ROOT / f"{verb}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)


def test_the_commands_run_from_any_folder(world, here):
    """Imports and default files come from the repository, results go to the current folder."""
    names = set(os.listdir(ROOT))
    arguments = ["--cfg", world.cfg, "--weights", "", "--data", world.data, "--img", SIZE, "--epochs", 1, "--batch", 4]
    done = from_elsewhere("train", *arguments, "--workers", 0, "--device", "cpu", "--noautoanchor")
    assert done.returncode == 0, done.stderr
    best = here / "runs/train/exp/weights/best.pt"
    assert best.is_file()
    done = from_elsewhere("detect", "--weights", best, "--source", world.images, "--img", SIZE, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(here / "runs/detect/exp")) == 4
    assert set(os.listdir(ROOT)) == names


def test_an_error_in_a_process_of_its_own(world, here):
    done = from_elsewhere("val", "--weights", "none.pt", "--data", world.data)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("val: error: no such weights: none.pt; ")
    assert "Traceback" not in done.stderr and not os.listdir(here)


# --- errors that come from further below ------------------------------------------------------------------------------


def end_of(error: BaseException, capsys) -> tuple[int, str]:
    """Exit status and message of a command whose main raises this."""

    def main(_):
        raise error

    with pytest.raises(SystemExit) as end:
        cli.run(main, argparse.Namespace(), "train")
    return end.value.code, capsys.readouterr().err


class OutOfMemoryError(RuntimeError):
    """What torch raises over a full GPU has this name."""


def test_what_a_user_can_cause_ends_in_a_message(capsys):
    assert issubclass(torch.cuda.OutOfMemoryError, RuntimeError)
    assert torch.cuda.OutOfMemoryError.__name__ == OutOfMemoryError.__name__
    code, err = end_of(OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), capsys)
    assert code == 1 and err.startswith("train: error: out of memory; try a smaller --batch-size or --imgsz (CUDA out")
    assert end_of(FloatingPointError("the loss is nan"), capsys) == (1, "train: error: the loss is nan\n")
    assert end_of(KeyboardInterrupt(), capsys) == (130, "train: stopped by SIGINT\n")


def test_an_error_of_a_reading_process_comes_without_its_traceback(capsys):
    try:
        raise ValueError("a b.jpg: image cannot be decoded: no: really")
    except ValueError:
        wrapped = torch._utils.ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(ValueError) as raised:
        wrapped.reraise()
    assert "Traceback" in str(raised.value)
    assert end_of(raised.value, capsys) == (1, "train: error: a b.jpg: image cannot be decoded: no: really\n")


def test_our_own_bugs_keep_their_traceback(monkeypatch):
    for error in (RuntimeError("shapes"), KeyError("x"), AssertionError()):
        with pytest.raises(type(error)):
            end_of(error, None)
    monkeypatch.setenv("YOLOv5_TRACEBACK", "1")
    with pytest.raises(ValueError):
        end_of(ValueError("bad"), None)


def test_a_loss_that_is_no_number_stops_training(command, usual, here):
    hyp = yaml.safe_load((ROOT / "data/hyps/hyp.scratch-low.yaml").read_text(encoding="utf-8"))
    file = write_yaml(
        here / "wild.yaml", {**hyp, "lr0": 1e30, "warmup_bias_lr": 1e30, "warmup_floor": 0, "nominal_batch": 4}
    )
    code, err = command("train", *usual["train"], "--hyp", file, "--epochs", 2)
    assert code == 1 and "is not finite after epoch 0; try a lower lr0" in err
