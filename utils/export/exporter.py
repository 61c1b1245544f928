"""From a detector to files that are proven: each is written beside its place, run, compared, and then moved there."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from utils.export.formats import BY_ARGUMENT, GRAPH, ExportError, Format, Options
from utils.export.graph import Decoded, EndToEnd, delicate_modules
from utils.export.proof import open_file, precision, prove
from utils.log import LOGGER


@dataclass
class Job:
    """One detector on its way into several formats.

    detector: in float32 and eval mode.
    pictures: batches (B, C, H, W), 0-1, on which files are run; the first has the shape that they are made for.
    """

    detector: nn.Module
    weights: Path
    options: Options
    pictures: Sequence[torch.Tensor]

    def __post_init__(self):
        self.options = replace(self.options, float32=delicate_modules(self.detector))
        decoded = Decoded(self.detector, self.options.train)
        self.reference = EndToEnd(decoded, self.options.nms) if self.options.nms else decoded
        self.made: dict[tuple, Path] = {}  # files that others are made from, by format and whether half

    def options_for(self, kind: Format) -> Options:
        """The options, without those that the format does not honour."""
        int8 = (self.options.int8 and kind.int8) or kind.integers
        kept = {
            "int8": int8,
            "half": self.options.half and kind.half and not int8,
            "dynamic": (self.options.dynamic and kind.dynamic) or kind.any_size,
            "nms": self.options.nms if kind.nms else None,
        }
        nms = kept["nms"]
        metadata = replace(
            self.options.metadata, **{**kept, "nms": nms is not None},
            conf_thres=nms.conf_thres if nms else 0.0, iou_thres=nms.iou_thres if nms else 0.0,
        )  # fmt: skip
        return replace(self.options, metadata=metadata, **kept)

    def graph(self, options: Options, half: bool = False) -> nn.Module:
        """The network, in float16 or not, with the suppression that options ask for."""
        decoded = Decoded(self.detector, options.train)
        if half:
            decoded.half()
        return EndToEnd(decoded, options.nms) if options.nms else decoded


def export(job: Job, kind: Format, work: Path) -> Path:
    """Writes one format beside the weights and returns its path, once the file has proven itself.

    work: a folder for files that others are made from.

    Raises ExportError where it cannot be written, or differs from PyTorch by more than it may; then the file is kept,
    with the suffix `.rejected`.
    """
    options = job.options_for(kind)
    target = kind.target(job.weights, options.int8, options.half)
    with beside(target) as part:
        write(job, kind, part, options, work)
        reason = check(job, kind, part, options)
        if reason:
            rejected = target.with_name(target.name + ".rejected")
            move(part, rejected)
            raise ExportError(f"{kind.name}: {reason}; the file is kept as {rejected}")
        move(part, target)
    return target


def write(job: Job, kind: Format, part: Path, options: Options, work: Path) -> None:
    """Writes a format to `part`, and before it what it is made from."""
    sample = job.pictures[0].to(options.device)
    if kind.source == GRAPH:
        half = options.half and kind.typed
        source, sample = job.graph(options, half), sample.half() if half else sample
    else:
        source = source_of(job, kind, options, work)
    kind.writer()(source, sample, part, options)
    if not part.exists():
        raise ExportError(f"{kind.name}: nothing was written")


def source_of(job: Job, kind: Format, options: Options, work: Path) -> Path:
    """The file that a format is made from, written once: in float32, unless it keeps its source's types."""
    below = BY_ARGUMENT[kind.source]
    half = options.half and kind.typed
    key = below.argument, half, options.nms, options.dynamic, options.int8
    if key not in job.made:
        metadata = replace(options.metadata, half=half)
        folder = Path(tempfile.mkdtemp(dir=work))
        path = folder / below.target(job.weights, options.int8, half).name
        write(job, below, path, replace(options, half=half, metadata=metadata), work)
        job.made[key] = path
    return job.made[key]


def check(job: Job, kind: Format, part: Path, options: Options) -> str:
    """Runs a written file; returns what is wrong with it, "" where nothing is, or where nothing here can run it."""
    runtime, obstacle = open_file(part, options.device)
    if runtime is None:
        inspect = kind.inspector()
        if inspect:
            inspect(part, options)
        LOGGER.warning(f"{kind.name}: unrun: {obstacle}{'; its structure was checked' if inspect else ''}")
        return ""
    if runtime.metadata != options.metadata:
        return f"it says of itself {runtime.metadata}, which should be {options.metadata}"
    reference = job.reference if bool(options.nms) == bool(job.options.nms) else job.reference.decoded
    pictures = [images for images in job.pictures if options.dynamic or images.shape == job.pictures[0].shape]
    proof = prove(runtime, reference, pictures)
    LOGGER.info(f"{kind.name}: {proof.describe()}")
    if not proof.boxes and not options.train:
        LOGGER.warning(
            f"{kind.name}: PyTorch finds nothing in these pictures, so no boxes are compared; give yours: --data"
        )
    if proof.faults:
        return f"differs from PyTorch more than {precision(options.metadata)} may: {'; '.join(proof.faults)}"
    return ""


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A path of the same name in a new folder beside target; the folder and what is left in it go at the end."""
    folder = Path(tempfile.mkdtemp(prefix=".export-", dir=target.parent))
    try:
        yield folder / target.name
    finally:
        shutil.rmtree(folder)


def move(part: Path, target: Path) -> None:
    """Puts a file or folder in its place, where an older one goes only once the new one is whole."""
    if target.is_dir():
        old = part.with_name("old")
        os.replace(target, old)
    os.replace(part, target)
