"""Find objects in pictures, videos and streams.

    python detect.py --weights runs/train/exp/weights/best.pt --source photos/

Pictures and videos with boxes go to runs/detect/exp.
"""

import argparse
import sys
from pathlib import Path

from utils import cli


def parse_opt(known: bool = False) -> argparse.Namespace:
    """The command line; with `known` its defaults."""
    naming = "Results are named as their files; where two share a name, it follows their folder's: cam1_7.jpg."
    parser = argparse.ArgumentParser(description=f"Find objects in pictures, videos and streams. {naming}")
    parser.add_argument(
        "--weights",
        nargs="+",
        default=cli.WEIGHTS,
        help=".pt file, or one that export.py wrote; several .pt make an ensemble",
    )
    parser.add_argument("--download", action="store_true", help="fetch official weights, or a file that --source names")
    parser.add_argument(
        "--source",
        default="data/images",
        help="image or video file, folder, glob, .txt list of files; - for an image on standard input; camera number, "
        "rtsp:// or http:// stream, .streams list of these; screen, or 'screen x y width height' "
        "(default: %(default)s)",
    )
    parser.add_argument("--data", default=cli.DATA, help="data set YAML, for class names that the weights lack")
    _add_finding(parser.add_argument_group("what is found"))
    _add_reading(parser.add_argument_group("how it is read and shown"))
    _add_results(parser.add_argument_group("what is written"))
    cli.add_run_folder(parser, "runs/detect")
    parser.add_argument(
        "--resume",
        metavar="FOLDER",
        help="go on with the run in this folder where it was stopped or killed, with the options it was begun with; "
        "where there is no such folder, begin a run there that can be resumed by the same command. Under torchrun, "
        "and where RANK and WORLD_SIZE are set, processes share the files of a run",
    )
    return cli.parse(parser, known)


def _add_finding(group) -> None:
    group.add_argument("--imgsz", "--img", "--img-size", type=int, nargs="+", default=[640], help="height, width")
    group.add_argument("--conf-thres", type=float, default=0.25, help="lowest confidence shown (default: %(default)s)")
    group.add_argument("--iou-thres", type=float, default=0.45, help="overlap at which NMS drops the weaker box")
    group.add_argument("--max-det", type=int, default=1000, help="most boxes in a picture (default: %(default)s)")
    group.add_argument("--device", default="", help="cpu, or a GPU number such as 0 (default: a GPU if there is one)")
    group.add_argument("--classes", nargs="+", type=int, help="numbers of the classes to show, such as 0 or 0 2 3")
    group.add_argument("--agnostic-nms", action="store_true", help="boxes of different classes suppress each other")
    group.add_argument("--augment", action="store_true", help="test-time augmentation: three sizes, one mirrored")
    group.add_argument("--half", action="store_true", help="float16 on CUDA")
    group.add_argument("--dnn", action="store_true", help="run an ONNX file by OpenCV")
    group.add_argument(
        "--tile",
        nargs="?",
        type=float,
        const=0.25,
        help="look also at tiles of --imgsz in full resolution, for small objects in large pictures; the share of a "
        "tile that neighbours overlap, which should be no less than an object (alone: %(const)s)",
    )
    group.add_argument(
        "--track",
        action="store_true",
        help="number each object through a video (ByteTrack; needs the package trackers); the number is the last "
        "column of label files. Pictures are taken for the frames of one video",
    )


def _add_reading(group) -> None:
    group.add_argument("--batch-size", type=int, default=1, help="pictures or frames at once (default: %(default)s)")
    group.add_argument("--vid-stride", type=int, default=1, help="of a video or stream take every n-th frame only")
    group.add_argument("--view-img", action="store_true", help="show results in a window; q ends. Streams always do")
    group.add_argument(
        "--line-thickness",
        type=int,
        help="of boxes, in pixels (default: 3; more in pictures above 1000 pixels, less below 400)",
    )
    group.add_argument("--hide-labels", action="store_true", help="boxes without text")
    group.add_argument("--hide-conf", action="store_true", help="text without confidence")


def _add_results(group) -> None:
    group.add_argument("--save-txt", action="store_true", help="write a label file per picture")
    group.add_argument("--save-conf", action="store_true", help="add the confidence to the label files")
    group.add_argument("--save-crop", action="store_true", help="write every box as a picture of its own")
    group.add_argument("--save-json", action="store_true", help="write all boxes to predictions.json, as COCO has them")
    group.add_argument("--save-csv", action="store_true", help="write all boxes to predictions.csv")
    group.add_argument("--nosave", action="store_true", help="write no pictures and videos")
    group.add_argument(
        "--visualize", action="store_true", help="write what each layer makes of a picture, and the gates of SOCA"
    )
    group.add_argument("--update", action="store_true", help="strip the weights' files of their training state")


OPTIONS = parse_opt() if __name__ == "__main__" else None  # answers --help before torch is imported

import contextlib  # noqa: E402
import inspect  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from typing import Any  # noqa: E402

from models.backend import Backend, find_weights, frame_size  # noqa: E402
from models.yolo import checkpoint_classes  # noqa: E402
from utils import checkpoint, dist  # noqa: E402
from utils.data.letterbox import letterbox  # noqa: E402
from utils.device import select_device  # noqa: E402
from utils.files import increment_path  # noqa: E402
from utils.inference.features import FeatureRecorder  # noqa: E402
from utils.inference.finder import Finder  # noqa: E402
from utils.inference.ledger import Ledger  # noqa: E402
from utils.inference.outputs import summary  # noqa: E402
from utils.inference.results import Results, Wanted, has_display  # noqa: E402
from utils.inference.sources import PICTURE, STREAM, Frame, Source, list_sources, read_batches  # noqa: E402
from utils.inference.tracking import Tracking  # noqa: E402
from utils.log import LOGGER  # noqa: E402

# what a resumed run may do differently from the one it goes on with
FREE = ("source", "download", "device", "batch_size", "view_img", "update", "project", "name", "exist_ok", "resume")


def run(
    weights=cli.WEIGHTS,
    source="data/images",
    data=cli.DATA,
    imgsz=(640, 640),
    conf_thres=0.25,
    iou_thres=0.45,
    max_det=1000,
    device="",
    view_img=False,
    save_txt=False,
    save_conf=False,
    save_crop=False,
    nosave=False,
    classes=None,
    agnostic_nms=False,
    augment=False,
    visualize=False,
    update=False,
    project="runs/detect",
    name="exp",
    exist_ok=False,
    line_thickness=None,
    hide_labels=False,
    hide_conf=False,
    half=False,
    download=False,
    batch_size=1,
    vid_stride=1,
    tile=None,
    track=False,
    save_json=False,
    save_csv=False,
    dnn=False,
    resume=None,
) -> Path:
    """Finds objects in what `source` names, as the command line does, and returns the folder of results.

    Each result is named as its file, see `result_stems` for files of the same name.
    """
    return _run(argparse.Namespace(**locals()))


def _run(opt: argparse.Namespace) -> Path:
    ledger = _find_run(opt)
    _check_options(opt)
    sources = ledger.sources if ledger else list_sources(opt.source, opt.download)
    streams, shared = sources[0].kind == STREAM, dist.world_size() > 1
    if shared or opt.resume:
        _check_shared(sources, opt.track)
    if opt.view_img and not has_display():
        raise ValueError("--view-img: no window can be opened here; leave it out, the results are written to a folder")
    tracking = Tracking(opt.conf_thres) if opt.track else None
    finder = _load(opt, streams)
    if shared or opt.resume:
        ledger = ledger or _begin_shared(opt, sources)
        sources = ledger.sources
    todo = ledger.todo(max(dist.rank(), 0), dist.world_size()) if ledger else range(len(sources))
    lost: list[int] = []
    reading = read_batches(sources, 1 if opt.visualize else opt.batch_size, opt.vid_stride, todo, lost)
    with contextlib.closing(reading) as batches, cli.stopped_by_signals():
        first = next(batches, None)  # only with it is there something to save
        save_dir = ledger.folder if ledger else increment_path(Path(opt.project) / opt.name, opt.exist_ok, mkdir=True)
        if not ledger and len(sources) > 1 and _can_be_resumed(sources, opt.track):
            ledger = Ledger.begin(save_dir, sources, _fixed(opt), alone=True)
        with Results(save_dir, sources, finder.model.names, _wanted(opt, streams), ledger, lost) as results:
            detect(first, batches, finder, results, tracking, opt.visualize, len(todo))
    if opt.update and dist.is_main():
        for file in opt.weights:
            checkpoint.strip(find_weights(file, opt.download), classes=checkpoint_classes())
    return save_dir


def _load(opt: argparse.Namespace, streams: bool) -> Finder:
    """The detector that the options ask for."""
    device = select_device(opt.device)
    weights = [find_weights(file, opt.download) for file in opt.weights]
    model = Backend(weights, device, opt.half, opt.dnn, opt.data if opt.data != cli.DATA else None).eval()
    model.check_use(opt.conf_thres, opt.iou_thres, opt.augment)
    if wrong := [c for c in opt.classes or () if not 0 <= c < len(model.names)]:
        raise ValueError(f"--classes: {weights[0]} has classes 0 to {len(model.names) - 1}, got {wrong}")
    if opt.update and (others := [file for file in weights if file.suffix != ".pt"]):
        raise ValueError(f"--update strips .pt files of their training state, and {others[0]} is none")
    if opt.visualize:
        _check_visualize(model, streams)
    return Finder(
        model, frame_size(model, opt.imgsz), device, opt.augment, opt.tile,
        conf_thres=opt.conf_thres, iou_thres=opt.iou_thres, classes=opt.classes, agnostic=opt.agnostic_nms,
        max_det=opt.max_det,
    )  # fmt: skip


def _wanted(opt: argparse.Namespace, streams: bool) -> Wanted:
    return Wanted(
        images=not opt.nosave and not (streams and str(opt.source).endswith(".txt")),  # of which v6.1 writes none
        txt=opt.save_txt, conf=opt.save_conf, crop=opt.save_crop, json=opt.save_json, csv=opt.save_csv,
        view=opt.view_img or (streams and has_display()),
        line_thickness=opt.line_thickness, hide_labels=opt.hide_labels, hide_conf=opt.hide_conf,
    )  # fmt: skip


def detect(
    first: list[Frame],
    batches: Iterator[list[Frame]],
    finder: Finder,
    results: Results,
    tracking: Tracking | None,
    visualize: bool,
    files: int,
) -> None:
    """Hands what is found in each frame to the results, until there are no more or q was pressed in the window.

    files: how many are to be read, as the progress bar counts them.
    """
    seen = 0
    try:
        with progress_bar(results.sources, files) as advance:
            batch: list[Frame] | None = first
            while batch and not results.quit:
                with features(batch[0], finder, results) if visualize else contextlib.nullcontext():
                    found, shapes = finder([frame.image for frame in batch])
                for frame, boxes, shape in zip(batch, found, shapes):
                    seen += 1
                    words = summary(boxes, results.names)
                    LOGGER.info(
                        f"{place(frame, results.sources)}: {shape[0]}x{shape[1]} {words}, {finder.seconds:.3f} s"
                    )
                    results.add(frame, tracking(frame, boxes) if tracking else boxes)
                    advance(frame)
                batch = next(batches, None)
    finally:
        if seen:
            steps = zip(finder.timers, ("frame", "network", "NMS"))
            times = ", ".join(f"{1000 * timer.total / seen:.1f} ms {what}" for timer, what in steps)
            LOGGER.info(f"{seen} pictures, per picture: {times}; results in {results.folder}")


def place(frame: Frame, sources: list[Source]) -> str:
    """Which frame it is, in words: `2/3 film.mp4 (7/90)`."""
    text = f"{frame.source + 1}/{len(sources)} {sources[frame.source].title}"
    if frame.number is None:
        return text
    return f"{text} ({frame.number}/{frame.count})" if frame.count else f"{text} ({frame.number})"


@contextlib.contextmanager
def progress_bar(sources: list[Source], files: int) -> Iterator:
    """A bar with the time left, below the log lines of a terminal; what it gives is called with each frame done."""
    if not sys.stderr.isatty() or sources[0].kind == STREAM:
        yield lambda frame: None
        return
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    known = set()
    with logging_redirect_tqdm([LOGGER]), tqdm(total=files, unit="frame", dynamic_ncols=True) as bar:

        def advance(frame: Frame) -> None:
            if frame.source not in known:  # how long a video is is known once it is open
                known.add(frame.source)
                bar.total += max(frame.count, 1) - 1
            bar.update()

        yield advance


def features(frame: Frame, finder: Finder, results: Results) -> FeatureRecorder:
    """Records the layers while the network looks at this frame, in a folder named as the frame."""
    folder = increment_path(results.folder / results.stem(frame), exist_ok=results.ledger is not None, mkdir=True)
    picture = letterbox(frame.image, finder.size, stride=finder.model.stride)[0]
    return FeatureRecorder(finder.model.model, folder, picture)


def _check_options(opt: argparse.Namespace) -> None:
    """ValueError for a number that makes no sense. Weights, frame (height, width) and classes become lists."""
    cli.check_range("--conf-thres", opt.conf_thres, 0, 1)
    cli.check_range("--iou-thres", opt.iou_thres, 0, 1)
    cli.check_range("--max-det", opt.max_det, 1)
    cli.check_range("--line-thickness", opt.line_thickness or 0, 0)
    cli.check_range("--batch-size", opt.batch_size, 1)
    cli.check_range("--vid-stride", opt.vid_stride, 1)
    if opt.tile is not None:
        cli.check_range("--tile", opt.tile, 0, 0.9)
    _use_lists(opt)


def _use_lists(opt: argparse.Namespace) -> None:
    opt.imgsz = cli.frame_sides(opt.imgsz)
    opt.classes = [opt.classes] if isinstance(opt.classes, int) else opt.classes and list(opt.classes)
    weights = opt.weights if isinstance(opt.weights, list | tuple) else [opt.weights]
    opt.weights = [str(file) for file in weights]


def _check_visualize(model: Backend, streams: bool) -> None:
    if streams:
        raise ValueError("--visualize writes files for every layer of every frame; give pictures or a video, no stream")
    if not hasattr(model.model, "model"):
        raise ValueError("--visualize looks into one model; give one .pt file as --weights")


# --- runs that are resumed, or shared among processes -----------------------------------------------------------------


def _find_run(opt: argparse.Namespace) -> Ledger | None:
    """The unfinished run that --resume names, whose options are then taken over; None where one is to begin."""
    if not opt.resume:
        return None
    folder, defaults = Path(opt.resume), _defaults()
    if not folder.exists():
        if opt.source == defaults.source:
            raise ValueError(f"--resume {folder}: no such folder; to begin a run in it, name its --source")
        return None
    ledger = Ledger(folder)
    _use_lists(opt)
    for name, begun_with in ledger.options.items():
        if getattr(opt, name) not in (getattr(defaults, name), begun_with):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag}: the run in {folder} was begun with {begun_with}; leave the option out")
        setattr(opt, name, begun_with)
    LOGGER.info(f"{len(ledger.places)} of {len(ledger.sources)} files are done, the others follow")
    return ledger


def _defaults() -> argparse.Namespace:
    defaults = argparse.Namespace(**{name: p.default for name, p in inspect.signature(run).parameters.items()})
    _use_lists(defaults)
    return defaults


def _fixed(opt: argparse.Namespace) -> dict[str, Any]:
    """The options that stay when a run is resumed."""
    return {name: value for name, value in vars(opt).items() if name not in FREE}


def _begin_shared(opt: argparse.Namespace, sources: list[Source]) -> Ledger:
    """A new run: in the folder that --resume names, or in one that the first process makes and tells the others."""
    if opt.resume:
        return Ledger.begin(Path(opt.resume), sources, _fixed(opt), alone=False)

    def begin() -> str:
        folder = increment_path(Path(opt.project) / opt.name, opt.exist_ok, mkdir=True)
        return str(Ledger.begin(folder, sources, _fixed(opt), alone=True).folder)

    return Ledger(Path(dist.agree(begin)))


def _can_be_resumed(sources: list[Source], track: bool) -> bool:
    return not any(s.kind == STREAM or s.name == "-" or (track and s.kind == PICTURE) for s in sources)


def _check_shared(sources: list[Source], track: bool) -> None:
    if not _can_be_resumed(sources, False):
        raise ValueError("streams and standard input are neither resumed nor shared among processes; start one alone")
    if not _can_be_resumed(sources, track):
        raise ValueError(
            "--track follows objects from picture to picture, so that pictures are neither resumed nor shared among "
            "processes; leave it out, or give videos"
        )


def main(opt: argparse.Namespace) -> None:
    """The command line."""
    LOGGER.info(cli.describe("detect", opt))
    run(**vars(opt))


if __name__ == "__main__":
    cli.run(main, OPTIONS, "detect")
