"""Train a detector.

    python train.py --cfg models/SOCA.yaml                          the data set that the project draws, from scratch
    python train.py --cfg models/SOCA.yaml --data my.yaml --img 640 --weights yolov5s.pt

The run's folder, runs/train/exp, holds weights/best.pt and weights/last.pt, results.csv, and pictures.
"""

import argparse
from pathlib import Path

from utils import cli


def parse_opt(known: bool = False) -> argparse.Namespace:
    """The command line; with `known` its defaults."""
    parser = argparse.ArgumentParser(description="Train a detector.")
    group = parser.add_argument_group("what to train on what")
    group.add_argument("--weights", default=cli.Default(cli.WEIGHTS), help="start from this .pt file; '' for scratch")
    group.add_argument("--download", action="store_true", help="fetch official weights that are not there")
    group.add_argument("--cfg", default="", help="model YAML (default: the one inside the weights)")
    group.add_argument("--data", default=cli.DATA, help="data set YAML (default: %(default)s)")
    group.add_argument("--hyp", default="auto", help="hyper-parameter YAML (default: v6.1's, or one for short runs)")
    group.add_argument("--single-cls", action="store_true", help="make one class of all")
    group.add_argument("--freeze", nargs="+", type=int, default=[0], help="first N layers, or several layer numbers")

    group = parser.add_argument_group("how long and how large")
    group.add_argument("--epochs", type=int, default=300, help="passes over the data (default: %(default)s)")
    group.add_argument("--batch-size", type=int, default=16, help="images at a time (default: %(default)s)")
    group.add_argument("--imgsz", "--img", "--img-size", type=int, default=640, help="longer side in pixels")
    group.add_argument("--multi-scale", action="store_true", help="vary the image size by half each batch")
    group.add_argument("--rect", action="store_true", help="batches of like aspect ratio; no mosaic, no shuffling")
    group.add_argument("--patience", type=int, default=100, help="stop after so many epochs without gain; 0 never")

    group = parser.add_argument_group("recipe")
    group.add_argument("--optimizer", choices=("SGD", "Adam", "AdamW"), help="(default: the YAML's, else SGD)")
    group.add_argument(
        "--cos-lr", action=argparse.BooleanOptionalAction, help="learning rate falls as a cosine, not a line"
    )
    group.add_argument("--label-smoothing", type=float, default=0.0, help="epsilon, 0-1")
    group.add_argument("--noautoanchor", action="store_true", help="keep the anchors of the model")
    group.add_argument("--seed", type=int, default=0, help="of everything random")

    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="", help="cpu, or a GPU number such as 0 (default: a GPU if there is one)")
    group.add_argument("--workers", type=int, default=8, help="most processes that read images")
    group.add_argument("--cache", nargs="?", const="ram", choices=("ram",), help="keep images in memory")

    group = parser.add_argument_group("checkpoints and validation")
    group.add_argument("--noval", action="store_true", help="validate after the last epoch only")
    group.add_argument("--nosave", action="store_true", help="save after the last epoch only")
    group.add_argument("--save-period", type=int, default=-1, help="keep a checkpoint every N epochs")
    cli.add_run_folder(parser, "runs/train")
    return cli.parse(parser, known)


OPTIONS = parse_opt() if __name__ == "__main__" else None  # answers --help before torch is imported

from dataclasses import dataclass  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from tqdm import tqdm  # noqa: E402

from models.backend import find_weights, load_checkpoint, load_model  # noqa: E402
from models.transfer import transfer  # noqa: E402
from models.yolo import Detect, Model, checkpoint_classes  # noqa: E402
from utils import checkpoint  # noqa: E402
from utils.boxes import check_image_size, round_up  # noqa: E402
from utils.data.dataset_yaml import load_dataset_yaml  # noqa: E402
from utils.data.images import list_images  # noqa: E402
from utils.data.loader import create_dataloader  # noqa: E402
from utils.device import select_device  # noqa: E402
from utils.evaluation.evaluator import evaluate, log_evaluation  # noqa: E402
from utils.evaluation.metrics import fitness  # noqa: E402
from utils.evaluation.plots import plot_batch, plot_labels, plot_results  # noqa: E402
from utils.evaluation.report import picture_writer, write_figures  # noqa: E402
from utils.files import ROOT, atomic_write, find_file, increment_path, write_yaml  # noqa: E402
from utils.log import LOGGER  # noqa: E402
from utils.training.autoanchor import check_anchors  # noqa: E402
from utils.training.ema import ModelEMA, ema_tau  # noqa: E402
from utils.training.hyperparameters import (  # noqa: E402
    NOMINAL_BATCH,
    accumulation,
    choose_hyp,
    load_hyp,
    scale_hyp,
    scale_weight_decay,
)
from utils.training.loss import ComputeLoss  # noqa: E402
from utils.training.optimizer import build_optimizer  # noqa: E402
from utils.training.sampling import class_weights  # noqa: E402
from utils.training.schedule import EarlyStopping, Schedule, apply_settings  # noqa: E402

COLUMNS = (
    "epoch", "train/box_loss", "train/obj_loss", "train/cls_loss",
    "metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95",
    "val/box_loss", "val/obj_loss", "val/cls_loss", "x/lr0", "x/lr1", "x/lr2",
)  # fmt: skip
MOSAICS = 3  # training batches that are drawn


# --- a run ------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """Everything that lives as long as the training."""

    opt: argparse.Namespace
    hyp: dict[str, float]  # scaled to the model
    device: torch.device
    names: list[str]
    image_size: int
    model: Model
    ema: ModelEMA
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    compute_loss: ComputeLoss
    train_loader: torch.utils.data.DataLoader
    val_loader: torch.utils.data.DataLoader
    schedule: Schedule
    stopper: EarlyStopping
    save_dir: Path
    last_step: int = -1  # iteration of the last optimizer step


def train(hyp: dict[str, float], opt: argparse.Namespace, device: torch.device) -> tuple[float, ...]:
    """Trains as the options say.

    Returns P, R, mAP50, mAP50-95, box, objectness and class loss of the best checkpoint on the val split.
    """
    run = prepare(hyp, opt, device)
    batches = len(run.train_loader)
    LOGGER.info(
        f"training {opt.epochs} epochs of {batches} batches at {run.image_size} px, "
        f"{run.train_loader.num_workers} workers; results go to {run.save_dir}"
    )
    best_fitness, results = 0.0, (0.0,) * 7
    for epoch in range(opt.epochs):
        losses = train_one_epoch(run, epoch)
        rates = [group["lr"] for group in run.optimizer.param_groups]
        run.ema.copy_attributes(run.model)

        final = epoch + 1 == opt.epochs or run.stopper.possible_stop
        if final or not opt.noval:
            evaluation = validate(run, run.ema.model)
            log_evaluation(evaluation, verbose=False)
            results = evaluation.results
        fit = float(fitness(np.array(results)[None])[0])
        stop = run.stopper(epoch, fit)
        append_results(run.save_dir / "results.csv", epoch, [*losses, *results, *rates])

        best_fitness = max(best_fitness, fit)
        if final or not opt.nosave:
            save_checkpoints(run, epoch, best_fitness, is_best=fit == best_fitness)
        if stop:
            LOGGER.info(
                f"no gain in {opt.patience} epochs; stopping. The best was epoch {run.stopper.best_epoch}, see best.pt"
            )
            break
    return finish(run, results)


def train_one_epoch(run: Run, epoch: int) -> list[float]:
    """One pass over the training images; returns the mean box, objectness and class loss."""
    opt, device, batches = run.opt, run.device, len(run.train_loader)
    mean = torch.zeros(3, device=device)
    run.model.train()
    run.train_loader.sampler.set_epoch(epoch)
    run.optimizer.zero_grad()  # what an unfinished step left of the last epoch is dropped, as in v6.1

    LOGGER.info(("\n" + "{:>10}" * 7).format("Epoch", "gpu_mem", "box", "obj", "cls", "labels", "img_size"))
    progress = tqdm(run.train_loader, bar_format="{desc}{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} {elapsed}")
    for i, (images, targets, paths, _) in enumerate(progress):
        iteration = i + batches * epoch
        settings = run.schedule.at(iteration)
        apply_settings(run.optimizer, settings)
        pixels = images.to(device, non_blocking=True).float().contiguous(memory_format=torch.channels_last) / 255
        if opt.multi_scale:
            pixels = random_scale(pixels, run.image_size, stride_of(run.model), (opt.seed, iteration))

        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            raw = run.model(pixels)
            loss, items = run.compute_loss(raw, targets.to(device))
        run.scaler.scale(loss).backward()
        if iteration - run.last_step >= settings.accumulate:
            run.scaler.step(run.optimizer)
            run.scaler.update()
            run.optimizer.zero_grad()
            run.ema.update(run.model)
            run.last_step = iteration

        mean = (mean * i + items) / (i + 1)
        memory = f"{torch.cuda.memory_reserved() / 1e9:.3g}G" if device.type == "cuda" else "0G"
        progress.set_description(
            ("{:>10}" * 2 + "{:>10.4g}" * 5).format(
                f"{epoch}/{opt.epochs - 1}", memory, *mean.tolist(), len(targets), pixels.shape[-1]
            )
        )
        if iteration < MOSAICS:
            plot_batch(images, targets, run.save_dir / f"train_batch{iteration}.jpg", run.names, paths)
    if not mean.isfinite().all():
        raise FloatingPointError(f"the loss is {mean.tolist()} in epoch {epoch}; try a lower lr0, or check the labels")
    return mean.tolist()


def validate(run: Run, model: Model, observers=()):
    """Measures a model on the val split."""
    return evaluate(
        model.eval(), run.val_loader, run.names, run.device, single_cls=run.opt.single_cls,
        compute_loss=run.compute_loss, autocast=True, observers=observers,
    )  # fmt: skip


# --- before the first epoch -------------------------------------------------------------------------------------------


def prepare(hyp: dict[str, float], opt: argparse.Namespace, device: torch.device) -> Run:
    """Reads and checks everything, and only then makes the run's folder."""
    torch.manual_seed(opt.seed)
    torch.backends.cudnn.deterministic = True
    data = load_dataset_yaml(opt.data)
    nc, names = data["nc"], data["names"]
    if opt.single_cls:
        nc, names = 1, names if nc == 1 else ["item"]

    model = build_model(opt, hyp, nc, names).to(device, memory_format=torch.channels_last)
    freeze(model, opt.freeze)
    head, stride = model.model[-1], stride_of(model)
    image_size = check_image_size(opt.imgsz, stride, floor=2 * stride)

    shared = {"stride": stride, "single_cls": opt.single_cls, "cache": opt.cache, "nc": nc, "seed": opt.seed}
    train_loader, train_set = create_dataloader(
        data["train"], image_size, opt.batch_size, hyp=hyp, augment=True, rect=opt.rect, shuffle=True,
        workers=opt.workers, prefix="train: ", **shared,
    )  # fmt: skip
    val_loader, _ = create_dataloader(
        data["val"], image_size, opt.batch_size * 2, rect=True, pad=0.5, workers=opt.workers, prefix="val: ", **shared
    )
    if not opt.noautoanchor:
        fit_anchors(model, train_set, image_size, hyp["anchor_t"], opt.seed)
    head.anchors.copy_(head.anchors.half())  # as they will be saved, so that training and inference agree

    raw_hyp = hyp
    hyp = scale_hyp(hyp, head.nl, nc, image_size, opt.label_smoothing)
    model.nc, model.names, model.hyp = nc, names, hyp
    labels = [train_set.labels_of(i) for i in range(len(train_set))]
    model.class_weights = torch.from_numpy(class_weights(labels, nc) * nc).to(device)
    nominal_batch = hyp.get("nominal_batch", NOMINAL_BATCH)
    optimizer = build_optimizer(
        model, opt.optimizer, hyp["lr0"], hyp["momentum"],
        scale_weight_decay(hyp["weight_decay"], opt.batch_size, nominal_batch),
    )  # fmt: skip
    accumulated = accumulation(opt.batch_size, nominal_batch)

    save_dir = increment_path(Path(opt.project) / opt.name, opt.exist_ok, mkdir=True)
    (save_dir / "weights").mkdir(exist_ok=True)
    write_yaml(save_dir / "hyp.yaml", raw_hyp)
    write_yaml(save_dir / "opt.yaml", {**plain(vars(opt)), "save_dir": str(save_dir)})
    plot_labels(train_set.labels, names, save_dir)
    return Run(
        opt=opt,
        hyp=hyp,
        device=device,
        names=names,
        image_size=image_size,
        model=model,
        ema=ModelEMA(model, tau=ema_tau(hyp, opt.epochs * len(train_loader) // accumulated)),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=device.type == "cuda"),
        compute_loss=ComputeLoss(head, hyp),
        train_loader=train_loader,
        val_loader=val_loader,
        schedule=Schedule(hyp, opt.epochs, len(train_loader), opt.batch_size, opt.cos_lr),
        stopper=EarlyStopping(opt.patience),
        save_dir=save_dir,
    )


def build_model(opt: argparse.Namespace, hyp: dict[str, float], nc: int, names: list[str] | None = None) -> Model:
    """The model to train.

    1. --cfg names the architecture; without it the YAML inside the weights does, or the YAML of the weights' name.
    2. --weights given and there: its tensors are carried over. Given but not there: an error.
    3. --weights not given, and its default not there: from scratch, with a warning. '' : from scratch.

    names: classes of the data set; what the weights know of a class of that name is carried over.
    """
    weights, cfg, anchors = opt.weights, opt.cfg, round(hyp.get("anchors", 0))
    there = any((room / weights).is_file() for room in (Path(), ROOT))
    if isinstance(weights, cli.Default) and not opt.download and not there:
        LOGGER.warning(f"{weights} is not here, so training starts from scratch (--download would fetch it)")
        cfg = cfg or f"models/{Path(weights).stem}.yaml"
        weights = ""
    if not weights:
        if not cfg:
            raise ValueError("there is nothing to train: give --cfg models/SOCA.yaml, or --weights FILE.pt, or both")
        model = Model(find_file(cfg, (".yaml", ".yml")), nc=nc, anchors=anchors)
    else:
        content = load_checkpoint(find_weights(weights, opt.download))
        source = (content.get("ema") or content["model"]).float()
        model = Model(find_file(cfg, (".yaml", ".yml")) if cfg else source.yaml, nc=nc, anchors=anchors)
        # another architecture, or new anchors, bring their own
        transfer(source, model, own_anchors=bool(cfg or anchors), names=names)
    if not isinstance(model.model[-1], Detect):
        raise ValueError(f"{cfg or weights}: the last row must be Detect, got {type(model.model[-1]).__name__}")
    if model.yaml["ch"] != 3:
        raise ValueError(f"{cfg or weights}: ch is {model.yaml['ch']}, but images have 3 channels")
    model.info(opt.imgsz)
    return model


def freeze(model: Model, layers: list[int]) -> None:
    """One number k freezes layers 0 to k - 1, several numbers freeze exactly those layers."""
    if bad := [k for k in layers if not 0 <= k < len(model.model)]:
        raise ValueError(f"--freeze: the model has layers 0 to {len(model.model) - 1}, got {bad}")
    frozen = range(layers[0]) if len(layers) == 1 else layers
    for k in frozen:
        model.model[k].requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("--freeze: nothing is left to train")
    if len(frozen):
        LOGGER.info(f"frozen layers: {', '.join(map(str, frozen))}")


def fit_anchors(model: Model, dataset, image_size: int, threshold: float, seed: int) -> None:
    """Replaces the model's anchors where the data set's boxes ask for it."""
    head = model.model[-1]
    pixels = (head.anchors * head.stride.view(-1, 1, 1)).cpu().numpy()
    labels = [dataset.labels_of(i) for i in range(len(dataset))]
    anchors, _ = check_anchors(
        dataset.shapes, labels, pixels, head.stride.tolist(), image_size, threshold, np.random.default_rng(seed)
    )
    head.anchors.copy_(torch.from_numpy(anchors).to(head.anchors) / head.stride.view(-1, 1, 1))


# --- inside the loop --------------------------------------------------------------------------------------------------


def stride_of(model: Model) -> int:
    """The multiple that image sides must be of, in pixels."""
    return max(int(model.stride.max()), 32)


def random_scale(pixels: torch.Tensor, image_size: int, stride: int, seed: tuple[int, int]) -> torch.Tensor:
    """Images (B, 3, H, W) resized to a longer side of 0.5 to 1.5 times image_size, a multiple of the stride."""
    size = int(np.random.default_rng(seed).integers(image_size // 2, image_size * 3 // 2 + stride)) // stride * stride
    gain = size / max(pixels.shape[2:])
    if gain == 1:
        return pixels
    shape = [round_up(side * gain, stride) for side in pixels.shape[2:]]
    return F.interpolate(pixels, shape, mode="bilinear", align_corners=False)


def append_results(file: Path, epoch: int, values: list[float]) -> None:
    """One row of results.csv, 20 characters a field; the header first."""
    text = file.read_text() if file.exists() else ",".join(f"{name:>20}" for name in COLUMNS) + "\n"
    with atomic_write(file, "w") as f:
        f.write(text + ",".join([f"{epoch:>20}", *(f"{v:>20.5g}" for v in values)]) + "\n")


def save_checkpoints(run: Run, epoch: int, best_fitness: float, is_best: bool) -> None:
    """Writes last.pt, best.pt where this epoch is the best, and epochN.pt where --save-period asks for it."""
    content = checkpoint.pack(
        run.model,
        ema=run.ema.model,
        epoch=epoch,
        best_fitness=np.array([best_fitness]),
        updates=run.ema.updates,
        optimizer=run.optimizer.state_dict(),
    )
    folder, period = run.save_dir / "weights", run.opt.save_period
    checkpoint.save(folder / "last.pt", content)
    if is_best:
        checkpoint.save(folder / "best.pt", content)
    if period > 0 and epoch > 0 and epoch % period == 0:
        checkpoint.save(folder / f"epoch{epoch}.pt", content)


# --- after the last epoch ---------------------------------------------------------------------------------------------


def finish(run: Run, results: tuple[float, ...]) -> tuple[float, ...]:
    """Strips the checkpoints, measures the best one with pictures and a row per class, and draws the curves."""
    folder = run.save_dir / "weights"
    for name in ("last.pt", "best.pt"):
        if (folder / name).exists():
            checkpoint.strip(folder / name, classes=checkpoint_classes())
    if (folder / "best.pt").exists():
        model = load_model(folder / "best.pt", run.device).to(memory_format=torch.channels_last)
        LOGGER.info(f"\nvalidating {folder / 'best.pt'}")
        evaluation = validate(run, model, observers=[picture_writer(run.save_dir, run.names)])
        log_evaluation(evaluation)
        write_figures(evaluation, run.save_dir)
        results = evaluation.results
    plot_results(run.save_dir / "results.csv")
    LOGGER.info(f"results in {run.save_dir}")
    return results


# --- the command line -------------------------------------------------------------------------------------------------


def plain(options: dict) -> dict:
    """Options as YAML can hold them."""
    return {k: str(v) if isinstance(v, str | Path) else v for k, v in options.items()}


def check_options(opt: argparse.Namespace) -> None:
    """ValueError for a number that makes no sense."""
    for name, least in (("epochs", 1), ("batch_size", 1), ("imgsz", 1), ("workers", 0), ("patience", 0), ("seed", 0)):
        cli.check_range(f"--{name.replace('_', '-')}", getattr(opt, name), least)
    if not 0 <= opt.label_smoothing < 1:
        raise ValueError(f"--label-smoothing must be at least 0 and below 1, got {opt.label_smoothing}")


def load_recipe(opt: argparse.Namespace) -> dict[str, float | str]:
    """The hyper-parameters of --hyp; fills in the options that the file may state and the command line did not."""
    if opt.hyp == "auto":
        images = len(list_images(load_dataset_yaml(opt.data)["train"]))
        file, reason = choose_hyp(images, opt.epochs, opt.batch_size, opt.optimizer)
        LOGGER.info(f"--hyp {file.name} ({reason})")
        opt.hyp = str(file)
    hyp = load_hyp(find_file(opt.hyp, (".yaml", ".yml")))
    opt.optimizer = opt.optimizer or hyp.get("optimizer", "SGD")
    opt.cos_lr = hyp.get("cos_lr", False) if opt.cos_lr is None else opt.cos_lr
    return hyp


def main(opt: argparse.Namespace) -> tuple[float, ...]:
    """The command line."""
    LOGGER.info(cli.describe("train", opt))
    check_options(opt)
    hyp = load_recipe(opt)
    return train(hyp, opt, select_device(opt.device, opt.batch_size))


def run(**options) -> argparse.Namespace:
    """Trains with the command line's defaults and these options: `run(cfg="models/SOCA.yaml", epochs=10)`."""
    opt = cli.override(parse_opt(known=True), options)
    main(opt)
    return opt


if __name__ == "__main__":
    cli.run(main, OPTIONS, "train")
