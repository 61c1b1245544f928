"""Training: the epochs of a run, what follows each of them, and the end of the run."""

import argparse
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from engine.run import Run, save_checkpoints, tell_how_to_resume
from engine.setup import labels_per_image, open_folder, prepare
from models.attention_view import GateRecorder, without_gate
from models.backend import load_checkpoint, load_model
from models.yolo import Model
from utils import checkpoint, cli, dist
from utils.boxes import round_up
from utils.evaluation.charts import plot_evolution, plot_results
from utils.evaluation.evaluator import Evaluation, EvaluationSettings, evaluate, log_evaluation
from utils.evaluation.metrics import fitness
from utils.evaluation.numbers import write_numbers
from utils.evaluation.plots import plot_batch
from utils.evaluation.report import MosaicWriter, write_figures
from utils.evaluation.run_page import About, write_run_page
from utils.files import increment_path, only_writer
from utils.log import LOGGER
from utils.training.guard import first_not_finite, weights_not_finite
from utils.training.records import COLUMNS, Progress, append_results, clock
from utils.training.sampling import class_weights, image_weights
from utils.training.schedule import apply_settings
from utils.training.search import search

DRAWN_BATCHES = 3  # training batches that are drawn into train_batchN.jpg

Report = Callable[[int, float], None]  # (epoch, fitness); an error it raises ends the training


class Measurement(NamedTuple):
    """What the best checkpoint of a run reaches on the val split, in the order of v6.1's seven results."""

    precision: float
    recall: float
    map50: float  # mean average precision at IoU 0.5
    map: float  # at IoU 0.5 to 0.95
    box_loss: float
    obj_loss: float
    cls_loss: float


def train(
    hyp: dict[str, float],
    opt: argparse.Namespace,
    device: torch.device,
    report: Report | None = None,
    resumed: dict | None = None,
    group: dist.Group | None = None,
) -> Measurement:
    """Trains as the options say, and returns what the best checkpoint reaches on the val split.

    Args:
        report: called after each epoch.
        resumed: content of the last.pt to resume from.
        group: the other processes of a torchrun launch. Only the first one measures; the others return zeros.
    """
    run = prepare(hyp, opt, device, resumed, group)
    with open_folder(run, resumed) if dist.is_main() else nullcontext():
        _train_all(run, report, bool(resumed))
    return Measurement(*run.state.results)


def _train_all(run: Run, report: Report | None, resumed: bool) -> None:
    """Trains the epochs of a run that are left, and ends it."""
    state = run.state
    if resumed:
        set_epochs(run, fit_in_time(run, state.epoch), after=state.epoch)
    try:
        while state.epoch + 1 < run.schedule.epochs:
            epoch = state.epoch + 1
            losses = train_one_epoch(run, epoch)
            epochs = end_epoch(run, epoch, losses, report) if dist.is_main() else 0
            set_epochs(run, epochs, after=epoch)
            state.epoch = epoch
    except KeyboardInterrupt:
        tell_how_to_resume(run)
        raise
    if dist.is_main():
        finish(run)


def set_epochs(run: Run, epochs: int, after: int) -> None:
    """Sets the number of epochs of the run to what the first process decided after one of them."""
    if run.group:
        epochs = int(run.group.decide(f"epochs after {after}", str(epochs)))
    run.schedule = replace(run.schedule, epochs=epochs)


# --- one epoch --------------------------------------------------------------------------------------------------------


def train_one_epoch(run: Run, epoch: int) -> list[float]:
    """Trains on every image once; returns the mean box, objectness and class loss."""
    opt, state = run.opt, run.state
    mean = torch.zeros(3, device=run.device)
    run.network.train()
    run.train_loader.sampler.set_epoch(epoch)
    if opt.image_weights:
        weigh_images(run)
    run.optimizer.zero_grad()  # gradients of the last epoch's unfinished step are dropped, as in v6.1

    progress = Progress(run.train_loader, epoch, run.schedule.epochs, run.pace, run.device, shown=dist.is_main())
    for i, (images, targets, paths, _) in enumerate(progress):
        iteration = i + len(run.train_loader) * epoch
        settings = run.schedule.at(iteration - state.skipped)
        apply_settings(run.optimizer, settings)
        pixels = images.to(run.device, non_blocking=True).float().contiguous(memory_format=torch.channels_last) / 255
        if opt.multi_scale:
            pixels = random_scale(pixels, run.image_size, run.model.image_multiple, (opt.seed, iteration))

        with torch.autocast(run.device.type, run.autocast, enabled=run.autocast is not None):
            raw = run.network(pixels)
            loss, items = run.compute_loss(raw, targets.to(run.device))
        if not loss.isfinite():
            reason = first_not_finite(run.model, pixels, run.autocast)
            raise FloatingPointError(
                f"the loss is {items.tolist()} in epoch {epoch}, batch {i}: {reason}. Try a lower lr0"
            )
        run.scaler.scale(loss * gradient_scale(run)).backward()
        if iteration - state.last_step >= settings.accumulate:
            step(run, iteration)

        mean = (mean * i + items) / (i + 1)
        progress.update(mean.tolist(), len(images), len(targets), pixels.shape[-1])
        if iteration < DRAWN_BATCHES and dist.is_main():
            plot_batch(images, targets, run.save_dir / f"train_batch{iteration}.jpg", run.names, paths)
    return mean.tolist()


def gradient_scale(run: Run) -> float:
    """Returns the factor of the loss: the number of processes, whose gradients are averaged, times 4 with --quad."""
    return (run.group.world_size if run.group else 1) * (4 if run.opt.quad else 1)


def step(run: Run, iteration: int) -> None:
    """Takes one step of the optimizer and of the average; neither where gradients overflowed in half precision."""
    scale = run.scaler.get_scale()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad()
    if run.scaler.get_scale() < scale:  # the scaler lowers its scale after an overflow
        run.state.skipped += iteration - run.state.last_step
    elif dist.is_main():
        run.ema.update(run.model)
    run.state.last_step = iteration


def weigh_images(run: Run) -> None:
    """Weights the images of the next epoch by how low the mAP of the classes in them is (v6.1's rule)."""
    dataset, nc = run.train_loader.dataset, run.model.nc
    maps = np.array(run.state.class_maps or np.zeros(nc))
    labels = labels_per_image(dataset)
    run.train_loader.sampler.set_weights(image_weights(labels, class_weights(labels, nc) * (1 - maps) ** 2))


def random_scale(pixels: torch.Tensor, image_size: int, stride: int, seed: tuple[int, int]) -> torch.Tensor:
    """Resizes images (B, C, H, W) to a longer side of 0.5 to 1.5 times image_size, a multiple of the stride.

    One image alone keeps two cells of the coarsest map, since batch norm needs more than one value of a channel.
    """
    size = int(np.random.default_rng(seed).integers(image_size // 2, image_size * 3 // 2 + stride)) // stride * stride
    if len(pixels) == 1:
        size = max(size, 2 * stride)
    gain = size / max(pixels.shape[2:])
    if gain == 1:
        return pixels
    shape = [round_up(side * gain, stride) for side in pixels.shape[2:]]
    return F.interpolate(pixels, shape, mode="bilinear", align_corners=False)


# --- after an epoch ---------------------------------------------------------------------------------------------------


def end_epoch(run: Run, epoch: int, losses: list[float], report: Report | None) -> int:
    """Validates, writes results and checkpoints; returns the number of epochs of the run. In the first process only."""
    opt, state, stopper = run.opt, run.state, run.stopper
    if bad := weights_not_finite(run.model):
        raise FloatingPointError(
            f"{bad} is not finite after epoch {epoch}; last.pt is of the epoch before. Try a lower lr0"
        )
    rates = [group["lr"] for group in run.optimizer.param_groups]
    run.ema.copy_attributes(run.model)
    epochs = fit_in_time(run, epoch)

    final = epoch + 1 >= epochs or stopper.possible_stop
    if final or not opt.noval:
        evaluation = validate_average(run, epoch)
        log_evaluation(evaluation, verbose=False)
        state.results, state.class_maps = evaluation.results, evaluation.class_maps
    fit = float(fitness(np.array(state.results)[None])[0])
    if stopper(epoch, fit):
        LOGGER.info(
            f"no improvement in the last epochs (--patience {opt.patience}), so training stops; best.pt is of epoch "
            f"{stopper.best_epoch}"
        )
        epochs = epoch + 1
    state.best_fitness = max(state.best_fitness, fit)
    run.pace.next_epoch()
    state.epoch, state.seconds = epoch, run.pace.seconds

    numbers = [*losses, *state.results, *rates]
    append_results(run.save_dir / "results.csv", epoch, numbers)
    run.loggers.log_metrics(dict(zip(COLUMNS[1:], numbers, strict=True)), epoch)
    if final or not opt.nosave:
        save_checkpoints(run, is_best=fit == state.best_fitness)
    if report:
        report(epoch, fit)
    return epochs


def fit_in_time(run: Run, epoch: int) -> int:
    """Returns the number of epochs of the run: --epochs, or fewer, so that at the pace so far they fit into --time."""
    if not run.opt.time or epoch < 0:
        return run.opt.epochs
    seconds = run.pace.seconds_so_far()
    left = (run.opt.time * 3600 - seconds) / (seconds / (epoch + 1))
    return min(run.opt.epochs, epoch + 1 + max(int(left), 0))


def evaluate_on_val(run: Run, model: Model, observers: Sequence[Callable] = ()) -> Evaluation:
    """Measures a model on the val split."""
    return evaluate(
        model.eval(), run.val_loader, run.names, run.device, settings=EvaluationSettings(single_cls=run.opt.single_cls),
        compute_loss=run.validation_loss, autocast=run.autocast, observers=observers,
    )  # fmt: skip


def validate_average(run: Run, epoch: int) -> Evaluation:
    """Measures the averaged model; a logger of histograms gets the gates of all channels for all images of val."""
    if not run.loggers.wants_histograms:
        return evaluate_on_val(run, run.ema.model)
    if epoch == 0 and (others := without_gate(run.ema.model)):
        LOGGER.info(f"no histogram of {', '.join(others)}: a block without gate(x) has none (models/registry.py)")
    with GateRecorder(run.ema.model) as recorder:
        evaluation = evaluate_on_val(run, run.ema.model)
    run.loggers.log_histograms({f"gate/{name}": gates for name, gates in recorder.gates.items()}, epoch)
    return evaluation


# --- after the last epoch ---------------------------------------------------------------------------------------------


def finish(run: Run) -> None:
    """Strips the checkpoints, measures the best one with images and a row per class, and draws the curves."""
    last, best = (run.save_dir / "weights" / name for name in ("last.pt", "best.pt"))
    evaluation = None
    if best.exists():
        checkpoint.strip(best, read=load_checkpoint)
        model = load_model(best, run.device).to(memory_format=torch.channels_last)
        LOGGER.info(f"\nvalidating {best}")
        evaluation = evaluate_on_val(run, model, observers=[MosaicWriter(run.save_dir, run.names, run.val_loader)])
        log_evaluation(evaluation)
        write_figures(evaluation, run.save_dir)
        about = {"command": "train", "split": "val", "image_size": run.image_size, "best_epoch": run.stopper.best_epoch}
        about |= {"epochs": run.state.epoch + 1, "settings": cli.without_secrets(vars(run.opt))}
        write_numbers(evaluation, run.save_dir, about, latex=run.opt.latex)
        run.state.results = evaluation.results
    if (run.save_dir / "results.csv").exists():
        plot_results(run.save_dir / "results.csv")
    if last.exists():
        # for use, the averaged model in half precision; for --resume with more epochs, all of the training too
        content = load_checkpoint(last)
        content["training"]["state"]["finished"] = True
        checkpoint.save(last, {**checkpoint.stripped(content), "training": content["training"]})
    if evaluation and run.opt.evolve is None:  # of the trainings of a search only the numbers are asked for
        write_page(run, evaluation)
    names = [f"best/{name.partition('/')[2]}" for name in COLUMNS[4:8]]
    run.loggers.log_images(sorted([*run.save_dir.glob("*.png"), *run.save_dir.glob("*.jpg")]), max(run.state.epoch, 0))
    run.loggers.finish({"best/epoch": run.stopper.best_epoch, **dict(zip(names, run.state.results))})
    epochs = run.state.epoch + 1
    duration = clock(run.pace.seconds_so_far())
    LOGGER.info(f"{epochs} epoch{'s' * (epochs != 1)} in {duration}; results in {run.save_dir}")


def write_page(run: Run, evaluation: Evaluation) -> None:
    """Writes report.html: the run on one page."""
    opt, dataset = run.opt, run.train_loader.dataset
    options = cli.without_secrets(vars(opt))
    given, model = getattr(opt, "given", options), getattr(run.model, "yaml_file", "") or Path(opt.weights).name
    epochs, names = run.state.epoch + 1, ", ".join(run.names)
    data = {
        "data set": options["data"],
        "training images": f"{len(dataset):,}, with {len(dataset.labels):,} objects",
        "val images": f"{evaluation.images:,}, with {evaluation.labels_per_class.sum():,} objects",
        "classes": f"{len(run.names)}: {names}",
    }
    about = About(
        title=f"Training {run.save_dir.name}: {model} on {Path(options['data']).name}",
        given={name: value for name, value in options.items() if name in given}, options=options, data=data,
        hyp=run.hyp, facts={f"best epoch of {epochs}": str(run.stopper.best_epoch),
                            "on " + str(run.device): clock(run.pace.seconds_so_far()),
                            "parameters": f"{sum(p.numel() for p in run.model.parameters()):,}"},
    )  # fmt: skip
    write_run_page(run.save_dir, about, evaluation)


# --- many trainings ---------------------------------------------------------------------------------------------------


def evolve(hyp: dict[str, float], opt: cli.Options, device: torch.device) -> dict[str, float]:
    """Searches for hyper-parameters by training --evolve times; returns the best. With --resume it goes on."""
    project = "runs/evolve" if Path(opt.project) == Path("runs/train") else opt.project
    folder = increment_path(Path(project) / opt.name, opt.exist_ok or bool(opt.resume), mkdir=True)
    trial = Path(folder) / "trial"  # each writes over the last one

    def objective(candidate: dict[str, float], report: Report) -> Measurement:
        shutil.rmtree(trial, ignore_errors=True)
        own = copy(opt)
        vars(own).update(project=str(folder), name=trial.name, exist_ok=True, nosave=True, resume=False, log="")
        return train(candidate, own, device, report)

    storage = opt.evolve_storage or None
    with only_writer(folder):  # each process has its own trials; what they share is the database
        best = search(
            objective, hyp, opt.evolve, folder, fitness, opt.epochs, storage,
            seed=opt.seed, autoanchor=not opt.noautoanchor,
        )  # fmt: skip
    plot_evolution(folder / "evolve.csv")
    return best
