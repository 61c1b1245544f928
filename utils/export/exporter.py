"""From a detector to verified files: each is written to a temporary folder, run, compared, and moved to its place."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from utils.boxes import check_image_size
from utils.cli import Options, stopped_by_signals
from utils.export.formats import BY_ARGUMENT, GRAPH, ExportError, ExportOptions, Format, Suppression
from utils.export.graph import Decoded, EndToEnd, delicate_modules
from utils.export.images import proof_batches
from utils.export.proof import precision, prove
from utils.files import megabytes
from utils.log import LOGGER
from utils.runtimes.base import Metadata
from utils.runtimes.table import runtime_for
from utils.runtimes.trust import note
from utils.text import is_utf8


@dataclass(kw_only=True)
class Job:
    """One detector that is written in several formats.

    detector: in float32 and eval mode.
    weights:  the path of its file, beside which exports are written.
    images:   batches (B, C, H, W), 0-1, on which files are run; the first has the shape that they are made for.
    """

    detector: nn.Module
    weights: Path
    options: ExportOptions
    images: Sequence[torch.Tensor]

    def __post_init__(self):
        self.options = replace(self.options, float32=delicate_modules(self.detector))
        decoded = Decoded(self.detector, self.options.train)
        self.reference = EndToEnd(decoded, self.options.nms) if self.options.nms else decoded
        self.sources: dict[tuple, Path] = {}  # files that others are made from, by format and options

    def options_for(self, kind: Format) -> ExportOptions:
        """Returns the options without those that the format ignores."""
        asked = self.options
        int8 = (asked.int8 and kind.int8) or kind.integers
        nms = asked.nms if kind.nms else None
        metadata = replace(
            asked.metadata,
            int8=int8,
            half=asked.half and kind.half and not int8,
            dynamic=(asked.dynamic and kind.dynamic) or kind.any_size,
            nms=nms is not None,
            conf_thres=nms.conf_thres if nms else 0.0,
            iou_thres=nms.iou_thres if nms else 0.0,
        )
        return replace(asked, metadata=metadata, nms=nms)

    def graph(self, options: ExportOptions, half: bool = False) -> nn.Module:
        """Returns the network, in float16 where half, with the suppression of the options."""
        decoded = Decoded(self.detector, options.train)
        if half:
            decoded.half()
        return EndToEnd(decoded, options.nms) if options.nms else decoded


def prepare(detector: nn.Module, weights: Path, opt: Options, device: torch.device) -> Job:
    """Checks a detector and reads the images that its files are verified on.

    detector: in float32 and eval mode, on the device.
    weights:  the path of its file.
    opt:      the options of export.py, checked.

    Raises ValueError for a detector whose names and classes differ, and for a data set that does not fit it.
    """
    if not is_utf8(str(weights.absolute())):
        raise ValueError(f"{weights}: no toolchain writes to a path that is not UTF-8; copy the weights elsewhere")
    nc = detector.model[-1].nc
    if nc != len(detector.names):
        raise ValueError(f"{weights}: the detector has {nc} classes, but its list of names has {len(detector.names)}")
    nms = None
    if opt.nms:
        nms = Suppression(
            conf_thres=opt.conf_thres,
            iou_thres=opt.iou_thres,
            agnostic=opt.agnostic_nms,
            topk_per_class=opt.topk_per_class,
            topk_all=opt.topk_all,
        )
    metadata = Metadata(
        names=tuple(map(str, detector.names)),
        stride=detector.image_multiple,
        imgsz=tuple(check_image_size(opt.imgsz, detector.image_multiple)),
        batch=opt.batch_size,
        channels=detector.yaml.get("ch", 3),
        dynamic=opt.dynamic,
        nms=opt.nms,
        train=opt.train,
        half=opt.half,
        int8=opt.int8,
        conf_thres=nms.conf_thres if nms else 0.0,
        iou_thres=nms.iou_thres if nms else 0.0,
    )
    options = ExportOptions(
        metadata=metadata,
        device=device,
        optimize=opt.optimize,
        simplify=opt.simplify,
        opset=opt.opset,
        verbose=opt.verbose,
        workspace=opt.workspace,
        nms=nms,
        data=opt.data,
    )
    return Job(detector=detector, weights=weights, options=options, images=proof_batches(metadata, opt.data))


def export_all(jobs: Iterable[Job], formats: Sequence[Format]) -> list[Path]:
    """Writes each job in each format and returns the paths of the files and folders.

    Raises ExportError at the end where a format failed, after the others are done.
    """
    made, failures = [], []
    with stopped_by_signals():
        for job in jobs:
            with tempfile.TemporaryDirectory(prefix="export-") as work:
                for kind in formats:
                    try:
                        path = export(job, kind, Path(work))
                    except ExportError as error:
                        LOGGER.warning(f"{kind.name}: {error}")
                        failures.append(f"{kind.name}: {error}")
                    else:
                        LOGGER.info(f"{kind.name}: {path}, {megabytes(path):.1f} MB")
                        made.append(path)
    if failures:
        raise ExportError("; ".join(failures))
    if usable := [path for path in made if not runtime_for(path).obstacle()]:
        LOGGER.info(f"to detect with it: python detect.py --weights {usable[-1]}")
    return made


def export(job: Job, kind: Format, work: Path) -> Path:
    """Writes one format beside the weights and returns its path, after the file was verified.

    work: a folder for files that others are made from.

    Raises ExportError where it cannot be written, or differs from PyTorch by more than its precision allows; then the
    file is kept, with the suffix `.rejected`.
    """
    options = job.options_for(kind)
    target = kind.target(job.weights, options.int8, options.half)
    with beside(target) as part:
        write(job, kind, part, options, work)
        reason = check(job, kind, part, options)
        if reason:
            rejected = target.with_name(target.name + ".rejected")
            move(part, rejected)
            raise ExportError(f"{reason}; the file is kept as {rejected}")
        move(part, target)
    if runtime_for(target).program:
        _note(target)
    return target


def _note(target: Path) -> None:
    """Remembers that this installation wrote a program, so that it is opened without --trust-weights."""
    try:
        note(target)
    except OSError as error:
        LOGGER.warning(
            f"{target} needs --trust-weights to be opened, since it could not be recorded as written here: {error}"
        )


def write(job: Job, kind: Format, part: Path, options: ExportOptions, work: Path) -> None:
    """Writes a format to `part`, after the file that it is made from."""
    sample = job.images[0].to(options.device)
    if kind.source == GRAPH:
        half = options.half and kind.typed
        source, sample = job.graph(options, half), sample.half() if half else sample
    else:
        source = source_of(job, kind, options, work)
    kind.writer()(source, sample, part, options)
    if not part.exists():
        raise ExportError(f"no {kind.name} file was written")


def source_of(job: Job, kind: Format, options: ExportOptions, work: Path) -> Path:
    """Returns the file that a format is made from, written once: in float32, unless the format keeps its types."""
    source = BY_ARGUMENT[kind.source]
    half = options.half and kind.typed
    key = source.argument, half, options.nms, options.dynamic, options.int8
    if key not in job.sources:
        folder = Path(tempfile.mkdtemp(dir=work))
        path = folder / source.target(job.weights, options.int8, half).name
        plain = replace(options, metadata=replace(options.metadata, half=half), simplify=False, fixed_head=False)
        write(job, source, path, plain, work)
        job.sources[key] = path
    return job.sources[key]


def check(job: Job, kind: Format, part: Path, options: ExportOptions) -> str:
    """Runs a written file and returns what is wrong with it; "" where nothing is, or where it cannot be run here."""
    runtime_class = runtime_for(part)
    if obstacle := runtime_class.obstacle():
        inspect = kind.inspector()
        if inspect:
            inspect(part, options)
        checked = "; its structure was checked" if inspect else ""
        LOGGER.warning(f"{kind.name}: not run here, since it {obstacle}{checked}")
        return ""
    runtime = runtime_class(part, options.device, trust=True)  # it was written a moment ago, where nobody else writes
    if runtime.metadata != options.metadata:
        return f"it states {runtime.metadata}, which should be {options.metadata}"
    reference = job.reference if bool(options.nms) == bool(job.options.nms) else job.reference.decoded
    images = [batch for batch in job.images if options.dynamic or batch.shape == job.images[0].shape]
    proof = prove(runtime, reference, images)
    LOGGER.info(f"{kind.name}: {proof.describe()}")
    if not proof.boxes and not options.train:
        LOGGER.warning(
            f"{kind.name}: PyTorch detects no objects in these images, so no boxes were compared; give yours: --data"
        )
    if proof.faults:
        return f"differs from PyTorch by more than {precision(options.metadata)} allows: {'; '.join(proof.faults)}"
    return ""


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Yields a path of the same name in a new folder beside target; the folder is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix=".export-", dir=target.parent))
    try:
        yield folder / target.name
    finally:
        shutil.rmtree(folder)


def move(part: Path, target: Path) -> None:
    """Moves a whole file or folder to its place; a folder that is there is replaced, not merged."""
    if target.is_dir():
        old = part.with_name("old")
        os.replace(target, old)
    os.replace(part, target)
