"""Train a detector.

    python train.py --cfg models/SOCA.yaml                          the data set that the project draws, from scratch
    python train.py --cfg models/SOCA.yaml --data my.yaml --img 640 --weights yolov5s.pt
    python train.py --resume                                        the newest run, from where it was stopped
    torchrun --nproc-per-node 4 train.py --batch-size 64 ...        on four GPUs

The run's folder, runs/train/exp, holds weights/best.pt and weights/last.pt, results.csv, and pictures.
"""

import argparse
import shlex
import shutil
from pathlib import Path

from utils import cli

GONE = {  # options of v6.1 that are no more, and what serves instead
    "--bucket": "machines share a search through --evolve-storage URL",
    "--entity": "set WANDB_ENTITY in the environment",
    "--upload_dataset": "data sets are not uploaded",
    "--bbox_interval": "pictures are logged at the end of training",
    "--artifact_alias": "data sets are not read from artifacts",
}


def parse_opt(known: bool = False, argv: list[str] | None = None) -> cli.Options:
    """The command line, or the words of one in argv; with `known` its defaults."""
    parser = argparse.ArgumentParser(description="Train a detector.")
    group = parser.add_argument_group("what to train on what")
    group.add_argument("--weights", default=cli.Default(cli.WEIGHTS), help="start from this .pt file; '' for scratch")
    group.add_argument("--download", action="store_true", help="fetch official weights that are not there")
    group.add_argument("--cfg", default="", help="model YAML (default: the one inside the weights)")
    group.add_argument("--attention", default="", metavar="BLOCK@PLACE", help="put blocks in, such as SOCA@P3+P4+P5")
    group.add_argument("--data", default=cli.DATA, help="data set YAML (default: %(default)s)")
    group.add_argument("--hyp", default="auto", help="hyper-parameter YAML (default: v6.1's, or one for short runs)")
    group.add_argument("--single-cls", action="store_true", help="make one class of all")
    group.add_argument(
        "--freeze",
        nargs="+",
        type=cli.number_or_text,
        default=[0],
        help="first N layers, or several numbers or name prefixes",
    )
    group.add_argument("--fraction", type=float, default=1.0, help="share of the training images, above 0 to 1")
    group.add_argument(
        "--resume", nargs="?", const=True, default=False, help="go on with the newest run, or this last.pt"
    )

    group = parser.add_argument_group("how long and how large")
    group.add_argument("--epochs", type=int, default=300, help="passes over the data (default: %(default)s)")
    group.add_argument("--time", type=float, default=0.0, metavar="HOURS", help="fewer epochs, to end within HOURS")
    group.add_argument("--batch-size", type=int, default=16, help="images at a time over all GPUs; -1 fills the GPU")
    group.add_argument("--imgsz", "--img", "--img-size", type=int, default=640, help="longer side in pixels")
    group.add_argument("--multi-scale", action="store_true", help="vary the image size by half each batch")
    group.add_argument("--rect", action="store_true", help="batches of like aspect ratio; no mosaic, no shuffling")
    group.add_argument("--quad", action="store_true", help="every four images make one of twice the side")
    group.add_argument("--patience", type=int, default=100, help="stop after so many epochs without gain; 0 never")

    group = parser.add_argument_group("recipe")
    group.add_argument("--optimizer", choices=("SGD", "Adam", "AdamW"), help="(default: the YAML's, else SGD)")
    group.add_argument(
        "--cos-lr", action=argparse.BooleanOptionalAction, help="learning rate falls as a cosine, not a line"
    )
    group.add_argument("--label-smoothing", type=float, default=0.0, help="epsilon, 0-1")
    group.add_argument("--image-weights", action="store_true", help="draw images of classes found badly more often")
    group.add_argument("--close-mosaic", type=int, default=0, metavar="N", help="no mosaic in the last N epochs")
    group.add_argument("--noautoanchor", action="store_true", help="keep the anchors of the model")
    group.add_argument("--seed", type=int, default=0, help="of everything random")

    group = parser.add_argument_group("search for hyper-parameters")
    group.add_argument("--evolve", nargs="?", type=int, const=300, metavar="N", help="train N times (default: 300)")
    group.add_argument("--evolve-storage", default="", metavar="URL", help="Optuna storage that machines share")

    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="", help="cpu, or a GPU number such as 0 (default: a GPU if there is one)")
    group.add_argument("--amp", choices=("auto", "fp16", "bf16", "off"), default="auto", help="mixed precision")
    group.add_argument("--compile", action="store_true", help="compile the model with torch.compile")
    group.add_argument("--sync-bn", action="store_true", help="batch norm over all GPUs of a torchrun launch")
    group.add_argument("--workers", type=int, default=8, help="most processes that read images, per GPU")
    group.add_argument(
        "--cache",
        nargs="?",
        const="ram",
        default="auto",
        choices=("auto", "ram", "disk", "val", "off"),
        help="keep images in memory, in the cache folder, only those of val in memory, or not (default: memory if half "
        "of what is free will do)",
    )
    group.add_argument(
        "--share-decoding",
        action="store_true",
        help="make mosaics of the images of four batches: files that are not cached are read once, not four times",
    )
    group.add_argument("--strict", action="store_true", help="a broken image or label is an error, not left out")
    group.add_argument("--rehash", action="store_true", help="check images and labels again, unchanged or not")
    group.add_argument("--local_rank", "--local-rank", type=int, default=-1, help="ignored; for old launchers")

    group = parser.add_argument_group("checkpoints, validation, logs")
    group.add_argument("--noval", action="store_true", help="validate after the last epoch only")
    group.add_argument("--nosave", action="store_true", help="save after the last epoch only")
    group.add_argument("--save-period", type=int, default=-1, help="keep a checkpoint every N epochs")
    # torchrun takes `--log` for a shortened option of its own, hence the second name
    group.add_argument("--log", "--loggers", default="", help="also log to these: tensorboard,wandb,mlflow")
    cli.add_run_folder(parser, "runs/train")
    cli.add_gone(parser, GONE)
    return cli.parse(parser, known, argv)


OPTIONS = parse_opt() if __name__ == "__main__" else None  # answers --help before torch is imported

from collections.abc import Callable  # noqa: E402
from contextlib import nullcontext  # noqa: E402
from dataclasses import replace  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

from models.attention_view import GateRecorder  # noqa: E402
from models.backend import find_weights, load_checkpoint, load_model  # noqa: E402
from models.insert import parse_attention  # noqa: E402
from models.transfer import transfer  # noqa: E402
from models.yolo import Detect, Model, checkpoint_classes  # noqa: E402
from utils import checkpoint, dist  # noqa: E402
from utils.activations import out_of_place  # noqa: E402
from utils.boxes import check_image_size, round_up  # noqa: E402
from utils.data.annotations import count_images  # noqa: E402
from utils.data.dataset_yaml import load_dataset_yaml  # noqa: E402
from utils.data.loader import create_dataloader  # noqa: E402
from utils.data.options import LoaderOptions  # noqa: E402
from utils.device import mixed_precision, select_device  # noqa: E402
from utils.evaluation.evaluator import evaluate, log_evaluation  # noqa: E402
from utils.evaluation.metrics import fitness  # noqa: E402
from utils.evaluation.plots import plot_batch, plot_evolution, plot_labels, plot_results  # noqa: E402
from utils.evaluation.report import picture_writer, write_figures  # noqa: E402
from utils.files import ROOT, find_file, increment_path, write_yaml  # noqa: E402
from utils.log import LOGGER  # noqa: E402
from utils.training.autoanchor import AnchorReport, check_anchors, save_anchors  # noqa: E402
from utils.training.autobatch import auto_batch_size  # noqa: E402
from utils.training.ema import ModelEMA, ema_tau  # noqa: E402
from utils.training.guard import first_not_finite, weights_not_finite  # noqa: E402
from utils.training.hyperparameters import (  # noqa: E402
    NOMINAL_BATCH,
    accumulation,
    choose_hyp,
    load_hyp,
    scale_hyp,
    scale_weight_decay,
)
from utils.training.loggers import Loggers, create_loggers, parse_loggers  # noqa: E402
from utils.training.loss import ComputeLoss  # noqa: E402
from utils.training.optimizer import build_optimizer  # noqa: E402
from utils.training.records import COLUMNS, Pace, append_results, clock, cut_results  # noqa: E402
from utils.training.run import Run, State, anchors_in_pixels, describe, plain, restore, save_checkpoints  # noqa: E402
from utils.training.sampling import class_weights, image_weights  # noqa: E402
from utils.training.schedule import EarlyStopping, Schedule, apply_settings  # noqa: E402
from utils.training.search import search  # noqa: E402

MOSAICS = 3  # training batches that are drawn


# --- a run ------------------------------------------------------------------------------------------------------------


Report = Callable[[int, float], None]  # (epoch, fitness); an error it raises ends the training


def train(
    hyp: dict[str, float],
    opt: argparse.Namespace,
    device: torch.device,
    report: Report | None = None,
    resumed: dict | None = None,
    group: dist.Group | None = None,
) -> tuple[float, ...]:
    """Trains as the options say.

    Args:
        report: called after each epoch.
        resumed: content of the last.pt to go on from.
        group: the other processes of a torchrun launch.

    Returns P, R, mAP50, mAP50-95, box, objectness and class loss of the best checkpoint on the val split.
    """
    run = prepare(hyp, opt, device, resumed, group)
    state = run.state
    if resumed:
        shall_have(run, fit_in_time(run, state.epoch), after=state.epoch)
    try:
        while state.epoch + 1 < run.schedule.epochs:
            epoch = state.epoch + 1
            losses = train_one_epoch(run, epoch)
            epochs = end_epoch(run, epoch, losses, report) if dist.is_main() else 0
            shall_have(run, epochs, after=epoch)
            state.epoch = epoch
    except KeyboardInterrupt:
        tell_how_to_resume(run)
        raise
    return finish(run) if dist.is_main() else state.results


def shall_have(run: Run, epochs: int, after: int) -> None:
    """Makes it a run of so many epochs, as the first process says after one of them."""
    if run.group:
        epochs = int(run.group.decide(f"epochs after {after}", str(epochs)))
    run.schedule = replace(run.schedule, epochs=epochs)


def train_one_epoch(run: Run, epoch: int) -> list[float]:
    """One pass over the training images; returns the mean box, objectness and class loss."""
    opt, state, batches = run.opt, run.state, len(run.train_loader)
    mean = torch.zeros(3, device=run.device)
    run.network.train()
    run.train_loader.sampler.set_epoch(epoch)
    if opt.image_weights:
        weigh_images(run)
    run.optimizer.zero_grad()  # what an unfinished step left of the last epoch is dropped, as in v6.1

    LOGGER.info(("\n" + "{:>10}" * 7).format("Epoch", "gpu_mem", "box", "obj", "cls", "labels", "img_size"))
    bar = "{desc}{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} {elapsed}{postfix}"
    progress = tqdm(run.train_loader, bar_format=bar, disable=not dist.is_main())
    for i, (images, targets, paths, _) in enumerate(progress):
        iteration = i + batches * epoch
        settings = run.schedule.at(iteration - state.skipped)
        apply_settings(run.optimizer, settings)
        pixels = images.to(run.device, non_blocking=True).float().contiguous(memory_format=torch.channels_last) / 255
        if opt.multi_scale:
            pixels = random_scale(pixels, run.image_size, run.model.image_multiple, (opt.seed, iteration))

        with torch.autocast(run.device.type, run.autocast, enabled=run.autocast is not None):
            raw = run.network(pixels)
            loss, items = run.compute_loss(raw, targets.to(run.device))
        if not loss.isfinite():
            where = first_not_finite(run.model, pixels, run.autocast)
            raise FloatingPointError(
                f"the loss is {items.tolist()} in epoch {epoch}, batch {i}: {where}. Try a lower lr0"
            )
        run.scaler.scale(loss * gradient_scale(run)).backward()
        if iteration - state.last_step >= settings.accumulate:
            step(run, iteration)

        mean = (mean * i + items) / (i + 1)
        memory = f"{torch.cuda.memory_reserved() / 1e9:.3g}G" if run.device.type == "cuda" else "0G"
        progress.set_description(
            ("{:>10}" * 2 + "{:>10.4g}" * 5).format(
                f"{epoch}/{run.schedule.epochs - 1}", memory, *mean.tolist(), len(targets), pixels.shape[-1]
            ),
            refresh=False,
        )
        progress.set_postfix_str(run.pace.line(len(images), i, run.schedule.epochs))
        if iteration < MOSAICS and dist.is_main():
            plot_batch(images, targets, run.save_dir / f"train_batch{iteration}.jpg", run.names, paths)
    return mean.tolist()


def gradient_scale(run: Run) -> float:
    """By what the loss is multiplied: the processes, whose gradients are averaged, and the images of a quad."""
    return (run.group.world_size if run.group else 1) * (4 if run.opt.quad else 1)


def step(run: Run, iteration: int) -> None:
    """One step of the optimizer and of the average; neither where gradients overflowed in half precision."""
    scale = run.scaler.get_scale()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad()
    if run.scaler.get_scale() < scale:  # which is how the scaler answers an overflow
        run.state.skipped += iteration - run.state.last_step
    elif dist.is_main():
        run.ema.update(run.model)
    run.state.last_step = iteration


def end_epoch(run: Run, epoch: int, losses: list[float], report: Report | None) -> int:
    """Validates, writes results and checkpoints; returns how many epochs the run shall have. First process only."""
    opt, state, stopper = run.opt, run.state, run.stopper
    if bad := weights_not_finite(run.model):
        raise FloatingPointError(
            f"{bad} is not finite after epoch {epoch}; try a lower lr0. last.pt is of the one before"
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
        LOGGER.info(f"no gain in {opt.patience} epochs; stopping. The best was epoch {stopper.best_epoch}, see best.pt")
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
    """The epochs of the run: those of --epochs, or fewer, so that at the pace so far they end within --time."""
    if not run.opt.time or epoch < 0:
        return run.opt.epochs
    seconds = run.pace.seconds_so_far()
    left = (run.opt.time * 3600 - seconds) / (seconds / (epoch + 1))
    return min(run.opt.epochs, epoch + 1 + max(int(left), 0))


def weigh_images(run: Run) -> None:
    """Has the next epoch's images drawn by how badly the classes in them are found (v6.1's rule)."""
    dataset, nc = run.train_loader.dataset, run.model.nc
    maps = np.array(run.state.class_maps or np.zeros(nc))
    labels = [dataset.labels_of(i) for i in range(len(dataset))]
    run.train_loader.sampler.set_weights(image_weights(labels, class_weights(labels, nc) * (1 - maps) ** 2))


def validate(run: Run, model: Model, observers=()):
    """Measures a model on the val split."""
    return evaluate(
        model.eval(), run.val_loader, run.names, run.device, single_cls=run.opt.single_cls,
        compute_loss=run.validation_loss, autocast=run.autocast, observers=observers,
    )  # fmt: skip


def validate_average(run: Run, epoch: int):
    """Validates the averaged model. A tracker of histograms gets its gates, of all channels for all images of val."""
    if not run.loggers.wants_histograms:
        return validate(run, run.ema.model)
    with GateRecorder(run.ema.model) as recorder:
        evaluation = validate(run, run.ema.model)
    run.loggers.log_histograms({f"gate/{name}": gates for name, gates in recorder.gates.items()}, epoch)
    return evaluation


# --- before the first epoch -------------------------------------------------------------------------------------------


def prepare(
    hyp: dict[str, float], opt: argparse.Namespace, device: torch.device, resumed: dict | None, group: dist.Group | None
) -> Run:
    """Reads and checks everything, and only then makes the run's folder."""
    torch.manual_seed(opt.seed)
    torch.backends.cudnn.deterministic = True
    autocast = mixed_precision(opt.amp, device)
    data = load_dataset_yaml(opt.data, download=opt.download and group is None)
    nc, names = data["nc"], data["names"]
    if opt.single_cls:
        nc, names = 1, names if nc == 1 else ["item"]

    # the average has plain batch norm, even of a run with --sync-bn
    model = (
        (resumed["ema"] or resumed["model"]).float() if resumed else build_model(opt, hyp, nc, names, data["channels"])
    )
    if model.model[-1].nc != nc:
        raise ValueError(
            f"{opt.resume} has {model.model[-1].nc} classes, but {opt.data} has {nc}; only that many can go on"
        )
    model = model.to(device, memory_format=torch.channels_last)
    freeze(model, opt.freeze)
    image_size = check_image_size(opt.imgsz, model.image_multiple, floor=2 * model.image_multiple)
    if opt.batch_size == -1:
        opt.batch_size = auto_batch_size(model, image_size, autocast)
    with group.first_on_each_machine("scan") if group else nullcontext():
        train_loader, val_loader = make_loaders(opt, hyp, data, image_size, model.image_multiple, nc, group)
    anchor_report = None
    if not (opt.noautoanchor or resumed):
        anchor_report = fit_anchors(model, train_loader.dataset, image_size, hyp["anchor_t"], opt.seed)
    accumulated = accumulation(opt.batch_size, hyp.get("nominal_batch", NOMINAL_BATCH))
    optimizer, losses = attach(model, opt, hyp, names, image_size, train_loader.dataset, group)

    run = Run(
        opt=opt,
        hyp=hyp,
        device=device,
        group=group,
        autocast=autocast,
        names=names,
        image_size=image_size,
        model=model,
        network=model,
        ema=ModelEMA(model, tau=ema_tau(hyp, opt.epochs * len(train_loader) // accumulated)),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=autocast == torch.float16),
        compute_loss=losses[0],
        validation_loss=losses[1],
        train_loader=train_loader,
        val_loader=val_loader,
        schedule=Schedule(hyp, opt.epochs, len(train_loader), opt.batch_size, opt.cos_lr),
        stopper=EarlyStopping(opt.patience),
        anchor_report=anchor_report,
        save_dir=Path(),
        loggers=Loggers(),
        state=State(),
        pace=Pace(len(train_loader)),
    )
    if resumed:
        restore(run, resumed["training"])
    run.network = wrap(model, opt, group)
    if dist.is_main():
        open_folder(run, resumed)
        describe(run)
    return run


def make_loaders(opt, hyp, data: dict, image_size: int, stride: int, nc: int, group: dist.Group | None):
    """The loader of this process's share of the training images; that of the val split, in the first process."""
    processes = group.world_size if group else 1
    if opt.batch_size % processes:
        raise ValueError(f"--batch-size {opt.batch_size} must be a multiple of the {processes} processes that share it")
    shared = {
        "channels": data["channels"],
        "stride": stride,
        "single_cls": opt.single_cls,
        "nc": nc,
        "seed": opt.seed,
        "workers": opt.workers,
    }
    shared |= {"strict": opt.strict, "rehash": opt.rehash}
    shared["image_size"] = image_size
    train_options = LoaderOptions(
        batch_size=opt.batch_size // processes,
        augment=True,
        hyp=hyp,
        rect=opt.rect,
        shuffle=True,
        quad=opt.quad,
        cache=opt.cache if opt.cache != "val" else None,
        rank=dist.rank(),
        world_size=processes,
        fraction=opt.fraction,
        mosaic_until=opt.epochs - opt.close_mosaic if opt.close_mosaic else None,
        share_decoding=opt.share_decoding,
        prefix="train: ",
        **shared,
    )
    train_loader, _ = create_dataloader(data["train"], train_options)
    if not dist.is_main():
        return train_loader, None
    cache = "ram" if opt.cache == "val" else None if opt.noval else opt.cache
    val_options = LoaderOptions(
        batch_size=opt.batch_size // processes * 2, rect=True, pad=0.5, cache=cache, prefix="val: ", **shared
    )
    val_loader, _ = create_dataloader(data["val"], val_options)
    return train_loader, val_loader


def build_model(
    opt: argparse.Namespace, hyp: dict[str, float], nc: int, names: list[str] | None = None, channels: int = 3
) -> Model:
    """The model to train.

    1. --cfg names the architecture; without it the YAML inside the weights does, or the YAML of the weights' name.
       --attention puts blocks into it.
    2. --weights given and there: its tensors are carried over. Given but not there: an error.
    3. --weights not given, and its default not there: from scratch, with a warning. '' : from scratch.

    names: classes of the data set; what the weights know of a class of that name is carried over.
    channels: of its pictures.
    """
    weights, cfg, anchors = opt.weights, opt.cfg, round(hyp.get("anchors", 0))
    blocks = parse_attention(opt.attention)
    there = any((room / weights).is_file() for room in (Path(), ROOT))
    if isinstance(weights, cli.Default) and not opt.download and not there:
        LOGGER.warning(f"{weights} is not here, so training starts from scratch (--download would fetch it)")
        cfg = cfg or f"models/{Path(weights).stem}.yaml"
        weights = ""
    if not weights:
        if not cfg:
            raise ValueError("there is nothing to train: give --cfg models/SOCA.yaml, or --weights FILE.pt, or both")
        model = Model(find_file(cfg, (".yaml", ".yml")), channels, nc, anchors, blocks)
    else:
        content = load_checkpoint(find_weights(weights, opt.download))
        source = (content.get("ema") or content["model"]).float()
        same = {**source.yaml, "ch": channels}
        model = Model(find_file(cfg, (".yaml", ".yml")) if cfg else same, channels, nc, anchors, blocks)
        # another architecture, or new anchors, bring their own
        transfer(source, model, own_anchors=bool(cfg or anchors), names=names)
    if not isinstance(model.model[-1], Detect):
        raise ValueError(f"{cfg or weights}: the last row must be Detect, got {type(model.model[-1]).__name__}")
    if model.yaml["ch"] != channels:
        raise ValueError(f"{cfg or weights}: ch is {model.yaml['ch']}, but images have {channels} channels")
    return model


def freeze(model: Model, what: list[int | str]) -> None:
    """Freezes layers by v6.1's rule, one number k: layers 0 to k - 1, several: those; or parameters by name prefix."""
    numbers = [w for w in what if isinstance(w, int)]
    prefixes = tuple(w for w in what if isinstance(w, str))
    if bad := [k for k in numbers if not 0 <= k < len(model.model)]:
        raise ValueError(f"--freeze: the model has layers 0 to {len(model.model) - 1}, got {bad}")
    names = [name for name, _ in model.named_parameters()]
    if bad := [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)]:
        raise ValueError(f"--freeze: no parameter's name starts with {bad}; names look like {names[0]}")
    layers = range(numbers[0]) if len(what) == len(numbers) == 1 else numbers
    prefixes += tuple(f"model.{k}." for k in layers)
    frozen = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith(prefixes)
        frozen += not parameter.requires_grad
    if frozen == len(names):
        raise ValueError("--freeze: nothing is left to train")
    if frozen:
        LOGGER.info(f"frozen: {frozen} of {len(names)} parameters, by {', '.join(map(str, what))}")


def fit_anchors(model: Model, dataset, image_size: int, threshold: float, seed: int) -> AnchorReport:
    """Replaces the model's anchors where the data set's boxes ask for it."""
    head = model.model[-1]
    labels = [dataset.labels_of(i) for i in range(len(dataset))]
    anchors, report = check_anchors(
        dataset.shapes, labels, anchors_in_pixels(model), head.stride.tolist(), image_size, threshold,
        np.random.default_rng(seed),
    )  # fmt: skip
    head.anchors.copy_(torch.from_numpy(anchors).to(head.anchors) / head.stride.view(-1, 1, 1))
    return report


def attach(model: Model, opt, hyp, names: list[str], image_size: int, dataset, group: dist.Group | None):
    """Gives the model what v6.1 hangs on it, and returns its optimizer and the losses of training and validation."""
    head, nc = model.model[-1], len(names)
    head.anchors.copy_(head.anchors.half())  # as they will be saved, so that training and inference agree
    scaled = scale_hyp(hyp, head.nl, nc, image_size, opt.label_smoothing)
    labels = [dataset.labels_of(i) for i in range(len(dataset))]
    model.nc, model.names, model.hyp = nc, names, scaled
    model.class_weights = torch.from_numpy(class_weights(labels, nc) * nc).to(head.anchors.device)
    optimizer = build_optimizer(
        model, opt.optimizer, hyp["lr0"], hyp["momentum"],
        scale_weight_decay(hyp["weight_decay"], opt.batch_size, hyp.get("nominal_batch", NOMINAL_BATCH)),
    )  # fmt: skip
    # validation is the first process's alone, and may not wait for the others
    return optimizer, (ComputeLoss(head, scaled, average=group.average if group else None), ComputeLoss(head, scaled))


def wrap(model: Model, opt: argparse.Namespace, group: dist.Group | None) -> nn.Module:
    """The model as training calls it: its gradients averaged over the group, and compiled where asked for."""
    network = model
    out_of_place(model)
    if group:
        if opt.sync_bn:
            # in place, so that optimizer and average keep the parameters they know
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        device = next(model.parameters()).device
        network = nn.parallel.DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)
    return torch.compile(network) if opt.compile else network


def open_folder(run: Run, resumed: dict | None) -> None:
    """Makes the run's folder and writes into it what will be trained; or finds the resumed run's."""
    opt, start = run.opt, run.state.epoch + 1
    if resumed:
        run.save_dir = run_folder(opt.resume)
        for folder in (run.save_dir, run.save_dir / "weights"):
            for leftover in folder.glob(".*.part"):  # of a process that was killed while it wrote
                leftover.unlink()
    else:
        run.save_dir = increment_path(Path(opt.project) / opt.name, opt.exist_ok, mkdir=True)
        if run.anchor_report:
            save_anchors(run.save_dir / "anchors.yaml", anchors_in_pixels(run.model), run.anchor_report)
        plot_labels(run.train_loader.dataset.labels, run.names, run.save_dir)
    (run.save_dir / "weights").mkdir(exist_ok=True)
    cut_results(run.save_dir / "results.csv", start)
    run.loggers = create_loggers(opt.log, run.save_dir, plain(vars(opt)), run.hyp, resume=bool(resumed))
    write_yaml(run.save_dir / "hyp.yaml", run.hyp)
    write_yaml(run.save_dir / "opt.yaml", {**plain(vars(opt)), "save_dir": str(run.save_dir)})
    if not (resumed or opt.nosave) or not opt.epochs:
        save_checkpoints(run, is_best=not opt.epochs)


# --- inside the loop --------------------------------------------------------------------------------------------------


def random_scale(pixels: torch.Tensor, image_size: int, stride: int, seed: tuple[int, int]) -> torch.Tensor:
    """Images (B, 3, H, W) resized to a longer side of 0.5 to 1.5 times image_size, a multiple of the stride."""
    size = int(np.random.default_rng(seed).integers(image_size // 2, image_size * 3 // 2 + stride)) // stride * stride
    gain = size / max(pixels.shape[2:])
    if gain == 1:
        return pixels
    shape = [round_up(side * gain, stride) for side in pixels.shape[2:]]
    return F.interpolate(pixels, shape, mode="bilinear", align_corners=False)


# --- going on from a checkpoint ---------------------------------------------------------------------------------------


def find_checkpoint(resume: str | bool) -> Path:
    """The last.pt to go on from: the one named, or the newest below the current folder."""
    if resume is not True:
        path = Path(resume)
        if not path.is_file():
            raise FileNotFoundError(f"--resume: no such file: {path}")
        return path
    found = [p for p in Path().rglob("last*.pt") if p.is_file()]
    if not found:
        raise FileNotFoundError(f"--resume: there is no last*.pt below {Path.cwd()}; name the file")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def run_folder(last: str | Path) -> Path:
    """The run that a last.pt belongs to."""
    folder = Path(last).resolve().parent
    return folder.parent if folder.name == "weights" else folder


def resumed_options(opt: cli.Options) -> tuple[cli.Options, dict]:
    """The options of the run to go on with, changed by those given now; and its checkpoint."""
    if fixed := opt.given & {"weights", "cfg", "attention", "optimizer", "project", "name", "exist_ok", "evolve"}:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(fixed))
        raise ValueError(f"--resume goes on with the model, the optimizer and the folder of the run; leave out {flags}")
    path = find_checkpoint(opt.resume)
    content = load_checkpoint(path)
    if "training" not in content:
        raise ValueError(f"{path}: holds weights alone, no state of training; start anew with --weights {path}")
    saved = {name: value for name, value in content["training"]["opt"].items() if name in vars(opt)}
    vars(opt).update({name: value for name, value in saved.items() if name not in opt.given} | {"resume": str(path)})
    return opt, content


def tell_how_to_resume(run: Run) -> None:
    last = run.save_dir / "weights/last.pt"
    if dist.is_main() and last.exists():
        when = f"after epoch {run.state.epoch}" if run.state.epoch >= 0 else "before the first epoch was over"
        LOGGER.warning(f"\nstopped {when}; go on with: python train.py --resume {shlex.quote(str(last))}")
    elif dist.is_main():
        LOGGER.warning("\nstopped; --nosave has kept nothing to go on from")


# --- after the last epoch ---------------------------------------------------------------------------------------------


def finish(run: Run) -> tuple[float, ...]:
    """Strips the checkpoints, measures the best one with pictures and a row per class, and draws the curves."""
    last, best = (run.save_dir / "weights" / name for name in ("last.pt", "best.pt"))
    if best.exists():
        checkpoint.strip(best, classes=checkpoint_classes())
        model = load_model(best, run.device).to(memory_format=torch.channels_last)
        LOGGER.info(f"\nvalidating {best}")
        evaluation = validate(run, model, observers=[picture_writer(run.save_dir, run.names)])
        log_evaluation(evaluation)
        write_figures(evaluation, run.save_dir)
        run.state.results = evaluation.results
    if (run.save_dir / "results.csv").exists():
        plot_results(run.save_dir / "results.csv")
    if last.exists():
        # to any reader a model for use; to --resume, with more epochs, all of the training
        content = load_checkpoint(last)
        content["training"]["state"]["finished"] = True
        checkpoint.save(last, {**checkpoint.stripped(content), "training": content["training"]})
    names = [f"best/{name.partition('/')[2]}" for name in COLUMNS[4:8]]
    run.loggers.log_pictures(
        sorted([*run.save_dir.glob("*.png"), *run.save_dir.glob("*.jpg")]), max(run.state.epoch, 0)
    )
    run.loggers.finish({"best/epoch": run.stopper.best_epoch, **dict(zip(names, run.state.results))})
    LOGGER.info(f"{run.state.epoch + 1} epochs in {clock(run.pace.seconds_so_far())}; results in {run.save_dir}")
    return run.state.results


# --- the command line -------------------------------------------------------------------------------------------------


def check_options(opt: argparse.Namespace) -> None:
    """ValueError for a number that makes no sense."""
    least = {"epochs": 0, "imgsz": 1, "workers": 0, "patience": 0, "seed": 0, "close_mosaic": 0, "time": 0}
    for name, low in least.items():
        cli.check_range(f"--{name.replace('_', '-')}", getattr(opt, name), low)
    if opt.batch_size != -1:
        cli.check_range("--batch-size", opt.batch_size, 1)
    if not 0 <= opt.label_smoothing < 1:
        raise ValueError(f"--label-smoothing must be at least 0 and below 1, got {opt.label_smoothing}")
    if not 0 < opt.fraction <= 1:
        raise ValueError(f"--fraction must be above 0 and at most 1, got {opt.fraction}")
    parse_loggers(opt.log)
    if opt.evolve is not None:
        cli.require("optuna", "--evolve")
    if opt.image_weights and opt.rect:
        raise ValueError("--image-weights draws images freely, --rect orders them by shape; choose one")
    if dist.rank() >= 0:
        alone = [flag for flag, on in (("--image-weights", opt.image_weights), ("--evolve", opt.evolve)) if on]
        alone += ["--batch-size -1"] * (opt.batch_size == -1)
        if alone:
            raise ValueError(f"{', '.join(alone)} works in one process only, not under torchrun")


def load_recipe(opt: argparse.Namespace) -> dict[str, float | str]:
    """The hyper-parameters of --hyp; fills in the options that the file may state and the command line did not."""
    if opt.hyp == "auto":
        entry = load_dataset_yaml(opt.data, download=opt.download and dist.rank() < 0)["train"]
        images = round(count_images(entry) * opt.fraction)
        file, reason = choose_hyp(images, opt.epochs, opt.batch_size if opt.batch_size > 0 else 16, opt.optimizer)
        LOGGER.info(f"hyp: {file.name}, for {reason}")
        opt.hyp = str(file)
    hyp = load_hyp(find_file(opt.hyp))
    opt.optimizer = opt.optimizer or hyp.get("optimizer", "SGD")
    opt.cos_lr = hyp.get("cos_lr", False) if opt.cos_lr is None else opt.cos_lr
    return hyp


def evolve(hyp: dict[str, float], opt: cli.Options, device: torch.device) -> dict[str, float]:
    """Searches for hyper-parameters by training --evolve times; returns the best. With --resume it goes on."""
    project = "runs/evolve" if Path(opt.project) == Path("runs/train") else opt.project
    folder = increment_path(Path(project) / opt.name, opt.exist_ok or bool(opt.resume), mkdir=True)
    trial = Path(folder) / "trial"  # each writes over the last one

    def objective(candidate: dict[str, float], report: Report) -> tuple[float, ...]:
        shutil.rmtree(trial, ignore_errors=True)
        changed = {"project": str(folder), "name": trial.name, "exist_ok": True, "nosave": True, "resume": False}
        return train(candidate, argparse.Namespace(**{**vars(opt), **changed, "log": ""}), device, report)

    storage = opt.evolve_storage or None
    best = search(
        objective, hyp, opt.evolve, folder, fitness, opt.epochs, storage, seed=opt.seed, autoanchor=not opt.noautoanchor
    )
    plot_evolution(folder / "evolve.csv")
    return best


def main(opt: cli.Options) -> tuple[float, ...]:
    """The command line."""
    if "," in opt.device and dist.rank() < 0:
        number = opt.device.count(",") + 1
        raise ValueError(
            f"--device {opt.device}: one process drives one GPU. Several train together with: "
            f"torchrun --nproc-per-node {number} train.py --device {opt.device} ..."
        )
    LOGGER.info(cli.describe("train", opt))
    resumed = None
    if opt.resume and opt.evolve is None:
        opt, resumed = resumed_options(opt)
    check_options(opt)
    hyp = resumed["training"]["hyp"] if resumed and "hyp" not in opt.given else load_recipe(opt)
    device = select_device(opt.device, opt.batch_size)
    if opt.evolve is not None:
        with cli.stopped_by_signals():
            return evolve(hyp, opt, device)
    if opt.sync_bn and dist.rank() < 0:
        LOGGER.warning("--sync-bn is ignored: there is one process alone")
    elif opt.sync_bn and device.type != "cuda":
        raise ValueError(f"--sync-bn works on CUDA GPUs only, but training runs on {device.type}; leave it out")
    group = dist.Group("nccl" if device.type == "cuda" else "gloo") if dist.rank() >= 0 else None
    with cli.stopped_by_signals():
        results = train(hyp, opt, device, resumed=resumed, group=group)
    if group:
        group.close()
    return results


def run(**options) -> argparse.Namespace:
    """Trains with the command line's defaults and these options: `run(cfg="models/SOCA.yaml", epochs=10)`."""
    opt = cli.override(parse_opt(known=True), options)
    main(opt)
    return opt


if __name__ == "__main__":
    cli.run(main, OPTIONS, "train")
