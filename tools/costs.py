"""Measures what a model costs: time and memory of a training step and of inference, models in turn in one process.

tools/ablate.py and the programs in benchmarks/ import it; it is not a program of its own.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from models.yolo import Model
from utils.activations import out_of_place
from utils.training.ema import ModelEMA
from utils.training.loss import ComputeLoss
from utils.training.optimizer import build_optimizer

HYP = {"box": 0.05, "cls": 0.5, "cls_pw": 1.0, "obj": 1.0, "obj_pw": 1.0, "anchor_t": 4.0, "fl_gamma": 0.0}
BOXES = 8  # per image of a training step


def wait(device: torch.device) -> None:
    """Waits until the device has done all work so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PairedTimer:
    """Times several functions in turn, round after round, so that a busy machine slows all of them alike.

    cpu_seconds: count the CPU time of this process instead of the time on the clock. With one thread that leaves out
    what other programs do meanwhile; with several threads it also counts their waiting for each other.
    """

    def __init__(self, device: torch.device, rounds: int, cpu_seconds: bool):
        self.device, self.rounds, self.cpu_seconds = device, rounds, cpu_seconds
        self._now = time.process_time if cpu_seconds else time.perf_counter

    def __call__(self, functions: dict[str, Callable[[], None]], times: int = 1) -> dict[str, float]:
        """Returns the median seconds of each function in rounds * times rounds, after an untimed one."""
        seconds = {name: [] for name in functions}
        for k in range(self.rounds * times + 1):
            for name, run in functions.items():
                wait(self.device)
                start = self._now()
                run()
                wait(self.device)
                if k:
                    seconds[name].append(self._now() - start)
        return {name: statistics.median(values) for name, values in seconds.items()}


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Returns the maximum number of bytes of tensors held during `run`, less those held before it."""
    if device.type == "cuda":
        wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or the profiler reports that it finds no GPU
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = peak = 0
    # allocations and releases, in the order of time
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def training_step(
    model: Model, device: torch.device, batch: int, size: int, channels_last: bool = True
) -> Callable[[], None]:
    """Returns a function that takes one step of training, as train.py does, on fixed random images.

    A step is forward, loss, backward, optimizer and moving average; in mixed precision on CUDA.

    Args:
        model: moved to the device and changed by each step.
        batch, size: number of images, and their side in pixels.
        channels_last: as train.py, which also keeps SiLU from working in place; False leaves both as a new model has
            them.
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, model.yaml["ch"], size, size, generator=generator)
    images = images.to(device, memory_format=memory_format)
    targets = torch.rand(batch * BOXES, 6, generator=generator)
    targets[:, 0] = torch.arange(batch * BOXES) % batch
    targets[:, 1] = (targets[:, 1] * model.yaml["nc"]).floor()
    targets[:, 4:] = targets[:, 4:] * 0.3 + 0.02
    targets = targets.to(device)
    model.to(device, memory_format=memory_format).train()
    if channels_last:
        out_of_place(model)
    compute_loss, ema = ComputeLoss(model.model[-1], HYP), ModelEMA(model)
    optimizer = build_optimizer(model, "SGD", 1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def step() -> None:
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            loss = compute_loss(model(images), targets)[0]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ema.update(model)

    return step


def inference(model: Model, device: torch.device, size: int) -> Callable[[], None]:
    """Returns a function that runs one image of size x size through the fused model, in half precision on CUDA."""
    image = torch.rand(1, model.yaml["ch"], size, size).to(device, memory_format=torch.channels_last)
    model.to(device, memory_format=torch.channels_last).eval().fuse()
    if device.type == "cuda":
        model.half()
        image = image.half()

    def run() -> None:
        with torch.no_grad():
            model(image)

    return run


def machine(device: torch.device) -> str:
    """Returns one line about the processor, the threads and the load that times are measured with."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{_processor()}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}{load}"


def _processor() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if "model name" in line:
                return line.split(":")[1].strip()
    return platform.machine()
