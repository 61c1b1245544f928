"""Devices by name, on machines that are made up: no GPU is needed."""

from types import SimpleNamespace

import pytest
import torch

from utils.device import Timer, mixed_precision, select_device


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(n)`: a machine with n CUDA GPUs; returns the list of devices that were made current."""

    def make(number: int) -> list[torch.device]:
        current = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        properties = SimpleNamespace(name="a GPU", total_memory=2**33)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        return current

    return make


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "cuda:0"),
        ("0", "cuda:0"),
        ("1", "cuda:1"),
        ("cuda:1", "cuda:1"),
        (1, "cuda:1"),
        ("1,0", "cuda:1"),
        ("cuda", "cuda:0"),
        (torch.device("cuda"), "cuda:0"),
        (torch.device("cuda", 1), "cuda:1"),
        ("cuda:0,1", "cuda:0"),
    ],
)
def test_the_chosen_gpu_becomes_the_current_one(gpus, name, expected):
    """Calls that name no device read the current one, such as those for memory and time."""
    current = gpus(2)
    assert select_device(name, batch_size=4) == torch.device(expected)
    assert current == [torch.device(expected)]


@pytest.mark.parametrize(("name", "number"), [("cpu", 2), ("", 0), ("none", 0), (torch.device("cpu"), 2)])
def test_the_cpu_makes_no_gpu_current(gpus, name, number):
    current = gpus(number)
    assert select_device(name) == torch.device("cpu") and not current


def test_each_process_of_torchrun_takes_its_own_gpu(gpus, monkeypatch):
    current = gpus(4)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [str(select_device(name, 4)) for name in ("", "2,3")] == ["cuda:1", "cuda:3"]
    assert list(map(str, current)) == ["cuda:1", "cuda:3"]
    with pytest.raises(ValueError, match=r"--device 0 must list a GPU for each process of torchrun .* got 1 and at"):
        select_device("0")


@pytest.mark.parametrize(
    ("name", "number", "says"),
    [
        ("2", 2, "--device 2: this machine has the GPUs 0 to 1; use one of them"),
        ("cuda", 0, "--device 0: torch finds no CUDA GPU here; use --device cpu"),
        ("0", 0, "--device 0: torch finds no CUDA GPU here; use --device cpu"),
        ("first", 2, "--device must be cpu, mps or GPU numbers such as 0 or 0,1, got 'first'"),
        ("0,1", 2, "--batch-size 3 must be a multiple of the 2 GPUs of --device 0,1"),
    ],
)
def test_a_device_that_is_not_there(gpus, name, number, says):
    current = gpus(number)
    with pytest.raises(ValueError) as error:
        select_device(name, batch_size=3)
    assert str(error.value) == says and not current


def test_a_timer_waits_for_its_own_gpu(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    with Timer("cuda:1"), Timer("cpu"):
        pass
    assert waited == [torch.device("cuda:1")] * 2


def test_mixed_precision():
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    assert [mixed_precision("auto", device) for device in (cpu, gpu)] == [None, torch.float16]
    assert [mixed_precision(name, cpu) for name in ("bf16", "off")] == [torch.bfloat16, None]
    with pytest.raises(ValueError, match="--amp fp16 needs a CUDA GPU, but training runs on cpu; use bf16 or off"):
        mixed_precision("fp16", cpu)
