"""The comparison of export formats under v6.1's name; see tools/benchmark_formats.py, which also has more options."""

import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])


def run(weights: Any = "yolov5s.pt", imgsz: int = 640, batch_size: int = 1, data: Any = None, **options: Any) -> list:
    """Returns a row per format: its size, accuracy and speed, or the reason why it cannot be measured here."""
    from tools.benchmark_formats import run as measure

    given = {} if data is None else {"data": str(data)}
    return measure(weights=str(weights), imgsz=imgsz, batch_size=batch_size, **given, **options)


if __name__ == "__main__":
    from tools import benchmark_formats
    from utils import cli

    cli.run(benchmark_formats.main, benchmark_formats.parse_opt, "utils/benchmarks.py")
