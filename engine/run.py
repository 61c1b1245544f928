"""A training run: everything it holds, how it is saved and restored, and how `--resume` finds it again."""

import argparse
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.backend import load_checkpoint
from utils import checkpoint, cli, dist
from utils.files import check_own_files, only_writer
from utils.log import LOGGER
from utils.text import brief, printable
from utils.training.autoanchor import AnchorReport
from utils.training.ema import ModelEMA
from utils.training.hyperparameters import NOMINAL_BATCH, accumulation, check_hyp
from utils.training.loggers import Loggers
from utils.training.loss import ComputeLoss
from utils.training.records import Pace
from utils.training.schedule import EarlyStopping, Schedule

# A resumed run keeps its model, optimizer and folder, so these options may not be given with --resume
KEPT_OPTIONS = {"weights", "cfg", "attention", "optimizer", "project", "name", "exist_ok", "evolve"}
# All that a resumed run takes from its last.pt, which may come from anywhere: what the numbers of the training depend
# on. What is fetched, sent, and written where, and on which device it runs, says the command alone.
RESUMED_OPTIONS = (
    "weights", "cfg", "attention", "data", "hyp", "single_cls", "freeze", "fraction", "epochs", "time", "batch_size",
    "imgsz", "multi_scale", "rect", "quad", "patience", "optimizer", "cos_lr", "label_smoothing", "image_weights",
    "close_mosaic", "noautoanchor", "seed", "amp", "compile", "sync_bn", "workers", "cache", "share_decoding", "strict",
    "noval", "nosave", "save_period",
    "fix_labels",
)  # fmt: skip
MOST = 2**53  # of a whole number in a state: what counts steps is less, and a float holds all below
PARTS = ("opt", "hyp", "state", "model", "ema", "optimizer", "scaler", "stopper", "random")  # of `snapshot`


@dataclass
class State:
    """How far a run has come. Together with the tensors of `snapshot`, all that the next epoch depends on."""

    epoch: int = -1  # the last epoch that is finished
    results: tuple[float, ...] = (0.0,) * 7  # of the last validation
    class_maps: tuple[float, ...] = ()  # mAP50-95 of each class in the last validation
    best_fitness: float = 0.0
    last_step: int = -1  # iteration of the last optimizer step
    skipped: int = 0  # iterations whose gradients overflowed in half precision
    seconds: float = 0.0  # that the finished epochs took
    finished: bool = False


@dataclass
class Run:
    """Everything that lives as long as the training."""

    opt: argparse.Namespace
    hyp: dict[str, float]  # as in the file, before any scaling
    device: torch.device
    group: dist.Group | None  # the processes that train together
    autocast: torch.dtype | None  # of mixed precision
    names: list[str]
    image_size: int
    model: nn.Module
    network: nn.Module  # the model as training calls it: compiled, and its gradients averaged over the group
    ema: ModelEMA
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    compute_loss: ComputeLoss
    validation_loss: ComputeLoss
    train_loader: torch.utils.data.DataLoader
    val_loader: torch.utils.data.DataLoader | None  # in the first process only
    schedule: Schedule
    stopper: EarlyStopping
    anchor_report: AnchorReport | None  # what AutoAnchor found; None where it did not run
    pace: Pace
    state: State = field(default_factory=State)
    save_dir: Path = Path()  # these two are set once everything is checked, in the first process only
    loggers: Loggers = field(default_factory=Loggers)


def log_summary(run: Run) -> None:
    """Logs what is about to be trained, on what and how."""
    opt, schedule, dataset, start = run.opt, run.schedule, run.train_loader.dataset, run.state.epoch + 1
    run.model.info(run.image_size)
    nominal_batch = run.hyp.get("nominal_batch", NOMINAL_BATCH)
    processes = f" on {run.group.world_size} processes" if run.group else ""
    rows = {
        "data": f"{opt.data}: {len(dataset)} + {len(run.val_loader.dataset)} images, {len(dataset.labels)} boxes, "
        f"{len(run.names)} classes: {', '.join(run.names[:8])}{' ...' if len(run.names) > 8 else ''}",
        "anchors": "  ".join(" ".join(f"{w:.0f}x{h:.0f}" for w, h in level) for level in anchors_in_pixels(run.model)),
        "recipe": f"{opt.hyp}: {opt.optimizer}, lr0 {run.hyp['lr0']:g}, warm-up {schedule.warmup} iterations, "
        f"batches per step {accumulation(opt.batch_size, nominal_batch)}",
        "epochs": f"{schedule.epochs}{f', from {start} on' if start else ''}, each of {len(run.train_loader)} batches "
        f"of {opt.batch_size} images at {run.image_size} px",
        "machine": f"{run.device}{processes}, mixed precision {str(run.autocast or 'off').removeprefix('torch.')}, "
        f"workers {run.train_loader.num_workers}",
        "results": str(run.save_dir),
    }
    LOGGER.info("\n".join(f"{name:>8}  {text}" for name, text in rows.items()))


def anchors_in_pixels(model: nn.Module) -> np.ndarray:
    """Returns the anchors of a model: (levels, A, 2) width and height in pixels."""
    head = model.model[-1]
    return (head.anchors.cpu() * head.stride.cpu().view(-1, 1, 1)).numpy()


# --- saved and restored -----------------------------------------------------------------------------------------------


def snapshot(run: Run) -> dict:
    """Returns all that a resumed run needs to go on as if never stopped, in full precision."""
    cuda = torch.cuda.get_rng_state_all() if run.device.type == "cuda" else []
    return {
        "opt": cli.without_secrets(vars(run.opt)),
        "hyp": run.hyp,
        "state": asdict(run.state),
        "model": run.model.state_dict(),
        "ema": run.ema.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "stopper": run.stopper.state_dict(),
        "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
    }


def restore(run: Run, saved: dict) -> None:
    """Brings a newly prepared run to where `snapshot` was taken.

    Raises ValueError where that run has finished and has no more epochs to do, or its parts do not fit together.
    """
    run.state = State(**saved["state"])
    if len(run.state.results) != len(State.results) or len(run.state.class_maps) not in (0, len(run.names)):
        raise ValueError(
            f"{run.opt.resume}: its results must be of {len(run.names)} classes; "
            f"start a new run with --weights {run.opt.resume}"
        )
    # with another --batch-size the iterations are counted anew, and the last step lies before the next of them
    run.state.last_step = min(run.state.last_step, len(run.train_loader) * (run.state.epoch + 1) - 1)
    numbers = {"ema": {"updates": 0}, "scaler": run.scaler.state_dict(), "stopper": run.stopper.state_dict()}
    try:
        for part, usual in numbers.items():
            if wrong := [name for name, value in usual.items() if not _alike(saved[part][name], value)]:
                raise ValueError(f"{wrong[0]} of {part} has the wrong type")
        if not 0 <= saved["ema"]["updates"] < MOST:
            raise ValueError("updates of ema must be a number from 0")
        run.model.load_state_dict(saved["model"])
        run.ema.load_state_dict(saved["ema"])
        _load_optimizer(run.optimizer, saved["optimizer"])
        run.scaler.load_state_dict(saved["scaler"])
        run.stopper.load_state_dict(saved["stopper"])
        torch.set_rng_state(saved["random"]["cpu"])
        if run.device.type == "cuda" and len(saved["random"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(saved["random"]["cuda"])
    except torch.OutOfMemoryError:
        raise
    # what torch raises for parts of a file that another program wrote, or that were changed
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = printable(f"{type(error).__name__}: {error}"[:300], lines=False)
        raise ValueError(
            f"{run.opt.resume}: the state of training in it does not fit its model ({reason}); start a new run with "
            f"--weights {run.opt.resume}"
        ) from None
    run.pace = Pace(len(run.train_loader), run.state.seconds, run.state.epoch + 1)
    if run.state.finished and run.state.epoch + 1 >= run.opt.epochs:
        done = run.state.epoch + 1
        raise ValueError(
            f"{run.opt.resume} has finished its {done} epochs; to train for more, give --epochs N with N above {done}"
        )
    run.state.finished = False


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Loads the state of an optimizer; ValueError for settings of other types, and tensors that fit no parameter."""
    usual = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, before in zip(optimizer.param_groups, usual, strict=True):
        for name, value in before.items():
            if not (_alike(group.get(name), value) and _in_range(group[name])):
                raise ValueError(f"{name} of the optimizer must be like {value!r}, got {brief(group.get(name))}")
        for parameter in group["params"]:
            _check_moments(optimizer, parameter)


def _check_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    """Raises ValueError where what an optimizer keeps of a parameter is not what it makes itself."""
    if not (state := optimizer.state.get(parameter)):  # no step was taken yet
        return
    adam = isinstance(optimizer, torch.optim.Adam)
    for name in ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",):
        value = state.get(name)
        if value is None and not adam:
            continue
        if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
            found = list(value.shape) if isinstance(value, torch.Tensor) else brief(value)
            raise ValueError(f"{name} must have the shape of its parameter, {list(parameter.shape)}, got {found}")
    step = state.get("step")
    if adam and not (isinstance(step, torch.Tensor) and step.numel() == 1 and 0 <= step.item() < MOST):
        raise ValueError(f"step must be one number from 0, got {brief(step)}")


def _in_range(value: object) -> bool:
    """Returns whether a setting of an optimizer is small enough; all are shares and rates from 0."""
    if isinstance(value, tuple | list):
        return all(0 <= number < 1 for number in value)  # Adam's betas
    return not isinstance(value, int | float) or 0 <= value < 1000


def _alike(value: object, usual: object) -> bool:
    if isinstance(usual, tuple):
        return isinstance(value, tuple | list) and len(value) == len(usual) and all(map(_alike, value, usual))
    if not isinstance(usual, int | float) or isinstance(usual, bool):
        return type(value) is type(usual)
    # NaN and infinity are numbers that a training can come to; a whole number beyond all floats is none
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (isinstance(value, float) or abs(value) < MOST)


def save_checkpoints(run: Run, is_best: bool) -> None:
    """Writes best.pt where this epoch is the best, epochN.pt where --save-period asks for it, and last.pt.

    last.pt comes last: a run that is killed in between goes on from the epoch before, and writes the others again.
    """
    epoch, period = run.state.epoch, run.opt.save_period
    content = checkpoint.pack(
        run.model,
        ema=run.ema.model,
        epoch=epoch,
        best_fitness=float(run.state.best_fitness),  # of NumPy 2, an array cannot be read under NumPy 1
        updates=run.ema.updates,
        optimizer=run.optimizer.state_dict(),
    )
    whole = {**content, "training": snapshot(run)}
    with cli.undisturbed():
        if is_best:
            checkpoint.save(run.save_dir / "weights/best.pt", content)
        if period > 0 and epoch > 0 and epoch % period == 0:
            checkpoint.save(run.save_dir / f"weights/epoch{epoch}.pt", whole)
        checkpoint.save(run.save_dir / "weights/last.pt", whole)


# --- resumed ----------------------------------------------------------------------------------------------------------


def find_checkpoint(resume: str | bool) -> Path:
    """Returns the checkpoint to resume from: the file named, or that of the folder of a run; for True the newest
    last*.pt below this folder.
    """
    if resume is not True:
        path = Path(resume)
        path = next((file for file in (path / "weights/last.pt", path / "last.pt") if file.is_file()), path)
        if path.is_dir():
            raise FileNotFoundError(f"--resume: there is no weights/last.pt in {path}; name the folder of a run")
        if not path.is_file():
            raise FileNotFoundError(f"--resume: no such file or folder: {path}; name the folder of a run")
        return path
    checkpoints = [p for p in Path().rglob("last*.pt") if p.is_file()]
    if not checkpoints:
        raise FileNotFoundError(f"--resume: there is no last*.pt below {Path.cwd()}; name the last.pt of a run")
    return max(checkpoints, key=lambda path: path.stat().st_mtime_ns)


def run_folder(last: str | Path) -> Path:
    """Returns the folder of the run that a last.pt belongs to: FOLDER of FOLDER/weights/last.pt.

    Raises ValueError where the file is not in a folder of a run, or the folder has links, through which a resumed run
    would write elsewhere.
    """
    weights = Path(last).absolute().parent
    folder = weights.parent
    if weights.name != "weights" or not any((folder / name).is_file() for name in ("opt.yaml", "results.csv")):
        raise ValueError(
            "--resume writes into the folder of a run, so the checkpoint must be in FOLDER/weights beside "
            f"FOLDER/opt.yaml, got {last}; copy the whole folder of the run, or start a new run with --weights {last}"
        )
    check_own_files(folder, "--resume")
    check_own_files(weights, "--resume")
    return folder.resolve()


@contextmanager
def resumed_run(opt: cli.Options, parser: argparse.ArgumentParser) -> Iterator[tuple[cli.Options, dict]]:
    """Yields the options of the run to resume, changed by those given now, and the content of its checkpoint.

    While the block runs no other process may resume the run.

    Raises ValueError for an option that a resumed run keeps, a checkpoint without a sound state of training, one that
    is in no folder of a run, and a run that another process still writes.
    """
    if kept := opt.given & KEPT_OPTIONS:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(kept))
        raise ValueError(f"--resume keeps the model, the optimizer and the folder of the run; leave out {flags}")
    path = find_checkpoint(opt.resume)
    try:
        folder = run_folder(path)
    except ValueError:
        _read_checkpoint(path)  # if it cannot be resumed anywhere, that is the better message
        raise
    with only_writer(folder) if dist.is_main() else nullcontext():
        content = _read_checkpoint(path)
        saved = content["training"]
        cli.adopt(parser, opt, saved["opt"], RESUMED_OPTIONS, path)
        opt.resume = str(path)
        if (logged := saved["opt"].get("log")) and isinstance(logged, str) and "log" not in opt.given:
            LOGGER.info(f"the run was logged to {logged:.100}; to log there again, add --log {logged:.100}")
        yield opt, content


def _read_checkpoint(path: Path) -> dict:
    """Reads a checkpoint to resume from, and checks the kinds of the parts of its state of training."""
    content = load_checkpoint(path)
    if "training" not in content:
        raise ValueError(
            f"--resume needs the state of training, but {path} holds only weights; "
            f"start a new run with --weights {path}"
        )
    saved = content["training"]
    wrong = [part for part in PARTS if not isinstance(saved, dict) or not isinstance(saved.get(part), dict)]
    if wrong:
        raise ValueError(f"{path}: `training` must hold a mapping called {wrong[0]}, as train.py writes it")
    check_hyp(saved["hyp"], f"{path}: hyp")
    usual = asdict(State())
    for name, value in saved["state"].items():
        if name not in usual or not _alike_state(value, usual[name]):
            raise ValueError(f"{path}: {str(name)!r:.80} in the state of training is not what train.py writes")
    if not 0 <= saved["state"].get("seconds", 0) < MOST:
        raise ValueError(f"{path}: 'seconds' in the state of training is not what train.py writes")
    return content


def _alike_state(value: object, usual: object) -> bool:
    """Returns whether an entry of a state has the kind of the usual one; a tuple is one of numbers, of any length."""
    if isinstance(usual, tuple):
        return isinstance(value, tuple | list) and all(_alike(number, 0.0) for number in value)
    whole = isinstance(usual, int) and not isinstance(usual, bool)
    return _alike(value, usual) and (not whole or (isinstance(value, int) and -1 <= value < MOST))


def tell_how_to_resume(run: Run) -> None:
    """Logs the command that resumes a run which was stopped."""
    last = run.save_dir / "weights/last.pt"
    if dist.is_main() and last.exists():
        when = f"after epoch {run.state.epoch}" if run.state.epoch >= 0 else "before the first epoch was over"
        LOGGER.warning(f"\nstopped {when}; go on with: python train.py --resume {shlex.quote(str(last))}")
    elif dist.is_main():
        LOGGER.warning("\nstopped; there is no checkpoint to resume from, because of --nosave")
