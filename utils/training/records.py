"""What a training leaves to read: results.csv, and the line that runs along."""

import time
from pathlib import Path

from utils.files import atomic_write

COLUMNS = (
    "epoch", "train/box_loss", "train/obj_loss", "train/cls_loss",
    "metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95",
    "val/box_loss", "val/obj_loss", "val/cls_loss", "x/lr0", "x/lr1", "x/lr2",
)  # fmt: skip


def append_results(file: Path, epoch: int, values: list[float]) -> None:
    """One row of results.csv, 20 characters a field; the header first."""
    text = file.read_text() if file.exists() else ",".join(f"{name:>20}" for name in COLUMNS) + "\n"
    with atomic_write(file, "w") as f:
        f.write(text + ",".join([f"{epoch:>20}", *(f"{v:>20.5g}" for v in values)]) + "\n")


def cut_results(file: Path, epochs: int) -> None:
    """Keeps the rows of the first `epochs` epochs: those that a resumed run will not write again."""
    if not file.exists():
        return
    header, *rows = file.read_text().splitlines(keepends=True)
    kept = [row for row in rows if int(row.partition(",")[0]) < epochs]
    if len(kept) < len(rows):
        with atomic_write(file, "w") as f:
            f.write("".join([header, *kept]))


class Pace:
    """How fast images go through, and how long the rest will take at the pace so far.

    Args:
        epochs, batches: of the run, and per epoch.
        seconds: that its earlier epochs took, `epochs_done` of them.
    """

    def __init__(self, batches: int, seconds: float = 0.0, epochs_done: int = 0):
        self.batches = batches
        self.seconds = seconds
        self.epochs_done = epochs_done
        self.start = time.monotonic()
        self.images = 0

    def seconds_so_far(self) -> float:
        """Of the whole run, epochs before it was resumed included."""
        return self.seconds + time.monotonic() - self.start

    def line(self, images: int, batch: int, epochs: int) -> str:
        """`213 img/s, 0:12:40 left`, after another batch of images; `batch` counts from 0 within its epoch.

        The time left counts validation once an epoch has passed.
        """
        self.images += images
        seconds = time.monotonic() - self.start
        done = (batch + 1) / self.batches
        left = self.seconds_so_far() / (self.epochs_done + done) * (epochs - self.epochs_done - done)
        return f"{self.images / seconds:.0f} img/s, {clock(left)} left"

    def next_epoch(self) -> None:
        """Another epoch has passed, its validation included."""
        self.seconds = self.seconds_so_far()
        self.epochs_done += 1
        self.start, self.images = time.monotonic(), 0


def clock(seconds: float) -> str:
    """Hours:minutes:seconds."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
