"""Measures the cost of a training step: train.py's, and one with contiguous tensors and activations in place.

    python benchmarks/bench_step.py                    # CPU, two threads: batch 8 at 640 px, batch 16 at 320 px
    python benchmarks/bench_step.py --device cuda      # also images/s and peak memory at batch 64, mixed precision

A step is forward, loss, backward, optimizer and moving average, in training mode. The forms alternate in one process,
and medians are printed. README.md in this folder keeps dated results.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from models.yolo import Model
from tools.costs import PairedTimer, machine, training_step

CASES = [(8, 640), (16, 320)]  # batch, pixels
CUDA_CASE = (64, 640)


def make_step(name: str, device: torch.device, batch: int, size: int, ours: bool = True) -> Callable[[], None]:
    """Returns a function that takes one training step of a model YAML, see `training_step`."""
    torch.manual_seed(0)
    return training_step(Model(name), device, batch, size, channels_last=ours)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="Time training steps.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each form (default: %(default)s)")
    opt = parser.parse_args()
    torch.set_num_threads(opt.threads)
    logging.getLogger("yolov5").setLevel(logging.WARNING)
    device = torch.device(opt.device)
    timer = PairedTimer(device, opt.rounds, cpu_seconds=False)

    print(f"{machine(device)}, medians of {opt.rounds}\n")
    print("| model | batch, pixels | contiguous, ms | ours, ms | times faster |\n|---|---|--:|--:|--:|")
    for batch, size in CASES:
        for name in ("yolov5s.yaml", "SOCA.yaml"):
            steps = {form: make_step(name, device, batch, size, form == "ours") for form in ("contiguous", "ours")}
            ms = {form: seconds * 1e3 for form, seconds in timer(steps).items()}
            ratio = ms["contiguous"] / ms["ours"]
            row = f"| {name} | {batch}, {size} | {ms['contiguous']:.0f} | {ms['ours']:.0f} | {ratio:.2f} |"
            print(row, flush=True)

    if device.type == "cuda":
        batch, size = CUDA_CASE
        print("\n| model | images/s | peak memory, GiB |\n|---|--:|--:|")
        steps, peaks = {}, {}
        for name in ("yolov5s.yaml", "SOCA.yaml"):
            torch.cuda.reset_peak_memory_stats(device)
            held = torch.cuda.memory_allocated(device)
            steps[name] = make_step(name, device, batch, size)
            steps[name]()
            peaks[name] = (torch.cuda.max_memory_allocated(device) - held) / 2**30
        for name, seconds in timer(steps, 4).items():
            print(f"| {name} | {batch / seconds:.0f} | {peaks[name]:.1f} |")


if __name__ == "__main__":
    main()
