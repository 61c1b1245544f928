"""Measures the size, accuracy and speed of a detector in every format that can be written and run on this machine.

    python tools/benchmark_formats.py --weights best.pt --data my.yaml --img 640

Each format is exported and verified by export.py, and measured by val.py in square frames, the only ones that all of
them take: `val.py --task benchmark` gives the same numbers. Then all formats run in turn on the same
images, and the median is their time. The table is printed; a CSV file and a figure are written to runs/benchmark/exp.
"""

import argparse
import csv
import io
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli
from utils.export.formats import Format, choose_formats
from utils.log import LOGGER
from utils.text import csv_field

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRECISIONS = ("float32", "float16", "int8")
LEAST_SPAN = 0.05  # of the axis of mAP, so that differences of a ten-thousandth do not look large


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser, which states every option once: name, type, range, default, help."""
    parser = argparse.ArgumentParser(description="Measure the size, accuracy and speed of a detector in every format.")
    parser.add_argument("--weights", default=cli.WEIGHTS, help=".pt file (default: %(default)s)")
    parser.add_argument("--data", default=cli.DATA, help="data set YAML (default: %(default)s)")
    parser.add_argument(
        "--imgsz", "--img", "--img-size", type=cli.whole(1), default=640, help="image size in pixels (default: 640)"
    )
    parser.add_argument("--batch-size", type=cli.whole(1), default=1, help="images per call (default: %(default)s)")
    parser.add_argument("--include", nargs="+", default=["all"], help="formats, as in export.py (default: all)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=list(PRECISIONS),
        choices=PRECISIONS,
        help="precisions to measure, where a format has them (default: all)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU number such as 0 (default: %(default)s)")
    parser.add_argument(
        "--workers", type=cli.whole(0), default=0, help="processes that read images (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=cli.whole(1), default=15, help="timed runs per format (default: %(default)s)")
    parser.add_argument(
        "--cpu-seconds",
        action="store_true",
        help="measure processor time instead of elapsed time: for a machine that runs other programs too",
    )
    cli.add_run_folder(parser, "runs/benchmark")
    return parser


def parse_opt(known: bool = False) -> cli.Options:
    """Parses the command line; with `known` it returns the defaults."""
    return cli.parse(make_parser(), known)


@dataclass(kw_only=True)
class Row:
    """One format in one precision. Its numbers are None where it failed."""

    name: str
    precision: str
    megabytes: float | None = None
    map50: float | None = None
    map: float | None = None  # mAP50-95
    milliseconds: float | None = None  # per image, of the network alone
    reason: str = ""  # why it failed
    file: Path | None = None


def variants(formats: Sequence[Format], precisions: Sequence[str]) -> list[tuple[str, Format | None]]:
    """Returns (precision, format) of all rows: first PyTorch (None), then each format in each precision it has."""
    honours = {"float32": lambda f: not f.integers, "float16": lambda f: f.half, "int8": lambda f: f.int8}
    chosen = [p for p in PRECISIONS if p in precisions]
    return [("float32", None), *((p, f) for f in formats for p in chosen if honours[p](f))]


def measure(row: Row, kind: Format | None, weights: Path, opt: cli.Options) -> None:
    """Exports and validates one format, and fills in its row; None is PyTorch."""
    import export
    import val
    from utils.files import megabytes
    from utils.runtimes.table import runtime_for

    file = weights
    try:
        if kind is not None:
            [made] = export.run(
                data=opt.data, weights=weights, imgsz=opt.imgsz, batch_size=opt.batch_size, device=opt.device,
                include=kind.argument, half=row.precision == "float16", int8=row.precision == "int8",
            )  # fmt: skip
            file = Path(made)
            row.megabytes = megabytes(file)
            if reason := runtime_for(file).obstacle():
                row.reason = f"not run here, since it {reason}"
                return
        (_, _, row.map50, row.map, *_), _, _ = val.run(
            data=opt.data, weights=file, batch_size=opt.batch_size, imgsz=opt.imgsz, task="benchmark",
            device=opt.device, workers=opt.workers, half=False, plots=False,
            project=weights.parent / "val", name=f"{row.name} {row.precision}",
        )  # fmt: skip
        row.megabytes = row.megabytes or megabytes(file)
        row.file = file
    except Exception as error:  # of toolchains, which raise whatever they like; all other formats are measured still
        if kind is None:  # the detector itself or the data set: no format would do better
            raise
        LOGGER.warning(f"{row.name} {row.precision}: {error}")
        row.reason = str(error).strip().partition("\n")[0] or type(error).__name__


def race(rows: Sequence[Row], shape: tuple[int, ...], opt: cli.Options) -> None:
    """Fills in the time per image: the files run in turn on random images (B, C, H, W); the median of the rounds."""
    import torch

    from models.backend import Backend
    from utils.device import select_device

    clock = time.process_time if opt.cpu_seconds else time.perf_counter
    device = select_device(opt.device)
    runs = [(row, Backend(row.file, device).eval(), []) for row in rows if row.file]
    images = torch.rand(shape, device=device, generator=torch.Generator(device).manual_seed(0))
    with torch.inference_mode():
        for turn in range(opt.rounds + 1):
            for _, model, seconds in runs:
                start = clock()
                model(images.to(model.dtype))
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:  # the first one allocates memory
                    seconds.append(clock() - start)
    for row, _, seconds in runs:
        row.milliseconds = 1000 * median(seconds) / len(images)


def as_table(rows: list[Row]) -> str:
    """Returns the rows as a Markdown table; how many times as fast a row is, is against the first one."""
    lines = [
        "| format | precision | size, MB | mAP50 | mAP50-95 | ms per image | times as fast |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if row.milliseconds is None:
            size = f"{row.megabytes:.1f} " if row.megabytes else ""
            lines.append(f"| {row.name} | {row.precision} | {size}| | | | {row.reason} |")
            continue
        ratio = rows[0].milliseconds / row.milliseconds if rows[0].milliseconds else float("nan")
        lines.append(
            f"| {row.name} | {row.precision} | {row.megabytes:.1f} | {row.map50:.3f} | {row.map:.3f} "
            f"| {row.milliseconds:.1f} | {ratio:.2f} |"
        )
    return "\n".join(lines) + "\n"


def as_csv(rows: list[Row]) -> str:
    """Returns the rows as CSV; numbers are empty where a format failed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["format", "precision", "megabytes", "map50", "map", "milliseconds", "reason"])
    for r in rows:
        writer.writerow([r.name, r.precision, r.megabytes, r.map50, r.map, r.milliseconds, csv_field(r.reason)])
    return text.getvalue()


def as_figure(rows: list[Row], title: str) -> "Figure":
    """Draws a line per format, the fastest on top: its time, with its file size as the area of a mark, and its mAP."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    done = sorted((row for row in rows if row.milliseconds is not None), key=lambda row: -row.milliseconds)
    figure = Figure(figsize=(9, 1.6 + 0.3 * len(done)), layout="constrained")
    time, accuracy = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    looks = {"float32": ("#0072b2", "o"), "float16": ("#e69f00", "^"), "int8": ("#009e73", "s")}
    for precision, (colour, marker) in looks.items():
        places = [i for i, row in enumerate(done) if row.precision == precision]
        if not places:
            continue
        look = {"color": colour, "marker": marker, "alpha": 0.6, "edgecolors": "black", "linewidths": 0.8}
        sizes = [20 + 15 * done[i].megabytes for i in places]
        time.scatter([done[i].milliseconds for i in places], places, s=sizes, label=precision, **look)
        accuracy.scatter([done[i].map for i in places], places, s=60, **look)
    time.set_yticks(range(len(done)), [f"{row.name}, {row.precision}" for row in done])
    time.set_xscale("log")
    time.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    time.xaxis.set_major_formatter("{x:g}")
    time.xaxis.set_minor_locator(NullLocator())
    time.set(xlabel="milliseconds per image, the network alone", title=title)
    accuracy.set(xlabel="mAP50-95")
    values = [row.map for row in done]
    reach = max(0.7 * (max(values) - min(values)), LEAST_SPAN / 2) if values else 0.5
    middle = (max(values) + min(values)) / 2 if values else 0.5
    accuracy.set_xlim(middle - reach, middle + reach)
    accuracy.xaxis.set_major_locator(MaxNLocator(4))
    for axes in (time, accuracy):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    legend = time.legend(title="area: file size", loc="best")
    for handle in legend.legend_handles:
        handle.set_sizes([60])
    return figure


@cli.takes(make_parser)
def run(**options) -> list[Row]:
    """Measures all formats, as the command line does; a format that fails has a row with the reason."""
    return _run(cli.options(make_parser(), options))


def _run(opt: cli.Options) -> list[Row]:
    from models.backend import Backend, find_weights
    from utils.boxes import round_up
    from utils.files import increment_path

    source = find_weights(opt.weights)
    formats = choose_formats(opt.include, calibrated=True)
    folder = increment_path(Path(opt.project) / opt.name, opt.exist_ok, mkdir=True)
    weights = {}  # an export is written beside its weights: each precision has a copy of them
    for precision in PRECISIONS:
        weights[precision] = folder / precision / source.name
        weights[precision].parent.mkdir(exist_ok=True)
        shutil.copyfile(source, weights[precision])
    rows = []
    with cli.stopped_by_signals():
        for precision, kind in variants(formats, opt.precisions):
            row = Row(name=kind.name if kind else "PyTorch", precision=precision)
            rows.append(row)
            measure(row, kind, weights[precision], opt)
            write_csv(folder / "benchmark.csv", rows)
    channels = Backend(source).model.yaml.get("ch", 3)
    race(rows, (opt.batch_size, channels, *[round_up(opt.imgsz, 32)] * 2), opt)
    write_csv(folder / "benchmark.csv", rows)
    title = f"{source.name}, {opt.imgsz} px, batch {opt.batch_size}, {opt.device}"
    as_figure(rows, title).savefig(folder / "benchmark.png", dpi=130)
    print(as_table(rows), flush=True)
    LOGGER.info(
        f"accuracy: the val split in frames of {opt.imgsz} x {opt.imgsz} pixels, as by val.py --task benchmark; "
        "of square images those of val.py --pad 0 too"
    )
    LOGGER.info(f"results in {folder}")
    return rows


def write_csv(path: Path, rows: list[Row]) -> None:
    """Writes the rows that are done; a run that is stopped leaves them."""
    from utils.files import atomic_write

    with atomic_write(path, "w") as file:
        file.write(as_csv(rows))


def main(opt: cli.Options) -> None:
    """Runs the command line."""
    LOGGER.info(cli.describe("benchmark_formats", opt))
    _run(opt)


if __name__ == "__main__":
    cli.run(main, parse_opt, "benchmark_formats")
