"""v6.1's comparison of formats measures what tools/benchmark_formats.py measures."""

import subprocess
import sys
from pathlib import Path

from tools import benchmark_formats
from utils import benchmarks

ROOT = Path(__file__).resolve().parents[2]


def test_run_takes_v61s_arguments(monkeypatch):
    asked = []
    monkeypatch.setattr(benchmark_formats, "run", lambda **options: asked.append(options) or ["row"])
    assert benchmarks.run(Path("a.pt"), 320, 2, "my.yaml", include=["onnx"]) == ["row"]
    assert benchmarks.run(weights="a.pt", imgsz=64) == ["row"]
    assert asked == [
        {"weights": "a.pt", "imgsz": 320, "batch_size": 2, "data": "my.yaml", "include": ["onnx"]},
        {"weights": "a.pt", "imgsz": 64, "batch_size": 1},
    ]


def test_the_command():
    command = [sys.executable, "utils/benchmarks.py"]
    ended = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0 and "--imgsz" in ended.stdout, ended.stderr
    ended = subprocess.run([*command, "--weights", "none.pt"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode != 0 and "none.pt" in ended.stderr and "Traceback" not in ended.stderr
