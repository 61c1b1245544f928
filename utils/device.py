"""Chooses the device, and takes the time on it."""

import os
import time

import torch

from utils.dist import local_rank
from utils.files import GIB
from utils.log import LOGGER


def select_device(name: str | int | torch.device = "", batch_size: int = 0) -> torch.device:
    """Returns the device that `--device` names. A CUDA GPU also becomes the current one of torch.

    Args:
        name: "" is the first CUDA GPU where there is one, else the CPU; "cpu"; "mps"; "cuda"; a GPU as "0" or "cuda:0";
            or a torch.device. Of
            several GPUs, "0,1", this process takes the first; under torchrun the one of its local rank, and "" is all.
        batch_size: must be a multiple of the number of GPUs where several are listed.

    Raises ValueError for a name that is none of these, and for a device that this machine does not have.
    """
    name = str(name).strip().lower().replace("cuda:", "").replace("none", "").replace(" ", "")
    if name == "cpu" or (name == "" and not torch.cuda.is_available()):
        device = torch.device("cpu")
    elif name == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("--device mps: this machine has no Metal device; use --device cpu")
        device = torch.device("mps")
    else:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        anyone = name in ("", "cuda")
        device = _select_cuda(",".join(map(str, range(processes))) if anyone else name, batch_size)
        torch.cuda.set_device(device)  # for calls that name no device, such as those that read memory or wait
    detail = f"{torch.get_num_threads()} threads"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        detail = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB"
    LOGGER.info(f"torch {torch.__version__}, {device} ({detail})")
    return device


def _select_cuda(numbers: str, batch_size: int) -> torch.device:
    ids = numbers.split(",")
    if not all(i.isdecimal() for i in ids):
        raise ValueError(f"--device must be cpu, mps or GPU numbers such as 0 or 0,1, got {numbers!r}")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    missing = [i for i in ids if int(i) >= available]
    if missing:
        fact = f"this machine has the GPUs 0 to {available - 1}" if available else "torch finds no CUDA GPU here"
        raise ValueError(f"--device {numbers}: {fact}; use {'one of them' if available else '--device cpu'}")
    if len(ids) > 1 and batch_size % len(ids):
        raise ValueError(f"--batch-size {batch_size} must be a multiple of the {len(ids)} GPUs of --device {numbers}")
    process = max(local_rank(), 0)
    if process >= len(ids):
        raise ValueError(
            f"--device {numbers} must list a GPU for each process of torchrun on this machine, got {len(ids)} and at "
            f"least {process + 1} processes; list more GPUs, or lower --nproc-per-node"
        )
    return torch.device(f"cuda:{int(ids[process])}")


def mixed_precision(name: str, device: torch.device) -> torch.dtype | None:
    """Returns the type that `--amp` asks autocast for, None for float32 alone; "auto" is fp16 on CUDA, off elsewhere.

    Raises ValueError for fp16 where there is no CUDA GPU.
    """
    if name == "auto":
        name = "fp16" if device.type == "cuda" else "off"
    if name == "fp16" and device.type != "cuda":
        raise ValueError(f"--amp fp16 needs a CUDA GPU, but training runs on {device.type}; use bf16 or off")
    return {"fp16": torch.float16, "bf16": torch.bfloat16, "off": None}[name]


class Timer:
    """A stopwatch that adds up the seconds spent inside `with timer:`; on CUDA it waits for the GPU first."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.total = 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def start(self) -> None:
        """Starts the watch; returns nothing, as a hook of torch must."""
        self._start = self._now()

    def stop(self) -> float:
        """Stops the watch and returns the seconds since `start`."""
        self.last = self._now() - self._start
        self.total += self.last
        return self.last

    def __enter__(self) -> "Timer":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()


_NO_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc")  # torch on the CPU, and C++ libraries


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception says that memory ran out, which on the CPU is a plain RuntimeError of torch."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)
