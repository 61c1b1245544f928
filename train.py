"""Train a detector.

    python train.py --cfg models/SOCA.yaml                          the data set that the project draws, from scratch
    python train.py --cfg models/SOCA.yaml --data my.yaml --img 640 --weights yolov5s.pt
    python train.py --resume                                        the newest run, from where it was stopped
    torchrun --nproc-per-node 4 train.py --batch-size 64 ...        on four GPUs

The folder of the run, runs/train/exp, holds weights/best.pt and weights/last.pt, results.csv, and images.
"""

import argparse
from typing import TYPE_CHECKING

from utils import cli, dist, user_blocks
from utils.data.options import add_fix_labels
from utils.evaluation.numbers import add_latex

if TYPE_CHECKING:
    from engine.training import Measurement

UNUSED = ("--upload_dataset", "--bbox_interval", "--artifact_alias")  # of v6.1, for W&B


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser, in which every option is stated: name, type, range, default and help."""
    parser = argparse.ArgumentParser(description="Train a detector.")
    _add_model_and_data(parser.add_argument_group("model and data"))
    _add_length_and_size(parser.add_argument_group("length and size"))
    _add_recipe(parser.add_argument_group("recipe"))
    _add_machine(parser.add_argument_group("machine"))
    _add_records(parser.add_argument_group("validation, checkpoints, logs"))
    cli.add_run_folder(parser, "runs/train")
    cli.add_removed(parser, {"--bucket": "machines share a search through --evolve-storage URL"})
    return parser


def _add_model_and_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--weights", default=cli.WEIGHTS, help="start from this .pt file; '' starts from scratch")
    cli.add_download(group)
    group.add_argument("--cfg", default="", help="model YAML (default: the one inside the weights)")
    group.add_argument("--attention", default="", metavar="BLOCK@PLACE", help="add blocks, such as SE[8]@P3+P4+P5")
    user_blocks.add(group)
    group.add_argument("--data", default=cli.DATA, help=cli.DATA_HELP)
    group.add_argument("--hyp", default="auto", help="hyper-parameter YAML (default: v6.1's, or one for short runs)")
    group.add_argument("--single-cls", action="store_true", help="treat all classes as one")
    group.add_argument(
        "--freeze",
        nargs="+",
        type=cli.number_or_text,
        default=[0],
        help="layers that are not trained: one number N for the first N, several numbers for these layers, or the "
        "beginning of parameter names",
    )
    group.add_argument(
        "--fraction", type=cli.real(0, 1, open_low=True), default=1.0,
        help="share of the training images to use, above 0 to 1",
    )  # fmt: skip
    add_fix_labels(group)
    group.add_argument(
        "--resume", nargs="?", const=True, default=False, help="continue the newest run, or that of a folder or last.pt"
    )


def _add_length_and_size(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--epochs", type=cli.whole(0), default=300, help="passes over the images (default: %(default)s)")
    group.add_argument(
        "--time", type=cli.real(0), default=0.0, metavar="HOURS", help="train fewer epochs, if needed, to end in HOURS"
    )
    group.add_argument(
        "--batch-size", type=int, default=16,
        help="images per batch, over all GPUs; -1 fills the GPU (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--imgsz",
        "--img",
        "--img-size",
        type=cli.whole(1),
        default=640,
        help="longer side of the images in pixels (default: %(default)s)",
    )
    group.add_argument("--multi-scale", action="store_true", help="change the image size by up to half, every batch")
    group.add_argument("--rect", action="store_true", help="batch images of similar shape; no mosaic, no shuffling")
    group.add_argument("--quad", action="store_true", help="join every four images into one of twice the side")
    group.add_argument(
        "--patience",
        type=cli.whole(0),
        default=100,
        help="stop after this many epochs without improvement; 0: never (default: %(default)s)",
    )


def _add_recipe(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--optimizer", choices=("SGD", "Adam", "AdamW"), help="optimizer (default: that of --hyp, else SGD)"
    )
    group.add_argument(
        "--cos-lr",
        action=argparse.BooleanOptionalAction,
        help="lower the learning rate along a cosine, not along a line",
    )
    group.add_argument(
        "--label-smoothing", type=cli.real(0, 1, open_high=True), default=0.0, help="label smoothing, from 0 to below 1"
    )
    group.add_argument("--image-weights", action="store_true", help="use images of classes with a low mAP more often")
    group.add_argument(
        "--close-mosaic", type=cli.whole(0), default=0, metavar="N", help="no mosaic in the last N epochs"
    )
    group.add_argument("--noautoanchor", action="store_true", help="keep the anchors of the model")
    group.add_argument("--seed", type=cli.whole(0), default=0, help="seed of all random numbers")
    group.add_argument(
        "--evolve",
        nargs="?",
        type=cli.whole(1),
        const=300,
        metavar="N",
        help="search for hyper-parameters: train N times, 300 if no number is given",
    )
    group.add_argument(
        "--evolve-storage", default="", metavar="URL", help="Optuna database, through which machines share a search"
    )


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", default="", help="cpu, or a GPU number such as 0 (default: the first GPU, else cpu)")
    group.add_argument("--amp", choices=("auto", "fp16", "bf16", "off"), default="auto", help="mixed precision")
    group.add_argument("--compile", action="store_true", help="compile the model with torch.compile")
    group.add_argument("--sync-bn", action="store_true", help="batch norm over all GPUs of a torchrun launch")
    group.add_argument(
        "--workers", type=cli.whole(0), default=8, help="maximum number of processes that read images, per GPU"
    )
    group.add_argument(
        "--cache",
        nargs="?",
        const="ram",
        default="auto",
        choices=("auto", "ram", "disk", "val", "off"),
        help="where decoded images are kept: ram; disk, the cache folder; val, the images of val alone in memory; off; "
        "auto, in memory if they take at most half of what is free (default: %(default)s)",
    )
    group.add_argument(
        "--share-decoding",
        action="store_true",
        help="make mosaics from the images of four batches, so that a file that is not cached is read once, not four "
        "times",
    )
    group.add_argument("--strict", action="store_true", help="stop at a broken image or label, instead of skipping it")
    group.add_argument("--rehash", action="store_true", help="check all images and labels again, even unchanged ones")
    group.add_argument("--local_rank", "--local-rank", type=int, default=-1, help="ignored; for old launchers")


def _add_records(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--noval", action="store_true", help="validate after the last epoch only")
    group.add_argument("--nosave", action="store_true", help="save after the last epoch only")
    group.add_argument(
        "--save-period", type=int, default=-1, metavar="N", help="keep a checkpoint every N epochs; below 1: none"
    )
    add_latex(group)
    # torchrun takes `--log` for a shortened option of its own, hence the second name
    group.add_argument("--log", "--loggers", default="", help="also log to these: tensorboard,wandb,mlflow")
    for flag in UNUSED:
        group.add_argument(flag, nargs="?", const=True, help="ignored; for commands of v6.1")
    group.add_argument("--entity", help="account or team at W&B (default: WANDB_ENTITY of the environment)")


def parse_opt(known: bool = False, argv: list[str] | None = None) -> cli.Options:
    """Reads the command line, or the words in argv; with `known` it returns the defaults."""
    return cli.parse(make_parser(), known, argv)


def check_options(opt: cli.Options) -> None:
    """Raises ValueError for options that are wrong by themselves, before any file is read."""
    from utils.training.loggers import parse_loggers

    cli.check(make_parser(), opt)
    if opt.batch_size < 1 and opt.batch_size != -1:
        raise ValueError(f"--batch-size must be at least 1, or -1 to fill the GPU, got {opt.batch_size}")
    parse_loggers(opt.log)
    if opt.evolve is not None:
        cli.require("optuna", "--evolve")
    if opt.image_weights and opt.rect:
        raise ValueError("--image-weights draws images in any order, --rect orders them by shape; give only one")
    if "," in opt.device and dist.rank() < 0:
        number = opt.device.count(",") + 1
        raise ValueError(
            f"--device {opt.device}: one process trains on one GPU. To train on several: "
            f"torchrun --nproc-per-node {number} train.py --device {opt.device} ..."
        )
    if dist.rank() >= 0:
        alone = [flag for flag, on in (("--image-weights", opt.image_weights), ("--evolve", opt.evolve)) if on]
        alone += ["--batch-size -1"] * (opt.batch_size == -1)
        if alone:
            raise ValueError(f"{', '.join(alone)} works in one process only, not under torchrun")


def main(opt: argparse.Namespace) -> "Measurement | dict[str, float]":
    """Trains as the options of `parse_opt` say; see `run` for what it returns."""
    from engine.run import resumed_run
    from utils.log import LOGGER

    parser = make_parser()
    opt = cli.accept(parser, opt)
    LOGGER.info(cli.describe("train", opt))
    if unused := [flag for flag in UNUSED if flag[2:] in opt.given]:
        LOGGER.warning(f"{', '.join(unused)}: ignored, W&B gets neither data sets nor boxes")
    user_blocks.use(opt.blocks)
    if opt.resume and opt.evolve is None:
        with resumed_run(opt, parser) as (opt, resumed):
            return _train(opt, resumed)
    return _train(opt)


def _train(opt: cli.Options, resumed: dict | None = None) -> "Measurement | dict[str, float]":
    """Trains, or searches for hyper-parameters; resumed: content of the last.pt to resume from."""
    from engine.setup import load_recipe
    from engine.training import evolve, train
    from utils.device import select_device
    from utils.log import LOGGER

    check_options(opt)
    hyp = resumed["training"]["hyp"] if resumed and "hyp" not in opt.given else load_recipe(opt)
    device = select_device(opt.device, opt.batch_size)
    if opt.evolve is not None:
        with cli.stopped_by_signals():
            return evolve(hyp, opt, device)
    if opt.sync_bn and dist.rank() < 0:
        LOGGER.warning("--sync-bn is ignored: it needs several processes, and there is only this one")
    elif opt.sync_bn and device.type != "cuda":
        raise ValueError(f"--sync-bn works on CUDA GPUs only, but training runs on {device.type}; leave it out")
    group = dist.Group("nccl" if device.type == "cuda" else "gloo") if dist.rank() >= 0 else None
    with cli.stopped_by_signals():
        results = train(hyp, opt, device, resumed=resumed, group=group)
    if group:
        group.close()
    return results


@cli.takes(make_parser)
def run(**options) -> "Measurement | dict[str, float]":
    """Trains with these options, the others at their defaults: `run(cfg="models/SOCA.yaml", epochs=10)`.

    Returns what the best checkpoint reaches on the val split: a named tuple of precision, recall, mAP50, mAP50-95, and
    box, objectness and class loss. With `evolve` it returns the best hyper-parameters.
    """
    return main(cli.options(make_parser(), options))


if __name__ == "__main__":
    cli.run(main, parse_opt, "train")
