"""Detects objects in images, videos and streams.

    python detect.py --weights runs/train/exp/weights/best.pt --source photos/

Images and videos with boxes drawn on them go to runs/detect/exp.
"""

import argparse
from pathlib import Path

from utils import cli, user_blocks
from utils.runtimes.trust import add_trust


def make_parser() -> argparse.ArgumentParser:
    """States every option of detect.py once: name, type, range, default and help."""
    parser = argparse.ArgumentParser(
        description="Detect objects in images, videos and streams. Each result has the name of its file; where two "
        "files share a name, the name of the folder comes first: cam1_7.jpg."
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[cli.WEIGHTS],
        help=".pt file, or a file that export.py wrote; several .pt files make an ensemble",
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch official weights, and the file of an http address in --source"
    )
    parser.add_argument(
        "--source",
        default="data/images",
        help="image or video file, folder, glob, or .txt list of files; - reads one image from standard input; camera "
        "number, rtsp:// or http:// stream, or .streams list of these; screen, or 'screen x y width height' "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--data", default=cli.DATA, help="data set YAML with the class names, for weights that do not hold them"
    )
    _add_detection(parser.add_argument_group("what is detected"))
    _add_reading(parser.add_argument_group("reading and showing"))
    _add_results(parser.add_argument_group("what is written"))
    cli.add_run_folder(parser, "runs/detect")
    parser.add_argument(
        "--resume",
        metavar="FOLDER",
        help="continue the unfinished run in this folder, with the options it was begun with. If there is no such "
        "folder, begin a run in it; the same command then resumes it. Processes that torchrun starts share the files "
        "of one run",
    )
    return parser


def _add_detection(group) -> None:
    group.add_argument(
        "--imgsz", "--img", "--img-size", type=int, nargs="+", default=[640],
        help="image size in pixels: one number, or height and width (default: 640)",
    )  # fmt: skip
    group.add_argument(
        "--conf-thres", type=cli.real(0, 1), default=0.25, help="minimum confidence (default: %(default)s)"
    )
    group.add_argument(
        "--iou-thres", type=cli.real(0, 1), default=0.45,
        help="NMS drops a box that overlaps a more confident one by more than this IoU (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-det",
        type=cli.whole(1),
        default=1000,
        help="maximum number of detections per image (default: %(default)s)",
    )
    group.add_argument(
        "--device", default="", help="cpu, cuda, or a GPU number such as 0 (default: a GPU if there is one)"
    )
    group.add_argument(
        "--classes",
        nargs="+",
        type=cli.number_or_text,
        help="detect only these classes, by number or name: 0, or 0 dog",
    )
    group.add_argument(
        "--agnostic-nms", action="store_true", help="class-agnostic NMS: a box also suppresses boxes of other classes"
    )
    group.add_argument("--augment", action="store_true", help="test-time augmentation: three sizes, one mirrored")
    group.add_argument("--half", action="store_true", help="use float16 (half precision), on CUDA only")
    group.add_argument("--dnn", action="store_true", help="run an ONNX file with OpenCV")
    add_trust(group)
    user_blocks.add(group)
    group.add_argument(
        "--tile",
        nargs="?",
        type=cli.real(0, 0.9),
        const=0.25,
        metavar="OVERLAP",
        help="for small objects in large images: detect also in tiles of --imgsz at full resolution. OVERLAP is the "
        "part of a tile that it shares with the next; make it at least as large as an object (without a number: "
        "%(const)s)",
    )
    group.add_argument(
        "--track",
        action="store_true",
        help="give each object of a video a number that it keeps (ByteTrack, needs the package trackers); it is the "
        "last column of the label files. Images count as the frames of one video",
    )


def _add_reading(group) -> None:
    group.add_argument(
        "--batch-size", type=cli.whole(1), default=1, help="images or frames per batch (default: %(default)s)"
    )
    group.add_argument(
        "--vid-stride", type=cli.whole(1), default=1, metavar="N", help="read every N-th frame of a video or stream"
    )
    group.add_argument("--view-img", action="store_true", help="show results in a window (always for streams); q ends")
    group.add_argument(
        "--line-thickness",
        type=cli.whole(0),
        help="line width of boxes in pixels (default: 3; more where image and objects are large, less in small images)",
    )
    group.add_argument("--hide-labels", action="store_true", help="draw boxes without text")
    group.add_argument("--hide-conf", action="store_true", help="draw class names without confidence")


def _add_results(group) -> None:
    group.add_argument("--save-txt", action="store_true", help="write a label file per image")
    group.add_argument("--save-conf", action="store_true", help="add the confidence to the label files")
    group.add_argument("--save-crop", action="store_true", help="write the image inside each box as a file of its own")
    group.add_argument(
        "--save-json", action="store_true", help="write all detections to predictions.json, as COCO does"
    )
    group.add_argument("--save-csv", action="store_true", help="write all detections to predictions.csv")
    group.add_argument(
        "--report", action="store_true", help="write report.html: classes, counts and images of the run on one page"
    )
    group.add_argument("--nosave", action="store_true", help="write no images and videos")
    group.add_argument(
        "--visualize", action="store_true", help="write the feature maps of every layer, and the gates of SOCA layers"
    )
    group.add_argument(
        "--update",
        action="store_true",
        help="afterwards remove what only training needs from the .pt files of --weights",
    )


def parse_opt(known: bool = False) -> cli.Options:
    """Returns the options of the command line; with `known` the defaults alone."""
    return cli.parse(make_parser(), known)


@cli.takes(make_parser, "weights", "source")
def run(**options) -> Path:
    """Detects objects in what `source` names, as the command line does, and returns the folder of results.

    Raises TypeError for an unknown option and ValueError for a value that is not allowed, before anything is written.
    """
    from engine import detection

    parser = make_parser()
    return detection.detect(cli.options(parser, options), parser)


def main(opt: cli.Options) -> None:
    """Runs the command line."""
    from engine import detection
    from utils.log import LOGGER

    LOGGER.info(cli.describe("detect", opt))
    detection.detect(opt, make_parser())


if __name__ == "__main__":
    cli.run(main, parse_opt, "detect")
