"""What a model costs: time and memory of a training step and of inference, models in turn in one process.

For benchmarks/ and tools/ablate.py; no program of its own.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler is silent
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.yolo import Model
from utils.activations import out_of_place
from utils.training.loss import ComputeLoss

HYP = {"box": 0.05, "cls": 0.5, "cls_pw": 1.0, "obj": 1.0, "obj_pw": 1.0, "anchor_t": 4.0, "fl_gamma": 0.0}


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Timer:
    """Medians of forms run in turn.

    cpu_seconds: count the CPU's work, not the clock on the wall. With one thread that leaves out what a busy machine
    does meanwhile; with several it counts their waiting for each other as well.
    """

    def __init__(self, device: torch.device, rounds: int, cpu_seconds: bool):
        self.device, self.rounds = device, rounds
        self.now = time.process_time if cpu_seconds else time.perf_counter

    def __call__(self, forms: dict[str, Callable[[], None]], times: int = 1) -> dict[str, float]:
        """Median seconds of each form in rounds * times rounds, after an untimed one."""
        seconds = {name: [] for name in forms}
        for k in range(self.rounds * times + 1):
            for name, run in forms.items():
                wait(self.device)
                start = self.now()
                run()
                wait(self.device)
                if k:
                    seconds[name].append(self.now() - start)
        return {name: statistics.median(values) for name, values in seconds.items()}


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Bytes of tensors held at the worst moment of `run` on top of what was there before."""
    if device.type == "cuda":
        wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = peak = 0
    # allocations and releases, in the order of time
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def training_step(model: Model, device: torch.device, batch: int, size: int) -> Callable[[], None]:
    """A function that takes one step of training on fixed random images, as train.py does; mixed precision on CUDA."""
    nc = model.yaml["nc"]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, model.yaml["ch"], size, size, generator=generator)
    images = images.to(device, memory_format=torch.channels_last)
    targets = torch.rand(batch * 8, 6, generator=generator)
    targets[:, 0] = torch.arange(batch * 8) % batch
    targets[:, 1] = (targets[:, 1] * nc).floor()
    targets[:, 4:] = targets[:, 4:] * 0.3 + 0.02
    targets = targets.to(device)
    model.to(device, memory_format=torch.channels_last).train()
    out_of_place(model)
    compute_loss = ComputeLoss(model.model[-1], HYP)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def step() -> None:
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            loss = compute_loss(model(images), targets)[0]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def inference(model: Model, device: torch.device, size: int) -> Callable[[], None]:
    """A function that runs one image through the fused model, in half precision on CUDA."""
    image = torch.rand(1, model.yaml["ch"], size, size).to(device, memory_format=torch.channels_last)
    model.to(device, memory_format=torch.channels_last).eval().fuse()
    half = device.type == "cuda"
    if half:
        model.half()
        image = image.half()

    def run() -> None:
        with torch.no_grad():
            model(image)

    return run


def machine(device: torch.device) -> str:
    """One line: what this was measured on."""
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
