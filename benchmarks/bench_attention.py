"""Measures the cost of the attention blocks: each on one map, and in a detector.

    python benchmarks/bench_attention.py --threads 1 --cpu-seconds      # on a machine that runs other programs too
    python benchmarks/bench_attention.py --device cuda                  # batch 16; the detectors under mixed precision
    python benchmarks/bench_attention.py --quick                        # three runs of each form, no detectors

The first table: forward and backward of every block on the maps of yolov5s at 640 px, in turn, and beside them the
usual way to compute SOCA (bench_soca.py), where its centring matrices of M x M fit. The second: a training step of
yolov5s with a block after every C3, and the maximum memory that its process ever held.
README.md in this folder keeps dated results.
"""

import argparse
import logging
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # silences the profiler
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench_soca import UsualSOCA

from models.common import SOCA
from models.insert import parse_attention
from models.registry import keeps_channels, registered
from models.yolo import Model
from tools.costs import PairedTimer, machine, peak_bytes, training_step

BLOCKS = {block.__name__: block for block in registered(planned_by=keeps_channels)}
BLOCKS["SOCA, other form"] = partial(SOCA, unit="own", start="half", rate=0.1)
MAPS = {"P2": (64, 160), "P3": (128, 80), "P4": (256, 40), "P5": (512, 20)}  # channels and side, yolov5s at 640 px
DETECTORS = ("none", "SE@C3", "SOCA@P5", "SOCA@C3")
LIMIT = 2.0  # GiB of centring matrices; above it the usual way is left out


def bench_map(level: str, batch: int, device: torch.device, timer: PairedTimer) -> list[str]:
    """Returns the rows of the first table: every block on one map."""
    C, side = MAPS[level]
    torch.manual_seed(0)
    x = torch.randn(batch, C, side, side).to(device).requires_grad_()
    grad = torch.randn(batch, C, side, side).to(device)
    blocks = {name: block(C).to(device) for name, block in BLOCKS.items()}
    centring = batch * side**4 * 4 / 2**30
    if centring <= LIMIT:
        blocks["SOCA, the usual way"] = UsualSOCA(blocks["SOCA"], by_hand=True)

    def ahead(block):
        with torch.no_grad():
            block(x)

    def both(block):
        torch.autograd.grad(block(x), [x, *block.parameters()], grad)

    forward = timer({name: lambda b=block: ahead(b) for name, block in blocks.items()})
    whole = timer({name: lambda b=block: both(b) for name, block in blocks.items()})
    rows = []
    for name, block in blocks.items():
        peak = peak_bytes(lambda b=block: both(b), device) / x.nbytes - 2  # without the output and the input gradient
        count = sum(p.numel() for p in block.parameters())
        rows.append(
            f"| {level} {batch} x {C} x {side} x {side} | {name} | {count:,} | {forward[name] * 1e3:.1f} "
            f"| {whole[name] * 1e3:.1f} | {whole[name] / whole['SE']:.1f} | {peak:.1f} |"
        )
    if centring > LIMIT:
        rows.append(f"| {level} | SOCA, the usual way | | not run: centring matrices of {centring:.1f} GiB | | | |")
    return rows


# --- detectors --------------------------------------------------------------------------------------------------------


def one_detector(attention: str, batch: int, device: torch.device) -> None:
    """Takes three training steps of yolov5s at 640 px and prints their peak memory in MiB."""
    model = Model("yolov5s.yaml", insert=parse_attention(attention))
    step = training_step(model, device, batch, 640)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for _ in range(3):
        step()
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated(device) / 2**20)
    else:  # without the memory of the interpreter and its libraries
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)


def bench_detectors(batch: int, device: torch.device, timer: PairedTimer, threads: int) -> list[str]:
    """Returns the rows of the second table: peaks of a process each, and times of alternating steps in this process."""
    peaks = {}
    for name in DETECTORS:
        command = [sys.executable, __file__, "--peak", name, "--device", device.type, "--threads", str(threads)]
        output = subprocess.run([*command, "--batch", str(batch)], check=True, capture_output=True, text=True).stdout
        peaks[name] = float(output.split()[-1])
    steps = {}
    for name in DETECTORS:
        torch.manual_seed(0)
        steps[name] = training_step(Model("yolov5s.yaml", insert=parse_attention(name)), device, batch, 640)
    seconds = timer(steps)
    return [
        f"| {name} | {seconds[name] * 1e3:.0f} | {seconds[name] / seconds['none']:.3f} "
        f"| {peaks[name]:.0f} | {peaks[name] / peaks['none']:.3f} |"
        for name in DETECTORS
    ]


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description="Time attention blocks against each other.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU (default: %(default)s)")
    parser.add_argument(
        "--batch", type=int, help="images per call (default: 2 for a block, 4 for a detector; 16 on CUDA)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each form (default: %(default)s)")
    parser.add_argument("--cpu-seconds", action="store_true", help="measure processor time instead of elapsed time")
    parser.add_argument("--quick", action="store_true", help="three runs of each form, and no detectors")
    parser.add_argument("--only", choices=("maps", "detectors"), help="print one of the two tables")
    parser.add_argument("--peak", metavar="BLOCK@PLACE", help=argparse.SUPPRESS)
    opt = parser.parse_args()
    torch.set_num_threads(opt.threads)
    logging.getLogger("yolov5").setLevel(logging.WARNING)  # no tables of layers
    device = torch.device(opt.device)
    cuda = device.type == "cuda"
    if opt.peak:
        one_detector(opt.peak, opt.batch, device)
        return
    timer = PairedTimer(device, 3 if opt.quick else opt.rounds, opt.cpu_seconds)
    clock = "CPU seconds" if opt.cpu_seconds else "wall clock"
    print(f"{machine(device)}, medians of {timer.rounds}, {clock}\n")
    tables = (opt.only,) if opt.only else ("maps",) if opt.quick else ("maps", "detectors")
    if "maps" in tables:
        print("| N x C x H x W | block | parameters | forward, ms | with backward, ms | times SE | peak, NCM floats |")
        print("|---|---|--:|--:|--:|--:|--:|")
        for level in MAPS:
            print("\n".join(bench_map(level, opt.batch or (16 if cuda else 2), device, timer)), flush=True)
    if "detectors" in tables:
        batch = opt.batch or (16 if cuda else 4)
        print(f"\n| yolov5s, 640 px, batch {batch} | training step, ms | ratio | peak, MiB | ratio |")
        print("|---|--:|--:|--:|--:|")
        print("\n".join(bench_detectors(batch, device, timer, opt.threads)))


if __name__ == "__main__":
    main()
