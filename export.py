"""Write a trained detector in the formats of other toolchains, and prove each file before it counts.

    python export.py --weights runs/train/exp/weights/best.pt --include onnx openvino --imgsz 640

Files lie beside the weights. Each is opened, run on pictures and compared with PyTorch; one that differs is an error.
"""

import argparse
from pathlib import Path

from utils import cli
from utils.export.formats import BY_ARGUMENT, FORMATS, ExportError, Format, Options, Suppression  # nothing heavy
from utils.runtimes.environments import ENVIRONMENTS

INCLUDE = ("torchscript", "onnx")
DATA = cli.Default(cli.DATA)  # where the user gave none


def parse_opt(known: bool = False) -> argparse.Namespace:
    """The command line; with `known` its defaults."""
    parser = argparse.ArgumentParser(
        description="Write a trained detector in the formats of other toolchains, and prove each file."
    )
    parser.add_argument("--weights", nargs="+", default=cli.WEIGHTS, help=".pt file; of several each is exported")
    parser.add_argument("--download", action="store_true", help="fetch official weights that are not there")
    parser.add_argument(
        "--include",
        nargs="+",
        default=list(INCLUDE),
        help=f"formats: {' '.join(BY_ARGUMENT)}; or all, which are those that can be written here "
        f"(default: {' '.join(INCLUDE)})",
    )
    parser.add_argument(
        "--make-env",
        action="store_true",
        help="make environments for toolchains whose packages contradict torch's (TensorFlow's formats), in "
        "$YOLOV5_ENVIRONMENTS or the user's cache folder; these packages are not touched",
    )
    parser.add_argument(
        "--data",
        default=DATA,
        help="data set YAML: --int8 is calibrated on its train images, and files are proven on its val images",
    )
    _add_network(parser.add_argument_group("the network in the file"))
    _add_formats(parser.add_argument_group("of single formats"))
    _add_suppression(parser.add_argument_group("suppression in the file"))
    return cli.parse(parser, known)


def _add_network(group) -> None:
    group.add_argument("--imgsz", "--img", "--img-size", type=int, nargs="+", default=[640, 640], help="height, width")
    group.add_argument("--batch-size", type=int, default=1, help="images at a time (default: %(default)s)")
    group.add_argument("--dynamic", action="store_true", help="any frame and number of images")
    group.add_argument("--half", action="store_true", help="float16, but for SOCA inside, which stays in float32")
    group.add_argument("--int8", action="store_true", help="8-bit integers, calibrated on --data")
    group.add_argument("--train", action="store_true", help="in training mode: the raw maps of all levels")
    group.add_argument("--inplace", action="store_true", help="accepted and without effect: Detect copies nothing")
    group.add_argument("--device", default="cpu", help="cpu, or a GPU number such as 0 (default: %(default)s)")


def _add_formats(group) -> None:
    group.add_argument("--optimize", action="store_true", help="TorchScript: weights as constants, for inference only")
    group.add_argument("--opset", type=int, default=12, help="ONNX: version of its operators (default: %(default)s)")
    group.add_argument("--simplify", action="store_true", help="ONNX: by onnxslim")
    group.add_argument("--workspace", type=int, default=4, help="TensorRT: most memory, GiB (default: %(default)s)")
    group.add_argument("--verbose", action="store_true", help="TensorRT: its log")


def _add_suppression(group) -> None:
    group.add_argument("--nms", action="store_true", help="the file gives boxes, scores and classes after suppression")
    group.add_argument("--agnostic-nms", action="store_true", help="so, and classes suppress each other")
    group.add_argument("--topk-per-class", type=int, default=100, help="most boxes of a class (default: %(default)s)")
    group.add_argument("--topk-all", type=int, default=100, help="most boxes of an image (default: %(default)s)")
    group.add_argument("--iou-thres", type=float, default=0.45, help="overlap at which the weaker box is dropped")
    group.add_argument("--conf-thres", type=float, default=0.25, help="lowest confidence (default: %(default)s)")


OPTIONS = parse_opt() if __name__ == "__main__" else None  # answers --help before torch is imported

import tempfile  # noqa: E402
from dataclasses import replace  # noqa: E402

from models.backend import find_weights, load_model  # noqa: E402
from models.experimental import Ensemble  # noqa: E402
from utils.boxes import check_image_size  # noqa: E402
from utils.device import select_device  # noqa: E402
from utils.export.exporter import Job, export  # noqa: E402
from utils.export.pictures import proof_batches  # noqa: E402
from utils.log import LOGGER  # noqa: E402
from utils.runtimes.base import Metadata  # noqa: E402
from utils.runtimes.table import runtime_for  # noqa: E402


def run(
    data=DATA, weights=cli.WEIGHTS, imgsz=(640, 640), batch_size=1, device="cpu", include=INCLUDE,
    half=False, inplace=False, train=False, optimize=False, int8=False, dynamic=False, simplify=False, opset=12,
    verbose=False, workspace=4, nms=False, agnostic_nms=False, topk_per_class=100, topk_all=100, iou_thres=0.45,
    conf_thres=0.25, *, download=False, make_env=False,
) -> list[str]:  # fmt: skip
    """Exports each of the weights, as the command line does.

    Returns the paths of the files and folders, of each weights in v6.1's order: torchscript, engine, onnx, openvino ...

    Raises ValueError for options that cannot be, before anything is written; ExportError, also a ValueError, at the end
    where a format failed, after the others are done.
    """
    sides = _check_options(imgsz, batch_size, opset, workspace, topk_per_class, topk_all, iou_thres, conf_thres)
    if simplify:
        cli.require("onnxslim", "--simplify")
    nms = nms or agnostic_nms
    data = None if isinstance(data, cli.Default) else data
    if make_env:
        make_environments(include)
    formats = choose_formats(include, data, batch_size, half=half, int8=int8, nms=nms, train=train, dynamic=dynamic)
    device = select_device(device)
    options = Options(
        Metadata(("",)), device, half, int8, dynamic, train, optimize, simplify, opset, verbose, workspace,
        Suppression(conf_thres, iou_thres, agnostic_nms, topk_per_class, topk_all) if nms else None, data,
    )  # fmt: skip
    files = [find_weights(w, download) for w in (weights if isinstance(weights, list | tuple) else [weights])]
    jobs = [_prepare(file, sides, batch_size, options) for file in files]
    made, failures = [], []
    with cli.stopped_by_signals():
        for job in jobs:
            with tempfile.TemporaryDirectory(prefix="export-") as work:
                for kind in formats:
                    try:
                        made.append(export(job, kind, Path(work)))
                    except ExportError as error:
                        LOGGER.warning(f"{kind.name}: {error}")
                        failures.append(f"{kind.name}: {error}")
                    else:
                        LOGGER.info(f"{kind.name}: {made[-1]}, {megabytes(made[-1]):.1f} MB")
    if failures:
        raise ExportError("; ".join(failures))
    if usable := [path for path in made if not runtime_for(path).obstacle()]:
        LOGGER.info(f"try one: python detect.py --weights {usable[-1]}")
    return [str(path) for path in made]


def choose_formats(include, data: str | None, batch_size: int = 1, **asked: bool) -> list[Format]:
    """The formats that --include names, in the order of work; `all` are those that can be written here.

    data: the data set that the user gave.
    batch_size: images at a time.
    asked: of half, int8, nms, train and dynamic, which were asked for.

    Raises ValueError for a word that is no format, for one that cannot be written here, and for options that none of
    them honours.
    """
    words = _words(include)
    if asked["int8"] and not data:
        raise ValueError("--int8 is calibrated on pictures of yours: give --data")
    if asked["train"] and (asked["nms"] or asked["int8"]):
        raise ValueError("--train gives raw maps: leave out --nms, --agnostic-nms and --int8")
    if asked["half"] and asked["int8"]:
        raise ValueError("--half and --int8 are two precisions: give one of them")
    obstacles = {
        f.argument: f.obstacle(asked["int8"] and f.int8, asked["train"], batch_size, bool(data)) for f in FORMATS
    }
    obstacles = {argument: reason for argument, reason in obstacles.items() if reason}
    if "all" in words:
        for argument, reason in obstacles.items():
            LOGGER.warning(f"--include all leaves out {argument}, which {reason}")
        words += [f.argument for f in FORMATS if f.argument not in obstacles]
    formats = [f for f in FORMATS if f.argument in words]
    for kind in formats:
        if reason := obstacles.get(kind.argument):
            raise ValueError(f"--include {kind.argument}: {kind.name} {reason}")
    for option in ("half", "int8", "nms", "dynamic"):
        deaf = [f.argument for f in formats if not getattr(f, option)]
        if asked[option] and len(deaf) == len(formats):
            raise ValueError(f"--{option} has no effect on {', '.join(deaf)}; leave it out")
        if asked[option] and deaf:
            LOGGER.warning(f"--{option} has no effect on {', '.join(deaf)}")
    first = {"torchscript": 0, "engine": 1}  # as v6.1
    return sorted(formats, key=lambda f: first.get(f.argument, 2))


def make_environments(include) -> None:
    """Makes the environments of their own that the formats take; ValueError where an installer fails."""
    words = _words(include)
    wanted = [name for f in FORMATS if {f.argument, "all"} & set(words) for name in f.environments]
    for name in dict.fromkeys(wanted):
        try:
            ENVIRONMENTS[name].make()
        except (RuntimeError, OSError) as error:
            raise ValueError(f"--make-env: {name} in {ENVIRONMENTS[name].folder}: {error}") from None


def _words(include) -> list[str]:
    words = [str(word).lower() for word in ([include] if isinstance(include, str) else include)]
    if unknown := [word for word in words if word not in BY_ARGUMENT and word != "all"]:
        raise ValueError(f"--include: no such format: {', '.join(unknown)}; known: all, {', '.join(BY_ARGUMENT)}")
    return words


def _check_options(imgsz, batch_size, opset, workspace, topk_per_class, topk_all, iou_thres, conf_thres) -> list[int]:
    """Height and width; ValueError for a number that makes no sense."""
    from utils.export.onnx_file import OPSETS

    sides = cli.frame_sides(imgsz)
    cli.check_range("--imgsz", min(sides), 1)
    cli.check_range("--batch-size", batch_size, 1)
    cli.check_range("--opset", opset, *OPSETS)
    cli.check_range("--workspace", workspace, 1)
    cli.check_range("--topk-per-class", topk_per_class, 1)
    cli.check_range("--topk-all", topk_all, 1)
    cli.check_range("--iou-thres", iou_thres, 0, 1)
    cli.check_range("--conf-thres", conf_thres, 0, 1)
    return sides


def _prepare(file: Path, sides: list[int], batch_size: int, options: Options) -> Job:
    """Loads weights, and pictures to prove their exports on."""
    detector = load_model(file, options.device)
    assert not isinstance(detector, Ensemble)
    nc = detector.model[-1].nc
    if nc != len(detector.names):
        raise ValueError(f"{file}: it has {nc} classes, but names {len(detector.names)}")
    stride = detector.image_multiple
    size = tuple(check_image_size(sides, stride))
    nms = options.nms
    metadata = Metadata(
        tuple(map(str, detector.names)), stride, size, batch_size, detector.yaml.get("ch", 3), options.dynamic,
        nms is not None, options.train, options.half, options.int8,
        *((nms.conf_thres, nms.iou_thres) if nms else ()),
    )  # fmt: skip
    pictures = proof_batches(metadata, options.data)
    return Job(detector, file, replace(options, metadata=metadata), pictures)


def megabytes(path: Path) -> float:
    """Size of a file, or of all files in a folder, in 1e6 bytes."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files) / 1e6


def main(opt: argparse.Namespace) -> None:
    """The command line."""
    LOGGER.info(cli.describe("export", opt))
    run(**vars(opt))


if __name__ == "__main__":
    cli.run(main, OPTIONS, "export")
