"""Everything before the first epoch: recipe, model, data, optimizer, and the folder of the run."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn

from engine.run import Run, anchors_in_pixels, log_summary, restore, run_folder, save_checkpoints
from models.backend import find_weights, load_checkpoint
from models.insert import parse_attention
from models.transfer import transfer
from models.yolo import Detect, Model
from utils import cli, dist
from utils.activations import out_of_place
from utils.boxes import check_image_size
from utils.data.annotations import count_images
from utils.data.dataset import DetectionDataset
from utils.data.dataset_yaml import load_dataset_yaml
from utils.data.loader import create_dataloader
from utils.data.options import LoaderOptions
from utils.device import mixed_precision
from utils.evaluation.plots import plot_labels
from utils.files import ROOT, find_file, increment_path, only_writer, write_yaml
from utils.log import LOGGER
from utils.training.autoanchor import AnchorReport, check_anchors, save_anchors
from utils.training.autobatch import auto_batch_size
from utils.training.ema import ModelEMA, ema_tau
from utils.training.hyperparameters import (
    NOMINAL_BATCH,
    accumulation,
    choose_hyp,
    load_hyp,
    scale_hyp,
    scale_weight_decay,
)
from utils.training.loggers import create_loggers
from utils.training.loss import ComputeLoss
from utils.training.optimizer import build_optimizer
from utils.training.records import Pace, cut_results
from utils.training.sampling import class_weights
from utils.training.schedule import EarlyStopping, Schedule


def load_recipe(opt: argparse.Namespace) -> dict[str, float | str]:
    """Returns the hyper-parameters of --hyp.

    Sets opt.hyp to the file that was chosen, and the options that the file may state and the command line did not.
    """
    if opt.hyp == "auto":
        entry = load_dataset_yaml(
            opt.data, download=cli.fetches(opt.download, "data") and dist.rank() < 0, to=opt.download_to
        )["train"]
        images = round(count_images(entry) * opt.fraction)
        file, reason = choose_hyp(images, opt.epochs, opt.batch_size if opt.batch_size > 0 else 16, opt.optimizer)
        LOGGER.info(f"hyp: {file.name}, {reason}")
        opt.hyp = str(file)
    hyp = load_hyp(find_file(opt.hyp))
    opt.optimizer = opt.optimizer or hyp.get("optimizer", "SGD")
    opt.cos_lr = hyp.get("cos_lr", False) if opt.cos_lr is None else opt.cos_lr
    return hyp


def prepare(
    hyp: dict[str, float], opt: argparse.Namespace, device: torch.device, resumed: dict | None, group: dist.Group | None
) -> Run:
    """Reads and checks everything, before `open_folder` makes the folder of the run.

    Args:
        resumed: content of the last.pt to resume from.
        group: the other processes of a torchrun launch.
    """
    torch.manual_seed(opt.seed)
    torch.backends.cudnn.deterministic = True
    autocast = mixed_precision(opt.amp, device)
    data = load_data(opt, group)
    model = first_model(opt, hyp, data, resumed).to(device, memory_format=torch.channels_last)
    freeze(model, opt.freeze)
    stride = model.image_multiple
    image_size = check_image_size(opt.imgsz, stride, floor=2 * stride)
    if opt.batch_size == -1:
        opt.batch_size = auto_batch_size(model, image_size, autocast)
    with group.first_on_each_machine("scan") if group else nullcontext():
        train_loader, val_loader = make_loaders(opt, hyp, data, image_size, stride, group)
    anchor_report = None
    if not (opt.noautoanchor or resumed):
        anchor_report = replace_anchors(model, train_loader.dataset, image_size, hyp["anchor_t"], opt.seed)
    accumulated = accumulation(opt.batch_size, hyp.get("nominal_batch", NOMINAL_BATCH))
    optimizer, compute_loss, validation_loss = attach(
        model, opt, hyp, data["names"], image_size, train_loader.dataset, group
    )

    run = Run(
        opt=opt,
        hyp=hyp,
        device=device,
        group=group,
        autocast=autocast,
        names=data["names"],
        image_size=image_size,
        model=model,
        network=model,
        ema=ModelEMA(model, tau=ema_tau(hyp, opt.epochs * len(train_loader) // accumulated)),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=autocast == torch.float16),
        compute_loss=compute_loss,
        validation_loss=validation_loss,
        train_loader=train_loader,
        val_loader=val_loader,
        schedule=Schedule(hyp, opt.epochs, len(train_loader), opt.batch_size, opt.cos_lr),
        stopper=EarlyStopping(opt.patience),
        anchor_report=anchor_report,
        pace=Pace(len(train_loader)),
    )
    if resumed:
        restore(run, resumed["training"])
    run.network = wrap(model, opt, group)
    return run


# --- data -------------------------------------------------------------------------------------------------------------


def load_data(opt: argparse.Namespace, group: dist.Group | None) -> dict:
    """Reads the data set YAML; with --single-cls the data set has one class."""
    data = load_dataset_yaml(opt.data, download=cli.fetches(opt.download, "data") and group is None, to=opt.download_to)
    if opt.single_cls:
        data |= {"nc": 1, "names": data["names"] if data["nc"] == 1 else ["item"]}
    return data


def make_loaders(
    opt: argparse.Namespace, hyp: dict[str, float], data: dict, image_size: int, stride: int, group: dist.Group | None
) -> tuple[torch.utils.data.DataLoader, torch.utils.data.DataLoader | None]:
    """Returns the loader of this process's share of the training images and, in the first process, that of val."""
    processes = group.world_size if group else 1
    if opt.batch_size % processes:
        raise ValueError(
            f"--batch-size must be a multiple of the {processes} processes that share it, got {opt.batch_size}"
        )
    shared = {
        "image_size": image_size,
        "channels": data["channels"],
        "stride": stride,
        "single_cls": opt.single_cls,
        "nc": data["nc"],
        "seed": opt.seed,
        "workers": opt.workers,
        "strict": opt.strict,
        "rehash": opt.rehash,
        "fix_labels": opt.fix_labels,
    }
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


# --- the model --------------------------------------------------------------------------------------------------------


def first_model(opt: argparse.Namespace, hyp: dict[str, float], data: dict, resumed: dict | None) -> Model:
    """Returns the model that training begins with: a new one, or that of the checkpoint to resume from."""
    if not resumed:
        return build_model(opt, hyp, data["nc"], data["names"], data["channels"])
    # the average has plain batch norm, even of a run with --sync-bn
    model = (resumed["ema"] or resumed["model"]).float()
    if (classes := model.model[-1].nc) != data["nc"]:
        raise ValueError(
            f"{opt.resume} has {classes} classes, but {opt.data} has {data['nc']}; a resumed run keeps its classes. "
            f"To train on other classes start anew: --weights {opt.resume}"
        )
    return model


def build_model(
    opt: cli.Options, hyp: dict[str, float], nc: int, names: list[str] | None = None, channels: int = 3
) -> Model:
    """Builds the model to train.

    1. --cfg names the architecture; without it the YAML inside the weights does, or the YAML of the weights' name.
       --attention puts blocks into it.
    2. --weights is given and the file exists: its tensors are carried over. The file does not exist: an error.
    3. --weights is not given, and its default does not exist: from scratch, with a warning. '' : from scratch.

    Args:
        names: classes of the data set; what the weights know of a class of that name is carried over.
        channels: of the images of the data set.
    """
    weights, cfg, anchors = opt.weights, opt.cfg, round(hyp.get("anchors", 0))
    blocks, fetch = parse_attention(opt.attention), cli.fetches(opt.download, "weights")
    exists = any((folder / weights).is_file() for folder in (Path(), ROOT))
    if "weights" not in opt.given and not fetch and not exists:
        LOGGER.warning(f"there is no file {weights}, so training starts from scratch; --download fetches it")
        cfg = cfg or f"models/{Path(weights).stem}.yaml"
        weights = ""
    if not weights:
        if not cfg:
            raise ValueError("there is no model to train: give --cfg models/SOCA.yaml, or --weights FILE.pt, or both")
        model = Model(find_file(cfg, (".yaml", ".yml")), channels, nc, anchors, blocks)
    else:
        content = load_checkpoint(find_weights(weights, fetch))
        source = (content.get("ema") or content["model"]).float()
        same = {**source.yaml, "ch": channels}
        file = find_file(cfg, (".yaml", ".yml")) if cfg else same
        model = Model(file, channels, nc, anchors, blocks, trained=not cfg)
        # another architecture, or new anchors, bring their own
        transfer(source, model, own_anchors=bool(cfg or anchors), names=names)
    if not isinstance(model.model[-1], Detect):
        raise ValueError(f"{cfg or weights}: the last row must be Detect, got {type(model.model[-1]).__name__}")
    if model.yaml["ch"] != channels:
        raise ValueError(f"{cfg or weights}: ch is {model.yaml['ch']}, but images have {channels} channels")
    return model


def freeze(model: Model, what: list[int | str]) -> None:
    """Freezes parameters by v6.1's rule: one number k means layers 0 to k - 1, several mean those layers.

    Text means the parameters whose name starts with it. Raises ValueError where a number or text matches nothing, or
    no parameter is left to train.
    """
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
        raise ValueError("--freeze: all parameters are frozen, so nothing is left to train; name fewer layers")
    if frozen:
        LOGGER.info(f"frozen: {frozen} of {len(names)} parameters, by --freeze {' '.join(map(str, what))}")


def labels_per_image(dataset: DetectionDataset) -> list[np.ndarray]:
    """Returns for each image its labels (n, 5): class, x, y, w, h; 0-1 of the image."""
    return [dataset.labels_of(i) for i in range(len(dataset))]


def replace_anchors(
    model: Model, dataset: DetectionDataset, image_size: int, threshold: float, seed: int
) -> AnchorReport:
    """Replaces the model's anchors where they do not suit the boxes of the data set."""
    head = model.model[-1]
    labels, strides = labels_per_image(dataset), head.stride.tolist()
    anchors, report = check_anchors(
        dataset.shapes, labels, anchors_in_pixels(model), strides, image_size, threshold, np.random.default_rng(seed)
    )
    head.anchors.copy_(torch.from_numpy(anchors).to(head.anchors) / head.stride.view(-1, 1, 1))
    return report


def attach(
    model: Model,
    opt: argparse.Namespace,
    hyp: dict[str, float],
    names: list[str],
    image_size: int,
    dataset: DetectionDataset,
    group: dist.Group | None,
) -> tuple[torch.optim.Optimizer, ComputeLoss, ComputeLoss]:
    """Sets the attributes that v6.1 gives a model; returns its optimizer and the losses of training and validation."""
    head, nc = model.model[-1], len(names)
    head.anchors.copy_(head.anchors.half())  # as they will be saved, so that training and inference agree
    scaled = scale_hyp(hyp, head.nl, nc, image_size, opt.label_smoothing)
    model.nc, model.names, model.hyp = nc, names, scaled
    model.class_weights = torch.from_numpy(class_weights([dataset.labels], nc) * nc).to(head.anchors.device)
    optimizer = build_optimizer(
        model, opt.optimizer, hyp["lr0"], hyp["momentum"],
        scale_weight_decay(hyp["weight_decay"], opt.batch_size, hyp.get("nominal_batch", NOMINAL_BATCH)),
    )  # fmt: skip
    # only the first process validates, so that loss must not wait for the others
    return optimizer, ComputeLoss(head, scaled, average=group.average if group else None), ComputeLoss(head, scaled)


def wrap(model: Model, opt: argparse.Namespace, group: dist.Group | None) -> nn.Module:
    """Returns the model as training calls it: its gradients averaged over the group, and compiled with --compile."""
    network = model
    out_of_place(model)
    if group:
        if opt.sync_bn:
            # in place, so that optimizer and average keep the parameters they know
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        device = next(model.parameters()).device
        network = nn.parallel.DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)
    return torch.compile(network) if opt.compile else network


# --- the folder -------------------------------------------------------------------------------------------------------


@contextmanager
def open_folder(run: Run, resumed: dict | None) -> Iterator[None]:
    """Makes the folder of the run and writes what will be trained; for a resumed run, cleans up the folder it has.

    No other process may write into the folder while the block runs; that of a resumed run is locked already.
    """
    opt = run.opt
    if resumed:
        run.save_dir = run_folder(opt.resume)
        for folder in (run.save_dir, run.save_dir / "weights"):
            for leftover in folder.glob(".*.part"):  # of a process that was killed while it wrote
                leftover.unlink()
    else:
        run.save_dir = increment_path(Path(opt.project) / opt.name, opt.exist_ok, mkdir=True)
    with nullcontext() if resumed else only_writer(run.save_dir):
        _begin_folder(run, resumed)
        yield


def _begin_folder(run: Run, resumed: dict | None) -> None:
    opt, options = run.opt, cli.without_secrets(vars(run.opt))
    if not resumed:
        if run.anchor_report:
            save_anchors(run.save_dir / "anchors.yaml", anchors_in_pixels(run.model), run.anchor_report)
        plot_labels(run.train_loader.dataset.labels, run.names, run.save_dir)
    (run.save_dir / "weights").mkdir(exist_ok=True)
    cut_results(run.save_dir / "results.csv", run.state.epoch + 1)
    run.loggers = create_loggers(opt.log, run.save_dir, options, run.hyp, resume=bool(resumed))
    write_yaml(run.save_dir / "hyp.yaml", run.hyp)
    write_yaml(run.save_dir / "opt.yaml", {**options, "save_dir": str(run.save_dir)})
    if not (resumed or opt.nosave) or not opt.epochs:
        save_checkpoints(run, is_best=not opt.epochs)
    log_summary(run)
