"""The folder of a run that comes from elsewhere decides nothing but the training; and one process writes into it."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from engine.run import KEPT_OPTIONS, RESUMED_OPTIONS, _load_optimizer, resumed_run
from models.backend import load_checkpoint
from utils import checkpoint, cli
from utils.files import only_writer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def received(world, here):
    """`received(part, **changes)`: the last.pt of a run of two epochs, with changes in a part of its state."""

    def write(part: str = "opt", **changes) -> Path:
        if not Path("exp").exists():
            shutil.copytree(world.run, "exp")
        file = Path("exp/weights/last.pt")
        content = load_checkpoint(file)
        content["training"][part] = {**content["training"][part], **changes}
        checkpoint.save(file, content)
        return file

    return write


def options(file: Path, *words: str) -> cli.Options:
    opt = train.parse_opt(argv=["--resume", str(file), *words])
    with resumed_run(opt, train.make_parser()) as (opt, _):
        return opt


def test_what_a_run_fetches_sends_and_writes_where_is_not_in_its_file(received):
    foreign = {
        "download": True, "log": "wandb", "device": "7", "project": "/etc", "name": "x", "exist_ok": True,
        "evolve": 9, "evolve_storage": "mysql://host/db", "rehash": True, "local_rank": 3, "resume": "other.pt",
        "update": True, "unheard_of": 1,
    }  # fmt: skip
    file = received(**foreign, imgsz=96, epochs=7)
    opt, usual = options(file), train.parse_opt(known=True)
    assert (opt.imgsz, opt.epochs, opt.resume) == (96, 7, str(file))
    kept = {name: value for name, value in vars(opt).items() if name in foreign and name != "resume"}
    assert kept == {name: value for name, value in vars(usual).items() if name in kept} and "update" not in vars(opt)
    assert options(file, "--imgsz", "128").imgsz == 128


def test_every_option_is_resumed_or_left_to_the_command():
    """A new option must be put into one of the two."""
    left = {"download", "log", "device", "project", "name", "exist_ok", "evolve", "evolve_storage", "resume", "rehash"}
    left |= {
        "local_rank",
        "download_to",
        "latex",
        "blocks",
        "entity",
        "bbox_interval",
        "artifact_alias",
        "upload_dataset",
    }
    names = set(vars(train.parse_opt(known=True)))
    assert names <= left | set(RESUMED_OPTIONS) and not left & set(RESUMED_OPTIONS)
    assert set(RESUMED_OPTIONS) | left >= KEPT_OPTIONS


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("epochs", "many", "--epochs must be a whole number, got 'many'"),
        ("epochs", [3], "--epochs must be one value"),
        ("imgsz", 0, "--imgsz must be at least 1, got 0"),
        ("fraction", float("nan"), "--fraction must be above 0"),
        ("freeze", {"a": 1}, "--freeze must be"),
        ("freeze", [torch.zeros(1)], "--freeze must be"),
        ("data", 1.5, "--data must be str or bool, got a value of the type float"),
        ("data", "a\0b", "without a zero byte"),
        ("data", "x" * 5000, "at most 4096 characters"),
        ("amp", "fp8", "--amp must be one of"),
        ("rect", "yes", "--rect must be True or False"),
    ],
)
def test_options_of_another_type_or_range_are_refused(received, command, name, value, says):
    file = received(**{name: value})
    before = {path: path.stat().st_mtime_ns for path in Path("exp").rglob("*") if path.is_file()}
    code, err = command("train", "--resume", file)
    assert code == 1 and f"{file}: one of its options is wrong: " in err and says in err and "Traceback" not in err
    assert {path: path.stat().st_mtime_ns for path in Path("exp").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("state", {"epoch": "2"}),
        ("state", {"epoch": -2}),
        ("state", {"results": "none"}),
        ("state", {"results": [0.0] * 3}),
        ("state", {"class_maps": [0.5] * 9}),
        ("state", {"\x1b[2J": 1}),
        ("state", {"seconds": 10**600}),
        ("state", {"seconds": float("inf")}),
        ("state", {"best_fitness": 10**600}),
        ("ema", {"updates": -(10**9)}),
        ("ema", {"updates": float("nan")}),
        ("hyp", {"box": 10**600}),
        ("stopper", {"best_epoch": None, "best_fitness": {}}),
        ("model", {"no.such.weight": torch.zeros(1)}),
        ("ema", {"model": 3}),
        ("optimizer", {"param_groups": 1}),
        ("random", {"cpu": torch.zeros(3)}),
        ("hyp", {"lr0": "fast"}),
    ],
)
def test_a_state_of_training_that_is_none_ends_in_one_message(received, command, part, changes):
    file = received(part, **changes)
    code, err = command("train", "--resume", file, "--epochs", 3, "--workers", 0, "--device", "cpu")
    assert code == 1 and f"train: error: {file}: " in err and "Traceback" not in err and "\x1b" not in err


def test_settings_of_an_optimizer_have_their_types(received, command):
    file = received()
    content = load_checkpoint(file)
    for changes, says in (({"lr": "high"}, "lr of the optimizer"), ({"betas": (0.9,)}, "betas of the optimizer")):
        groups = [{**group, **changes} for group in content["training"]["optimizer"]["param_groups"]]
        received("optimizer", param_groups=groups)
        code, err = command("train", "--resume", file, "--epochs", 3, "--workers", 0, "--device", "cpu")
        assert code == 1 and says in err and "Traceback" not in err


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["results.csv", "results.png", "weights/best.pt", "weights/last.pt", "weights"])
def test_a_link_in_the_folder_leads_nowhere(received, command, here, name):
    """Through it a resumed run would write over a file of the user."""
    file = received(epochs=3)
    link, target = Path("exp") / name, here / "of the user"
    if link.exists():
        os.replace(link, target)
    else:
        target.write_text("mine")
    link.symlink_to(target)
    code, err = command("train", "--resume", file, "--workers", 0)
    assert code == 1 and "Traceback" not in err and f"{link} is a link" in err.replace(f"{here}/", "")


def test_a_pipe_in_the_folder_is_not_read(received, command):
    file = received(epochs=3)
    os.remove("exp/results.csv")
    os.mkfifo("exp/results.csv")
    code, err = command("train", "--resume", file, "--workers", 0)
    assert code == 1 and "results.csv is a link, a pipe or a device" in err


# --- one writer -------------------------------------------------------------------------------------------------------

HOLDER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from utils.files import only_writer
with only_writer(Path("exp")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_lives_is_not_resumed(received, command):
    file = received(epochs=3)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):  # an attempt leaves the note as it is
            code, err = command("train", "--resume", file, "--workers", 0)
            assert code == 1 and f"exp: process {holder.pid} on " in err and "still writes into this folder" in err
    finally:
        holder.kill()
        holder.wait()
    assert Path("exp/.writer.lock").exists()  # of the killed process; it blocks nobody
    code, err = command("train", "--resume", file, "--workers", 0, "--device", "cpu")
    assert code == 0, err
    assert not list(Path("exp").glob(".writer*"))
    epochs = [row.split(",")[0].strip() for row in Path("exp/results.csv").read_text().splitlines()[1:]]
    assert epochs == ["0", "1", "2"]


def _without_a_moment(saved):
    del saved["state"][0]["exp_avg"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda saved: saved["param_groups"][0].update(weight_decay=10**600), "weight_decay of the optimizer must be"),
        (lambda saved: saved["param_groups"][0].update(betas=(0.9, 7)), "betas of the optimizer must be"),
        (lambda saved: saved["param_groups"][0].update(eps=-1.0), "eps of the optimizer must be"),
        (_without_a_moment, r"exp_avg must have the shape of its parameter, \[3\], got None"),
        (lambda saved: saved["state"][0].update(exp_avg=torch.zeros(1)), r"exp_avg must .* got \[1\]"),
        (lambda saved: saved["state"][0].update(exp_avg_sq=[0.0] * 3), "exp_avg_sq must have the shape"),
        (lambda saved: saved["state"][0].update(step=torch.tensor(-1.0)), "step must be one number from 0"),
    ],
)
def test_the_state_of_an_optimizer_that_is_none(change, says):
    """Each would end the next step in a traceback of torch."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    _load_optimizer(torch.optim.AdamW([parameter]), copy.deepcopy(saved))
    change(saved)
    with pytest.raises(ValueError, match=says):
        _load_optimizer(torch.optim.AdamW([parameter]), saved)


def test_two_runs_never_share_a_folder(usual, command, here):
    Path("out/exp").mkdir(parents=True)
    with only_writer(Path("out/exp")):
        code, err = command("train", *usual["train"], "--exist-ok")
        assert code == 1 and f"out/exp: process {os.getpid()} on " in err
    assert not list(Path("out/exp").iterdir())


def test_a_block_that_fails_gives_the_lock_back(here):
    for _ in range(2):
        with pytest.raises(KeyError), only_writer(here):
            raise KeyError
    assert not list(here.iterdir())
