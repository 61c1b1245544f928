"""Detection: images, videos and streams in, results out. A run over files can be resumed and shared among processes."""

import argparse
import contextlib
import copy
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.attention_view import Observer, observed
from models.backend import Backend, find_weights, frame_size, load_checkpoint
from models.registry import has
from utils import checkpoint, cli, dist, user_blocks
from utils.class_names import class_numbers
from utils.data.letterbox import letterbox
from utils.device import select_device
from utils.files import check_own_files, increment_path
from utils.inference.detector import Detector
from utils.inference.features import FeatureRecorder, stage_name, write_gate
from utils.inference.frames import read_batches
from utils.inference.gallery import Gallery
from utils.inference.ledger import Ledger
from utils.inference.outputs import summary
from utils.inference.results import ResultOptions, ResultWriter, has_display
from utils.inference.sources import IMAGE, STREAM, Frame, Source, list_sources
from utils.inference.tracking import Tracking
from utils.log import LOGGER
from utils.text import printable, redact

# What the results of a run depend on: the ledger records these options, and a resumed run takes these alone from it,
# since its folder may come from anywhere. What is fetched, changed and trusted, and the device, says the command.
RECORDED = (
    "weights", "source", "data", "imgsz", "conf_thres", "iou_thres", "max_det", "classes", "agnostic_nms", "augment",
    "half", "dnn", "tile", "track", "vid_stride", "line_thickness", "hide_labels", "hide_conf", "save_txt", "save_conf",
    "save_crop", "save_json", "save_csv", "nosave", "visualize",
)  # fmt: skip


def detect(opt: cli.Options, parser: argparse.ArgumentParser) -> Path:
    """Detects objects in what `opt.source` names and returns the folder of results.

    opt: the options of detect.py, with their ranges checked; parser: in which they are stated.

    Raises ValueError for options that do not go together, FileNotFoundError where weights or the source are missing.
    """
    opt = copy.copy(opt)
    opt.imgsz = cli.frame_sides(opt.imgsz)
    if "data" not in opt.given:
        opt.data = None  # the default YAML names the classes of another data set
    ledger = _find_run(opt, parser)
    sources = ledger.sources if ledger else list_sources(opt.source, opt.download)
    streams, shared = sources[0].kind == STREAM, dist.world_size() > 1
    if shared or opt.resume:
        _check_shared(sources, opt.track)
        if opt.report:
            raise ValueError("--report shows what one process did from beginning to end; leave it out here")
    if opt.view_img and not has_display():
        raise ValueError("--view-img: no window can be opened here; leave the option out, results go to a folder")
    tracking = Tracking(opt.conf_thres) if opt.track else None
    detector = _load_detector(opt, streams)
    if shared or opt.resume:
        ledger = ledger or _begin_shared(opt, sources)
        sources = ledger.sources
    todo = ledger.todo(max(dist.rank(), 0), dist.world_size()) if ledger else range(len(sources))
    unreadable: list[int] = []
    batch_size = 1 if opt.visualize else opt.batch_size
    reading = read_batches(sources, batch_size, opt.vid_stride, todo, unreadable, detector.channels)
    with contextlib.closing(reading) as batches, cli.stopped_by_signals():
        first = next(batches, None)  # before there is a folder: a source without any readable image leaves none
        save_dir = ledger.folder if ledger else increment_path(Path(opt.project) / opt.name, opt.exist_ok, mkdir=True)
        if not ledger and len(sources) > 1 and _can_be_resumed(sources, opt.track):
            ledger = Ledger.begin(save_dir, sources, _recorded(opt), alone=True)
        gallery = Gallery(detector.model.names) if opt.report else None
        try:
            with ResultWriter(
                save_dir, sources, detector.model.names, _result_options(opt, streams), ledger, unreadable
            ) as results:
                _detect_batches(first, batches, detector, results, tracking, opt.visualize, len(todo), gallery)
        finally:  # Ctrl-C is the usual end of a stream
            if gallery and gallery.frames:
                _write_page(gallery, save_dir, opt)
    if opt.update and dist.is_main():
        for file in opt.weights:
            checkpoint.strip(find_weights(file, opt.download), read=load_checkpoint)
    return save_dir


def _load_detector(opt: cli.Options, streams: bool) -> Detector:
    """Returns the detector that the options ask for."""
    user_blocks.use(opt.blocks)
    device = select_device(opt.device)
    weights = [find_weights(file, opt.download) for file in opt.weights]
    model = Backend(weights, device, opt.half, opt.dnn, opt.data, opt.trust_weights).eval()
    model.check_use(opt.conf_thres, opt.iou_thres, opt.augment)
    classes = class_numbers(opt.classes, model.names, f"--classes: {weights[0]}")
    if opt.update and (others := [file for file in weights if file.suffix != ".pt"]):
        raise ValueError(f"--update changes .pt files only, got {others[0]}; leave the option out")
    if opt.visualize:
        _check_visualize(model, streams)
    return Detector(
        model, frame_size(model, opt.imgsz), device, opt.augment, opt.tile,
        conf_thres=opt.conf_thres, iou_thres=opt.iou_thres, classes=classes, agnostic=opt.agnostic_nms,
        max_det=opt.max_det,
    )  # fmt: skip


def _check_visualize(model: Backend, streams: bool) -> None:
    if streams:
        raise ValueError(
            "--visualize writes files for every layer of every frame, and a stream has no last frame; give "
            "images or a video"
        )
    if not hasattr(model.model, "model"):
        raise ValueError("--visualize records the layers of one model; give one .pt file as --weights")


def _result_options(opt: cli.Options, streams: bool) -> ResultOptions:
    return ResultOptions(
        images=not opt.nosave and not (streams and str(opt.source).endswith(".txt")),  # of which v6.1 writes none
        txt=opt.save_txt, conf=opt.save_conf, crop=opt.save_crop, json=opt.save_json, csv=opt.save_csv,
        view=opt.view_img or (streams and has_display()),
        line_thickness=opt.line_thickness, hide_labels=opt.hide_labels, hide_conf=opt.hide_conf,
    )  # fmt: skip


# --- frame by frame ---------------------------------------------------------------------------------------------------


def _detect_batches(
    first: list[Frame] | None,
    batches: Iterator[list[Frame]],
    detector: Detector,
    results: ResultWriter,
    tracking: Tracking | None,
    visualize: bool,
    files: int,
    gallery: Gallery | None = None,
) -> None:
    """Hands the detections of each frame to the results, until there are no more frames or q was pressed.

    files: number of files to read, for the progress bar.
    """
    seen = 0
    try:
        with _progress_bar(results.sources, files) as advance:
            batch = first
            while batch and not results.quit:
                with _record_features(batch[0], detector, results) if visualize else contextlib.nullcontext():
                    detections, shapes = detector([frame.image for frame in batch])
                for frame, boxes, shape in zip(batch, detections, shapes):
                    seen += 1
                    counts = summary(boxes, results.names)
                    title = _title(frame, results.sources)
                    LOGGER.info(f"{title}: {shape[0]}x{shape[1]} {counts}, {detector.seconds:.3f} s")
                    boxes = tracking(frame, boxes) if tracking else boxes
                    results.add(frame, boxes)
                    if gallery:
                        gallery.add(_name(frame, results.sources), frame.shown, boxes)
                    advance(frame)
                batch = next(batches, None)
    finally:
        if seen:
            steps = zip(detector.timers, ("pre-process", "inference", "NMS"))
            times = ", ".join(f"{1000 * timer.total / seen:.1f} ms {step}" for timer, step in steps)
            LOGGER.info(f"{seen} image{'s' * (seen > 1)}; per image: {times}; results in {results.folder}")


def _title(frame: Frame, sources: list[Source]) -> str:
    """Returns the name of a frame in the log: `2/3 film.mp4 (7/90)`."""
    text = f"{frame.source + 1}/{len(sources)} {printable(sources[frame.source].title, lines=False)}"
    if frame.number is None:
        return text
    return f"{text} ({frame.number}/{frame.count})" if frame.count else f"{text} ({frame.number})"


def _name(frame: Frame, sources: list[Source]) -> str:
    """Returns the name of a frame on a page: `film.mp4, frame 7`, without folders and secrets."""
    name = Path(redact(sources[frame.source].title)).name
    return name if frame.number is None else f"{name}, frame {frame.number}"


def _write_page(gallery: Gallery, folder: Path, opt: cli.Options) -> None:
    options = cli.without_secrets(vars(opt))
    given = {name: value for name, value in options.items() if name in opt.given}
    weights = ", ".join(Path(file).name for file in options["weights"])
    source = Path(options["source"]).name or options["source"]
    file = gallery.write(folder, f"Detection {folder.name}: {weights} on {source}", given, options)
    LOGGER.info(f"page of the run: {file}")


@contextlib.contextmanager
def _progress_bar(sources: list[Source], files: int) -> Iterator:
    """Shows a bar with the time left below the log lines of a terminal; yields a function to call after each frame."""
    if not sys.stderr.isatty() or sources[0].kind == STREAM:
        yield lambda frame: None
        return
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    opened = set()
    with logging_redirect_tqdm([LOGGER]), tqdm(total=files, unit="frame", dynamic_ncols=True) as bar:

        def advance(frame: Frame) -> None:
            if frame.source not in opened:  # the length of a video is known once it is open
                opened.add(frame.source)
                bar.total += max(frame.count, 1) - 1
            bar.update()

        yield advance


@contextlib.contextmanager
def _record_features(frame: Frame, detector: Detector, results: ResultWriter) -> Iterator[None]:
    """Writes, inside `with`, the feature maps of this frame and the gates of its blocks to a folder of its name."""
    model = detector.model.model
    folder = increment_path(results.folder / results.stem(frame), exist_ok=results.ledger is not None, mkdir=True)
    image = letterbox(frame.shown, detector.size, stride=detector.model.stride)[0]
    with FeatureRecorder(model, folder), contextlib.ExitStack() as stack:
        for i, layer in enumerate(model.model):
            if has(layer, "gate"):
                stack.enter_context(observed(layer, _gate_writer(folder, stage_name(i, layer), image)))
        yield


def _gate_writer(folder: Path, name: str, image: np.ndarray) -> Observer:
    """Returns an observer that writes the gate of the first image of a batch."""

    def write(x: torch.Tensor, gate: torch.Tensor, y: torch.Tensor) -> None:
        write_gate(folder, name, x[0].float().cpu().numpy(), gate[0].float().cpu().numpy(), image)

    return write


# --- runs that are resumed, or shared among processes -----------------------------------------------------------------


def _find_run(opt: cli.Options, parser: argparse.ArgumentParser) -> Ledger | None:
    """Returns the unfinished run in the folder of --resume and gives `opt` its options; None to begin a run."""
    if not opt.resume:
        return None
    folder = Path(opt.resume)
    if not folder.exists():
        if "source" not in opt.given:
            raise ValueError(f"--resume {folder}: there is no such folder; to begin a run in it, give its --source")
        return None
    for inside, _, _ in os.walk(folder):
        check_own_files(Path(inside), "--resume")
    ledger = Ledger(folder)
    now = cli.without_secrets(vars(opt))
    options = cli.adopt(parser, opt, ledger.options, RECORDED, ledger.file)
    if options.get("imgsz"):
        opt.imgsz = options["imgsz"] = cli.frame_sides(options["imgsz"])
    for name, recorded in options.items():
        if name in opt.given and now[name] != recorded:
            raise ValueError(
                f"--{name.replace('_', '-')} is {now[name]}, but the run in {folder} was begun with {recorded}; leave "
                "the option out to resume the run"
            )
    LOGGER.info(f"{len(ledger.positions)} of {len(ledger.sources)} files are done, the others follow")
    return ledger


def _recorded(opt: cli.Options) -> dict[str, Any]:
    """Returns the options that a resumed run must share with the one it continues."""
    return cli.without_secrets({name: getattr(opt, name) for name in RECORDED})


def _begin_shared(opt: cli.Options, sources: list[Source]) -> Ledger:
    """Begins a run in the folder of --resume, or in one that the first process makes and tells the others."""
    if opt.resume:
        return Ledger.begin(Path(opt.resume), sources, _recorded(opt), alone=False)

    def begin() -> str:
        folder = increment_path(Path(opt.project) / opt.name, opt.exist_ok, mkdir=True)
        return str(Ledger.begin(folder, sources, _recorded(opt), alone=True).folder)

    return Ledger(Path(dist.agree(begin)))


def _can_be_resumed(sources: list[Source], track: bool) -> bool:
    return not any(s.kind == STREAM or s.name == "-" or (track and s.kind == IMAGE) for s in sources)


def _check_shared(sources: list[Source], track: bool) -> None:
    if not _can_be_resumed(sources, False):
        raise ValueError(
            "only files can be resumed or shared among processes, and the source is a stream or standard input; start "
            "one process, without --resume"
        )
    if not _can_be_resumed(sources, track):
        raise ValueError(
            "--track follows objects from image to image, so images cannot be resumed or shared among processes; leave "
            "it out, or give videos"
        )
