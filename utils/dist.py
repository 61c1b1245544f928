"""The processes of a torchrun launch: their numbers, from environment variables, and what they share."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FOREVER = timedelta(days=30)  # how long processes wait for the first one, whose scan or validation may take long


def rank() -> int:
    """Returns the number of this process among those of all machines; -1 outside torchrun."""
    return int(os.environ.get("RANK", -1))


def local_rank() -> int:
    """Returns the number of this process among those of its machine; -1 outside torchrun."""
    return int(os.environ.get("LOCAL_RANK", -1))


def world_size() -> int:
    """Returns the number of processes on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Returns True in the first process, the only one that writes files and logs."""
    return rank() in (-1, 0)


# --- processes that share work without a group ------------------------------------------------------------------------


def agree(value: Callable[[], str]) -> str:
    """Returns on every process of a torchrun launch what `value` returns on the first one, once all have received it.

    Raises ValueError where no environment variables say how the processes reach each other.
    """
    store, rank, processes = _rendezvous()
    if rank == 0:
        store.set("agreed", value())
    agreed = store.get("agreed").decode()
    if store.add("received", 1) == processes:
        store.set("all received", "")
    store.wait(["all received"])  # the first process may hold the store, so it must not end before
    return agreed


@cache  # kept until the process ends: others may still need it
def _rendezvous():
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(
            f"{world_size()} processes need {' and '.join(missing)} in the environment to reach each other: start them "
            "with torchrun, or give all of them the same --resume FOLDER"
        )
    import torch.distributed as dist

    store, rank, processes = next(dist.rendezvous("env://"))
    store.set_timeout(FOREVER)
    return store, rank, processes


# --- processes that train together ------------------------------------------------------------------------------------


class Group:
    """The processes of a torchrun launch. They share gradients through torch.distributed, decisions through its store.

    Waiting for a value in the store is not a collective operation, so no timeout of the backend runs meanwhile. Where
    a process fails, torchrun ends the others.
    """

    def __init__(self, backend: str):
        import torch.distributed as dist

        store, self.rank, self.world_size = next(dist.rendezvous("env://"))
        store.set_timeout(FOREVER)
        self.node = os.environ.get("GROUP_RANK", "0")
        self._store = dist.PrefixStore("yolov5", store)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size)

    def decide(self, key: str, value: str = "") -> str:
        """Returns the first process's value of `key` on every process; the others wait for it. A key is used once."""
        if self.rank == 0:
            self._store.set(key, value)
        return self._store.get(key).decode()

    @contextmanager
    def first_on_each_machine(self, key: str) -> Iterator[None]:
        """Runs the block in the first process of each machine before the others run it."""
        key = f"{key}/{self.node}"
        if local_rank() != 0:
            self._store.wait([key], FOREVER)
        yield
        if local_rank() == 0:
            self._store.set(key, "done")

    def average(self, values: "torch.Tensor") -> "torch.Tensor":
        """Returns the mean of `values` over all processes, as a new tensor."""
        import torch.distributed as dist

        total = values.clone()
        dist.all_reduce(total)
        return total / self.world_size

    def close(self) -> None:
        """Leaves the group once all processes call this."""
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()
