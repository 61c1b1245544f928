"""A training run: everything it holds, how it is saved and restored, and how `--resume` finds it again."""

import argparse
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.backend import load_checkpoint
from utils import checkpoint, cli, dist
from utils.log import LOGGER
from utils.training.autoanchor import AnchorReport
from utils.training.ema import ModelEMA
from utils.training.hyperparameters import NOMINAL_BATCH, accumulation
from utils.training.loggers import Loggers
from utils.training.loss import ComputeLoss
from utils.training.records import Pace
from utils.training.schedule import EarlyStopping, Schedule

# A resumed run keeps its model, optimizer and folder, so these options may not be given with --resume
KEPT_OPTIONS = {"weights", "cfg", "attention", "optimizer", "project", "name", "exist_ok", "evolve"}


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
        "opt": plain(vars(run.opt)),
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

    Raises ValueError where that run has finished and has no more epochs to do.
    """
    run.state = State(**saved["state"])
    # with another --batch-size the iterations are counted anew, and the last step lies before the next of them
    run.state.last_step = min(run.state.last_step, len(run.train_loader) * (run.state.epoch + 1) - 1)
    run.model.load_state_dict(saved["model"])
    run.ema.load_state_dict(saved["ema"])
    run.optimizer.load_state_dict(saved["optimizer"])
    run.scaler.load_state_dict(saved["scaler"])
    run.stopper.load_state_dict(saved["stopper"])
    run.pace = Pace(len(run.train_loader), run.state.seconds, run.state.epoch + 1)
    torch.set_rng_state(saved["random"]["cpu"])
    if run.device.type == "cuda" and len(saved["random"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["random"]["cuda"])
    if run.state.finished and run.state.epoch + 1 >= run.opt.epochs:
        done = run.state.epoch + 1
        raise ValueError(
            f"{run.opt.resume} has finished its {done} epochs; give --epochs N, N above {done}, to add some"
        )
    run.state.finished = False


def save_checkpoints(run: Run, is_best: bool) -> None:
    """Writes best.pt where this epoch is the best, epochN.pt where --save-period asks for it, and last.pt.

    last.pt comes last: a run that is killed in between goes on from the epoch before, and writes the others again.
    """
    epoch, period = run.state.epoch, run.opt.save_period
    content = checkpoint.pack(
        run.model,
        ema=run.ema.model,
        epoch=epoch,
        best_fitness=np.array([run.state.best_fitness]),
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


def plain(options: dict) -> dict:
    """Returns the options as YAML and checkpoints can hold them: paths as text."""
    return {name: str(value) if isinstance(value, str | Path) else value for name, value in options.items()}


# --- resumed ----------------------------------------------------------------------------------------------------------


def find_checkpoint(resume: str | bool) -> Path:
    """Returns the checkpoint to resume from: the file named, or for True the newest last*.pt below this folder."""
    if resume is not True:
        path = Path(resume)
        if not path.is_file():
            raise FileNotFoundError(f"--resume: no such file: {path}; name the last.pt of a run")
        return path
    checkpoints = [p for p in Path().rglob("last*.pt") if p.is_file()]
    if not checkpoints:
        raise FileNotFoundError(f"--resume: there is no last*.pt below {Path.cwd()}; name the last.pt of a run")
    return max(checkpoints, key=lambda path: path.stat().st_mtime_ns)


def run_folder(last: str | Path) -> Path:
    """Returns the folder of the run that a last.pt belongs to."""
    folder = Path(last).resolve().parent
    return folder.parent if folder.name == "weights" else folder


def resumed_options(opt: cli.Options) -> tuple[cli.Options, dict]:
    """Returns the options of the run to resume, changed by those given now, and the content of its checkpoint.

    Raises ValueError for an option that a resumed run keeps, and for a checkpoint without the state of training.
    """
    if kept := opt.given & KEPT_OPTIONS:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(kept))
        raise ValueError(f"--resume keeps the model, the optimizer and the folder of the run; leave out {flags}")
    path = find_checkpoint(opt.resume)
    content = load_checkpoint(path)
    if "training" not in content:
        raise ValueError(
            f"--resume needs the state of training, but {path} holds only weights; "
            f"start a new run with --weights {path}"
        )
    saved = {name: value for name, value in content["training"]["opt"].items() if name in vars(opt)}
    vars(opt).update({name: value for name, value in saved.items() if name not in opt.given} | {"resume": str(path)})
    return opt, content


def tell_how_to_resume(run: Run) -> None:
    """Logs the command that resumes a run which was stopped."""
    last = run.save_dir / "weights/last.pt"
    if dist.is_main() and last.exists():
        when = f"after epoch {run.state.epoch}" if run.state.epoch >= 0 else "before the first epoch was over"
        LOGGER.warning(f"\nstopped {when}; go on with: python train.py --resume {shlex.quote(str(last))}")
    elif dist.is_main():
        LOGGER.warning("\nstopped; there is no checkpoint to resume from, because of --nosave")
