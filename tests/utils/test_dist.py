"""What torchrun says in the environment, and a group of one process; two are in test_training_distributed.py."""

import socket

import pytest
import torch

from utils import dist

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_outside_torchrun():
    assert (dist.rank(), dist.local_rank(), dist.world_size(), dist.is_main()) == (-1, -1, 1, True)


@pytest.mark.parametrize(("rank", "local_rank", "main"), [(0, 0, True), (1, 1, False), (2, 0, False)])
def test_under_torchrun(monkeypatch, rank, local_rank, main):
    """Of two processes on each of two machines; the third is the first of its machine, but writes nothing."""
    for name, value in (("RANK", rank), ("LOCAL_RANK", local_rank), ("WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))
    assert (dist.rank(), dist.local_rank(), dist.world_size(), dist.is_main()) == (rank, local_rank, 4, main)


@pytest.fixture
def group(monkeypatch):
    """A group of one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in zip(VARIABLES, ("0", "0", "1", "0", "127.0.0.1", str(port))):
        monkeypatch.setenv(name, value)
    group = dist.Group("gloo")
    yield group
    if torch.distributed.is_initialized():
        group.close()


def test_a_group_of_one(group):
    assert (group.rank, group.world_size) == (0, 1)
    assert group.decide("epochs", "12") == "12" and group.decide("größer") == ""
    done = []
    for key in ("scan", "scan again"):
        with group.first_on_each_machine(key):
            done.append(key)
    assert done == ["scan", "scan again"]
    values = torch.tensor([1.0, -2.0], requires_grad=True)
    mean = group.average(values.detach())
    assert mean.tolist() == [1, -2] and mean.data_ptr() != values.data_ptr()
    group.close()
    assert not torch.distributed.is_initialized()


def test_an_error_of_the_first_process_is_not_taken_for_done(group):
    with pytest.raises(ValueError), group.first_on_each_machine("scan"):
        raise ValueError("a broken data set")
    assert not group._store.check(["scan/0"])  # the others wait on, and torchrun ends them
