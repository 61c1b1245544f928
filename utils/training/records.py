"""What a training shows while it runs and leaves to read: the progress bar and results.csv."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from utils.files import atomic_write
from utils.log import LOGGER
from utils.progress import Bar

COLUMNS = (
    "epoch", "train/box_loss", "train/obj_loss", "train/cls_loss",
    "metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95",
    "val/box_loss", "val/obj_loss", "val/cls_loss", "x/lr0", "x/lr1", "x/lr2",
)  # fmt: skip


def append_results(file: Path, epoch: int, values: list[float]) -> None:
    """Adds a row to results.csv, 20 characters a field; a new file gets its header first."""
    text = file.read_text() if file.exists() else ",".join(f"{name:>20}" for name in COLUMNS) + "\n"
    with atomic_write(file, "w") as f:
        f.write(text + ",".join([f"{epoch:>20}", *(f"{v:>20.5g}" for v in values)]) + "\n")


def cut_results(file: Path, epochs: int) -> None:
    """Removes the rows of results.csv after the first `epochs` epochs, which a resumed run will write again.

    Raises ValueError where the file is not such a table, as a folder from elsewhere may have it.
    """
    if not file.exists():
        return
    try:
        header, *rows = file.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
        kept = [row for row in rows if int(row.partition(",")[0]) < epochs]
        sound = all(len(list(map(float, row.split(",")))) == len(COLUMNS) for row in kept)
    except ValueError:  # of the encoding, or of a number
        sound = False
    if not sound or tuple(name.strip() for name in header.split(",")) != COLUMNS:
        raise ValueError(f"{file}: must have the columns of results.csv and numbers in each row; move the file away")
    if len(kept) < len(rows):
        with atomic_write(file, "w") as f:
            f.write("".join([header, *kept]))


class Pace:
    """How many images a run trains on per second, and how long the rest of it will take at the pace so far.

    Args:
        batches: per epoch.
        seconds: that the finished epochs took, `epochs_done` of them.
    """

    def __init__(self, batches: int, seconds: float = 0.0, epochs_done: int = 0):
        self.batches = batches
        self.seconds = seconds
        self.epochs_done = epochs_done
        self.start = time.monotonic()
        self.images = 0

    def seconds_so_far(self) -> float:
        """Returns the seconds of the whole run, with the epochs before it was resumed."""
        return self.seconds + time.monotonic() - self.start

    def line(self, images: int, batch: int, epochs: int) -> str:
        """Returns `213 img/s, 0:12:40 left`, after another batch of images; `batch` counts from 0 within its epoch.

        The time left includes validation once an epoch has passed.
        """
        self.images += images
        seconds = time.monotonic() - self.start
        done = (batch + 1) / self.batches
        left = self.seconds_so_far() / (self.epochs_done + done) * (epochs - self.epochs_done - done)
        return f"{self.images / seconds:.0f} img/s, {clock(left)} left"

    def next_epoch(self) -> None:
        """Counts another epoch as finished, its validation included."""
        self.seconds = self.seconds_so_far()
        self.epochs_done += 1
        self.start, self.images = time.monotonic(), 0


def clock(seconds: float) -> str:
    """Returns a duration in seconds as hours:minutes:seconds."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


class Progress:
    """Iterates over the batches of an epoch, with a progress bar that shows losses, GPU memory and the time left.

    Args:
        batches: the loader.
        epochs: of the run.
        shown: False draws no bar.
    """

    HEADER = ("\n" + "{:>10}" * 7).format("Epoch", "gpu_mem", "box", "obj", "cls", "labels", "img_size")
    ROW = "{:>10}" * 2 + "{:>10.4g}" * 5
    BAR = "{desc}{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} {elapsed}{postfix}"

    def __init__(self, batches: Iterable, epoch: int, epochs: int, pace: Pace, device: torch.device, shown: bool):
        self.epoch, self.epochs, self.pace, self.device = epoch, epochs, pace, device
        LOGGER.info(self.HEADER)
        self.bar = Bar(batches, bar_format=self.BAR, disable=not shown)

    def __iter__(self) -> Iterator:
        for i, item in enumerate(self.bar):
            self.batch = i
            yield item

    def update(self, losses: Sequence[float], images: int, labels: int, side: int) -> None:
        """Shows the mean losses so far, and of the current batch the number of images and labels and the image side."""
        memory = f"{torch.cuda.memory_reserved(self.device) / 1e9:.3g}G" if self.device.type == "cuda" else "0G"
        row = self.ROW.format(f"{self.epoch}/{self.epochs - 1}", memory, *losses, labels, side)
        self.bar.set_description(row, refresh=False)
        self.bar.set_postfix_str(self.pace.line(images, self.batch, self.epochs), refresh=sys.stderr.isatty())
