"""A run that was stopped at any point and resumed equals, bit for bit, a run that was not stopped."""

import errno
import os
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_world import NAMES, SMALLEST, write_boxes, write_yaml

import val
from engine import training as loop
from engine.run import find_checkpoint
from models.backend import load_checkpoint
from utils import checkpoint, cli
from utils.training.records import Pace

pytestmark = pytest.mark.usefixtures("here", "no_plots", "rising")
EPOCHS = 4
# Four batches an epoch and three a step, so that most epochs end with some that wait for others
USUAL = ["--weights", "", "--imgsz", 64, "--epochs", EPOCHS, "--batch-size", 2, "--device", "cpu", "--project", "out"]
USUAL += ["--optimizer", "AdamW", "--multi-scale", "--patience", 50]
HYP = {"lr0": 0.002, "warmup_epochs": 1.0, "warmup_floor": 0, "nominal_batch": 6}


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> list:
    """Arguments with which training works."""
    root = tmp_path_factory.mktemp("data")
    hyp = yaml.safe_load((Path(val.__file__).parent / "data/hyps/hyp.scratch-low.yaml").read_text(encoding="utf-8"))
    files = {
        "--data": write_yaml(root / "boxes.yaml", write_boxes(root / "boxes", train=8)),
        "--cfg": write_yaml(root / "smallest.yaml", SMALLEST),
        "--hyp": write_yaml(root / "hyp.yaml", {**hyp, **HYP}),
    }
    return [*USUAL, *(str(word) for pair in files.items() for word in pair)]


@pytest.fixture
def rising(monkeypatch):
    """The fitness rises with each epoch: it comes from the objectness loss."""
    monkeypatch.setattr(loop, "fitness", lambda results: 1 - results[:, 5])


@pytest.fixture(scope="module")
def alone(usual, tmp_path_factory):
    """`alone(command, *flags)`: the folder of a run that was not stopped, with a checkpoint of each epoch."""
    runs = {}

    def run(command, *flags) -> Path:
        if flags not in runs:
            project = tmp_path_factory.mktemp("alone")
            code, err = command("train", *usual, "--workers", 0, *flags, "--save-period", 1, "--project", project)
            assert code == 0, err
            runs[flags] = project / "exp"
        return runs[flags]

    return run


@pytest.fixture
def resume(command):
    """`resume(*arguments)`: resumes out/exp with another number of workers; returns what was printed."""

    def run(*arguments, file="out/exp/weights/last.pt") -> str:
        code, err = command("train", "--resume", file, "--workers", 1, *arguments)
        assert code == 0, err
        return err

    return run


def in_epoch(monkeypatch, epoch: int, act, after: bool = False) -> None:
    """Calls act(run) before this epoch is trained, or after it is trained and before its end is recorded."""
    real = loop.train_one_epoch

    def train_one_epoch(run, number):
        if number == epoch and not after:
            act(run)
        losses = real(run, number)
        if number == epoch and after:
            act(run)
        return losses

    monkeypatch.setattr(loop, "train_one_epoch", train_one_epoch)


def in_step(monkeypatch, number: int, act) -> None:
    """Calls act(run) before step `number`, counted from 1."""
    real, calls = loop.step, []

    def step(run, iteration):
        calls.append(iteration)
        if len(calls) == number:
            act(run)
        real(run, iteration)

    monkeypatch.setattr(loop, "step", step)


def in_write(monkeypatch, epoch: int, act, name="last.pt", half=True) -> None:
    """Calls act() when this epoch's checkpoint of that name is half written, or else just before it is."""
    real = checkpoint.torch.save

    def save(content, file):
        if content["epoch"] == epoch and Path(os.readlink(f"/proc/self/fd/{file.fileno()}")).match(f".{name}.*"):
            if half:
                file.write(b"PK the first half")
                file.flush()
            act()
            if half:
                file.seek(0)
        real(content, file)

    monkeypatch.setattr(checkpoint.torch, "save", save)


def stop(*_) -> None:
    raise KeyboardInterrupt


def training(file: Path) -> dict:
    return load_checkpoint(file)["training"]


def differences(found, expected, place="") -> list[str]:
    """Names of the entries in which two nested structures are not the same to the last bit."""
    if isinstance(expected, dict):
        keys = [*expected, *(set(found) - set(expected))]
        return [d for k in keys for d in differences(found.get(k), expected.get(k), f"{place}/{k}")]
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple) and len(found) == len(expected):
        return [d for i, pair in enumerate(zip(found, expected)) for d in differences(*pair, f"{place}/{i}")]
    if isinstance(expected, torch.Tensor):
        return [] if found.dtype == expected.dtype and torch.equal(found, expected) else [place]
    return [] if type(found) is type(expected) and found == expected else [place]


def assert_same_run(found: Path, expected: Path) -> None:
    assert (found / "results.csv").read_bytes() == (expected / "results.csv").read_bytes()
    parts = [training(run / "weights/last.pt") for run in (found, expected)]
    for part in parts:
        del part["opt"], part["state"]["seconds"]  # where it was written, and by what clock
    assert not differences(*parts)
    best = [load_checkpoint(run / "weights/best.pt")["model"].state_dict() for run in (found, expected)]
    assert not differences(*best)
    assert not list(found.rglob("*.part"))


# --- stopped and resumed ----------------------------------------------------------------------------------------------


def test_the_run_left_alone_has_something_to_lose(command, alone):
    """The parts that the tests below compare differ between epochs, so that the comparison can fail."""
    run = alone(command)
    last = training(run / "weights/last.pt")
    state = last["state"]
    assert state["finished"] and state["epoch"] == EPOCHS - 1 and state["last_step"] != 4 * EPOCHS - 1
    assert 0 < state["best_fitness"] == last["stopper"]["best_fitness"]
    earlier = training(run / "weights/epoch2.pt")
    same = set(last["model"]) - {d.removeprefix("/") for d in differences(earlier["model"], last["model"])}
    assert same == {"model.4.anchors"}
    assert last["ema"]["updates"] > earlier["ema"]["updates"] > 0
    rows = [line.split(",") for line in (run / "results.csv").read_text().splitlines()]
    losses, objectness = ([float(row[i]) for row in rows[1:]] for i in (1, 9))
    assert len(set(losses)) == EPOCHS and objectness == sorted(objectness, reverse=True)
    assert last["stopper"]["best_epoch"] == EPOCHS - 1


@pytest.mark.parametrize("flags", [(), ("--noval",), ("--image-weights", "--close-mosaic", 2)], ids=str)
@pytest.mark.parametrize("where", ["between epochs", "inside an epoch"])
def test_resumed_bit_for_bit(command, usual, alone, resume, monkeypatch, where, flags):
    expected = alone(command, *flags)
    with monkeypatch.context() as patch:
        in_epoch(patch, 2, stop) if where == "between epochs" else in_step(patch, 5, stop)
        assert command("train", *usual, "--workers", 0, *flags)[0] == 130
    here = Path("out/exp")
    assert training(here / "weights/last.pt")["state"]["epoch"] == 1
    resume()
    assert_same_run(here, expected)


def test_resumed_twice(command, usual, alone, resume, monkeypatch):
    """A run stopped in its first step, when last.pt holds the untrained model, and one that was resumed itself."""
    with monkeypatch.context() as patch:
        in_step(patch, 1, stop)
        assert command("train", *usual, "--workers", 0)[0] == 130
    with monkeypatch.context() as patch:
        in_step(patch, 4, stop)
        assert command("train", "--resume", "out/exp/weights/last.pt")[0] == 130
    resume()
    assert_same_run(Path("out/exp"), alone(command))


def test_a_best_epoch_before_the_stop_stays_the_best(command, usual, resume, monkeypatch):
    """The fitness falls, so both runs end two epochs after the first; without the first's fitness one would go on."""
    monkeypatch.setattr(loop, "fitness", lambda results: results[:, 5])
    arguments = [*usual, "--workers", 0, "--patience", 2]
    assert command("train", *arguments, "--name", "alone")[0] == 0
    with monkeypatch.context() as patch:
        in_step(patch, 4, stop)
        assert command("train", *arguments)[0] == 130
    assert "no improvement in the last epochs (--patience 2), so training stops; best.pt is of epoch 0" in resume()
    assert_same_run(Path("out/exp"), Path("out/alone"))


def test_how_well_each_class_was_found_before_the_stop_weighs_the_next_images(stopped, resume, monkeypatch):
    real, weights = loop.image_weights, []

    def image_weights(labels, classes):
        weights.append(classes)
        return real(labels, classes)

    monkeypatch.setattr(loop, "image_weights", image_weights)
    content = load_checkpoint(stopped)
    content["training"]["state"]["class_maps"] = (0.2, 0.8)
    checkpoint.save(stopped, content)
    resume("--image-weights")
    assert weights[0] == pytest.approx([0.5 * 0.8**2, 0.5 * 0.2**2])  # there are as many boxes of each


def test_a_run_of_limited_time_goes_on_with_the_epochs_it_had_left(command, usual, resume, monkeypatch):
    """Of 50 epochs of a quarter of an hour, four fit into one hour; the learning rates fall accordingly."""
    monkeypatch.setattr(Pace, "seconds_so_far", lambda self: 900 * (self.epochs_done + bool(self.images)))
    arguments = [*usual, "--workers", 0, "--epochs", 50, "--time", 1]
    assert command("train", *arguments, "--name", "alone")[0] == 0
    assert len(Path("out/alone/results.csv").read_text().splitlines()) == 1 + 4
    with monkeypatch.context() as patch:
        in_epoch(patch, 2, stop)
        assert command("train", *arguments)[0] == 130
    resume()
    assert_same_run(Path("out/exp"), Path("out/alone"))
    resume()  # there is no time left
    assert_same_run(Path("out/exp"), Path("out/alone"))
    resume("--time", 1.25)
    assert len(Path("out/exp/results.csv").read_text().splitlines()) == 1 + 5


def test_resumed_from_the_checkpoint_of_an_epoch(command, alone, resume):
    """The run has more epochs than the checkpoint; they are removed and trained again."""
    expected = alone(command)
    shutil.copytree(expected, "out/exp")
    resume(file="out/exp/weights/epoch1.pt")
    assert_same_run(Path("out/exp"), expected)


def test_stopped_after_the_last_epoch(command, usual, alone, resume, monkeypatch):
    """All epochs are done, but best.pt is not measured yet, and last.pt not marked as finished."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_figures", stop)
        assert command("train", *usual, "--workers", 0)[0] == 130
    assert not training(Path("out/exp/weights/last.pt"))["state"]["finished"]
    assert "validating" in resume()
    assert_same_run(Path("out/exp"), alone(command))


def test_stopped_between_the_table_and_the_checkpoint(command, usual, alone, resume, monkeypatch):
    """The table has a row of an epoch that is not in the checkpoint; it is removed and written again."""
    with monkeypatch.context() as patch:
        real = loop.save_checkpoints
        patch.setattr(loop, "save_checkpoints", lambda run, **k: stop() if run.state.epoch == 2 else real(run, **k))
        assert command("train", *usual, "--workers", 0)[0] == 130
    assert len(Path("out/exp/results.csv").read_text().splitlines()) == 4
    assert training(Path("out/exp/weights/last.pt"))["state"]["epoch"] == 1
    resume()
    assert_same_run(Path("out/exp"), alone(command))


# --- killed while a file is written -----------------------------------------------------------------------------------


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="which file is written is looked up there")
@pytest.mark.parametrize(("act", "code"), [(stop, 130), (full_disk, 1)])
@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_stopped_inside_a_write(command, usual, alone, resume, monkeypatch, act, code, name):
    with monkeypatch.context() as patch:
        in_write(patch, 1, act, name)
        found, err = command("train", *usual, "--workers", 0)
    assert found == code and "Traceback" not in err
    weights = Path("out/exp/weights")
    assert sorted(os.listdir(weights)) == ["best.pt", "last.pt"]
    assert training(weights / "last.pt")["state"]["epoch"] == 0
    resume()
    assert_same_run(Path("out/exp"), alone(command))


def test_what_a_killed_process_left_unfinished_is_removed(command, usual, alone, resume, monkeypatch):
    with monkeypatch.context() as patch:
        in_epoch(patch, 2, stop)
        assert command("train", *usual, "--workers", 0)[0] == 130
    run = Path("out/exp")
    for leftover in ("weights/.last.pt.a1b2c3d4.part", "weights/.best.pt.x.part", ".results.csv.y.part"):
        (run / leftover).write_bytes(b"PK the first half")
    resume()
    assert_same_run(run, alone(command))  # no .part is left


# --- more epochs ------------------------------------------------------------------------------------------------------


def test_a_finished_run_goes_on(command, usual, alone, resume, here):
    before = alone(command)
    shutil.copytree(before, "out/exp")
    resume("--epochs", EPOCHS + 2)
    after = Path("out/exp")
    rows = [(run / "results.csv").read_text().splitlines() for run in (before, after)]
    assert rows[1][: EPOCHS + 1] == rows[0] and [int(row[:20]) for row in rows[1][1:]] == list(range(EPOCHS + 2))
    old, new = (training(run / "weights/last.pt") for run in (before, after))
    assert new["state"]["epoch"] == EPOCHS + 1 and new["state"]["finished"]
    assert new["ema"]["updates"] == old["ema"]["updates"] + 3  # eight batches, and one that comes early
    steps = [{float(s["step"]) for s in part["optimizer"]["state"].values()} for part in (old, new)]
    assert steps == [{old["ema"]["updates"]}, {new["ema"]["updates"]}]
    data = usual[usual.index("--data") + 1]
    results, *_ = val.run(data, after / "weights/best.pt", imgsz=64, device="cpu", workers=0, plots=False)
    assert np.isfinite(results).all()


def test_a_finished_run_without_more_epochs(command, alone):
    shutil.copytree(alone(command), "out/exp")
    before = {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}
    for arguments in ([], ["--epochs", EPOCHS], ["--epochs", 1]):
        code, err = command("train", "--resume", "out/exp/weights/last.pt", *arguments)
        assert code == 1 and "Traceback" not in err
        message = err.partition("train: error: ")[2]
        assert (
            f"last.pt has finished its {EPOCHS} epochs; to train for more, give --epochs N with N above {EPOCHS}"
            in message
        )
    assert {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()} == before


# --- other options, other files ---------------------------------------------------------------------------------------


@pytest.fixture
def stopped(command, usual, alone) -> Path:
    """A last.pt after two epochs, in out/exp."""
    shutil.copytree(alone(command), "out/exp")
    weights = Path("out/exp/weights")
    os.replace(weights / "epoch1.pt", weights / "last.pt")
    return weights / "last.pt"


def test_options_given_now_take_effect_and_the_others_stay(stopped, resume, usual):
    hyp = yaml.safe_load(Path(usual[usual.index("--hyp") + 1]).read_text(encoding="utf-8"))
    write_yaml(Path("gentle.yaml"), {**hyp, "lr0": 0.0001, "warmup_epochs": 0.0})
    err = resume("--patience", 1, "--hyp", "gentle.yaml", "--no-cos-lr", "--epochs", 9)
    assert (
        "no improvement in the last epochs (--patience 1)" in err
        or len(Path("out/exp/results.csv").read_text().splitlines()) == 10
    )
    options = yaml.safe_load(Path("out/exp/opt.yaml").read_text(encoding="utf-8"))
    last = training(stopped)
    given = {"patience": 1, "hyp": "gentle.yaml", "workers": 1, "cos_lr": False, "epochs": 9, "resume": str(stopped)}
    for found in (options, last["opt"]):
        assert given.items() <= found.items()
        assert (found["imgsz"], found["batch_size"], found["multi_scale"]) == (64, 2, True)
    assert last["hyp"]["lr0"] == yaml.safe_load(Path("out/exp/hyp.yaml").read_text(encoding="utf-8"))["lr0"] == 0.0001
    rates = [float(row.split(",")[-2]) for row in Path("out/exp/results.csv").read_text().splitlines()[1:]]
    assert min(rates[:2]) > 0.0005 and max(rates[2:]) <= 0.0001


def test_another_batch_size_goes_on_stepping(stopped, resume):
    """Iterations are counted in batches, of which there are fewer now."""
    before = training(stopped)["ema"]["updates"]
    resume("--batch-size", 8)
    assert training(stopped)["ema"]["updates"] == before + EPOCHS - 2  # one batch an epoch, and a step with each


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["--cfg", "models/SOCA.yaml"], "--cfg"),
        (["--weights", "yolov5s.pt"], "--weights"),
        (["--weights", ""], "--weights"),
        (["--project", "elsewhere"], "--project"),
        (["--name", "exp2", "--exist-ok", "--cfg", "a.yaml"], "--cfg, --exist-ok, --name"),
        (["--optimizer", "SGD"], "--optimizer"),
    ],
)
def test_options_that_a_run_keeps(command, stopped, arguments, flags):
    old = stopped.read_bytes()
    code, err = command("train", "--resume", stopped, *arguments)
    assert code == 1 and "Traceback" not in err
    assert err.partition("train: error: --resume keeps ")[2].rstrip().endswith(f"; leave out {flags}")
    assert stopped.read_bytes() == old and os.listdir("out") == ["exp"]


def test_without_a_name_the_newest_run_goes_on(command, here):
    code, err = command("train", "--resume")
    assert code == 1 and f"--resume: there is no last*.pt below {here}; name the last.pt of a run" in err
    for name, time in (("exp", 1_000_000), ("deep/exp2", 3_000_000), ("exp3", 2_000_000)):
        file = here / "runs" / name / "weights/last.pt"
        file.parent.mkdir(parents=True)
        file.write_text("newest" if name == "deep/exp2" else "old")
        os.utime(file, (time, time))
    assert find_checkpoint(True).read_text() == "newest"
    code, err = command("train", "--resume")
    assert code == 1 and "runs/deep/exp2/weights/last.pt: cannot be read as a checkpoint" in err


def test_the_folder_of_a_run_is_enough(here):
    last = here / "runs" / "exp" / "weights" / "last.pt"
    last.parent.mkdir(parents=True)
    last.touch()
    for name in (here / "runs/exp", "runs/exp/", "runs/exp/weights", last):
        assert find_checkpoint(str(name)).samefile(last)


def test_a_checkpoint_that_is_none_or_nowhere(command, here):
    (here / "hello.pt").write_text("hello")
    (here / "empty").mkdir()
    for name, says in (
        ("none.pt", "--resume: no such file or folder: none.pt"),
        ("empty", "--resume: there is no weights/last.pt in empty"),
        ("hello.pt", "cannot be read as a checkpoint"),
    ):
        code, err = command("train", "--resume", name)
        assert code == 1 and says in err and "Traceback" not in err


def test_weights_alone_cannot_go_on(command, stopped, here):
    for weights in (stopped.with_name("best.pt"), here / "older.pt"):
        if not weights.exists():  # as other programs leave it: an optimizer, but not all that a run needs
            content = {**load_checkpoint(stopped), "training": None}
            checkpoint.save(weights, {k: v for k, v in content.items() if k != "training"})
        code, err = command("train", "--resume", weights)
        assert code == 1 and "Traceback" not in err
        assert f"{weights} holds only weights; start a new run with --weights {weights}" in err


def test_other_classes_cannot_go_on(command, stopped, usual):
    content = yaml.safe_load(Path(usual[usual.index("--data") + 1]).read_text(encoding="utf-8"))
    write_yaml(Path("three.yaml"), {**content, "nc": 3, "names": [*NAMES, "blue"]})
    old = stopped.read_bytes()
    code, err = command("train", "--resume", stopped, "--data", "three.yaml")
    assert code == 1 and "Traceback" not in err
    assert "last.pt has 2 classes, but three.yaml has 3" in err
    assert stopped.read_bytes() == old


def test_a_run_that_was_carried_elsewhere(command, alone, stopped, here):
    """The folder of the run goes on where it is; a checkpoint alone has no folder to write into."""
    shutil.copytree("out/exp", "elsewhere")
    Path("alone").mkdir()
    shutil.copy(stopped, "alone/last.pt")
    code, err = command("train", "--resume", "alone/last.pt")
    assert code == 1 and "must be in FOLDER/weights beside FOLDER/opt.yaml, got " in err and "alone/last.pt" in err
    assert os.listdir("alone") == ["last.pt"]
    code, err = command("train", "--resume", "elsewhere/weights/last.pt", "--workers", 0)
    assert code == 0, err
    found, expected = training(Path("elsewhere/weights/last.pt")), training(alone(command) / "weights/last.pt")
    assert not differences(found["model"], expected["model"])
    assert len(Path("elsewhere/results.csv").read_text().splitlines()) == EPOCHS + 1


# --- signals ----------------------------------------------------------------------------------------------------------


def resume_command(err: str) -> list[str]:
    """The arguments of the command that a stopped run prints."""
    line = next(line for line in err.splitlines() if "go on with: " in line)
    words = shlex.split(line.partition("go on with: ")[2])
    assert words[:2] == ["python", "train.py"]
    return words[2:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_signal_ends_training_and_says_how_to_go_on(command, usual, alone, monkeypatch, number):
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        in_step(patch, 5, lambda _: signal.raise_signal(number))
        code, err = command("train", *usual, "--workers", 0, "--name", "mein Versuch")
    assert code == 128 + number and "Traceback" not in err
    assert err.rstrip().endswith(f"train: stopped by {number.name}") and "stopped after epoch 1" in err
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    code, err = command("train", *resume_command(err))
    assert code == 0, err
    assert_same_run(Path("out/mein Versuch"), alone(command))


def test_a_signal_before_the_first_epoch_is_over(command, usual, monkeypatch):
    in_step(monkeypatch, 1, lambda _: signal.raise_signal(signal.SIGTERM))
    code, err = command("train", *usual, "--workers", 0)
    assert code == 143 and "stopped before the first epoch was over" in err
    assert resume_command(err) == ["--resume", "out/exp/weights/last.pt"]


def test_nothing_is_kept_to_go_on_from(command, usual, monkeypatch):
    in_epoch(monkeypatch, 1, stop)
    code, err = command("train", *usual, "--workers", 0, "--nosave")
    assert code == 130 and "there is no checkpoint to resume from, because of --nosave" in err and "--resume" not in err
    assert os.listdir("out/exp/weights") == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="which file is written is looked up there")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_a_signal_inside_a_write_waits_until_all_is_written(command, usual, alone, monkeypatch, number, name):
    with monkeypatch.context() as patch:
        in_write(patch, 1, lambda: signal.raise_signal(number), name)
        code, err = command("train", *usual, "--workers", 0)
    assert code == 128 + number
    weights = Path("out/exp/weights")
    assert [load_checkpoint(weights / n)["epoch"] for n in ("best.pt", "last.pt")] == [1, 1]
    assert sorted(os.listdir(weights)) == ["best.pt", "last.pt"]
    code, err = command("train", *resume_command(err))
    assert code == 0
    assert_same_run(Path("out/exp"), alone(command))


def test_undisturbed():
    """The first signal takes effect after the block, and others count with it; an error comes first."""
    done = []
    with cli.stopped_by_signals(), pytest.raises(KeyboardInterrupt) as raised:
        with cli.undisturbed():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            done.append("whole")
        done.append("never")
    assert done == ["whole"] and raised.value.args == (signal.SIGTERM,)
    with pytest.raises(OSError), cli.undisturbed():
        raise OSError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- numbers that are none, and steps that are none -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("weight", "the loss is [nan, nan, nan] in epoch 2, batch 0: model.1.conv.weight is not finite"),
        ("images", "in epoch 2, batch 0: the first layer whose output is not finite is model.1.conv (Conv2d)"),
        ("after", "model.1.conv.weight is not finite after epoch 2; last.pt is of the epoch before. Try a lower lr0"),
    ],
)
def test_a_number_that_is_none_ends_training_by_name(command, usual, alone, resume, monkeypatch, bad, says):
    def spoil(run):
        if bad == "images":  # finite weights, of which the sums are not
            run.model.model[1].conv.weight.data.fill_(3e38)
        else:
            run.model.model[1].conv.weight.data[0, 0, 0, 0] = np.nan

    with monkeypatch.context() as patch:
        in_epoch(patch, 2, spoil, after=bad == "after")
        code, err = command("train", *usual, "--workers", 0)
    assert code == 1 and "Traceback" not in err
    assert says in err.partition("train: error: ")[2]
    assert training(Path("out/exp/weights/last.pt"))["state"]["epoch"] == 1
    resume()
    assert_same_run(Path("out/exp"), alone(command))
