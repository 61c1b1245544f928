"""Measures the cost of starting: detect.py on one image as a whole process, against `import torch` alone.

    python benchmarks/bench_start.py                                        # yolov5n with random weights, noise
    python benchmarks/bench_start.py --weights yolov5n.pt --image a.jpg     # others
    python benchmarks/bench_start.py --tree ../before                       # compares another checkout of this project

Processes alternate. Printed are medians of elapsed time, processor time and peak memory, and their ratios to the import
alone, which can be compared between machines. Further processes measure the time of each stage. README.md in this
folder keeps dated results.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MAKE = """
import sys; sys.path.insert(0, sys.argv[1])
import cv2, numpy, torch
from models.yolo import Model
from utils import checkpoint
folder = sys.argv[2]
cv2.imwrite(f"{folder}/noise.jpg", numpy.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=numpy.uint8))
checkpoint.save(f"{folder}/random.pt", checkpoint.pack(Model("yolov5n.yaml")))
"""
# Runs in a separate process: processor milliseconds and peak MiB at the end of each stage. A thread writes the results,
# and the last stage waits for it.
STAGES = """
import json, resource, sys, time; sys.path.insert(0, sys.argv[1])
def now(): return 1000 * time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
stages, modules = [("start of Python", *now())], {}
def stage(name): stages.append((name, *now()))
import torch; stage("import torch"); modules["torch"] = len(sys.modules)
import detect; from engine import detection; stage("import all else"); modules["all"] = len(sys.modules)
load, find, leave = detection.Backend.__init__, detection.Detector.__call__, detection.ResultWriter.__exit__
def timed(call, name):
    def wrapped(*args, **kwargs):
        result = call(*args, **kwargs); stage(name); return result
    return wrapped
detection.Backend.__init__ = timed(load, "weights: read, fuse")
detection.Detector.__call__ = timed(find, "frame, network, NMS")
detection.ResultWriter.__exit__ = timed(leave, "draw, write")
detect.run(sys.argv[2], sys.argv[3], project=sys.argv[4], exist_ok=True)
json.dump([stages, modules], sys.stdout)
"""


def measure(command: list[str], cwd: Path) -> tuple[float, float, float]:
    """Returns (elapsed seconds, processor seconds, peak MiB) of a process, or ValueError with its output."""
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        if status:
            log.seek(0)
            raise ValueError(f"{' '.join(command[:3])} failed: {log.read().decode(errors='replace')[-500:]}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def breakdown(tree: Path, weights: Path, image: Path, folder: str) -> tuple[dict[str, float], dict[str, float], dict]:
    """Returns processor milliseconds per stage of a run, peak MiB after each, and the numbers of imported modules."""
    command = [sys.executable, "-c", STAGES, str(tree), str(weights), str(image), folder]
    run = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True)
    stages, modules = json.loads(run.stdout)
    times = {name: after - before for (_, before, _), (name, after, _) in zip([("", 0, 0), *stages], stages)}
    return times, {name: peak for name, _, peak in stages}, modules


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help=".pt file (default: yolov5n with random weights)")
    parser.add_argument("--image", type=Path, help="image file (default: noise of 640 x 480 pixels)")
    parser.add_argument("--tree", type=Path, help="another checkout of this project, to compare with this one")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each process (default: %(default)s)")
    opt = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not (opt.weights and opt.image):
            subprocess.run([sys.executable, "-c", MAKE, str(ROOT), folder], check=True)
        weights = (opt.weights or Path(folder, "random.pt")).resolve()
        image = (opt.image or Path(folder, "noise.jpg")).resolve()
        arguments = ["--weights", str(weights), "--source", str(image), "--project", folder, "--exist-ok"]
        trees = {"detect.py": ROOT} | ({"detect.py of --tree": opt.tree.resolve()} if opt.tree else {})
        commands = {"import torch": ([sys.executable, "-c", "import torch"], ROOT)}
        commands |= {name: ([sys.executable, "detect.py", *arguments], tree) for name, tree in trees.items()}
        runs: dict[str, list] = {name: [] for name in commands}
        for _ in range(opt.repeats):
            for name, (command, cwd) in commands.items():
                runs[name].append(measure(command, cwd))
        medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in runs.items()}
        base = medians["import torch"]
        print("| process | elapsed, s | times | processor, s | times | peak, MiB |\n|---|--:|--:|--:|--:|--:|")
        for name, (wall, cpu, peak) in medians.items():
            print(f"| {name} | {wall:.2f} | {wall / base[0]:.2f} | {cpu:.2f} | {cpu / base[1]:.2f} | {peak:.0f} |")
        for name, tree in trees.items():
            several = [breakdown(tree, weights, image, folder) for _ in range(max(opt.repeats // 2, 1))]
            print(f"\n| {name}: stage | processor, ms | peak then, MiB |\n|---|--:|--:|")
            for stage in several[0][0]:
                print(
                    f"| {stage} | {statistics.median(times[stage] for times, _, _ in several):.0f} "
                    f"| {statistics.median(peaks[stage] for _, peaks, _ in several):.0f} |"
                )
            print(f"\nmodules: {several[0][2]['torch']} after import torch, {several[0][2]['all']} after all imports")


if __name__ == "__main__":
    main()
