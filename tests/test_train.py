"""train.py: what is refused before work starts, and the files that a run leaves."""

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_world import BROKEN, CURVES, NAMES, SIZE, TINY, boxes_image, full_disk, write_set, write_yaml

import train
import val
from engine import training
from models.backend import load_checkpoint
from models.yolo import Model
from utils import checkpoint, cli

ROOT = Path(train.__file__).parent

pytestmark = pytest.mark.usefixtures("here")


def test_options_of_a_python_call_count_as_given(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "3"])
    assert train.parse_opt().given == {"epochs"} and train.parse_opt(known=True).given == set()
    opt = cli.options(train.make_parser(), {"patience": 100})
    assert opt.given == {"patience"} and opt.epochs == 300


@pytest.mark.parametrize("flag", ["--image-weights", "--batch-size -1"])
def test_what_several_processes_cannot_do(refused, monkeypatch, flag):
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    refused("train", *flag.split(), says=f"{flag} works in one process only, not under torchrun")


def test_unknown_keyword_of_a_python_call():
    with pytest.raises(TypeError, match=r"there is no option 'batchsize'; did you mean 'batch_size'\?"):
        train.run(batchsize=4)


@pytest.mark.parametrize("flag", ["--data", "--cfg", "--hyp"])
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("there is none.yaml", None, "no such file: 'there is none.yaml'"),
        ("empty.yaml", b"", "empty.yaml: the file is empty"),
        ("broken.yaml", b"a: 1\nb: [1, 2\nc: 3\n", "broken.yaml:3: not valid YAML"),
        ("binary.yaml", b"\xff\xfd\x00\x01", "binary.yaml: not a YAML text file"),
        ("list.yaml", b"- 1\n- 2\n", "list.yaml: expected lines of 'key: value' at the top, found a list"),
        ("text.txt", b"nc: 1", "file must end in .yaml or .yml, got 'text.txt'"),
        (".", None, "no such file: '.'"),
    ],
)
def test_a_yaml_that_is_none(refused, flag, name, content, says):
    if flag == "--hyp" and name == "text.txt":  # which may have any name
        says = "missing key 'lr0'"
    if flag == "--data" and not name.endswith(".yaml"):  # a list of images, or their folder
        says = f"no images in {Path(name).absolute()}; an image file ends in"
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
        ("head", 0, [[-1, 2], 1, "Concat", [1]], ["head row 0 (layer 6): Concat", "same stride, got [16.0, 4.0]"]),
        ("head", 1, [[4], 1, "Detect", ["nc", "anchors"]], "1 maps come in, but there are anchors for 2 levels"),
        ("head", 1, [-1, 1, "Conv", [64]], "the last row must be Detect, got Conv"),
        ("backbone", 2, [-1, 3, "C3"], "backbone row 2 (layer 2): a row is [from, number, module, args]"),
        (None, "anchors", None, "a model YAML needs nc"),
        (None, "anchors", [[10, 13, 16]], "anchors must be one list of w,h pairs per level"),
        (None, "nc", "two", "nc must be a positive number up to 32768, got 'two'"),
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
    assert "tiny model.yaml: nc is 80, but the data set has 2 classes; using 2" in err and code == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mosaic": None, "mosiac": 1.0}, ": unknown key 'mosiac'; did you mean 'mosaic'?"),
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
def test_hyper_parameters_from_a_pipe(command, usual, refused, no_plots, here, broken):
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


def test_training_without_labels(refused, variant, here):
    folder = write_set(here / "bare", {"a.png": (boxes_image(), None), "b.png": (boxes_image(), None)})
    refused("train", "--data", variant(train=str(folder)), says=["no label files", "labels/train/a.txt"])
    assert not list(here.rglob("*.cache"))


def test_every_kind_of_image_is_trained_on(kinds, command, usual, variant):
    root, sound = kinds
    data = variant(train=str(root / "images"), val=str(root / "images"))
    code, err = command("train", *usual["train"], "--data", data, "--workers", 2)
    assert code == 0
    for name in [*BROKEN, "moving gif.jpg", "pixel.png"]:
        assert any(f"{root / 'images' / name}: " in line and "left out" in line for line in err.splitlines()), name
    assert f"{len(sound) + 9} images" in err and "9 corrupt" in err


@pytest.mark.parametrize(
    ("attention", "says"),
    [("SOCA", "must be MODULE@PLACE"), ("SOKA@P3", "did you mean 'SOCA'?"), ("SOCA@P9", "no map of stride 512")],
)
def test_attention_that_is_none(refused, attention, says):
    refused("train", "--attention", attention, says=says)


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


RUN_FILES = [
    "F1_curve.png", "PR_curve.png", "P_curve.png", "R_curve.png", "anchors.yaml", "confusion_matrix.png",
    "confusion_matrix_counts.png", "hyp.yaml", "labels.jpg", "labels_correlogram.jpg", "metrics.json", "opt.yaml",
    "per_class.csv", "report.html", "results.csv", "results.png", "train_batch0.jpg",
    "train_batch1.jpg", "train_batch2.jpg", "val_batch0_labels.jpg", "val_batch0_pred.jpg", "weights",
]  # fmt: skip


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
    assert (options["batch_size"], options["optimizer"], options["weights"]) == (4, "AdamW", "")
    hyp = yaml.safe_load((ROOT / "data/hyps/hyp.scratch-low.yaml").read_text(encoding="utf-8"))
    written = yaml.safe_load((world.run / "hyp.yaml").read_text(encoding="utf-8"))
    assert list(written.items()) == list(hyp.items())  # as read, before any scaling


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


def test_frozen_layers_stay_as_they_were(command, usual, no_plots, world, here):
    assert command("train", *usual["train"], "--freeze", 1, "model.4.cv1", "--epochs", 3)[0] == 0
    torch.manual_seed(0)
    before = dict(Model(world.cfg, nc=2).named_parameters())
    after = load_checkpoint(here / "out/exp/weights/last.pt")["training"]["model"]
    same = {name for name, parameter in before.items() if torch.equal(after[name], parameter)}
    assert same == {name for name in before if name.startswith(("model.1.", "model.4.cv1."))}


def test_no_epochs_leave_checkpoints_that_are_read(command, usual, no_plots, world, here):
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


def test_mixed_precision_without_a_gpu(command, usual, no_plots, here):
    found = []
    for name in ("bf16", "auto"):
        code, err = command("train", *usual["train"], "--amp", name, "--name", name)
        assert code == 0, err
        assert f"mixed precision {'bfloat16' if name == 'bf16' else 'off'}, " in err
        found.append(losses(here / "out" / name))
    half, full = found
    assert np.isfinite(half).all() and (half > 0).all()
    assert (half != full).any() and np.abs(half / full - 1).max() < 0.05


def test_a_run_ends_when_its_time_is_over(command, usual, no_plots, here):
    code, err = command("train", *usual["train"], "--epochs", 50, "--time", 1e-9)
    assert code == 0, err
    assert len(losses(here / "out/exp")) == 1
    state = load_checkpoint(here / "out/exp/weights/last.pt")["training"]["state"]
    assert state["epoch"] == 0 and state["finished"] and state["seconds"] > 0
    assert load_checkpoint(here / "out/exp/weights/best.pt")["epoch"] == -1  # stripped
    assert state["results"][4:] == pytest.approx(losses(here / "out/exp")[0, 3:], rel=1e-4)
    code, err = command("train", *usual["train"], "--epochs", 2, "--time", 1)
    assert code == 0 and len(losses(here / "out/exp2")) == 2


def test_quads(command, usual, no_plots, here, monkeypatch):
    """Batches of 4 and 2 images become one each: the first at twice the side, or four side by side."""
    shapes = []
    monkeypatch.setattr(training, "plot_batch", lambda images, *_: shapes.append(tuple(images.shape)))
    code, err = command("train", *usual["train"], "--quad", "--epochs", 2)
    assert code == 0, err
    assert shapes == [(1, 3, 2 * SIZE, 2 * SIZE)] * training.DRAWN_BATCHES
    assert np.isfinite(losses(here / "out/exp")).all() and (losses(here / "out/exp") > 0).all()


def test_a_new_run_in_an_old_folder_begins_its_own_table(command, usual, no_plots, here):
    for epochs in (2, 1):
        code, err = command("train", *usual["train"], "--exist-ok", "--epochs", epochs)
        assert code == 0, err
        assert len(losses(here / "out/exp")) == epochs
    assert os.listdir("out") == ["exp"]


def test_a_loss_that_is_no_number_stops_training(command, usual, here):
    hyp = yaml.safe_load((ROOT / "data/hyps/hyp.scratch-low.yaml").read_text(encoding="utf-8"))
    file = write_yaml(
        here / "wild.yaml", {**hyp, "lr0": 1e30, "warmup_bias_lr": 1e30, "warmup_floor": 0, "nominal_batch": 4}
    )
    code, err = command("train", *usual["train"], "--hyp", file, "--epochs", 2)
    assert code == 1 and "is not finite after epoch 0; last.pt is of the epoch before. Try a lower lr0" in err
