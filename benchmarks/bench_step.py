"""What a training step costs: as train.py takes it, or with contiguous tensors and activations in place.

    python benchmarks/bench_step.py                    # CPU, two threads: batch 8 at 640 px, batch 16 at 320 px
    python benchmarks/bench_step.py --device cuda      # also images/s and peak memory at batch 64, mixed precision

A step is forward, loss, backward, optimizer and moving average, in training mode. The forms are timed in turn in one
process; quoted are medians. README.md beside this file keeps dated results.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from models.yolo import Model
from tools.costs import HYP, Timer, machine
from utils.activations import out_of_place
from utils.training.ema import ModelEMA
from utils.training.loss import ComputeLoss
from utils.training.optimizer import build_optimizer

CASES = [(8, 640), (16, 320)]  # batch, pixels
CUDA_CASE = (64, 640)


def make_step(name: str, device: torch.device, batch: int, size: int, ours: bool = True) -> Callable[[], None]:
    """A function that takes one training step of a model YAML on fixed random images with eight boxes each.

    ours: as train.py does it, channels last and activations out of place; else contiguous and in place.
    """
    memory_format = torch.channels_last if ours else torch.contiguous_format
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, size, size, generator=generator).to(device, memory_format=memory_format)
    targets = torch.rand(batch * 8, 6, generator=generator)
    targets[:, 0] = torch.arange(batch * 8) % batch
    targets[:, 1] = (targets[:, 1] * 80).floor()
    targets[:, 4:] = targets[:, 4:] * 0.3 + 0.02
    targets = targets.to(device)
    model = Model(name).to(device, memory_format=memory_format).train()
    if ours:
        out_of_place(model)
    compute_loss, ema = ComputeLoss(model.model[-1], HYP), ModelEMA(model)
    optimizer = build_optimizer(model, "SGD", 1e-4)
    mixed = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=mixed)

    def step() -> None:
        with torch.autocast(device.type, enabled=mixed):
            loss, _ = compute_loss(model(images), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ema.update(model)

    return step


def main() -> None:
    """Command line: print the tables."""
    parser = argparse.ArgumentParser(description="Time training steps.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=5, help="timed repetitions of each form")
    opt = parser.parse_args()
    torch.set_num_threads(opt.threads)
    logging.getLogger("yolov5").setLevel(logging.WARNING)
    device = torch.device(opt.device)
    timer = Timer(device, opt.rounds, cpu_seconds=False)

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
