"""Writes a trained detector in the formats of other toolchains, and verifies each file before it is kept.

    python export.py --weights runs/train/exp/weights/best.pt --include onnx openvino --imgsz 640

The files are written beside the weights. Each is opened, run on images and compared with PyTorch; a file that differs
is an error.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli, user_blocks
from utils.export.formats import BY_ARGUMENT, OPSETS, export_formats

if TYPE_CHECKING:
    import torch

__all__ = ("export_formats", "export_onnx", "export_openvino", "export_torchscript", "main", "parse_opt", "run")
INCLUDE = ("torchscript", "onnx")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser, which states every option once: name, type, range, default, help."""
    parser = argparse.ArgumentParser(
        description="Write a trained detector in the formats of other toolchains, and verify each file.",
        epilog="Not every format takes every option; one that a format ignores is reported before any file is written.",
    )
    parser.add_argument("--weights", nargs="+", default=[cli.WEIGHTS], help=".pt files; each is exported")
    user_blocks.add(parser)
    parser.add_argument("--download", action="store_true", help="download official weights that are missing")
    parser.add_argument(
        "--include",
        nargs="+",
        default=list(INCLUDE),
        help=f"formats: {', '.join(BY_ARGUMENT)}; or all, for every format that can be written on this machine "
        f"(default: {' '.join(INCLUDE)})",
    )
    parser.add_argument(
        "--make-env",
        action="store_true",
        help="install toolchains whose packages contradict torch's (for TensorFlow's formats) into separate "
        "environments, in $YOLOV5_ENVIRONMENTS or the user's cache folder; the packages here are not changed",
    )
    parser.add_argument(
        "--data",
        default=cli.DATA,
        help="data set YAML: its train images calibrate --int8, its val images verify the files (default: the images "
        "in data/images verify them)",
    )
    _add_network(parser.add_argument_group("the network"))
    _add_formats(parser.add_argument_group("options for one format"))
    _add_suppression(parser.add_argument_group("non-maximum suppression (NMS) inside the file"))
    return parser


def _add_network(group) -> None:
    group.add_argument(
        "--imgsz", "--img", "--img-size", type=cli.whole(1), nargs="+", default=[640, 640],
        help="image size in pixels: one number, or height and width (default: 640)",
    )  # fmt: skip
    group.add_argument("--batch-size", type=cli.whole(1), default=1, help="images per call (default: %(default)s)")
    group.add_argument("--dynamic", action="store_true", help="let the file take any image size and batch size")
    group.add_argument("--half", action="store_true", help="float16 weights; SOCA stays in float32")
    group.add_argument("--int8", action="store_true", help="8-bit integers, calibrated on the images of --data")
    group.add_argument("--train", action="store_true", help="in training mode: the outputs are the raw maps per level")
    group.add_argument("--inplace", action="store_true", help="accepted for v6.1's sake; has no effect")
    group.add_argument("--device", default="cpu", help="cpu, or a GPU number such as 0 (default: %(default)s)")


def _add_formats(group) -> None:
    group.add_argument("--optimize", action="store_true", help="TorchScript: freeze the weights as constants")
    group.add_argument(
        "--opset", type=cli.whole(*OPSETS), default=12, help="ONNX: operator set version (default: %(default)s)"
    )
    group.add_argument(
        "--simplify", action=argparse.BooleanOptionalAction, default=True,
        help="ONNX: compute constants once and simplify the graph, with onnxslim where that is installed (default: "
        "%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--workspace", type=cli.whole(1), default=4, help="TensorRT: maximum memory in GiB (default: %(default)s)"
    )
    group.add_argument("--verbose", action="store_true", help="TensorRT: show its log")


def _add_suppression(group) -> None:
    group.add_argument("--nms", action="store_true", help="the outputs are the boxes, scores and classes after NMS")
    group.add_argument(
        "--agnostic-nms", action="store_true", help="as --nms, but boxes of different classes suppress each other too"
    )
    group.add_argument(
        "--topk-per-class", type=cli.whole(1), default=100, help="maximum boxes per class (default: %(default)s)"
    )
    group.add_argument(
        "--topk-all", type=cli.whole(1), default=100, help="maximum boxes per image (default: %(default)s)"
    )
    group.add_argument(
        "--iou-thres", type=cli.real(0, 1), default=0.45,
        help="IoU above which the box with the lower score is removed (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--conf-thres", type=cli.real(0, 1), default=0.25, help="minimum confidence (default: %(default)s)"
    )


def parse_opt(known: bool = False) -> cli.Options:
    """Parses the command line; with `known` it returns the defaults."""
    return cli.parse(make_parser(), known)


@cli.takes(make_parser, "data", "weights")
def run(**options) -> list[str]:
    """Exports each of the weights, as the command line does.

    Returns the paths of the files and folders, for each of the weights in v6.1's order: torchscript, engine, onnx ...

    Raises ValueError for options that contradict each other or this machine, before any file is written; ExportError,
    also a ValueError, at the end where a format failed, after the others are done.
    """
    return _run(cli.options(make_parser(), options))


def _run(opt: cli.Options) -> list[str]:
    check_options(opt)
    from models.backend import find_weights, load_model
    from utils.device import select_device
    from utils.export.exporter import export_all, prepare
    from utils.export.formats import choose_formats, make_environments

    if opt.make_env:
        make_environments(opt.include)
    asked = {name: getattr(opt, name) for name in ("batch_size", "half", "int8", "nms", "train", "dynamic")}
    formats = choose_formats(opt.include, calibrated=opt.data is not None, **asked)
    user_blocks.use(opt.blocks)
    device = select_device(opt.device)
    files = [find_weights(weights, opt.download) for weights in opt.weights]
    jobs = [prepare(load_model(file, device), file, opt, device) for file in files]
    return [str(path) for path in export_all(jobs, formats)]


# --- calls of v6.1 for one format: `model` in float32 and eval mode, `im` (B, C, H, W) of the size to export --


def export_torchscript(
    model: "torch.nn.Module", im: "torch.Tensor", file: str | Path, optimize: bool = False, prefix: str = ""
) -> str:
    """Writes TorchScript beside `file` and verifies it; returns the path."""
    return _export_one("torchscript", model, im, file, optimize=optimize)


def export_onnx(
    model: "torch.nn.Module", im: "torch.Tensor", file: str | Path, opset: int = 12, train: bool = False,
    dynamic: bool = False, simplify: bool = False, prefix: str = "",
) -> str:  # fmt: skip
    """Writes ONNX beside `file` and verifies it; returns the path."""
    return _export_one("onnx", model, im, file, opset=opset, train=train, dynamic=dynamic, simplify=simplify)


def export_openvino(model: "torch.nn.Module", im: "torch.Tensor", file: str | Path, prefix: str = "") -> str:
    """Writes OpenVINO's folder beside `file` and verifies it; returns the path."""
    return _export_one("openvino", model, im, file)


def _export_one(include: str, model: "torch.nn.Module", im: "torch.Tensor", file: str | Path, **options: Any) -> str:
    given = {"imgsz": list(im.shape[2:]), "batch_size": len(im), "include": [include], "device": str(im.device)}
    opt = cli.options(make_parser(), given | options)
    check_options(opt)
    from utils.export.exporter import export_all, prepare

    return str(export_all([prepare(model, Path(file), opt, im.device)], [BY_ARGUMENT[include]])[0])


def check_options(opt: cli.Options) -> None:
    """Checks options against each other and completes them: imgsz becomes [height, width], data None where not given.

    Raises ValueError for options that contradict each other.
    """
    opt.imgsz = cli.frame_sides(opt.imgsz)
    opt.nms = opt.nms or opt.agnostic_nms
    opt.data = opt.data if "data" in opt.given else None
    if opt.int8 and not opt.data:
        raise ValueError("--int8 is calibrated on your images: give their data set with --data")
    if opt.train and (opt.nms or opt.int8):
        raise ValueError("--train exports raw maps: leave out --nms, --agnostic-nms and --int8")
    if opt.half and opt.int8:
        raise ValueError("--half and --int8 are two precisions: give one of them")
    if opt.simplify and "simplify" in opt.given:
        cli.require("onnxslim", "--simplify")


def main(opt: cli.Options) -> None:
    """Runs the command line."""
    from utils.log import LOGGER

    LOGGER.info(cli.describe("export", opt))
    _run(opt)


if __name__ == "__main__":
    cli.run(main, parse_opt, "export")
