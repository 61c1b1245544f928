"""Measures a trained detector on a labelled data set.

    python val.py --weights runs/train/exp/weights/best.pt --data data/shapes.yaml --img 640

    python val.py --weights best.pt --data data/shapes.yaml --metrics coco --report sizes errors

Curves, the confusion matrix and sample images go to runs/val/exp. `--task speed` measures time instead of accuracy;
`--task study` measures both at image sizes from 256 to 1536 pixels.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli, user_blocks
from utils.data.options import add_fix_labels
from utils.evaluation.numbers import add_latex
from utils.runtimes.trust import add_trust

if TYPE_CHECKING:
    from engine.validation import Results


def make_parser() -> argparse.ArgumentParser:
    """States every option of val.py once: name, type, range, default and help."""
    parser = argparse.ArgumentParser(description="Measure a trained detector on a labelled data set.")
    parser.add_argument("--data", default=cli.DATA, help=cli.DATA_HELP)
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[cli.WEIGHTS],
        help=".pt file, or a file that export.py wrote; several .pt files make an ensemble",
    )
    cli.add_download(parser)
    parser.add_argument("--batch-size", type=cli.whole(1), default=32, help="images per batch (default: %(default)s)")
    parser.add_argument(
        "--imgsz",
        "--img",
        "--img-size",
        type=int,
        default=640,
        help="longer image side in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--conf-thres", type=cli.real(0, 1), default=0.001, help="minimum confidence (default: %(default)s)"
    )
    parser.add_argument(
        "--iou-thres", type=cli.real(0, 1), default=0.6,
        help="NMS drops a box that overlaps a more confident one by more than this IoU (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--task", default="val", choices=("train", "val", "test", "speed", "study", "benchmark"),
        help="train, val, test: the split to measure (default: val). speed: the time per image of each weights file. "
        "study: accuracy and time at image sizes from 256 to 1536 pixels, as text files and a chart in the current "
        "folder. benchmark: the val split in square images",
    )  # fmt: skip
    parser.add_argument("--device", default="", help="cpu, or a GPU number such as 0 (default: a GPU if there is one)")
    parser.add_argument(
        "--workers",
        type=cli.whole(0),
        default=8,
        help="maximum number of processes that read images (default: %(default)s)",
    )
    parser.add_argument(
        "--pad", type=cli.real(0, 16), default=0.5, metavar="STRIDES",
        help="grey around the frame of a batch, in strides of the network: 0.5 as in v6.1, 0 as in detect.py "
        "(default: %(default)s)",
    )  # fmt: skip
    add_fix_labels(parser)
    parser.add_argument("--single-cls", action="store_true", help="count all objects as one class")
    parser.add_argument("--augment", action="store_true", help="test-time augmentation: three sizes, one mirrored")
    parser.add_argument("--verbose", action="store_true", help="print a row per class, also for 50 classes or more")
    parser.add_argument("--half", action="store_true", help="use float16 (half precision), on CUDA only")
    parser.add_argument("--dnn", action="store_true", help="run an ONNX file with OpenCV")
    add_trust(parser)
    user_blocks.add(parser)
    _add_results(parser.add_argument_group("what is written"))
    _add_metrics(parser.add_argument_group("metrics and reports"))
    cli.add_run_folder(parser, "runs/val")
    return parser


def _add_results(group) -> None:
    group.add_argument("--save-txt", action="store_true", help="write the detections as label files")
    group.add_argument("--save-hybrid", action="store_true", help="write labels and detections together as label files")
    group.add_argument("--save-conf", action="store_true", help="add the confidence to the label files")
    group.add_argument("--save-json", action="store_true", help="write the detections as COCO JSON")
    add_latex(group)


def _add_metrics(group) -> None:
    group.add_argument(
        "--metrics", default="v6.1", choices=("v6.1", "coco"),
        help="which mAP: that of YOLOv5 v6.1, or COCO's, which needs a package: pip install faster-coco-eval "
        "(default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--report", nargs="+", default=[], choices=("sizes", "errors", "page"),
        help="sizes: metrics of small, medium and large objects. errors: how much mAP each kind of error costs, and "
        "drawings of the images with the most errors. page: report.html, all of the run on one page",
    )  # fmt: skip
    group.add_argument(
        "--report-images",
        type=cli.whole(0),
        default=12,
        metavar="N",
        help="number of images that --report errors draws (default: %(default)s)",
    )
    group.add_argument(
        "--matrix", default="full", choices=("full", "v6.1"),
        help="full: the confusion matrix counts all images. v6.1: as in YOLOv5 v6.1, it leaves out images without "
        "detections, and false positives in images where no detection matches an object "
        "(default: %(default)s)",
    )  # fmt: skip


def parse_opt(known: bool = False) -> cli.Options:
    """Returns the options of the command line; with `known` the defaults alone."""
    return cli.parse(make_parser(), known)


def _python_parser() -> argparse.ArgumentParser:
    """Returns the parser for Python calls. As in v6.1 the one difference is that half precision is the default."""
    parser = make_parser()
    parser.set_defaults(half=True)
    return parser


@cli.takes(_python_parser, "data", "weights", "batch_size", "imgsz")
def run(
    model=None, dataloader=None, save_dir=Path(""), plots=True, callbacks=None, compute_loss=None, **options
) -> "Results":
    """Measures a detector, as the command line does; half precision, on CUDA only, is the default here.

    model:        a detector in training; it is left in eval mode. Then `data` is the mapping that `load_dataset_yaml`
                  returns, `dataloader` gives the batches, and results go to `save_dir`.
    plots:        whether metrics.json, per_class.csv, curves, the confusion matrix and sample images are written.
    callbacks:    an object whose `run(name, *arguments)` is called with v6.1's on_val_start, on_val_image_end,
                  on_val_batch_end and on_val_end.
    compute_loss: (raw, targets) -> (total, items).
    task:         speed, study and benchmark each measure the val split once.

    Returns a named tuple that unpacks as v6.1's result: (P, R, mAP50, mAP50-95, box loss, objectness loss, class loss),
    mAP50-95 per class (nc,), and milliseconds per image of pre-processing, inference and NMS.

    Raises TypeError for an unknown option and ValueError for a value that is not allowed, before anything is written.
    """
    from engine import validation

    return validation.validate(
        cli.options(_python_parser(), options), model, dataloader, Path(save_dir), plots, callbacks, compute_loss
    )


def main(opt: cli.Options) -> None:
    """Runs the command line."""
    from engine import validation
    from utils.log import LOGGER

    LOGGER.info(cli.describe("val", opt))
    tasks = {"speed": validation.measure_speed, "study": validation.study}
    tasks.get(opt.task, validation.validate)(opt)


if __name__ == "__main__":
    cli.run(main, parse_opt, "val")
