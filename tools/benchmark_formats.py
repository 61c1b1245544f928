"""Size, accuracy and speed of a detector in every format that can be written and run here.

    python tools/benchmark_formats.py --weights best.pt --data my.yaml --img 640

Each is exported by export.py, which proves it, and measured by val.py. Then all run by turns on the same images, and
the median is their time. A table goes to the screen, a CSV file and a picture of the trade-off to runs/benchmark/exp.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from utils import cli  # noqa: E402

PRECISIONS = ("float32", "float16", "int8")


def parse_opt(known: bool = False) -> argparse.Namespace:
    """The command line; with `known` its defaults."""
    parser = argparse.ArgumentParser(description="Size, accuracy and speed of a detector in every format.")
    parser.add_argument("--weights", default=cli.WEIGHTS, help=".pt file")
    parser.add_argument("--data", default=cli.DATA, help="data set YAML (default: %(default)s)")
    parser.add_argument("--imgsz", "--img", "--img-size", type=int, default=640, help="side of the frame in pixels")
    parser.add_argument("--batch-size", type=int, default=1, help="images at a time (default: %(default)s)")
    parser.add_argument("--include", nargs="+", default=["all"], help="formats, as for export.py (default: all)")
    parser.add_argument(
        "--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS, help="that formats come in"
    )
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU number such as 0 (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="times that each format runs (default: %(default)s)")
    parser.add_argument("--cpu-seconds", action="store_true", help="processor time, for a machine with other work")
    cli.add_run_folder(parser, "runs/benchmark")
    return cli.parse(parser, known)


OPTIONS = parse_opt() if __name__ == "__main__" else None  # answers --help before torch is imported

import csv  # noqa: E402
import io  # noqa: E402
import shutil  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from statistics import median  # noqa: E402

import torch  # noqa: E402

import export  # noqa: E402
import val  # noqa: E402
from models.backend import Backend, find_weights  # noqa: E402
from utils.boxes import round_up  # noqa: E402
from utils.device import select_device  # noqa: E402
from utils.export.formats import ExportError, Format  # noqa: E402
from utils.files import atomic_write, increment_path  # noqa: E402
from utils.log import LOGGER  # noqa: E402
from utils.runtimes.table import runtime_for  # noqa: E402


@dataclass
class Row:
    """One format in one precision. Numbers are None where it failed."""

    name: str
    precision: str
    megabytes: float | None = None
    map50: float | None = None
    map: float | None = None  # mAP50-95
    milliseconds: float | None = None  # per image, of the network alone
    reason: str = ""  # why it failed
    file: Path | None = None


def variants(formats: list[Format], precisions) -> list[tuple[str, Format | None]]:
    """(precision, format) of all rows: PyTorch (None), then each format in what it honours."""
    honours = {"float32": lambda f: not f.integers, "float16": lambda f: f.half, "int8": lambda f: f.int8}
    chosen = [p for p in PRECISIONS if p in precisions]
    return [("float32", None), *((p, f) for f in formats for p in chosen if honours[p](f))]


def measure(row: Row, kind: Format | None, weights: Path, opt: argparse.Namespace) -> None:
    """Exports and validates; fills in the row."""
    file = weights
    try:
        if kind is not None:
            flags = {"half": row.precision == "float16", "int8": row.precision == "int8"}
            [made] = export.run(
                data=opt.data, weights=weights, imgsz=opt.imgsz, batch_size=opt.batch_size, device=opt.device,
                include=kind.argument, **flags,
            )  # fmt: skip
            file = Path(made)
            row.megabytes = export.megabytes(file)
            if reason := runtime_for(file).obstacle():
                row.reason = f"unrun: {reason}"
                return
        (_, _, row.map50, row.map, *_), _, _ = val.run(
            opt.data, file, opt.batch_size, opt.imgsz, task="benchmark", device=opt.device, workers=opt.workers,
            half=False, plots=False,
            project=weights.parent / "val", name=f"{row.name} {row.precision}",
        )  # fmt: skip
        row.megabytes = row.megabytes or export.megabytes(file)
        row.file = file
    except ExportError as error:
        LOGGER.warning(f"{row.name} {row.precision}: {error}")
        row.reason = str(error)


@torch.inference_mode()
def race(rows: list[Row], shape: tuple[int, ...], device: str, rounds: int, cpu: bool) -> None:
    """Fills in the time per image: each file on random images of this shape, by turns, the median of the rounds."""
    clock = time.process_time if cpu else time.perf_counter
    where = select_device(device)
    models = {row.name + row.precision: Backend(row.file, where).eval() for row in rows if row.file}
    images = torch.rand(shape, device=where, generator=torch.Generator(where).manual_seed(0))
    seconds: dict[str, list[float]] = {key: [] for key in models}
    for turn in range(rounds + 1):
        for key, model in models.items():
            start = clock()
            model(images.to(model.dtype))
            if where.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first allocates
                seconds[key].append(clock() - start)
    for row in rows:
        if row.file:
            row.milliseconds = 1000 * median(seconds[row.name + row.precision]) / len(images)


def as_table(rows: list[Row]) -> str:
    """The rows in Markdown. Times as fast: against the first row."""
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
    """The rows as CSV; empty where a format failed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["format", "precision", "megabytes", "map50", "map", "milliseconds", "reason"])
    for r in rows:
        writer.writerow([r.name, r.precision, r.megabytes, r.map50, r.map, r.milliseconds, r.reason])
    return text.getvalue()


def as_picture(rows: list[Row], title: str):
    """A figure: a line for each format, the fastest on top; its time, with its size as the area of a disc, and mAP."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    done = sorted((row for row in rows if row.milliseconds is not None), key=lambda row: -row.milliseconds)
    figure = Figure(figsize=(9, 1.6 + 0.3 * len(done)), layout="constrained")
    time, accuracy = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for precision, colour in {"float32": "#0072b2", "float16": "#e69f00", "int8": "#009e73"}.items():
        places = [i for i, row in enumerate(done) if row.precision == precision]
        if not places:
            continue
        look = {"color": colour, "alpha": 0.6, "edgecolors": "black", "linewidths": 0.8}
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
    accuracy.margins(x=0.2)
    accuracy.xaxis.set_major_locator(MaxNLocator(4))
    for axes in (time, accuracy):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    legend = time.legend(title="area: size of the file", loc="best")
    for handle in legend.legend_handles:
        handle.set_sizes([60])
    return figure


def run(**options) -> list[Row]:
    """Measures all formats, as the command line does; a format that fails has a row with the reason."""
    opt = cli.override(parse_opt(known=True), options)
    cli.check_range("--imgsz", opt.imgsz, 1)
    cli.check_range("--batch-size", opt.batch_size, 1)
    source = find_weights(opt.weights)
    asked = dict.fromkeys(("half", "int8", "nms", "train", "dynamic"), False)
    formats = export.choose_formats(opt.include, opt.data, **asked)
    folder = increment_path(Path(opt.project) / opt.name, opt.exist_ok, mkdir=True)
    weights = {}  # exports lie beside their weights; those of one precision do not replace those of another
    for precision in PRECISIONS:
        weights[precision] = folder / precision / source.name
        weights[precision].parent.mkdir(exist_ok=True)
        shutil.copyfile(source, weights[precision])
    rows = []
    with cli.stopped_by_signals():
        for precision, kind in variants(formats, opt.precisions):
            row = Row(kind.name if kind else "PyTorch", precision)
            rows.append(row)
            measure(row, kind, weights[precision], opt)
            with atomic_write(folder / "benchmark.csv", "w") as file:
                file.write(as_csv(rows))
    channels = Backend(source).model.yaml.get("ch", 3)
    shape = opt.batch_size, channels, *([round_up(opt.imgsz, 32)] * 2)
    race(rows, shape, opt.device, opt.rounds, opt.cpu_seconds)
    with atomic_write(folder / "benchmark.csv", "w") as file:
        file.write(as_csv(rows))
    as_picture(rows, f"{source.name}, {opt.imgsz} px, batch {opt.batch_size}, {opt.device}").savefig(
        folder / "benchmark.png", dpi=130
    )
    print(as_table(rows), flush=True)
    LOGGER.info(f"results in {folder}")
    return rows


def main(opt: argparse.Namespace) -> None:
    """The command line."""
    LOGGER.info(cli.describe("benchmark_formats", opt))
    run(**vars(opt))


if __name__ == "__main__":
    cli.run(main, OPTIONS, "benchmark_formats")
